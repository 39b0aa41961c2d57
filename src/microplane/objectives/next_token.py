"""The next token of one row that goes on: a decoder's answers in conversations, or plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from microplane.data.rendering.causal import CausalRenderer, causal_renderer
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.models.contract import Model
from microplane.nn.rows import Rows
from microplane.objectives.base import PROBE_POSITIONS, PROBE_TOKENS, ProbeRow
from microplane.objectives.collate import features_of, rows_of
from microplane.objectives.text import TextObjective, TokenBatch


@dataclass(frozen=True)
class NextToken(TextObjective):
    """Each target token, from all tokens before it in its row."""

    name: ClassVar[str] = "next_token"

    @classmethod
    def of(cls, model: Model) -> NextToken:
        """For a model of this kind."""
        return cls()

    def renderer(
        self, tokenizer: Tokenizer, template: str, system: str | None, classes: Sequence[str] = ()
    ) -> CausalRenderer:
        """Conversations through the chat template, if there is one."""
        return causal_renderer(tokenizer, template, system)

    def collate(self, dataset: Dataset, indices: Sequence[int]) -> TokenBatch:
        """Whole rows; the token before each target predicts it."""
        examples = [dataset[index] for index in indices]
        rows = rows_of([ids for ids, _ in examples])
        targets = torch.from_numpy(np.flatnonzero(np.concatenate([mask for _, mask in examples])))
        return TokenBatch(rows, targets - 1, rows.ids[targets], features_of(dataset, indices))

    def probe_row(self, dataset: Dataset, row: int) -> ProbeRow:
        """Its first tokens."""
        return ProbeRow(dataset[row][0][:PROBE_TOKENS].tolist())

    def probe(self, model: Model, row: ProbeRow) -> Tensor:
        """Logits (up to 64, V) at its last positions."""
        return model.logits(model(Rows.of([row.ids]).to(model.device))[-PROBE_POSITIONS:])
