"""Positions: rotary (arXiv 2104.09864; plain, linearly scaled, and Llama 3's scaling), and sines that are added.

Shapes: T tokens, H heads, Dh width of a head, D model width. Pairs are (i, i + Dh/2), Hugging Face's layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from microplane.device import put
from microplane.errors import ModelError
from microplane.nn.ops.scratch import persistent


@dataclass(frozen=True)
class Rope:
    """Settings of rotary positions: how fast each pair of dimensions turns with the position."""

    base: float
    kind: str = "default"  # or "linear", "llama3"
    factor: float = 1.0  # how many times longer than in pre-training
    low_freq_factor: float = 1.0  # llama3: pairs that turn fewer times than this within `original` are slowed fully
    high_freq_factor: float = 4.0  # llama3: pairs that turn more often than this are left alone
    original: int = 8192  # llama3: the context length of pre-training

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], base: float, context: int) -> Rope:
        """From one entry of `rope_parameters` or `rope_scaling`; `base` and `context` fill what it leaves out.

        Raises:
            ModelError: for a kind of scaling that is not supported, or one that lacks its numbers.
        """
        kind = fields.get("rope_type") or fields.get("type") or "default"
        share = fields.get("partial_rotary_factor") or 1.0
        if kind not in KINDS:
            raise ModelError(
                f"rotary positions of type {kind!r} (rope_parameters or rope_scaling in config.json) are not supported;"
                f" supported are {', '.join(KINDS)}"
            )
        if share != 1.0:
            raise ModelError(f"partial_rotary_factor = {share} in config.json is not supported; only 1.0 is")
        if lacking := [name for name in KINDS[kind] if name not in fields]:
            raise ModelError(f"rope_type {kind!r} in config.json needs {', '.join(lacking)} too")
        numbers = {name: fields[name] for name in KINDS[kind]}
        numbers["base"] = fields.get("rope_theta") or base
        if kind == "llama3":
            numbers["original"] = fields.get("original_max_position_embeddings") or context
        if wrong := [f"{name} = {x!r}" for name, x in numbers.items() if type(x) not in (int, float) or x <= 0]:
            raise ModelError(f"the rotary settings in config.json have {', '.join(wrong)}: expected numbers above 0")
        return cls(kind=kind, **numbers)

    def to_hf(self) -> dict[str, Any]:
        """As an entry of `rope_parameters`."""
        fields: dict[str, Any] = {"rope_type": self.kind, "rope_theta": self.base}
        fields |= {name: getattr(self, name) for name in KINDS[self.kind]}
        if self.kind == "llama3":
            fields["original_max_position_embeddings"] = self.original
        return fields

    def frequencies(self, width: int) -> Tensor:
        """Radians per position of each pair: (Dh/2,) float32."""
        plain = 1.0 / self.base ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            turns = self.original * plain / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = kept.clamp(0.0, 1.0)
            return kept * plain + (1.0 - kept) * plain / self.factor
        return plain

    def angles(self, positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions (T,): two of (T, 1, Dh/2), computed in float32 and then rounded to `dtype`."""
        turned = positions.float()[:, None, None] * put(self.frequencies(width), positions.device)
        return turned.cos().to(dtype), turned.sin().to(dtype)


KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of each head: (T, H, Dh) -> (T, H, Dh)."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)  # (T, H, Dh/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def sinusoids(positions: Tensor, width: int, last: int) -> Tensor:
    """The Transformer's positions (arXiv 1706.03762, 3.5), in Marian's order: (T,) -> (T, D) float32.

    Of angles a_i = position / 10000^(2i/D), the paper puts sin a_0, cos a_0, sin a_1, cos a_1, ...; Marian puts all
    sines and then all cosines, which to a model trained so is the same but for the names of its dimensions.

    Args:
        last: the largest position.
    """
    size = 1 << max(9, last.bit_length())  # a power of two, so that the table is seldom made again
    return _sinusoid_table(size, width, positions.device)[positions]


@lru_cache(maxsize=4)
def _sinusoid_table(size: int, width: int, device: torch.device) -> Tensor:
    with persistent():  # a table first made inside inference_mode could not be used by autograd later
        powers = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
        angles = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] / 10_000.0**powers  # (size, D/2)
        return put(torch.cat((angles.sin(), angles.cos()[:, : width // 2]), 1).float(), device)
