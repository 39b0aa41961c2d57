"""Measure a model on rows: loss by teacher forcing, and metrics on answers that it generates."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from microplane.config.knobs import EvalKnobs, GenerateKnobs
from microplane.data.progress import Progress
from microplane.data.reading.example import Message
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.evaluation import label_metrics
from microplane.evaluation import text_metrics as metrics
from microplane.inference.generate import generate
from microplane.inference.limits import check_limits, tell_cut
from microplane.models.contract import Model, in_eval_mode
from microplane.objectives.base import AnyObjective, B, ByClass, Measured, Objective
from microplane.objectives.collate import for_each_batch
from microplane.training.monitor import ValidationLoss
from microplane.training.ranks import ALONE, Ranks

LEAST_BATCHES = 10


def validation_loss(
    objective: Objective[B],
    model: nn.Module,
    dataset: Dataset,
    batch_tokens: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    least_batches: int = LEAST_BATCHES,
) -> ValidationLoss:
    """The mean loss of all items that the objective counts in `dataset` (target tokens, rows, labelled tokens); always
    in the same order, so always the same bits.

    Args:
        batch_tokens: tokens computed at once, at most.
        ranks: who compute it together, batch by batch in turn, and all get it.
        least_batches: into how many the rows are cut at least, so that groups of rows can be compared.
    """
    sums, ours = list[tuple[float, int]](), cast(Model, model)

    def add(indices: list[int], batch: B) -> None:
        sums.append((objective.loss(ours, batch).item(), batch.count))

    share = ranks.rank % ranks.size, ranks.size
    at_once = _at_once(dataset, batch_tokens, least_batches)
    total = for_each_batch(objective, ours, dataset, at_once, add, progress, share, ranks.sharded)
    every = ranks.each(sums)
    return ValidationLoss.of(every[number % ranks.size][number // ranks.size] for number in range(total))


def _at_once(dataset: Dataset, batch_tokens: int, least_batches: int = LEAST_BATCHES) -> int:
    """Tokens computed at once."""
    return min(batch_tokens, -(-int(dataset.lengths.sum()) // least_batches))


def evaluate_loss(
    objective: Objective[B],
    model: nn.Module,
    dataset: Dataset,
    batch_tokens: int,
    progress: Progress | None = None,
    least_batches: int = LEAST_BATCHES,
) -> float:
    """The mean of `validation_loss`, to the same bits."""
    return validation_loss(objective, model, dataset, batch_tokens, progress, ALONE, least_batches).mean


def template_frame(
    objective: AnyObjective, tokenizer: Tokenizer, template: str, system: str | None = None
) -> tuple[str, str]:
    """What the template and the run's own system prompt put before and behind a user's text, as it is shown: what two
    prompts share that differ in their only letter."""
    ids = [objective.prompt([Message("user", letter)], tokenizer, template, system) for letter in "ax"]
    one, other = (tokenizer.decode(prompt) for prompt in ids)
    before = os.path.commonprefix([one, other])  # noqa: RUF071 - of characters
    behind = os.path.commonprefix([one[::-1], other[::-1]])[::-1]  # noqa: RUF071
    return (before, behind) if one != other else ("", "")


def without_frame(prompt: str, frame: tuple[str, str]) -> str:
    """A prompt as its row has it. Nothing of the row is left out: one that begins or ends otherwise stays whole."""
    before, behind = frame
    if len(prompt) < len(before) + len(behind) or not (prompt.startswith(before) and prompt.endswith(behind)):
        return prompt
    return prompt[len(before) : len(prompt) - len(behind)]


@dataclass(frozen=True)
class Answers:
    """What a model answered to held-out rows."""

    indices: list[int]
    prompts: list[str]
    targets: list[str]
    texts: list[str]
    scores: dict[str, float]


def choose_rows(dataset: Dataset, count: int) -> list[int]:
    """`count` row numbers spread evenly over the data set."""
    count = min(count, len(dataset))
    return [round(i * len(dataset) / count) for i in range(count)] if count else []


def evaluate_answers(
    model: Any,
    tokenizer: Tokenizer,
    dataset: Dataset,
    indices: Sequence[int],
    knobs: EvalKnobs,
    stop_ids: Sequence[int],
    progress: Progress | None = None,
    frame: tuple[str, str] = ("", ""),
) -> Answers:
    """Generate greedily for the prompts of `indices` and score the answers against the rows' own.

    Args:
        frame: of the template, which is left out of the prompts that are shown.
    """
    pairs = [dataset.prompt_and_target(index) for index in indices]
    targets = [tokenizer.for_targets.decode(target) for _, target in pairs]
    prompts, answers = [prompt for prompt, _ in pairs], [target for _, target in pairs]
    texts = generated_texts(model, tokenizer, prompts, answers, knobs, stop_ids, progress)
    shown = [without_frame(tokenizer.decode(prompt), frame) for prompt in prompts]
    return Answers(list(indices), shown, targets, texts, metrics.score(knobs.metrics, texts, targets))


def answer_limit(targets: Sequence[Sequence[int]], knobs: EvalKnobs) -> int:
    """Tokens that an answer may have, where the right ones are these."""
    return knobs.max_new_tokens or max(16, 2 * max(map(len, targets)))


def generated_texts(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    targets: Sequence[list[int]],
    knobs: EvalKnobs,
    stop_ids: Sequence[int],
    progress: Progress | None = None,
) -> list[str]:
    """What the model writes behind each prompt, greedily, as long as the right answers at most allow."""
    generation = GenerateKnobs(max_new_tokens=answer_limit(targets, knobs))
    how = model, tokenizer.for_targets, list(prompts), generation, stop_ids
    with in_eval_mode(model):
        answers = generate(*how, progress=progress, fits=True)
    if asked := knobs.max_new_tokens:
        tell_cut(asked, check_limits(generation, prompts, model, given=False))
    return [answer.text for answer in answers]


@dataclass(frozen=True)
class _Judge:
    """See `objectives.base.Judge`."""

    objective: AnyObjective
    tokenizer: Tokenizer
    knobs: EvalKnobs
    stop_ids: Sequence[int]
    watch: Callable[[str], Progress]  # of "loss" or "answers"
    frame: Callable[[], tuple[str, str]]  # of the template around a user's text

    def each_batch(
        self, objective: Objective[B], model: Model, dataset: Dataset, visit: Callable[[list[int], B], None]
    ) -> None:
        at_once = _at_once(dataset, self.knobs.batch_tokens)  # as in `validation_loss`, so to the same bits
        for_each_batch(objective, model, dataset, at_once, visit, self.watch("loss"))

    def loss(self, model: Model, dataset: Dataset) -> float:
        return evaluate_loss(self.objective, model, dataset, self.knobs.batch_tokens, self.watch("loss"))

    def generated(self, model: Model, dataset: Dataset, rows: Sequence[int]) -> Measured:
        how = self.knobs, self.stop_ids, self.watch("answers"), self.frame()
        answers = evaluate_answers(model, self.tokenizer, dataset, rows, *how)
        return {
            "scores": answers.scores,
            "by_class": {},
            "prompts": answers.prompts,
            "targets": answers.targets,
            "texts": answers.texts,
        }

    def label_scores(self, task: str, predictions: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        return label_metrics.score(task, predictions, truths)

    def label_classes(
        self, task: str, predictions: Sequence[Any], truths: Sequence[Any], classes: Sequence[str]
    ) -> ByClass:
        return label_metrics.by_class(task, predictions, truths, classes)


def measure(
    objective: AnyObjective,
    model: Model,
    tokenizer: Tokenizer,
    dataset: Dataset,
    rows: Sequence[int],
    knobs: EvalKnobs,
    template: str,
    whose: str,
    progress: Callable[[str], Progress],
    system: str | None = None,
) -> Measured:
    """Loss on all rows of `dataset` and metrics of the answers to some of them: scores, prompts, targets, texts.

    Where a task head answers, which costs no more than the loss, the metrics are of all rows too.

    Args:
        template: of the answers, as the knob `data.template`.
        whose: what is measured, as the progress calls it.
        system: as the knob `data.system`.
    """
    stop_ids = objective.stop_ids(tokenizer, template)
    judge = _Judge(
        objective,
        tokenizer,
        knobs,
        stop_ids,
        lambda what: progress(f"{what} of the {whose}"),
        lambda: template_frame(objective, tokenizer, template, system),
    )
    return objective.measure(model, dataset, rows, judge)


def class_lines(found: ByClass) -> list[str]:
    """A line for each class, and for each kind of entity."""
    return [
        f"  {name}: precision {one['precision']:.1%}, recall {one['recall']:.1%}, f1 {one['f1']:.1%} ({one['rows']:,})"
        for scores in (found.get("classes", {}), found.get("entities", {}))
        for name, one in scores.items()
    ]


def describe_scores(scores: dict[str, float]) -> str:
    """One line: shares as percentages, the rest with three decimals; of a package's metric nobody knows that it is a
    share."""
    shares = {*metrics.SHARES, *label_metrics.SHARES}
    parts = [f"{name} {value:.1%}" if name in shares else f"{name} {_figure(value)}" for name, value in scores.items()]
    return ", ".join(parts)


def _figure(value: float) -> str:
    """With three decimals, or four digits where these are far from the point."""
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.4g}"
