"""A saved adapter and the base that it was trained on: found, checked, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from microplane.checkpoints.adapter import load_adapter, read_state
from microplane.checkpoints.peft_files import settle
from microplane.errors import AdapterError, ConfigError, ModelError
from microplane.files import cache_dir, file_sha256, write_aside
from microplane.methods import Method
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.files.checkpoint import weight_files
from microplane.models.files.hub import resolve
from microplane.models.heads import head_from
from microplane.nn.quantised import QUANTISED

PIECE = 16 << 20  # bytes of a tensor that are mapped at once
MEBIBYTE = 1 << 20


def attach_saved_adapter(model: Model, method: Method, folder: Path, about: Mapping[str, Any]) -> list[str]:
    """Put the adapter of `folder` on an untouched base, ready for use, and with it the head that `about` tells of.

    Returns:
        Which weights of the base an adapter of peft replaced as a whole, by Hugging Face's names.
    """
    method, state, replaced = settled(model, method, folder, about)
    try:
        attach_method(method, model)
    except ConfigError as error:
        raise AdapterError(f"the adapter {folder} does not fit this model. {error}") from None
    load_adapter(folder, model, method, state)
    model.requires_grad_(False).eval()
    return replaced


def settled(
    model: Model, method: Method, folder: Path, about: Mapping[str, Any]
) -> tuple[Method, dict[str, Tensor], list[str]]:
    """Put what an adapter has beside its method on an untouched base.

    Returns:
        See `peft_files.settle`.
    """
    state = read_state(folder, method)
    if (config := about.get("peft")) is None:
        head_from(model, about)
        return method, state, []
    try:
        return settle(model, method, config, state)
    except AdapterError as error:
        raise AdapterError(f"the adapter {folder} does not fit this model. {error}") from None


def adapter_folder(path: Path) -> Path | None:
    """The adapter of a run's folder, or the folder itself if it is an adapter, else None."""
    for folder in (path, path / "adapter"):
        if (folder / "method.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if (path / "run.yaml").is_file():
        raise AdapterError(f"the run {path} has no adapter yet; microplane train --resume {path} goes on with it")
    return None


def trained_on(method: Method, about: dict[str, Any]) -> tuple[str, str]:
    """What `number_format` wants to know of the quantised base of an adapter; auto for any other."""
    kind, compute = str(about.get("base_dtype", method.quantize)), str(about.get("base_compute"))
    if kind not in QUANTISED:
        return "auto", "auto"
    return kind, compute if compute in ("float32", "bfloat16", "int8") else "auto"


def fingerprint(path: Path) -> str:
    """What a model's files are: a hash of their names, sizes, and first and last mebibyte."""
    digest = hashlib.sha256()
    kinds = {".safetensors", ".gguf", ".json", ".model"}
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in kinds)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(MEBIBYTE))
            stream.seek(max(0, size - MEBIBYTE))
            digest.update(stream.read())
    return digest.hexdigest()[:32]


def weights_fingerprint(path: Path) -> str:
    """What a model's weights are: a hash of every tensor's name, format, shape and bytes, in whatever files they lie.

    It is remembered for files that did not change since.
    """
    files = [path] if path.is_file() else weight_files(path)
    return f"{sum(int(_remembered_sum(file), 16) for file in files) % (1 << 256):064x}"


def _remembered_sum(file: Path) -> str:
    """`_sum` of a file, kept in the cache under what tells that the file is still the same."""
    at = file.resolve()
    told = at.stat()
    known = f"{at}:{told.st_size}:{told.st_mtime_ns}:{told.st_ino}"
    note = cache_dir() / "sums" / hashlib.sha256(known.encode()).hexdigest()
    with suppress(OSError, ValueError):
        kept = note.read_text().strip()
        return f"{int(kept, 16):x}"
    found = _sum(file)
    with suppress(OSError):  # a cache that cannot be written costs time alone
        write_aside(note, found.encode())
    return found


def _sum(file: Path) -> str:
    """The sum of a hash of each tensor, so that it does not matter how they are spread over files; hexadecimal."""
    if file.suffix != ".safetensors":
        return file_sha256(file)
    with safe_open(file, framework="pt") as stored:
        names = list(stored.keys())
    return f"{sum(_sum_of(file, name) for name in names):x}"


def _sum_of(file: Path, name: str) -> int:
    """Of one tensor. The file is mapped for a piece of it alone: what was read counts as memory as long as the mapping
    is there, and a table of words can be as large as all the rest."""
    digest, start, size = hashlib.sha256(), 0, 1
    while start < size:
        with safe_open(file, framework="pt") as stored:
            tensor = stored.get_tensor(name)
            if not start:
                digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
            bytes_ = tensor.contiguous().view(-1).view(torch.uint8)
            digest.update(bytes_[start : start + PIECE].numpy().data)
            start, size = start + PIECE, len(bytes_)
            del tensor, bytes_
    return int(digest.hexdigest(), 16)


def base_of(folder: Path, about: Mapping[str, Any], instead: str | Path | None = None, knob: str = "--base") -> Path:
    """The base model of an adapter.

    Args:
        instead: where it is now, if not where the adapter says.
        knob: how users say that.

    Raises:
        AdapterError: if the adapter does not name it, or its weights are not those that the adapter was trained on.
    """
    name = about.get("base") if instead is None else str(instead)
    if not name or not isinstance(name, str):
        raise AdapterError(
            f"the adapter {folder} does not name the model that it belongs to (base_model_name_or_path in "
            f"adapter_config.json): name it with {knob}"
        )
    try:
        path = resolve(name, about.get("revision") if instead is None else None)
    except ModelError as error:
        where = "" if instead is not None else f". If it lies elsewhere now, name that place with {knob}"
        raise AdapterError(f"the base of the adapter {folder} is not to be had: {error}{where}") from None
    if not _is_base(path, about):
        place = f"{path} ({name})" if name != str(path) else name
        raise AdapterError(
            f"the adapter {folder} was trained on other files than those now at {place}: their contents differ. Name "
            f"the model that it was trained on with {knob}, or train again."
        )
    return path


def _is_base(path: Path, about: Mapping[str, Any]) -> bool:
    """By the weights alone: files beside them may have come and gone."""
    if wanted := about.get("base_weights"):
        return bool(weights_fingerprint(path) == wanted)
    earlier = about.get("base_fingerprint")  # as earlier versions noted it
    return not earlier or bool(fingerprint(path) == earlier)
