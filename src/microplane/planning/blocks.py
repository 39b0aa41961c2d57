"""What a block of a model keeps for the backward pass, and how long it takes: seen on one block and on two.

A model of one block and one of two, with the real widths and new weights, are given the same rows, forward and
backward, with the method attached. What the second block adds, times the number of blocks, is the model. Blocks that
are too large to be tried are tried narrower: what is kept grows with the width, what is computed with its square.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from microplane.methods import Method
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.families import family_of
from microplane.models.files.load import quantise_linears
from microplane.nn.number_format import NumberFormat
from microplane.nn.rows import Pairs, Rows

DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layer")
WIDTHS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("d_model", "d_ff", "num_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
MOST_WEIGHTS = 16_000_000  # of a block that is tried as it is
VOCABULARY = 512  # of the models that are tried: heads are another matter
REPEATS = 2


@dataclass(frozen=True)
class BlockCost:
    """Of one block: what the backward pass needs, in bytes, and how long both passes take."""

    kept: float  # for each token
    fixed: float  # whatever the tokens: weights that train, in the format that is multiplied
    seconds: float  # for each token


@dataclass(frozen=True)
class _Try:
    kept: float
    seconds: float


def block_cost(
    fields: Mapping[str, Any], weights: int, method: Method, form: NumberFormat, row: int, rows: int
) -> BlockCost:
    """Of a model that a config.json describes by `fields`.

    Args:
        weights: of one block.
        row: tokens of a row, of which `rows` are computed at once.
    """
    factor = 1
    while weights / factor**2 > MOST_WEIGHTS:
        factor *= 2
    small, large = (
        [_tried(_smaller(fields, depth, factor), method, form, row, count) for depth in (1, 2)]
        for count in (rows, 2 * rows)
    )
    few, many = small[1].kept - small[0].kept, large[1].kept - large[0].kept
    per_token = max(0.0, many - few) / (row * rows)
    return BlockCost(
        kept=per_token * factor,
        fixed=max(0.0, few - per_token * row * rows) * factor**2,
        seconds=max(0.0, large[1].seconds - large[0].seconds) * factor**2 / (2 * row * rows),
    )


def _smaller(fields: Mapping[str, Any], depth: int, factor: int) -> dict[str, Any]:
    """The configuration with so many blocks, their widths divided; heads keep their own width."""
    found = dict(fields) | {"vocab_size": VOCABULARY, "torch_dtype": "float32"}
    found |= {name: depth for name in DEPTHS if isinstance(fields.get(name), int)}
    if isinstance(fields.get("layer_types"), list):
        found["layer_types"] = fields["layer_types"][:depth]
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        found |= {name: 0} if fields.get(name) is not None else {}
    if factor > 1:
        if "head_dim" not in found and "num_attention_heads" in found and "hidden_size" in found:
            found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
        found |= {name: max(1, int(found[name]) // factor) for name in WIDTHS if found.get(name)}
    return found


def _tried(fields: dict[str, Any], method: Method, form: NumberFormat, row: int, rows: int) -> _Try:
    """All that a model of these fields keeps and takes: bytes and seconds."""
    model = family_of(fields).from_hf(fields).init_weights(0).requires_grad_(False).to(form.stored).to(form.device)
    model.compute = form.multiplied
    quantise_linears(model, form)
    attach_method(method, model)
    given = _rows(model, row, rows)
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    model.train()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = model(given)
        total = sum(kept.values())
        if y.requires_grad:
            torch.autograd.backward(y, torch.ones_like(y))
        times.append(time.perf_counter() - began)
        kept.clear()
        del y
    del model
    gc.collect()
    return _Try(float(total), min(times))


def _rows(model: Model, row: int, rows: int) -> Rows | Pairs:
    given = Rows.of([[1] * row] * rows)
    return Pairs(given, given) if model.KIND == "encoder-decoder" else given


def block_weights(plain: nn.Module, blocks: int) -> int:
    """Weights of one block, on average."""
    of_blocks = sum(p.numel() for name, p in plain.named_parameters() if "layers." in name)
    return of_blocks // max(1, blocks)


def least_bytes(plain: nn.Module, form: NumberFormat) -> int:
    """What the base holds in a format: a model on the meta device, its linears quantised where the format says so."""
    with torch.device("meta"):
        quantise_linears(plain, form)
    wide = sum(p.numel() for p in plain.parameters()) * form.stored.itemsize
    return wide if form.quantised is None else wide + sum(part.nbytes for part in plain.buffers())
