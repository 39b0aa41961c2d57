"""What objectives that write text share: cross-entropy of the target tokens, and answers that the model generates."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor, nn

from microplane.config.knobs import DataKnobs
from microplane.data.reading.example import Message
from microplane.data.rendering.causal import CausalRenderer
from microplane.data.rendering.seq2seq import Seq2SeqRenderer
from microplane.data.store import Dataset, TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.device import put
from microplane.models.contract import Model
from microplane.nn.ops.linear_cross_entropy import chunked_cross_entropy, linear_cross_entropy
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.base import Judge, Measured


@dataclass(frozen=True)
class TokenBatch:
    """Rows side by side and the tokens to be predicted in them."""

    rows: Rows | Pairs
    positions: Tensor  # (K,) int64: index in T of the token before each target
    targets: Tensor  # (K,) int64: the target tokens
    cached_features: Tensor | None = None  # (T, D): what enters the lowest block that trains, if computed before

    @property
    def count(self) -> int:
        """What the loss is a sum over."""
        return len(self.targets)

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on a device."""
        cached = None if self.cached_features is None else put(self.cached_features, device)
        return TokenBatch(self.rows.to(device), put(self.positions, device), put(self.targets, device), cached)


def token_loss(model: Model, batch: TokenBatch, label_smoothing: float = 0.0) -> Tensor:
    """The sum of -log p over the K target tokens, a float32 scalar."""
    if batch.cached_features is None:
        hidden = model(batch.rows)  # (T, D)
    else:
        assert isinstance(batch.rows, Rows), "of pairs nothing is cached"
        hidden = model.upper(batch.cached_features, batch.rows, model.frozen)
    if len(batch.positions) < len(hidden):
        hidden = hidden.index_select(0, batch.positions)  # (K, D): logits exist where a target is predicted only
    if model.head is None or isinstance(model.head, nn.Linear):
        softcap, bias = model.config.final_logit_softcapping, model.head_bias
        return linear_cross_entropy(hidden, model.head_weight, batch.targets, softcap, label_smoothing, bias)
    return chunked_cross_entropy(hidden, model.logits, batch.targets, label_smoothing)


def perplexity(loss: float) -> float:
    """e to the mean loss of a token; infinite where that is no number any more."""
    return math.exp(loss) if loss < 700 else math.inf


class TextObjective:
    """The shared part of an `Objective` whose answers are text."""

    name: ClassVar[str]
    needs_head: ClassVar[bool] = False

    @abstractmethod
    def renderer(
        self, tokenizer: Tokenizer, template: str, system: str | None, classes: Sequence[str] = ()
    ) -> CausalRenderer | Seq2SeqRenderer:
        """See `Objective.renderer`."""

    def view(self, rows: TokenDataset, knobs: DataKnobs, tokenizer: Tokenizer, seed: int) -> Dataset:
        """The stored rows as they are."""
        return rows

    def loss(self, model: Model, batch: TokenBatch, label_smoothing: float = 0.0) -> Tensor:
        """See `token_loss`."""
        return token_loss(model, batch, label_smoothing)

    def measure(self, model: Model, dataset: Dataset, rows: Sequence[int], judge: Judge) -> Measured:
        """Loss and perplexity, and the metrics of answers to `rows`."""
        loss = judge.loss(model, dataset)
        scores = {"loss": loss, "perplexity": perplexity(loss)}
        if not rows:
            return {"scores": scores, "by_class": {}, "prompts": [], "targets": [], "texts": []}
        answers = judge.generated(model, dataset, rows)
        return {**answers, "scores": scores | answers["scores"]}

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer, template: str, system: str | None) -> list[int]:
        """The conversation so far, as the rows of training began."""
        return self.renderer(tokenizer, template, system).prompt(messages)

    def stop_ids(self, tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
        """The token with which the template closes an answer, and the model's end tokens."""
        renderer = self.renderer(tokenizer, template, None)
        return tuple(dict.fromkeys([renderer.end, *renderer.stops]))

    def parts(self, dataset: Dataset, row: int, tokenizer: Tokenizer, classes: Sequence[str]) -> list[tuple[str, bool]]:
        """Runs of tokens that are targets, and of those that are not."""
        ids, targets = dataset[row]
        runs = groupby(zip(ids.tolist(), targets.tolist(), strict=True), key=lambda token: token[1])
        return [
            (tokenizer.decode([token for token, _ in run], skip_special=False), is_target) for is_target, run in runs
        ]
