"""The model families on which every method keeps its contract: how a tiny one is built, trained and looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microplane.models.configs.decoder_families import DROPOUTS, SPECS
from microplane.models.contract import Model
from microplane.models.families import family_of
from microplane.models.heads import add_head, task_scores
from microplane.nn.rows import Rows
from microplane.objectives import AnyObjective
from microplane.objectives.classification import Classification
from microplane.objectives.next_token import NextToken
from microplane.objectives.seq2seq import Seq2Seq
from tests.tiny import CONFIGS, ENCODER_CONFIGS, PAIR_CONFIGS, MemoryDataset, copy_task

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0, "dropout": 0.0}
QUIET |= {"attention_dropout": 0.0}
QUIET |= {spec.spelled(name): 0.0 for spec in SPECS.values() for name in DROPOUTS}  # of decoders


@dataclass(frozen=True)
class Family:
    make: Callable[[], Model]
    data: MemoryDataset
    lr: float = 1e-2
    objective: AnyObjective = NextToken()  # noqa: RUF009 - frozen

    def build(self, dtype: torch.dtype = torch.float32) -> Model:
        """A frozen random model in eval mode; of an encoder with a new head in float32."""
        model = self.make().to(dtype)
        if self.objective.needs_head:
            add_head(model, "classification", ["even", "odd"])
        return model.requires_grad_(False).eval()

    @torch.no_grad()
    def output(self, model: Model) -> Tensor:
        """What it says of a few rows."""
        rows = self.objective.collate(self.data, range(4)).rows
        if isinstance(rows, Rows) and model.task_head is not None:
            return task_scores(model, rows)
        return model.logits(model(rows))


class Parity(MemoryDataset):
    """Rows, and whether their third token is even or odd."""

    def __init__(self, rows: list[Any]):
        super().__init__(rows)
        self.trained_counts = np.ones(len(rows), np.int32)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids, _ = super().__getitem__(index)
        return ids, np.zeros(len(ids), np.bool_)

    def labels(self, index: int) -> np.ndarray:
        return np.array([self.rows[index][0][2] % 2], np.float32)


def decoder(name: str) -> Family:
    return Family(_maker(CONFIGS[name]), copy_task())


def encoder(name: str) -> Family:
    return Family(_maker(ENCODER_CONFIGS[name]), Parity(copy_task().rows), lr=2e-3, objective=Classification())


def pairs(name: str) -> Family:
    return Family(_maker(PAIR_CONFIGS[name]), copy_task(), objective=Seq2Seq())


def _maker(fields: dict[str, Any]) -> Callable[[], Model]:
    return lambda: family_of(fields).from_hf(fields | QUIET).init_weights(0)


FAMILIES = {
    "llama-tied": decoder("llama-tied"),
    "gemma2": decoder("gemma2"),
    **{name: decoder(name) for name in ("olmo2", "granite", "gpt2", "gpt_neox", "phi3", "starcoder2")},
    **{name: pairs(name) for name in ("t5", "t5gemma", "t5gemma2", "marian", "bart", "mbart", "m2m_100", "pegasus")},
    **{
        name: encoder(name)
        for name in ("bert", "distilbert", "electra", "albert", "mpnet", "deberta", "nomic", "eurobert")
    },
}
