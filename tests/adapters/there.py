"""What a saved adapter is in other tools: opened by transformers and peft as they are told, and asked the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

from microplane.checkpoints.adapter import save_adapter
from microplane.inference.pipeline import load
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.contract import Model
from microplane.models.files.load import load_model
from microplane.models.heads import add_head, head_metadata, task_scores
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.head import Prediction, Text

READ = [[12, 5, 66, 31, 11], [7, 21], [12, 30, 31, 32, 33, 34, 10]]
BEGUN = [[9, 44, 45], [8, 7, 8, 9, 10], [6]]  # of the answers of an encoder-decoder
LABELS = {
    "classification": ("no", "yes", "perhaps"),
    "multilabel": ("red", "blue"),
    "regression": ("value",),
    "tokens": ("O", "THING"),
}
AUTO = {"decoder": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM", "encoder": "AutoModel"}


def saved(base: Path, folder: Path, knobs: Mapping[str, Any], task: str | None = None) -> Path:
    """What a run leaves whose trainable tensors have moved: an adapter, or the whole model."""
    method, model = make_method(dict(knobs)), load_model(base)
    if task:
        add_head(model, task, LABELS[task])
    attach_method(method, model)
    size = 0.02 if method.whole_model else 0.1
    for number, tensor in enumerate(trainable(model).values()):
        tensor.data += size * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    if method.finishes:
        method.finish(model, lambda: 0.0)
    folder.mkdir(parents=True)
    if method.whole_model:
        load(base).tokenizer.save(folder)
    save_adapter(folder, model, method, {"base": str(base)} | head_metadata(model))
    return folder


def rows_for(model: Model, base: Path) -> list[list[int]]:
    """Rows to read; a class of an encoder-decoder looks for the end that config.json names, or the family."""
    if model.KIND != "encoder-decoder":
        return READ
    end = transformers.AutoConfig.from_pretrained(base).eos_token_id
    return [[*row, end] for row in READ]


@torch.no_grad()
def ours(model: Model, rows: list[list[int]] = READ) -> list[torch.Tensor]:
    """Of each row its scores, the logits of its tokens, or, where there is no head, their states."""
    if model.task_head is not None:
        scores = [task_scores(model, Rows.of([row])) for row in rows]  # (T, C), or (1, C) of the row
        return scores if model.task_head.config.per_token else [one[0] for one in scores]
    if model.KIND == "encoder-decoder":
        given = zip(rows, BEGUN, strict=True)
        return [model.logits(model(Pairs(Rows.of([read]), Rows.of([begun])))) for read, begun in given]
    states = [model(Rows.of([row])) for row in rows]
    return states if model.KIND == "encoder" else [model.logits(one) for one in states]


def first_tokens(text: Text, places: Sequence[tuple[int, int]], said: Prediction) -> Iterator[int]:
    """Of each word that has a label the number of the first token that reaches into it; `places` are those of the
    tokens in the text, from and to."""
    assert isinstance(text, str)
    end = 0
    for word, _ in said.words:
        start = text.index(word, end)
        end = start + len(word)
        yield next(at for at, (begins, ends) in enumerate(places) if begins < ends and ends > start and begins < end)


@dataclass(frozen=True)
class There:
    """How what was trained on `base` and saved in `adapter` is opened and asked in other tools."""

    base: Path
    adapter: Path
    model: Model  # as it is opened here

    @cached_property
    def rows(self) -> list[list[int]]:
        return rows_for(self.model, self.base)

    @property
    def opened_by(self) -> dict[str, Any]:
        """Of a head that transformers has a class for, as the adapter itself says."""
        told: dict[str, Any] = json.loads((self.adapter / "method.json").read_text())["about"].get("opened_by", {})
        return told

    @property
    def own_head(self) -> bool:
        return self.model.task_head is not None and not self.opened_by

    def open(self, folder: Path, name: str, **told: Any) -> Any:
        how = {"dtype": torch.float32, "attn_implementation": "eager"} | told
        return getattr(transformers, name).from_pretrained(folder, **how).eval()

    def merged(self, folder: Path) -> list[torch.Tensor]:
        """What a merged folder says, opened by what its config.json names alone."""
        if self.own_head:
            return self.by_hand(self.open(folder, "AutoModel"), load_file(folder / "model.safetensors"))
        return self.said(self.open(folder, self.opened_by.get("class", AUTO[self.model.KIND])))

    def adapted(self, adapter: Path) -> list[torch.Tensor]:
        """What an adapter says in peft, on the base that is opened as it tells."""
        told = self.opened_by
        base = self.open(self.base, told.pop("class", AUTO[self.model.KIND]), **told)
        opened = peft.PeftModel.from_pretrained(base, adapter).eval()
        if not self.own_head:
            return self.said(opened)
        weights = load_file(adapter / "adapter_model.safetensors")
        return self.by_hand(opened, {f"task_head{name.split('task_head')[-1]}": x for name, x in weights.items()})

    @torch.no_grad()
    def said(self, model: Any) -> list[torch.Tensor]:
        found = []
        for read, begun in zip(self.rows, BEGUN, strict=True):
            given = {"input_ids": torch.tensor([read])}
            writes = self.model.KIND == "encoder-decoder" and self.model.task_head is None
            given |= {"decoder_input_ids": torch.tensor([begun])} if writes else {}
            said = model(**given)
            one = (said.logits if "logits" in said else said.last_hidden_state)[0]
            found.append(one[-len(read) :] if one.dim() == 2 and not writes else one)
        return found

    @torch.no_grad()
    def by_hand(self, model: Any, weights: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The scores of a head that transformers has no class for, in the way that is told when it is merged."""
        head, found = self.model.task_head.config, []
        for read in self.rows:
            given = {"input_ids": torch.tensor([read]), "output_hidden_states": True}
            if self.model.KIND == "encoder-decoder":
                given["decoder_input_ids"] = torch.tensor([[self.model.config.decoder_start, *read[:-1]]])
            said = model(**given)
            side = "decoder_hidden_states" if head.reads_decoder else "encoder_hidden_states"
            states = (said.get(side) or said.hidden_states)[-1][0][-len(read) :]
            pooled = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}.get(head.pooling)
            scores = (states if head.per_token else pooled) @ weights["task_head.out.weight"].T
            found.append(scores + weights["task_head.out.bias"])
        return found
