"""Plain text as pairs for an encoder-decoder: span corruption or prefix language modelling, drawn anew in each epoch.

The rows of a text data set are one stream of tokens, each text ended by the end token. It is cut into pieces of one
length, so that what a piece becomes has the same lengths in every epoch, and the order of the batches stays as it is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from microplane.data.rendering.span_corruption import (
    corrupt_spans,
    corrupted_lengths,
    max_inputs,
    noise_counts,
    prefix_lm,
    spans_input_length,
)
from microplane.data.store import Features, TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError

Denoising = Literal["span_corruption", "prefix_lm"]


class DenoisedDataset:
    """A `TokenDataset` of texts, seen as pairs.

    Args:
        texts: rows of token ids, each ended by the end token.
        objective: what the pairs are.
        inputs: tokens of the encoder's rows, the end token counted; 512 makes pieces of 568 tokens for span corruption.
        sentinels: ids of `<extra_id_0>` and so on, in their order.
        seed: of all draws, which follow from it, the epoch and the piece's number.

    Raises:
        DataError: for less text than one piece, or pieces with more spans than there are sentinels.
    """

    features: Features | None = None  # they change from epoch to epoch, so nothing is kept

    def __init__(
        self,
        texts: TokenDataset,
        objective: Denoising,
        inputs: int,
        sentinels: tuple[int, ...],
        eos: int,
        seed: int = 0,
        epoch: int = 0,
    ):
        self.texts, self.objective, self.sentinels, self.eos = texts, objective, sentinels, eos
        self.inputs, self.seed, self.epoch = inputs, seed, epoch
        self.piece = spans_input_length(inputs)[0] if objective == "span_corruption" else inputs
        self.fingerprint = f"{texts.fingerprint} {objective} {inputs} {seed}"
        stream = len(texts.flat_ids)
        sizes = [self.piece] * (stream // self.piece)
        if stream % self.piece >= max(8, self.piece // 4) or (not sizes and stream >= 8):  # a tail worth training on
            sizes.append(stream % self.piece)
        if not sizes:
            raise DataError(f"the text has {stream} tokens, too few for one piece of data.max_length = {inputs}")
        self.sizes = np.array(sizes, np.int64)
        self._spans = noise_counts(sizes[0])[1] if objective == "span_corruption" else 0
        if self._spans > len(sentinels):
            raise DataError(
                f"data.max_length = {inputs} makes pieces with {self._spans} spans to be taken out, and the vocabulary "
                f"has {len(sentinels)} sentinels (<extra_id_0> and so on) to mark them; set data.max_length to "
                f"{max_inputs(len(sentinels))} or less, or data.objective=prefix_lm"
            )
        pairs = [self._lengths(int(size)) for size in (self.sizes[0], self.sizes[-1])]
        totals = np.full(len(sizes), sum(pairs[0]), np.int32)
        totals[-1] = sum(pairs[-1])
        self.lengths = totals
        # of a prefix language model, what is trained depends on the draw; this is its mean
        self.trained_counts = np.full(len(sizes), pairs[0][1], np.int32)
        self.trained_counts[-1] = pairs[-1][1]

    def _lengths(self, size: int) -> tuple[int, int]:
        if self.objective == "span_corruption":
            return corrupted_lengths(size)
        return size // 2 + 1, size - size // 2 + 1

    def at(self, epoch: int) -> DenoisedDataset:
        """The same pieces as they are drawn in another epoch."""
        if epoch == self.epoch:
            return self
        return DenoisedDataset(self.texts, self.objective, self.inputs, self.sentinels, self.eos, self.seed, epoch)

    @property
    def highest_id(self) -> int:
        """The highest number of a token in any piece: of the text, or of what marks a span."""
        return max(self.texts.highest_id, self.eos, *self.sentinels[: self._spans])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of source and target side by side, (length,) int32, and which of them are the target."""
        source, target = self.pair(row)
        ids = np.concatenate([source, target])
        return ids, np.arange(len(ids)) >= len(source)

    def pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of source and target, int32, as they are drawn in this epoch."""
        row %= len(self)
        start = row * self.piece
        ids = np.array(self.texts.flat_ids[start : start + int(self.sizes[row])])
        rng = np.random.default_rng([self.seed, self.epoch, row])
        if self.objective == "span_corruption":
            return corrupt_spans(ids, self.sentinels, self.eos, rng)
        return prefix_lm(ids, self.eos, rng)

    def segments(self, row: int) -> np.ndarray:
        return np.empty(0, np.bool_)

    def labels(self, row: int) -> np.ndarray:
        return np.empty(0, np.float32)

    def where(self, row: int) -> str:
        """Where the first text of a piece stands."""
        return self.texts.where(self.texts.row_at(row * self.piece))

    def prompt_and_target(self, row: int) -> tuple[list[int], list[int]]:
        source, target = self.pair(row)
        return source.tolist(), target[:-1].tolist()


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of T5's sentinels `<extra_id_0>`, `<extra_id_1>`, ... in their order.

    Raises:
        DataError: if the vocabulary has none.
    """
    found: list[int] = []
    while (token := tokenizer.id_of(f"<extra_id_{len(found)}>")) is not None:
        found.append(token)
    if not found:
        raise DataError(
            "span corruption marks what it takes out by sentinels, and this vocabulary has no <extra_id_0>; "
            "choose data.objective=prefix_lm, or a T5 vocabulary"
        )
    return tuple(found)
