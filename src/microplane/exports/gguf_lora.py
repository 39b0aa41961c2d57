"""`--to gguf-lora`: an adapter by itself, as llama.cpp puts it on a base at run time.

llama.cpp scales a pair by alpha / rank and knows no other rule, so the scale is multiplied into B, all ranks are padded
to the largest, and alpha is that rank. It adds B A to the weight that the base's file has, so B's rows are permuted
where those of q and k are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gguf
import torch
from torch import Tensor

from microplane.adapters.convert import convert
from microplane.adapters.merge import source_of
from microplane.checkpoints.attach_saved import base_of
from microplane.errors import AdapterError
from microplane.exports.compare import Comparison, compare
from microplane.exports.engines import usable
from microplane.exports.gguf import asked_as, write_file
from microplane.exports.gguf_file import KINDS, write_gguf
from microplane.exports.gguf_model import architecture, gguf_name, laid_out
from microplane.exports.llama_cpp import OwnReader, llama_cpp
from microplane.exports.source import Source
from microplane.exports.written import Written
from microplane.files import scratch_folder
from microplane.inference.pipeline import Pipeline, load
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.models.contract import Model, linears
from microplane.models.decoder import Decoder
from microplane.models.files.gguf import SPECS, unpermuted
from microplane.models.files.gguf_format import read_header
from microplane.models.files.load import load_model

FILE = "adapter.gguf"
ALPHA = gguf.Keys.Adapter.LORA_ALPHA
Pairs = dict[str, tuple[Tensor, Tensor]]  # Hugging Face's name of a weight -> A (r, in) and B (out, r), scaled


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Write folder/adapter.gguf and compare it on the base that is beside it for as long as that takes.

    Raises:
        AdapterError: for a method that no LoRA can stand for, or an adapter that is more than pairs.
    """
    model = source.pipeline.model
    name = architecture(model, source.name)
    if replaced := source.about.get("replaced"):
        raise AdapterError(
            f"llama.cpp puts no whole weights on a base, and {source.name} holds {', '.join(replaced)}: merge it "
            f"instead, microplane export {source.name} FILE --to gguf"
        )
    pairs, told = pairs_of(source, folder)
    with scratch_folder(folder / "base") as beside:
        base, file = beside / "base.gguf", folder / FILE
        alone = replace(source, pipeline=load(base_path(source), dtype="float32"))
        notices = write_file(alone, base, "float32")
        source.context(alone.room)
        write_pairs(source, file, pairs, name, KINDS[dtype], set(read_header(base).tensors))
        checked = tuple(checks(source, alone.pipeline, file, base))
    its_base = source.base or source.about.get("base") or base_path(source)
    how = f"microplane export {its_base} base.gguf --to gguf; llama-cli -m base.gguf --lora {FILE} --jinja"
    return Written((FILE,), (*told, *notices, *asked_as(source)), checked, (how,))


def base_path(source: Source) -> Path:
    """Of the model that the adapter is for, also of one that was trained as a whole."""
    pipeline = source.pipeline
    whole = pipeline.method is not None and pipeline.method.whole_model
    return base_of(source_of(source.name), source.about, source.base) if whole else pipeline.path


def pairs_of(source: Source, folder: Path) -> tuple[Pairs, list[str]]:
    """The pairs of the adapter, of another method after it was converted; and what that lost."""
    found = exact_pairs(source.pipeline.model)
    method = source.pipeline.method
    if found is not None and method is not None and not method.trains_base:
        return found, []
    with scratch_folder(folder / "converted") as place:
        converted = convert(source.name, place, base=source.base)
        _, *lines = converted.lines()
        pairs = exact_pairs(load(place, dtype="float32", base=source.base).model)
    assert pairs is not None
    return pairs, [f"{converted.method} as LoRA of rank {converted.rank}", *lines]


def exact_pairs(model: Model) -> Pairs | None:
    """None where the change of a layer has no such form, or no linear layer is adapted."""
    found: Pairs = {}
    names = model.hf_names()
    for path, site in linears(model).items():
        if isinstance(site.module, AdaptedLinear):
            if (pair := site.module.low_rank()) is None:
                return None
            found[names[f"{path}.weight"]] = pair
    return found or None


def write_pairs(source: Source, file: Path, pairs: Pairs, name: str, kind: str, there: set[str]) -> None:
    """Args:
    there: the tensors of the base's file.

    Raises:
        AdapterError: for a pair on a tensor that the base does not have by itself, as a tied head.
    """
    config = cast(Decoder, source.pipeline.model).config
    if absent := [theirs for theirs in pairs if gguf_name(theirs, name) not in there]:
        raise AdapterError(
            f"llama.cpp has no adapter for {', '.join(absent)}, which is no matrix of its own in the base (a head that "
            f"is tied to the embedding, say): merge it instead, microplane export {source.name} FILE --to gguf"
        )
    rank = max(len(A) for A, _ in pairs.values())

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for theirs, (A, B) in pairs.items():
            at = gguf_name(theirs, name)
            yield f"{at}.lora_a", torch.cat([A, A.new_zeros(rank - len(A), A.shape[1])]).detach()
            widened = torch.cat([B, B.new_zeros(len(B), rank - B.shape[1])], 1).detach()
            yield f"{at}.lora_b", laid_out(theirs, widened, config, name)

    keys: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", ALPHA: float(rank)}
    keys["general.name"] = Path(source.name).name
    write_gguf(file, name, keys, tensors, kind)


@torch.no_grad()
def with_pairs(base: Path, file: Path, scale: float = 1.0) -> Model:
    """The base of a GGUF file with the pairs of another added to its weights, by llama.cpp's rule."""
    model, adapter = cast(Decoder, load_model(base)), read_header(file)
    name = adapter.metadata["general.architecture"]
    ours = {gguf_name(theirs, name): mine for mine, theirs in model.hf_names().items()}
    heads = {"attn_q": model.config.num_heads, "attn_k": model.config.num_kv_heads} if SPECS[name].permuted else {}
    for at in [entry.removesuffix(".lora_a") for entry in adapter.tensors if entry.endswith(".lora_a")]:
        A, B = (torch.from_numpy(adapter.read(f"{at}.lora_{side}")) for side in "ab")
        if count := heads.get(at.split(".")[-2]):
            B = unpermuted(B, count)
        model.get_parameter(ours[at]).add_(B @ A, alpha=scale * adapter.metadata[ALPHA] / len(A))
    return model


def checks(source: Source, alone: Pipeline, file: Path, base: Path) -> Iterator[Comparison]:
    """The adapter on its base: added by us, and put on by llama.cpp; there at scale 0 it is the base."""
    yield compare(source, OwnReader(base, with_pairs(base, file)))
    if usable("llama_cpp"):
        with llama_cpp(base, file) as engine:
            yield compare(source, engine)
        asked_alike = replace(source.pipeline, model=alone.model, method=None)
        with llama_cpp(base, file, 0.0) as engine:
            engine.name += " at scale 0, beside the base"
            yield compare(replace(source, pipeline=asked_alike), engine)
