"""NomicBERT's files: its tensors are called as in its authors' code, where q, k and v are one matrix, and transformers
calls them otherwise once they are read. Adapters go by the names of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

RENAMED = {  # the authors' -> transformers'
    "emb_ln": "embeddings.LayerNorm",
    "encoder.layers": "layers",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.fc11": "mlp.up_proj",
    "mlp.fc12": "mlp.gate_proj",
    "mlp.fc2": "mlp.down_proj",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}
FUSED, PARTS = "attn.Wqkv", tuple(f"self_attn.{role}_proj" for role in ("q", "k", "v"))


def named(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a NomicBERT under the names of transformers; those of any other model as they are."""
    return Named(tensors) if config.get("model_type") == "nomic_bert" else tensors


class Named(Mapping[str, Tensor]):
    """Each is read when asked for."""

    def __init__(self, stored: Mapping[str, Tensor]):
        self.stored = stored
        self.places: dict[str, tuple[str, int | None]] = {}  # name -> what it is called in the file, and which third
        for name in stored:
            theirs = _replaced(name, RENAMED)
            if FUSED in theirs:
                self.places |= {theirs.replace(FUSED, part): (name, third) for third, part in enumerate(PARTS)}
            else:
                self.places[theirs] = name, None

    def __getitem__(self, name: str) -> Tensor:
        stored, third = self.places[name]
        tensor = self.stored[stored]
        return tensor if third is None else tensor.chunk(3)[third]

    def __contains__(self, name: object) -> bool:
        return name in self.places  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def as_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the names of transformers as its files hold them: the way back from `Named`."""
    back = {theirs: ours for ours, theirs in RENAMED.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = next((part for part in PARTS if part in name), None)
        if part is None:
            found[_replaced(name, back)] = tensor
        elif part == PARTS[0]:
            three = [tensors[name.replace(part, other)] for other in PARTS]
            found[_replaced(name.replace(part, FUSED), back)] = torch.cat(three)
    return found


def _replaced(name: str, table: Mapping[str, str]) -> str:
    """With whole parts of a dotted name replaced."""
    for old, new in table.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.)", rf"\g<1>{new}", name)
    return name
