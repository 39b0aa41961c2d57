"""Predictors that need no pretrained model: the commonest label, a bag of words, the nearest training row.

A tuned model that is no better than one of them was not worth its time. They see the rows as the model sees them (cut
to data.max_length, decoded from its tokens), and are measured by the same metrics on the same rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.evaluation import label_metrics
from microplane.evaluation import text_metrics as metrics
from microplane.models.configs.head import PER_TOKEN
from microplane.objectives.base import AnyObjective
from microplane.objectives.head import HeadObjective, windows_of
from microplane.training.own_optimizer import unmarked

Scores = dict[str, float]


class Trivial(NamedTuple):
    """What a predictor came to."""

    scores: Scores
    texts: list[str]  # what it says of the rows whose answers are looked at, as `Measured.texts` has it


MOST_TOKENS = 1_000_000  # of the training rows that are read, so that it takes seconds
PENALTIES = (1e-3, 1e-4, 1e-5)  # times half the squared weights, beside the mean loss of a row
ITERATIONS = 40  # of L-BFGS


def trivial_predictions(
    objective: AnyObjective,
    train: Dataset,
    held_out: Dataset,
    rows: Sequence[int],
    tokenizer: Tokenizer,
    classes: Sequence[str],
    names: Sequence[str],
) -> dict[str, Trivial]:
    """What each predictor comes to, by its name; nothing where no predictor fits, as for plain text.

    Args:
        rows: of `held_out`, whose answers are measured and told; of labels all rows are measured.
        classes: of a task head.
        names: of the metrics of answers, as `eval.metrics`.
    """
    if isinstance(objective, HeadObjective):
        if objective.name == PER_TOKEN:
            return _by_token(objective, train, held_out, rows, classes)
        return _by_text(objective, train, held_out, rows, tokenizer, classes)
    return _answers(train, held_out, rows, tokenizer, names)


def _seen(train: Dataset) -> Sequence[int]:
    """Rows spread over the training rows, all of them where they are few."""
    count = max(1, min(len(train), int(MOST_TOKENS / train.lengths.mean())))
    return [row * len(train) // count for row in range(count)]


# Labels of a row


def _by_text(
    objective: HeadObjective,
    train: Dataset,
    held_out: Dataset,
    rows: Sequence[int],
    tokenizer: Tokenizer,
    classes: Sequence[str],
) -> dict[str, Trivial]:
    seen, asked = _seen(train), range(len(held_out))
    labels = torch.from_numpy(objective.joined([train.labels(row) for row in seen]))
    truths = [objective.truth(held_out.labels(row), classes) for row in asked]
    numbers = objective.name == "regression"
    labels = labels.view(len(seen), -1) if numbers else labels
    width = labels.shape[1] if numbers else len(classes)
    scale = float(labels.std()) or 1.0 if numbers else 1.0  # by the size of gradients the search knows its end

    windows = windows_of(held_out)

    def measured(scores: Tensor) -> Trivial:
        scores = scores * scale if windows is None else objective.over_windows(scores * scale, windows)
        counted = None if windows is None else [window[0] for window in windows]
        return _judged(objective, objective.words(scores, classes), truths, rows, counted)

    texts, unseen = _texts(train, seen, tokenizer), _texts(held_out, asked, tokenizer)
    constant = _fit(objective, _empty(len(seen)), labels / scale, _Linear.zeros(1, width), 0.0)
    found = {"mean" if numbers else "majority": measured(constant.scores(_empty(len(asked))))}
    if (bag := TfIdf.of(texts)).terms:
        model = _penalised(objective, bag.rows(texts), labels / scale, (len(bag.terms), width))
        name = "ridge" if numbers else "logistic regression"
        found[f"TF-IDF + {name}"] = measured(model.scores(bag.rows(unseen)))
    return found


def _judged(
    objective: HeadObjective,
    said: Sequence[Any],
    truths: Sequence[Any],
    rows: Sequence[int],
    counted: Sequence[int] | None = None,
) -> Trivial:
    """Args: counted: the rows that metrics are of; all otherwise."""
    texts = [objective.line(said[row], truths[row]) for row in rows]
    if counted is not None:
        said, truths = [said[row] for row in counted], [truths[row] for row in counted]
    return Trivial(label_metrics.score(objective.name, said, truths), texts)


def _texts(dataset: Dataset, rows: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(dataset[row][0].tolist()) for row in rows]


@dataclass(frozen=True)
class Bags:
    """Sparse rows end to end: which terms, where each row begins, and their weights."""

    terms: Tensor  # (nonzeros,) int64
    starts: Tensor  # (rows,) int64
    weights: Tensor  # (nonzeros,) float32

    def part(self, rows: range) -> Bags:
        """Neighbouring rows."""
        ends = [*self.starts.tolist(), len(self.terms)]
        cut = slice(ends[rows.start], ends[rows.stop])
        return Bags(self.terms[cut], self.starts[rows.start : rows.stop] - ends[rows.start], self.weights[cut])


def _empty(rows: int) -> Bags:
    """Rows without a term."""
    return Bags(torch.zeros(0, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), torch.zeros(0))


@dataclass(frozen=True)
class TfIdf:
    """Words and pairs of neighbouring words that two texts at least have, weighed by tf (1 + log((1 + N) / (1 + df))),
    each text to length 1."""

    terms: dict[str, int]
    idf: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> TfIdf:
        frequency = Counter(term for text in texts for term in set(_terms(text)))
        kept = [term for term, count in frequency.items() if count > 1]
        counts = np.array([frequency[term] for term in kept], np.float64)
        return cls({term: number for number, term in enumerate(kept)}, 1 + np.log((1 + len(texts)) / (1 + counts)))

    def rows(self, texts: Sequence[str]) -> Bags:
        """The texts as sparse rows."""
        terms: list[int] = []
        weights: list[np.ndarray] = []
        starts = []
        for text in texts:
            counts = Counter(number for term in _terms(text) if (number := self.terms.get(term)) is not None)
            values = np.array(list(counts.values()), np.float64) * self.idf[list(counts)]
            starts.append(len(terms))
            terms += counts
            weights.append(values / max(float(np.linalg.norm(values)), 1e-12))
        joined = np.concatenate([*weights, np.zeros(0)]).astype(np.float32)
        return Bags(torch.tensor(terms, dtype=torch.int64), torch.tensor(starts), torch.from_numpy(joined))


def _terms(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [*words, *(f"{one} {other}" for one, other in pairwise(words))]


@dataclass(frozen=True)
class _Linear:
    weight: Tensor  # (terms, C)
    bias: Tensor  # (C,)

    @classmethod
    def zeros(cls, terms: int, width: int) -> _Linear:
        return cls(torch.zeros(terms, width, requires_grad=True), torch.zeros(width, requires_grad=True))

    def scores(self, bags: Bags) -> Tensor:
        summed = F.embedding_bag(bags.terms, self.weight, bags.starts, mode="sum", per_sample_weights=bags.weights)
        return summed + self.bias


def _penalised(objective: HeadObjective, bags: Bags, labels: Tensor, shape: tuple[int, int]) -> _Linear:
    """Fitted to all rows with the penalty that did best on the last fifth of them, fitted to the rest."""
    cut = len(labels) - len(labels) // 5
    first, last = bags.part(range(cut)), bags.part(range(cut, len(labels)))

    def held_out_loss(penalty: float) -> float:
        model = _fit(objective, first, labels[:cut], _Linear.zeros(*shape), penalty)
        return float(objective.loss_of_scores(model.scores(last), labels[cut:]))

    best = min(PENALTIES, key=held_out_loss) if cut < len(labels) else PENALTIES[0]
    return _fit(objective, bags, labels, _Linear.zeros(*shape), best)


class _Search(torch.optim.LBFGS):
    """Without the wrappers of torch that import its compiler when they are called: about two seconds a process."""

    add_param_group = unmarked(torch.optim.Optimizer.add_param_group)
    zero_grad = unmarked(torch.optim.Optimizer.zero_grad)


def _fit(objective: HeadObjective, bags: Bags, labels: Tensor, model: _Linear, penalty: float) -> _Linear:
    """The least of the objective's own loss of a row, plus the penalty."""
    with torch.enable_grad():
        weights = [model.weight, model.bias]
        search = _Search(weights, max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            value = objective.loss_of_scores(model.scores(bags), labels) / len(labels)
            value = value + penalty / 2 * model.weight.square().sum()
            torch.autograd.backward(value)
            return value

        search.step(loss)  # type: ignore[no-untyped-call]
    return _Linear(model.weight.detach(), model.bias.detach())


# Labels of tokens


def _by_token(
    objective: HeadObjective, train: Dataset, held_out: Dataset, rows: Sequence[int], classes: Sequence[str]
) -> dict[str, Trivial]:
    """The commonest label of all tokens, and of each token."""
    counts: dict[int, Counter[str]] = {}
    for row in _seen(train):
        truth = objective.truth(train.labels(row), classes)
        for token, label in zip(train[row][0].tolist(), truth, strict=True):
            if label is not None:
                counts.setdefault(token, Counter())[label] += 1
    common = sum(counts.values(), Counter()).most_common(1)[0][0]
    own = {token: count.most_common(1)[0][0] for token, count in counts.items()}
    asked = range(len(held_out))
    truths = [objective.truth(held_out.labels(row), classes) for row in asked]
    said = {
        "majority": [[common] * len(truth) for truth in truths],
        "each token's commonest label": [
            [own.get(token, common) for token in held_out[row][0].tolist()] for row in asked
        ],
    }
    return {name: _judged(objective, words, truths, rows) for name, words in said.items()}


# Answers


def _answers(
    train: Dataset, held_out: Dataset, rows: Sequence[int], tokenizer: Tokenizer, names: Sequence[str]
) -> dict[str, Trivial]:
    """The commonest answer, and that of the training row whose prompt is nearest by TF-IDF."""
    pairs = [train.prompt_and_target(row) for row in _seen(train)]
    asked = [held_out.prompt_and_target(row) for row in rows]
    if not asked or not all(prompt and target for prompt, target in (*pairs[:8], *asked[:8])):
        return {}
    answers = [tokenizer.for_targets.decode(target) for _, target in pairs]
    targets = [tokenizer.for_targets.decode(target) for _, target in asked]
    common = Counter(answers).most_common(1)[0][0]

    def measured(texts: list[str]) -> Trivial:
        return Trivial(metrics.score(names, texts, targets), texts)

    found = {"commonest answer": measured([common] * len(targets))}
    prompts, unseen = ([tokenizer.decode(prompt) for prompt, _ in side] for side in (pairs, asked))
    if (bag := TfIdf.of(prompts)).terms:
        found["nearest training row"] = measured([answers[row] for row in _nearest(bag, prompts, unseen)])
    return found


def _nearest(bag: TfIdf, texts: Sequence[str], unseen: Sequence[str]) -> list[int]:
    """Of each unseen text the row with the largest cosine."""
    known, nearest = bag.rows(texts), []
    for text in unseen:
        row = bag.rows([text])
        dense = torch.zeros(len(bag.terms), 1).index_put_((row.terms,), row.weights[:, None])
        close = F.embedding_bag(known.terms, dense, known.starts, mode="sum", per_sample_weights=known.weights)
        nearest.append(int(close[:, 0].argmax()))
    return nearest


def beaten_by(scores: Mapping[str, float], trivial: Mapping[str, Scores]) -> tuple[str, str, float] | None:
    """The trivial predictor that does better than these scores: its name, the metric and its figure; None if none does.

    They are compared by the metric that is named first for them, which tells of the task.
    """
    if not (metric := next((name for best in trivial.values() for name in best if name in scores), None)):
        return None
    sign = -1 if metrics.lower_is_better([metric]) else 1
    name, best = max(trivial.items(), key=lambda item: sign * item[1][metric])
    return (name, metric, best[metric]) if sign * best[metric] > sign * scores[metric] else None
