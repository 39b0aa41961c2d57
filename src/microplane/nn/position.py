"""Positions: rotary (arXiv 2104.09864; plain, linearly scaled, Llama 3's scaling, LongRoPE), and sines that are added.

Shapes: T tokens, H heads, Dh width of a head, D model width, R width of the part of a head that turns, its first
dimensions. Pairs are (i, i + R/2), Hugging Face's layout.
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
    kind: str = "default"  # or "linear", "llama3", "longrope"
    share: float = 1.0  # of a head's dimensions that turn, R / Dh
    factor: float = 1.0  # how many times longer than in pre-training
    low_freq_factor: float = 1.0  # llama3: pairs that turn fewer times than this within `original` are slowed fully
    high_freq_factor: float = 4.0  # llama3: pairs that turn more often than this are left alone
    original: int = 8192  # llama3, longrope: the context length of pre-training
    short: tuple[float, ...] = ()  # longrope (arXiv 2402.13753): how much each pair is slowed within `original`
    long: tuple[float, ...] = ()  # and in rows that are longer, which are not computed here
    size: float = 1.0  # longrope: cosines and sines are multiplied by it

    @classmethod
    def from_hf(
        cls, fields: Mapping[str, Any], base: float, context: int, partial: bool = False, long: bool = False
    ) -> Rope:
        """From one entry of `rope_parameters` or `rope_scaling`; `base` and `context` fill what it leaves out.

        Args:
            partial: whether the family can turn a part of each head alone.
            long: whether it knows LongRoPE.

        Raises:
            ModelError: for a kind of scaling that is not supported, or one that lacks its numbers.
        """
        kind = fields.get("rope_type") or fields.get("type") or "default"
        share = fields.get("partial_rotary_factor") or 1.0
        if long and kind in LONG_NAMES:
            return _longrope(fields, base, context, share)
        if kind not in KINDS:
            raise ModelError(
                f"rotary positions of type {kind!r} (rope_parameters or rope_scaling in config.json) are not supported;"
                f" supported are {', '.join(KINDS)}"
            )
        if share != 1.0 and not (partial and type(share) is float and 0 < share < 1):
            raise ModelError(f"partial_rotary_factor = {share} in config.json is not supported; only 1.0 is")
        if lacking := [name for name in KINDS[kind] if name not in fields]:
            raise ModelError(f"rope_type {kind!r} in config.json needs {', '.join(lacking)} too")
        numbers = {name: fields[name] for name in KINDS[kind]}
        numbers["share"], numbers["base"] = share, fields.get("rope_theta") or base
        if kind == "llama3":
            numbers["original"] = fields.get("original_max_position_embeddings") or context
        if wrong := [f"{name} = {x!r}" for name, x in numbers.items() if type(x) not in (int, float) or x <= 0]:
            raise ModelError(f"the rotary settings in config.json have {', '.join(wrong)}: expected numbers above 0")
        return cls(kind=kind, **numbers)

    def to_hf(self) -> dict[str, Any]:
        """As an entry of `rope_parameters`."""
        fields: dict[str, Any] = {"rope_type": self.kind, "rope_theta": self.base}
        fields |= {"partial_rotary_factor": self.share} if self.share != 1.0 else {}
        fields |= {name: getattr(self, name) for name in KINDS.get(self.kind, ())}
        if self.kind == "longrope":
            fields |= {"short_factor": list(self.short), "long_factor": list(self.long), "attention_factor": self.size}
        if self.kind in ("llama3", "longrope"):
            fields["original_max_position_embeddings"] = self.original
        return fields

    def turned(self, width: int) -> int:
        """R, of a head of that width: an even number, as transformers rounds it."""
        return -(-int(width * self.share) // 2) * 2

    def frequencies(self, width: int) -> Tensor:
        """Radians per position of each pair of a head of that width: (R/2,) float32."""
        width = int(width * self.share)
        plain = 1.0 / self.base ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "longrope":
            return plain / torch.tensor(self.short, dtype=torch.float32, device="cpu")
        if self.kind == "llama3":
            turns = self.original * plain / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = kept.clamp(0.0, 1.0)
            return kept * plain + (1.0 - kept) * plain / self.factor
        return plain

    def angles(self, positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions (T,): two of (T, 1, R/2), computed in float32 and then rounded to `dtype`."""
        turned = positions.float()[:, None, None] * put(self.frequencies(width), positions.device)
        cos, sin = turned.cos(), turned.sin()
        if self.size != 1.0:
            cos, sin = cos * self.size, sin * self.size
        return cos.to(dtype), sin.to(dtype)


KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


LONG_NAMES = ("longrope", "su")  # the second in early files


def _longrope(fields: Mapping[str, Any], base: float, context: int, share: float) -> Rope:
    """Raises: ModelError, where the factors are missing or wrong."""
    original, size = fields.get("original_max_position_embeddings") or context, fields.get("attention_factor")
    factor = fields.get("factor") or context / original
    factors = {name: fields.get(f"{name}_factor") for name in ("short", "long")}
    for name, found in factors.items():
        if not isinstance(found, list) or not all(type(x) in (int, float) and x > 0 for x in found):
            raise ModelError(f"longrope in config.json needs {name}_factor, a list of numbers above 0")
    if size is None:
        size = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (tuple(map(float, factors[name] or ())) for name in ("short", "long"))
    theta = fields.get("rope_theta") or base
    return Rope(theta, "longrope", share, original=original, short=short, long=long, size=float(size))


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of each head, the last dimensions staying where the angles are fewer: (T, H, Dh) -> (T, H, Dh)."""
    cos, sin = angles
    half = cos.shape[-1]
    first, second, *rest = torch.split(x, half if 2 * half == x.shape[-1] else [half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, *rest), dim=-1)


def sinusoids(positions: Tensor, width: int, last: int) -> Tensor:
    """The Transformer's positions (arXiv 1706.03762, 3.5), in Marian's order: (T,) -> (T, D) float32.

    Of angles a_i = position / 10000^(2i/D), the paper puts sin a_0, cos a_0, sin a_1, cos a_1, ...; Marian puts all
    sines and then all cosines, which to a model trained so is the same but for the names of its dimensions.

    Args:
        last: the largest position.
    """
    size = 1 << max(9, last.bit_length())  # a power of two, so that the table is seldom made again
    return _sinusoid_table(size, width, positions.device)[positions]


def fairseq_sinusoids(positions: Tensor, width: int, last: int, first: int) -> Tensor:
    """Positions as fairseq's multilingual models (M2M100, NLLB) were trained with them: (T,) -> (T, D) float32.

    Their frequencies fall to exactly 1/10000, and angles are float32 numbers, whose rounding the models know.

    Args:
        last: the largest position.
        first: where the first token stands, which is behind the id of padding.
    """
    size = 1 << max(9, (last + first).bit_length())
    return _fairseq_table(size, width, positions.device)[positions + first]


@lru_cache(maxsize=4)
def _fairseq_table(size: int, width: int, device: torch.device) -> Tensor:
    with persistent():
        half = width // 2
        powers = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -(math.log(10_000) / (half - 1)))
        angles = torch.arange(size, dtype=torch.float32, device="cpu")[:, None] * powers  # (size, D/2)
        odd = angles.new_zeros(size, width % 2)
        return put(torch.cat((angles.sin(), angles.cos(), odd), 1), device)


@lru_cache(maxsize=4)
def _sinusoid_table(size: int, width: int, device: torch.device) -> Tensor:
    with persistent():  # a table first made inside inference_mode could not be used by autograd later
        powers = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
        angles = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] / 10_000.0**powers  # (size, D/2)
        return put(torch.cat((angles.sin(), angles.cos()[:, : width // 2]), 1).float(), device)
