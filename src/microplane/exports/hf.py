"""`--to hf`: what `microplane merge` writes of a run, and a base as it is; compared in transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from microplane.adapters.export import export as export_base
from microplane.adapters.merge import merge
from microplane.checkpoints.attach_saved import adapter_folder
from microplane.exports.compare import Comparison, compare
from microplane.exports.engines import usable
from microplane.exports.formats import FORMATS
from microplane.exports.source import opened
from microplane.exports.transformers import Transformers, writes_text


def write(name: str | Path, place: Path, kind: str, base: str | Path | None) -> list[str]:
    """Write the folder; what is to be said of it."""
    dtype = None if kind == "auto" else getattr(torch, kind)
    if adapter_folder(Path(name).expanduser()) is not None:
        return list(merge(name, place, dtype, base).lines())
    done = export_base(name, place, dtype)
    return [f"wrote {place} as {str(done.dtype).removeprefix('torch.')}", *done.notices]


def check(name: str | Path, place: Path, base: str | Path | None) -> Comparison | None:
    """The folder in transformers beside the run; None where that cannot be used, or the model writes no text."""
    if not usable("transformers"):
        return None
    source = opened(name, FORMATS["hf"], base)
    return compare(source, Transformers(place, source)) if writes_text(source.pipeline.model) else None
