"""`--to onnx`: an encoder with its head, or with pooling and length 1, as one file for onnxruntime.

The blocks are those of transformers' class, opened from the merged folder, for ours compute rows side by side without
padding, which is no graph of padded batches. Pooling and head are ours.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microplane.adapters.export import write_folder
from microplane.errors import AdapterError
from microplane.exports.engines import lacking, usable
from microplane.exports.source import Source
from microplane.exports.vectors import compare_vectors, pooling_of
from microplane.exports.written import Written
from microplane.files import scratch_folder
from microplane.inference.predict import as_embedded, encode_all
from microplane.models.contract import Model
from microplane.models.external.library import quiet
from microplane.models.task_head import TaskHead

FILE, OUTPUTS = "model.onnx", ("logits", "sentence_embedding")
INPUTS = ("input_ids", "attention_mask")
TYPES = "token_type_ids"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Padded(nn.Module):
    """Blocks, pooling and head over padded batches: ids and mask (B, T) -> scores (B, C) or (B, T, C), or (B, D)."""

    def __init__(self, blocks: nn.Module, head: TaskHead | None, pooling: str):
        super().__init__()
        self.blocks, self.head, self.pooling = blocks, head, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        given = {} if token_type_ids is None else {TYPES: token_type_ids}
        hidden = self.blocks(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        if self.head is not None and self.head.config.per_token:
            return plain_scores(self.head, hidden)
        pooled = pooled_rows(hidden, attention_mask, self.pooling)
        return F.normalize(pooled, dim=-1) if self.head is None else plain_scores(self.head, pooled)


def plain_scores(head: TaskHead, x: Tensor) -> Tensor:
    """`TaskHead.predict` by torch's own operations, which a graph can be made of."""
    if head.dense is not None:
        x = ACTIVATIONS[head.config.activation](F.linear(x, head.dense.weight, head.dense.bias))
    if head.norm is not None:
        x = F.layer_norm(x, (head.config.width,), head.norm.weight, head.norm.bias, head.norm.eps)
    return F.linear(x, head.out.weight, head.out.bias)


def pooled_rows(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(B, T, D) -> (B, D), of rows that are padded behind."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = (mask.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, last)[:, 0]
    wide = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * wide).sum(1) / wide.sum(1)


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Write folder/model.onnx with the tokenizer and config.json, and compare it in onnxruntime.

    Raises:
        AdapterError: without onnx and transformers, or if onnxruntime computes something else.
    """
    if needed := lacking("onnx", "transformers"):
        raise AdapterError(f"--to onnx needs {needed}: pip install 'microplane[export-onnx]'")
    head = source.pipeline.model.task_head
    pooling = head.config.pooling if head else pooling_of(source)
    with scratch_folder(folder / "merged") as merged:
        merged.rmdir()
        notices = write_folder(source.pipeline, merged, torch.float32, source.texts)
        library: Any = importlib.import_module("transformers")
        with quiet():  # of a head that is no part of the blocks
            blocks = library.AutoModel.from_pretrained(merged, attn_implementation="eager", dtype=torch.float32)
        typed = getattr(blocks.config, "type_vocab_size", 1) > 1 and TYPES in signature(blocks.forward).parameters
        _trace(Padded(blocks, head, pooling).eval(), folder / FILE, typed)
        (folder / "config.json").write_bytes((merged / "config.json").read_bytes())
    source.tokenizer.save(folder)
    checked = []
    if usable("onnxruntime"):
        engine = OnnxRuntime(folder / FILE, source, typed)
        checked.append(compare_vectors(source, engine.name, engine.said))
    given = ", ".join((*INPUTS, *([TYPES] if typed else [])))
    output = OUTPUTS[head is None]
    how = f"onnxruntime.InferenceSession({FILE!r}).run([{output!r}], inputs), with {given}, padded behind"
    notices += tuple(read_as(source.pipeline.model))
    facts: dict[str, object] = {"pooling": None if head and head.config.per_token else pooling,
                                "labels": list(head.config.labels) if head else None}  # fmt: skip
    return Written((FILE,), notices, tuple(checked), (how,), facts)


def read_as(model: Model) -> Iterator[str]:
    """What a folder of sentence-transformers does to sentences before they are tokens, which no graph does."""
    if model.task_head is not None:
        return
    if model.sentence_prompt:
        yield f"each sentence begins with {model.sentence_prompt!r} here: put it before yours"
    if model.sentence_lower:
        yield "sentences are read in small letters here: lower() yours"
    if model.sentence_tokens:
        yield f"sentences are cut at {model.sentence_tokens:,} tokens here: cut yours"


def _trace(module: Padded, file: Path, typed: bool) -> None:
    """By torch's own export, in one file; batch and length are open."""
    ids = torch.tensor([[3, 4, 5, 6, 4], [5, 4, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    names = [*INPUTS, *([TYPES] if typed else [])]
    given = (ids, mask, torch.zeros_like(ids)) if typed else (ids, mask)
    output = OUTPUTS[module.head is None]
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {output: {0: "batch"}}
    if module.head is not None and module.head.config.per_token:
        axes[output][1] = "tokens"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: what may depend on the sizes is compared at other sizes
        torch.onnx.export(module, given, str(file), input_names=names, output_names=[output], dynamic_axes=axes,
                          opset_version=17, dynamo=False)  # fmt: skip


class OnnxRuntime:
    """onnxruntime with the file opened."""

    def __init__(self, file: Path, source: Source, typed: bool):
        library: Any = importlib.import_module("onnxruntime")
        self.name = f"onnxruntime {library.__version__}"
        self.session = library.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.source, self.typed = source, typed

    def said(self, texts: Sequence[str]) -> list[Tensor]:
        """Of texts that are padded to one length."""
        model = self.source.pipeline.model
        encode = encode_all if model.task_head is not None else as_embedded
        encoded = encode(model, self.source.tokenizer, texts)
        longest, pad = max(len(one.ids) for one in encoded), self.source.tokenizer.pad_id or 0
        padded = {
            INPUTS[0]: [one.ids + [pad] * (longest - len(one.ids)) for one in encoded],
            INPUTS[1]: [[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in encoded],
        }
        if self.typed:
            padded[TYPES] = [one.types + [0] * (longest - len(one.types)) for one in encoded]
        [found] = self.session.run(None, {name: np.array(value, np.int64) for name, value in padded.items()})
        head = self.source.pipeline.model.task_head
        whole = head is None or not head.config.per_token
        rows = zip(torch.from_numpy(found), encoded, strict=True)
        return [row if whole else row[: len(one.ids)] for row, one in rows]
