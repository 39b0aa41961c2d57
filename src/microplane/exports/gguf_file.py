"""Writing a GGUF file, one tensor at a time, and reading back whether all is in it.

The library's writer leaves out an empty text or list without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from microplane.errors import AdapterError
from microplane.models.files.gguf_format import read_header

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
QUANTISED = ("Q8_0", "Q4_0")
LARGEST = float(np.finfo(np.float16).max)


def kind_of(name: str, tensor: Tensor, kind: str) -> str:
    """In which format a tensor is stored: vectors in full; the embedding and the head in at least 8 bits; what does not
    divide into blocks in 16."""
    if tensor.dim() == 1:
        return "F32"
    if kind == "Q4_0" and name.split(".")[0] in ("token_embd", "output"):
        kind = "Q8_0"
    if kind in QUANTISED and tensor.shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
        return "F16"
    return kind


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Callable[[], Iterable[tuple[str, Tensor]]],
    kind: str,
) -> None:
    """Write a file and check it.

    Args:
        tensors: gives the tensors from the beginning each time; they are gone through twice.

    Raises:
        AdapterError: if a value is lost on the way, or does not fit its format.
        OSError: a full disk, say.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_metadata(writer, key, value)
    kinds = {}
    for name, tensor in tensors():
        kinds[name] = kind_of(name, tensor, kind)
        if kinds[name] == "F16" and float(tensor.abs().max()) > LARGEST:
            raise AdapterError(
                f"{name} holds numbers above {LARGEST:,.0f}, which float16 does not have: --dtype bfloat16"
            )
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kinds[name]]]
        data = tensor.numel() // block * size
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), data, GGMLQuantizationType[kinds[name]])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors():
            values = tensor.contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(values, GGMLQuantizationType[kinds[name]]))
    finally:
        writer.close()
    check_whole(path, architecture, metadata, kinds)


def add_metadata(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One value in the type that it has in Python; numbers in 32 bits."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def check_whole(path: Path, architecture: str, metadata: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raises: AdapterError, if the file does not say what was to be written."""
    found = read_header(path)
    wanted = {"general.architecture": architecture, **metadata}
    lost = [key for key, value in wanted.items() if not _same(found.metadata.get(key), value)]
    if lost:
        raise AdapterError(f"the writer of GGUF lost {', '.join(lost[:5])}: this is a defect, please report it")
    if {name: entry.kind for name, entry in found.tensors.items()} != dict(kinds):
        raise AdapterError("the tensors of the GGUF file are not those that were written: this is a defect")


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, float):
        return isinstance(one, float) and np.float32(one) == np.float32(other)
    if isinstance(other, list) and other and isinstance(other[0], float):
        return isinstance(one, list) and np.array_equal(np.array(one, np.float32), np.array(other, np.float32))
    return bool(one == other)
