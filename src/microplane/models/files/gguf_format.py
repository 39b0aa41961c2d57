"""The GGUF file format: metadata, and where each tensor lies. What the metadata mean is in
models/files/gguf.py (model) and data/tokenizers/gguf.py (vocabulary), which both use this file.

The header is parsed here, not by gguf.GGUFReader: that one takes 2 s for the 100,000 strings of a vocabulary, this one
0.1 s. Blocks of quantised numbers are unpacked by the gguf library.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from microplane.errors import ModelError
from microplane.nn.gguf_linear import BLOCK, BYTES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
READABLE = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4
AT_ONCE = 2048  # blocks that are widened together: 256 KB


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file."""

    shape: tuple[int, ...]  # rows first, as torch has it
    kind: str  # "F32", "Q4_1", ...
    start: int  # byte in the file
    size: int  # bytes


@dataclass(frozen=True)
class GgufFile:
    path: Path
    metadata: dict[str, Any]  # strings, numbers, booleans, and lists of them
    tensors: dict[str, TensorEntry]

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32, in memory of its own.

        Raises:
            ModelError: if the file is no longer what it was when its header was read.
        """
        entry, raw = self.tensors[name], self.raw(name)
        if entry.kind in BYTES:
            return _widened(raw, entry.kind).reshape(entry.shape)
        rows = raw.reshape(math.prod(entry.shape[:-1]), -1)
        return dequantize(rows, GGMLQuantizationType[entry.kind]).reshape(entry.shape)

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor, (n,) uint8, in memory of its own; raises as `read`."""
        entry = self.tensors[name]
        found = np.fromfile(self.path, np.uint8, entry.size, offset=entry.start)
        if found.size < entry.size:
            raise ModelError(f"{self.path} changed while it was read: {name} is no longer whole. Try again")
        return found


def _widened(raw: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of Q4_0, Q4_1 or Q8_0, (bytes,) uint8, in float32: the bits that the gguf library gives, in half its time,
    as what is worked on stays in the processor's nearest caches."""
    blocks = raw.reshape(-1, BYTES[kind])
    ends = 4 if kind == "Q4_1" else 2  # bytes of scale and least
    halves = torch.from_numpy(np.ascontiguousarray(blocks[:, :ends])).view(torch.float16).float()
    codes, found = torch.from_numpy(blocks)[:, ends:], torch.empty(len(blocks), BLOCK)
    for start in range(0, len(blocks), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        out, scale, left = found[some], halves[some, :1], codes[some]
        if kind == "Q8_0":
            torch.mul(left.view(torch.int8), scale, out=out)
            continue
        out[:, : BLOCK // 2].copy_(left & 15)
        out[:, BLOCK // 2 :].copy_(left >> 4)
        if kind == "Q4_0":
            out.sub_(8).mul_(scale)
        else:
            out.mul_(scale).add_(halves[some, 1:])
    return found.numpy()


def read_header(path: Path) -> GgufFile:
    """Parse a file's header. An unchanged file is parsed once, for the model and the tokenizer.

    Raises:
        ModelError: if it is not GGUF, of a version or with tensors that cannot be read, cut off, or damaged.
    """
    try:
        state = path.stat()
        return _parse(path.resolve(), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None


@lru_cache(maxsize=2)
def _parse(path: Path, size: int, modified: int) -> GgufFile:
    if size == 0:  # which cannot be mapped
        raise _not_gguf(path, b"")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Header(path, data).parse()


def _not_gguf(path: Path, start: bytes) -> ModelError:
    return ModelError(f"{path} is not a GGUF file: it starts with {start!r}, expected {MAGIC!r}. Fetch it again")


class _Header:
    """A parser at byte `at`. Each length is checked against the file, so damage gives an error and no crash."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def parse(self) -> GgufFile:
        count = self._open()
        values = self._number("<u8")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            key = self._string()
            metadata[key] = self._value(self._number("<u4"))
        if (parts := metadata.get("split.count", 1)) not in (0, 1):
            raise ModelError(f"{self.path} is one of {parts} parts of a model: join them with llama-gguf-split --merge")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ModelError(f"{self.path} is damaged: its general.alignment is {alignment!r}")
        return GgufFile(self.path, metadata, self._place([self._info() for _ in range(count)], alignment))

    def _open(self) -> int:
        """The number of tensors."""
        magic = self.data[:4]
        self.at = min(4, self.end)
        if magic != MAGIC:
            raise _not_gguf(self.path, magic)
        version = self._number("<u4")
        if version not in VERSIONS:
            order = " (a file for big-endian machines?)" if version > 0xFFFF else ""
            raise ModelError(f"{self.path} is of GGUF version {version}{order}; supported are 2 and 3, little-endian")
        tensors: int = self._number("<u8")
        return tensors

    def _take(self, size: int) -> bytes:
        if size > self.end - self.at:
            raise ModelError(
                f"{self.path} is cut off or damaged: byte {self.at:,} of its header asks for {size:,} more bytes, but"
                f" the file has {self.end:,}. Fetch it again"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def _number(self, kind: str) -> Any:
        dtype = np.dtype(kind)
        value = np.frombuffer(self._take(dtype.itemsize), dtype)[0]
        return float(str(value)) if kind == "<f4" else value.item()  # 1e-5 and not 9.999999747378752e-06

    def _string(self) -> str:
        return self._take(self._number("<u8")).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._number("<u4"), self._number("<u8")
            if inner == STRING:
                return self._strings(count)
            if inner in SCALARS:
                dtype = np.dtype(SCALARS[inner])
                return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
            kind = inner
        if kind not in SCALARS:
            raise ModelError(f"{self.path} is damaged: byte {self.at:,} of its header names a type {kind} of value")
        return self._number(SCALARS[kind])

    def _strings(self, count: int) -> list[str]:
        """The hot loop: a vocabulary and its merges are 100,000 strings and more."""
        data, at, length = self.data, self.at, struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(count):
                (size,) = length(data, at)
                at += 8 + size
                found.append(data[at - size : at].decode("utf-8", errors="replace"))
        except (struct.error, OverflowError):  # a damaged size leads behind the end, or out of all bounds
            at = self.end + 1
        self._take(at - self.at)
        return found

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._number("<u4")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ModelError(f"{self.path} is damaged: tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("<u8") for _ in range(dimensions)]))
        return name, shape, self._number("<u4"), self._number("<u8")

    def _place(self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, TensorEntry]:
        first = -(-self.at // alignment) * alignment
        tensors = {}
        for name, shape, number, offset in infos:
            kind = _kind(number)
            if kind not in READABLE:
                raise ModelError(
                    f"{self.path} stores {name} as {kind}, which is not supported; supported are {', '.join(READABLE)}"
                )
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
            if shape[-1] % block or 0 in shape:
                raise ModelError(
                    f"{self.path} is damaged: {name} is {shape}, which {kind} in blocks of {block} cannot hold"
                )
            entry = TensorEntry(shape, kind, first + offset, math.prod(shape) // block * block_bytes)
            if entry.start + entry.size > self.end:
                raise ModelError(
                    f"{self.path} is cut off: {name} ends at byte {entry.start + entry.size:,}, but the file has"
                    f" {self.end:,}. Fetch it again"
                )
            tensors[name] = entry
        return tensors


def _kind(number: int) -> str:
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return f"type {number}"
