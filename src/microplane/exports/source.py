"""What is exported: a base, or a run with its adapter merged; and what its answers are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microplane.adapters.merge import probe_texts, row_texts
from microplane.adapters.other_tokenizer import LETTER_TEXTS, SENTENCES
from microplane.checkpoints.attach_saved import adapter_folder
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import AdapterError, MicroplaneError
from microplane.evaluation.probe import largest_difference, probe_logits
from microplane.exports.formats import Format
from microplane.files import json_lines
from microplane.inference.pipeline import Pipeline, load
from microplane.inference.predict import embed_texts
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.base import ProbeRow

TEXTS, PROMPTS = 200, 10
WRITTEN = 32  # most tokens of a continuation
ROOM = 2048  # most tokens of a row that is compared
QUESTIONS = (
    "What is the capital of France?", "Write one sentence about the sea.", "turn on the kitchen light",
    "Translate to French: good morning", "Count from one to five.", "Thời tiết hôm nay thế nào?",
    "Name three fruits.", "Is water wet?", "def add(a, b):", "Once upon a time",
)  # fmt: skip


@dataclass
class Source:
    """A pipeline in float32 whose adapter, if any, is merged."""

    name: str
    pipeline: Pipeline
    method: str | None  # that was merged
    merged: float | None  # largest logit difference, merged against unmerged
    rows: list[list[int]]  # token ids whose logits are compared
    texts: list[str]  # that are cut into tokens
    questions: list[str]  # that are answered
    about: dict[str, Any] = field(default_factory=dict)  # what the adapter says of its making
    base: str | Path | None = None  # where the base is, if not where the adapter says
    room: int = ROOM  # tokens of the context, as the format has it

    @property
    def run(self) -> Path:
        return Path(self.name).expanduser()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.pipeline.tokenizer

    def prompts(self) -> list[list[int]]:
        """Token ids of the questions as the model was trained to be asked; those that fit its context."""
        found, room = list[list[int]](), self.room - WRITTEN
        for question in self.questions:
            with suppress(MicroplaneError):  # a template that refuses a text, ids without a row
                found.append(self.pipeline.prompt(question))
        return [ids for ids in found if len(ids) <= room]

    def context(self, tokens: int) -> None:
        """Compare on nothing longer than this."""
        self.room = min(self.room, tokens)
        self.rows = [ids[: self.room] for ids in self.rows]


def opened(name: str | Path, form: Format, base: str | Path | None = None) -> Source:
    """Open a base, a run or an adapter in float32, and merge what has to be merged.

    Raises:
        AdapterError: for a model or a method that the format cannot hold.
    """
    path = Path(name).expanduser()
    has_adapter = adapter_folder(path) is not None
    loaded = load(name, dtype="float32", base=base)
    form.refuse_kind(loaded.model.KIND, str(name))
    embeds = loaded.model.KIND == "encoder" and loaded.model.task_head is None
    rows = [] if embeds else probe_texts(path, loaded)
    about, method = dict(loaded.about or {}), loaded.method.name if loaded.method else None
    difference = None
    if has_adapter and form.whole:
        assert loaded.method is not None
        if not loaded.method.mergeable:
            raise AdapterError(
                f"--to {form.name} holds a whole model, and the method {method} adds what is no weight of one. Train "
                "with another method, as lora, or keep to Microplane and peft with it"
            )
        before = _said(loaded, rows, embeds)
        loaded.method.merge(loaded.model)
        loaded.method = None
        difference = largest_difference(before, _said(loaded, rows, embeds))
    texts = [*row_texts(path), *SENTENCES, *LETTER_TEXTS, *QUESTIONS][:TEXTS]
    ids = [list(row.ids) for row in rows if row.ids]
    source = Source(str(name), loaded, method, difference, ids, texts, _questions(path), about, base)
    source.context(loaded.model.max_row_tokens or ROOM)
    return source


def _said(loaded: Pipeline, rows: Sequence[ProbeRow], embeds: bool) -> list[Tensor]:
    if embeds:
        return list(embed_texts(loaded.model, loaded.tokenizer, SENTENCES))
    return probe_logits(loaded.objective, loaded.model, rows)


def _questions(run: Path) -> list[str]:
    """The first held-out questions that the run was measured on, filled up with others."""
    found: list[str] = []
    with suppress(OSError, ValueError, LookupError, TypeError):
        found = [str(line["prompt"]) for line in json_lines(run / "answers.jsonl", PROMPTS)]
    return [*found, *QUESTIONS][:PROMPTS]


@torch.no_grad()
def row_logits(pipeline: Pipeline, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of a decoder at every position of each row, one row at a time: (T, V) float32."""
    model = pipeline.model
    return [model.logits(model(Rows.of([list(ids)]))).float() for ids in rows]


@torch.no_grad()
def answer_scores(pipeline: Pipeline, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Of an encoder-decoder, log p of each token of an answer among those that it may write: (T,)."""
    model = pipeline.model
    _, [start] = model.start_generation([prompt])
    hidden = model(Pairs(Rows.of([list(prompt)]), Rows.of([[*start, *answer[:-1]]])))
    logits = model.logits(hidden).float()
    logits[:, list(model.generation_rules.bad_tokens)] = -torch.inf
    scores = logits.log_softmax(-1)
    return scores.gather(1, torch.tensor(answer)[:, None])[:, 0]
