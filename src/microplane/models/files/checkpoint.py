"""The content of a model's files, independent of their format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from microplane.errors import ModelError
from microplane.files import read_object

Places = dict[str, tuple[Path, str]]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a model file or folder."""

    config: dict[str, Any]  # the fields of Hugging Face's config.json, also when it came from GGUF
    tensors: Mapping[str, Tensor]  # Hugging Face's names; each is read when asked for
    path: Path
    stored: str  # the number format that most weights are stored in: "bfloat16", "Q4_1", ...
    around: tuple[str, ...] = ()  # tensors beside those of `tensors`, where these are a part of a larger model

    def parts(self, name: str) -> Any:
        """A quantised weight as the file stores it, in the named tuple that its linear layer takes; None of others."""
        found = getattr(self.tensors, "parts", None)
        return None if found is None else found(name)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder whose tensors are the model's; others may lie beside them."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    named = read_object(folder / INDEX, ModelError, absent={}).get("weight_map")
    names = {file for file in named.values() if isinstance(file, str)} if isinstance(named, dict) else set()
    return sorted(folder / name for name in names if (folder / name).is_file())


def misfit(
    path: Path, architecture: str, missing: list[str], unexpected: list[str], misshapen: list[str]
) -> ModelError:
    """What is said of weights that are not those of the model."""
    parts = {"missing": missing, "unexpected": unexpected, "wrong": misshapen}
    lines = [f"  {len(names)} {what}: {listed(names)}" for what, names in parts.items() if names]
    return ModelError(
        f"the weights in {path} do not fit the {architecture} that its config describes:\n" + "\n".join(lines)
    )


def listed(names: list[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
