"""The target of a pair, from its source: what an encoder-decoder answers to what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from microplane.data.rendering.seq2seq import Seq2SeqRenderer
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.models.contract import Model
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.base import PROBE_POSITIONS, PROBE_TOKENS, ProbeRow
from microplane.objectives.collate import rows_of
from microplane.objectives.text import TextObjective, TokenBatch


@dataclass(frozen=True)
class Seq2Seq(TextObjective):
    """Each token of the target, from the source and the target so far.

    Args:
        decoder_start: the token that the decoder begins with.
    """

    decoder_start: int = 0
    name: ClassVar[str] = "seq2seq"

    @classmethod
    def of(cls, model: Model) -> Self:
        """For a model of this kind."""
        return cls(model.config.decoder_start or 0)

    def renderer(
        self, tokenizer: Tokenizer, template: str, system: str | None, classes: Sequence[str] = ()
    ) -> Seq2SeqRenderer:
        """The last answer is the target, all before it the source; these models have no chat template."""
        return Seq2SeqRenderer(tokenizer, system)

    def collate(self, dataset: Dataset, indices: Sequence[int]) -> TokenBatch:
        """The decoder reads its start token and the target but for its last."""
        sources, targets = zip(*(dataset.pair(index) for index in indices), strict=True)
        read = rows_of([np.concatenate([[self.decoder_start], ids[:-1]]) for ids in targets])
        wanted = torch.from_numpy(np.concatenate(targets).astype(np.int64))
        return TokenBatch(Pairs(rows_of(sources), read), torch.arange(len(wanted)), wanted)

    def probe_row(self, dataset: Dataset, row: int) -> ProbeRow:
        """The first tokens of source and target."""
        source, target = (side[:PROBE_TOKENS].tolist() for side in dataset.pair(row))
        return ProbeRow(source + target, len(source))

    def probe(self, model: Model, row: ProbeRow) -> Tensor:
        """Logits (up to 64, V) at the target's last positions; of a text without a target, what would begin it."""
        cut = row.cut or len(row.ids)
        target = [self.decoder_start, *row.ids[cut:]]
        pair = Pairs(Rows.of([row.ids[:cut]]), Rows.of([target])).to(model.device)
        return model.logits(model(pair)[-PROBE_POSITIONS:])
