"""Measure a model on rows: loss by teacher forcing, and metrics on answers that it generates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microplane.config.knobs import EvalKnobs, GenerateKnobs
from microplane.data.batch_plan import pack
from microplane.data.progress import Progress
from microplane.data.rendering.labelled import label_words
from microplane.evaluation import label_metrics
from microplane.evaluation import text_metrics as metrics
from microplane.inference.generate import generate
from microplane.models.heads import predicted, task_scores
from microplane.objectives.batch import LabelBatch, make_batch
from microplane.objectives.losses import loss_sum

if TYPE_CHECKING:
    from microplane.data.preparing.load_splits import Dataset
    from microplane.data.tokenizers.tokenizer import Tokenizer


@torch.no_grad()
def evaluate_loss(model: Any, dataset: Dataset, budget: int, progress: Progress | None = None) -> float:
    """The mean of -log p over all trained tokens of `dataset`, or of the head's loss over all its labels; always in the
    same order, so always the same bits."""
    was_training = model.training
    model.eval()
    order = np.argsort(-dataset.lengths, kind="stable").tolist()
    total, tokens, done = 0.0, 0, 0
    for indices in pack(order, dataset.lengths, budget):
        batch = make_batch(dataset, indices)
        total += loss_sum(model, batch).item()
        tokens += batch.count
        done += len(indices)
        if progress:
            progress(done, len(order))
    model.train(was_training)
    return total / tokens


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


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
    was_training = model.training
    model.eval()
    generation = GenerateKnobs(max_new_tokens=limit)
    prompts = [prompt for prompt, _ in pairs]
    answers = generate(model, tokenizer.for_targets, prompts, generation, stop_ids, progress=progress)
    model.train(was_training)
    texts = [answer.text for answer in answers]
    shown = [tokenizer.decode(own) for own in without_frame(prompts)]
    return Answers(list(indices), shown, targets, texts, metrics.score(knobs.metrics, texts, targets))


def measure(
    model: Any,
    tokenizer: Tokenizer,
    dataset: Dataset,
    rows: Sequence[int],
    knobs: EvalKnobs,
    stop_ids: Sequence[int],
    whose: str,
    progress: Callable[[str], Progress],
) -> dict[str, Any]:
    """Loss on all rows of `dataset` and metrics of the answers to some of them: scores, prompts, targets, texts.

    Where a task head answers, which costs no more than the loss, the metrics are of all rows too.
    """
    loss = evaluate_loss(model, dataset, knobs.batch_tokens, progress(f"loss of the {whose}"))
    if dataset.shape.kind == "labels":
        found = evaluate_labels(model, tokenizer, dataset, rows, knobs.batch_tokens)
        return found | {"scores": {"loss": loss, **found["scores"]}}
    scores = {"loss": loss, "perplexity": perplexity(loss)}
    if not rows:
        return {"scores": scores, "prompts": [], "targets": [], "texts": []}
    watch = progress(f"answers of the {whose}")
    answers = evaluate_answers(model, tokenizer, dataset, rows, knobs, stop_ids, watch)
    return {
        "scores": scores | answers.scores,
        "prompts": answers.prompts,
        "targets": answers.targets,
        "texts": answers.texts,
    }


@torch.no_grad()
def evaluate_labels(
    model: Any, tokenizer: Tokenizer, dataset: Dataset, rows: Sequence[int], budget: int
) -> dict[str, Any]:
    """Metrics of the task head on all rows of `dataset`, and what it says of some of them."""
    was_training = model.training
    model.eval()
    order = np.argsort(-dataset.lengths, kind="stable").tolist()
    said: dict[int, Any] = {}
    head = model.task_head.config
    for indices in pack(order, dataset.lengths, budget):
        batch = make_batch(dataset, indices)
        assert isinstance(batch, LabelBatch)
        words = predicted(task_scores(model, batch.rows, batch.kept), head)
        if head.task == "tokens":
            ends = np.cumsum(dataset.lengths[indices])
            said |= {index: words[end - dataset.lengths[index] : end] for index, end in zip(indices, ends, strict=True)}
        else:
            said |= dict(zip(indices, words, strict=True))
    model.train(was_training)
    truths = {index: label_words(dataset.labels(index), head.task, head.labels) for index in range(len(dataset))}
    scores = label_metrics.score(head.task, [said[i] for i in truths], list(truths.values()))
    shown = list(rows)
    return {
        "scores": scores,
        "prompts": [tokenizer.decode(dataset[row][0].tolist()) for row in shown],
        "targets": [label_metrics.text(truths[row], truths[row], head.task) for row in shown],
        "texts": [label_metrics.text(said[row], truths[row], head.task) for row in shown],
    }


def describe_scores(scores: dict[str, float]) -> str:
    """One line: shares as percentages, the rest with three decimals."""
    plain = ("loss", "perplexity", "bleu", "chrf", "rmse", "pearson", "spearman")
    parts = [f"{name} {value:.3f}" if name in plain else f"{name} {value:.1%}" for name, value in scores.items()]
    return ", ".join(parts)
