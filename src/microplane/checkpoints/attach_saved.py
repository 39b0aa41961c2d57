"""A saved adapter and the base that it was trained on: found, checked, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microplane.checkpoints.adapter import load_adapter
from microplane.errors import AdapterError, ConfigError, ModelError
from microplane.methods import Method
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.files.hub import resolve
from microplane.models.heads import head_from
from microplane.nn.quantised import QUANTISED

MEBIBYTE = 1 << 20


def attach_saved_adapter(model: Model, method: Method, folder: Path, about: Mapping[str, Any]) -> None:
    """Put the adapter of `folder` on an untouched base, ready for use, and with it the head that `about` tells of."""
    head_from(model, about)
    try:
        attach_method(method, model)
    except ConfigError as error:
        raise AdapterError(f"the adapter {folder} does not fit this model. {error}") from None
    load_adapter(folder, model, method)
    model.requires_grad_(False).eval()


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


def base_of(folder: Path, about: dict[str, Any]) -> Path:
    """The base model of an adapter.

    Raises:
        AdapterError: if the adapter does not name it, or its files are not those that the adapter was trained on.
    """
    name = about.get("base")
    if not name or not isinstance(name, str):
        raise AdapterError(f"the adapter {folder} does not name the model that it belongs to")
    try:
        path = resolve(name, about.get("revision"))
    except ModelError as error:
        raise AdapterError(f"the base of the adapter {folder} is not to be had: {error}") from None
    wanted = about.get("base_fingerprint")
    if wanted and fingerprint(path) != wanted:
        place = f"{path} ({name})" if name != str(path) else name
        raise AdapterError(
            f"the adapter {folder} was trained on other files than those now at {place}: "
            "their contents differ. Give the original model its place back, or train again."
        )
    return path
