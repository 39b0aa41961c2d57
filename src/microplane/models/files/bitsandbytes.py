"""Folders in Hugging Face layout whose linears bitsandbytes has quantised to nf4.

A weight `w` of n numbers is stored as several tensors: `w` (n/2, 1) uint8, `w.absmax`, `w.quant_map`, with double
quantisation also `w.nested_absmax` and `w.nested_quant_map`, and `w.quant_state.bitsandbytes__nf4`: JSON in uint8.

On processors with AVX512-BF16, bitsandbytes 0.49 and 0.50 lay a weight out anew when it is first multiplied, and before
it is saved they undo that for the codes, but without double quantisation not for the scales: `w.absmax` is then
bfloat16 (in / 64, out) in place of float32 (n / 64,). Its own reader takes it as it stands, and the weights are wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microplane.errors import ModelError, notice
from microplane.nn.ops import nf4

STATE = "quant_state.bitsandbytes__nf4"
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", STATE)


def readable(scheme: Any) -> bool:
    """True if this quantization_config of a config.json is bitsandbytes' nf4, the only kind that is read here."""
    return (
        isinstance(scheme, dict)
        and scheme.get("quant_method", "bitsandbytes") == "bitsandbytes"
        and bool(scheme.get("load_in_4bit"))
        and scheme.get("bnb_4bit_quant_type") == "nf4"
    )


class Packed(NamedTuple):
    """A weight as the file stores it."""

    codes: Tensor  # (P,) uint8
    scales: Tensor  # (N,) float32
    shape: tuple[int, ...]
    parts: nf4.NF4  # the same weight, usable without quantising again


class NF4Shards(Mapping[str, Tensor]):
    """The tensors of a checkpoint under their plain names; quantised weights are dequantised to float32."""

    def __init__(self, stored: Mapping[str, Tensor], where: str):
        self.stored, self.where = stored, where
        self.packed_names = {name.removesuffix(f".{STATE}") for name in stored if name.endswith(f".{STATE}")}
        hidden = {f"{name}.{part}" for name in self.packed_names for part in PARTS}
        self.names = [name for name in stored if name not in hidden]
        self._told = False  # of scales that were put right

    def __getitem__(self, name: str) -> Tensor:
        packed = self.packed(name)
        return self.stored[name] if packed is None else nf4.expand(packed.codes, packed.scales, packed.shape)

    def parts(self, name: str) -> nf4.NF4 | None:
        """The weight as an NF4Linear holds it, if the file does so too."""
        packed = self.packed(name)
        return None if packed is None else packed.parts

    def packed(self, name: str) -> Packed | None:
        """The weight as the file stores it; None if it is not quantised.

        Raises:
            ModelError: if a part is missing, or the blocks or levels are others than bitsandbytes' own.
        """
        if name not in self.packed_names:
            return None
        try:
            state = json.loads(bytes(self.stored[f"{name}.{STATE}"].tolist()))
            shape, absmax = tuple(int(size) for size in state["shape"]), self.stored[f"{name}.absmax"]
            codes = self.stored[name].contiguous().view(torch.uint8).view(-1)
            sizes = state["blocksize"], state.get("nested_blocksize", nf4.NESTED)
            same = torch.equal(self.stored[f"{name}.quant_map"].float(), nf4.levels())
            if sizes != (nf4.BLOCK, nf4.NESTED) or not same or 2 * len(codes) < torch.Size(shape).numel():
                raise ValueError(f"blocks of {sizes[0]} and {sizes[1]}, {len(codes):,} bytes for {shape}")
            if "nested_offset" not in state:
                scales = self._scales(absmax, shape)
                return Packed(codes, scales, shape, nf4.of_scales(codes, scales))
            offset = torch.tensor(float(state["nested_offset"]))
            parts = nf4.NF4(codes, absmax, self.stored[f"{name}.nested_absmax"], offset)
            return Packed(codes, nf4.dequantise_absmax(parts), shape, parts)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{self.where}: the nf4 weight {name} cannot be read ({error}): expected bitsandbytes' layout with "
                f"blocks of {nf4.BLOCK} and {nf4.NESTED}. Give the model as it was before quantisation"
            ) from None

    def _scales(self, absmax: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Those of the blocks, one after the other: (N,) float32."""
        if absmax.dim() == 1:
            return absmax.float()
        if tuple(absmax.shape) != (shape[1] // nf4.BLOCK, shape[0]):
            raise ValueError(f"scales of shape {tuple(absmax.shape)}")
        if not self._told:
            self._told = True
            notice(
                f"{self.where}: bitsandbytes saved these nf4 weights after it had computed with them on a processor "
                "with AVX512-BF16, which left their scales transposed and in bfloat16. They are read in their right "
                "places, and off by up to 0.4%; quantise the model anew to have them as they were"
            )
        return absmax.t().reshape(-1).float()

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def bitsandbytes_tensors(name: str, weight: nf4.NF4, shape: tuple[int, ...], dtype: str) -> dict[str, Tensor]:
    """A weight as bitsandbytes stores it; `dtype` is the format that it dequantises to."""
    state = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "dtype": dtype,
        "shape": list(shape),
        "nested_blocksize": nf4.NESTED,
        "nested_dtype": "float32",
        "nested_offset": weight.offset.item(),
    }
    return {
        name: weight.codes.unsqueeze(1),
        f"{name}.absmax": weight.absmax,
        f"{name}.quant_map": nf4.levels().clone(),
        f"{name}.nested_absmax": weight.nested_absmax,
        f"{name}.nested_quant_map": nf4.dynamic_map().clone(),
        f"{name}.{STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
