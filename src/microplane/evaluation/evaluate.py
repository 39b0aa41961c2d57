"""Measure a model on rows: loss by teacher forcing, and metrics on answers that it generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from microplane.config.knobs import EvalKnobs, GenerateKnobs
from microplane.data.progress import Progress
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.evaluation import label_metrics
from microplane.evaluation import text_metrics as metrics
from microplane.inference.generate import generate
from microplane.models.contract import Model, in_eval_mode
from microplane.objectives.base import AnyObjective, B, ByClass, Measured, Objective
from microplane.objectives.collate import for_each_batch
from microplane.training.monitor import ValidationLoss

LEAST_BATCHES = 10


def validation_loss(
    objective: Objective[B], model: nn.Module, dataset: Dataset, batch_tokens: int, progress: Progress | None = None
) -> ValidationLoss:
    """The mean loss of all items that the objective counts in `dataset` (target tokens, rows, labelled tokens); always
    in the same order, so always the same bits. In `LEAST_BATCHES` batches at least, so that groups of rows can be
    compared.

    Args:
        batch_tokens: tokens computed at once, at most.
    """
    sums, ours = [], cast(Model, model)

    def add(indices: list[int], batch: B) -> None:
        sums.append((objective.loss(ours, batch).item(), batch.count))

    room = min(batch_tokens, -(-int(dataset.lengths.sum()) // LEAST_BATCHES))
    for_each_batch(objective, ours, dataset, room, add, progress)
    return ValidationLoss.of(sums)


def evaluate_loss(
    objective: Objective[B], model: nn.Module, dataset: Dataset, batch_tokens: int, progress: Progress | None = None
) -> float:
    """The mean of `validation_loss`, to the same bits."""
    return validation_loss(objective, model, dataset, batch_tokens, progress).mean


def without_frame(prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Prompts without the tokens with which all of them begin and end: the template, and a shared instruction."""
    if len(prompts) < 2:
        return list(prompts)
    shortest = min(len(prompt) for prompt in prompts)

    def shared(at: Callable[[int], int]) -> int:
        columns = ({prompt[at(i)] for prompt in prompts} for i in range(shortest))
        return next((i for i, column in enumerate(columns) if len(column) > 1), shortest)

    start, end = shared(lambda i: i), shared(lambda i: -1 - i)
    if start + end >= shortest:  # one prompt would be left with nothing
        return list(prompts)
    return [prompt[start : len(prompt) - end] for prompt in prompts]


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
) -> Answers:
    """Generate greedily for the prompts of `indices` and score the answers against the rows' own."""
    pairs = [dataset.prompt_and_target(index) for index in indices]
    targets = [tokenizer.for_targets.decode(target) for _, target in pairs]
    limit = knobs.max_new_tokens or max(16, 2 * max(len(target) for _, target in pairs))
    if (context := model.max_row_tokens) and model.KIND == "decoder":  # prompt and answer share it
        limit = max(1, min(limit, context - max(len(prompt) for prompt, _ in pairs)))
    prompts = [prompt for prompt, _ in pairs]
    with in_eval_mode(model):
        generation = GenerateKnobs(max_new_tokens=limit)
        answers = generate(model, tokenizer.for_targets, prompts, generation, stop_ids, progress=progress)
    texts = [answer.text for answer in answers]
    shown = [tokenizer.decode(prompt) for prompt in without_frame(prompts)]
    return Answers(list(indices), shown, targets, texts, metrics.score(knobs.metrics, texts, targets))


@dataclass(frozen=True)
class _Judge:
    """See `objectives.base.Judge`."""

    tokenizer: Tokenizer
    knobs: EvalKnobs
    stop_ids: Sequence[int]
    watch: Callable[[], Progress]  # of the answers

    @property
    def batch_tokens(self) -> int:
        return self.knobs.batch_tokens

    def generated(self, model: Model, dataset: Dataset, rows: Sequence[int]) -> Measured:
        answers = evaluate_answers(model, self.tokenizer, dataset, rows, self.knobs, self.stop_ids, self.watch())
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
) -> Measured:
    """Loss on all rows of `dataset` and metrics of the answers to some of them: scores, prompts, targets, texts.

    Where a task head answers, which costs no more than the loss, the metrics are of all rows too.

    Args:
        template: of the answers, as the knob `data.template`.
        whose: what is measured, as the progress calls it.
    """
    loss = evaluate_loss(objective, model, dataset, knobs.batch_tokens, progress(f"loss of the {whose}"))
    stop_ids = objective.stop_ids(tokenizer, template)
    judge = _Judge(tokenizer, knobs, stop_ids, lambda: progress(f"answers of the {whose}"))
    return objective.measure(model, dataset, rows, loss, judge)


def class_lines(found: ByClass) -> list[str]:
    """A line for each class, and for each kind of entity."""
    return [
        f"  {name}: precision {one['precision']:.1%}, recall {one['recall']:.1%}, f1 {one['f1']:.1%} ({one['rows']:,})"
        for scores in (found.get("classes", {}), found.get("entities", {}))
        for name, one in scores.items()
    ]


def describe_scores(scores: dict[str, float]) -> str:
    """One line: shares as percentages, the rest with three decimals."""
    plain = ("loss", "perplexity", "bleu", "chrf", "rmse", "pearson", "spearman")
    parts = [f"{name} {value:.3f}" if name in plain else f"{name} {value:.1%}" for name, value in scores.items()]
    return ", ".join(parts)
