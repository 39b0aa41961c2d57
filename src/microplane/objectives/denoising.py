"""Plain text as pairs for an encoder-decoder: span corruption, and prefix language modelling (arXiv 1910.10683)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microplane.config.knobs import DataKnobs
from microplane.data.rendering.denoising_dataset import DenoisedDataset, sentinels_of
from microplane.data.store import TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.objectives.seq2seq import Seq2Seq


@dataclass(frozen=True)
class SpanCorruption(Seq2Seq):
    """Spans of the text that were taken out, from the rest of it; drawn anew in each epoch."""

    name: ClassVar[str] = "span_corruption"

    def view(self, rows: TokenDataset, knobs: DataKnobs, tokenizer: Tokenizer, seed: int) -> DenoisedDataset:
        """Pieces of the text that give the encoder `data.max_length` tokens."""
        sentinels, eos = sentinels_of(tokenizer), tokenizer.eos_ids[0]
        return DenoisedDataset(rows, "span_corruption", knobs.max_length, sentinels, eos, seed)


@dataclass(frozen=True)
class PrefixLM(Seq2Seq):
    """The end of a text, from its start; where it is cut is drawn anew in each epoch."""

    name: ClassVar[str] = "prefix_lm"

    def view(self, rows: TokenDataset, knobs: DataKnobs, tokenizer: Tokenizer, seed: int) -> DenoisedDataset:
        """Pieces of `data.max_length` tokens."""
        return DenoisedDataset(rows, "prefix_lm", knobs.max_length, (), tokenizer.eos_ids[0], seed)
