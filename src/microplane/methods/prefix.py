"""Prefix tuning, arXiv 2101.00190: K' = [P_k; K], V' = [P_v; V] in every attention; P_k and P_v (l, KV Dh) alone train.

So that Attn' = (1 - a) Attn(x; K, V) + a softmax(q P_k^T) P_v, with a the share of the scores that falls on the prefix.
While training, P may be the output of an MLP: P = W tanh(U P' + b) + b'. What is saved is P.
Relative biases (T5) are 0 at the prefix. Where keys are turned by their position, those of the prefix are turned as if
all stood l places before the row: the same as a row that begins at l behind keys that are not turned, which is peft's
way. The output is not the base's at first: whatever the prefix holds, it takes a share of the attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from microplane.device import drawn
from microplane.errors import ConfigError
from microplane.methods.adapted_linear import set_parameter_
from microplane.methods.disable import AddedModule
from microplane.methods.method import NEEDS_SOCKETS, OUTER_PREFIX, Method, check_fits
from microplane.methods.prompt import length_of_peft, virtual_tokens
from microplane.nn.layers import Linear, drawn_linear
from microplane.nn.position import Rope, rotate

STATE = "prompt_embeddings"  # peft's name
KINDS = ("encoder", "decoder", "cross")


class Trunk(nn.Module):
    """What all prefixes have in common while an MLP makes them: tanh(U P' + b), (l, mid)."""

    def __init__(self, length: int, width: int, mid: int, device: torch.device):
        super().__init__()
        self.embedding = nn.Parameter(drawn(nn.init.normal_, length, width, device=device))
        self.first = drawn_linear(width, mid, device)

    def forward(self) -> Tensor:
        return torch.tanh(self.first(self.embedding))


class Prefix(AddedModule, nn.Module):
    """Keys and values of one attention: its own, or what the MLP makes as long as there is one."""

    def __init__(self, heads: int, length: int, width: int, rope: Rope | None, device: torch.device):
        super().__init__()
        self.shape = heads, length, width  # (KV, l, Dh)
        self.keys = nn.Parameter(drawn(nn.init.normal_, *self.shape, device=device) * 0.02)
        self.values = nn.Parameter(drawn(nn.init.normal_, *self.shape, device=device) * 0.02)
        self.last: Linear | None = None  # (mid -> 2 KV Dh)
        self._trunk: tuple[Trunk, ...] = ()  # hidden from torch, for it belongs to the model and is saved once
        angles = None if rope is None else rope.angles(torch.full((1,), -length, device=device), width, torch.float32)
        self.cos: Tensor | None
        self.sin: Tensor | None
        self.register_buffer("cos", None if angles is None else angles[0], persistent=False)  # (1, 1, Dh/2)
        self.register_buffer("sin", None if angles is None else angles[1], persistent=False)

    def make_by(self, trunk: Trunk) -> None:
        """Let the MLP make keys and values, which are no parameters of their own then."""
        heads, _, width = self.shape
        device = self.keys.device
        self.last = drawn_linear(trunk.first.out_features, 2 * heads * width, device)
        self._trunk = (trunk,)
        _empty(self.keys, self.values)

    @property
    def made(self) -> bool:
        return self.last is not None and self.last.weight.numel() > 0

    def pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they are saved, (KV, l, Dh) each."""
        if self.last is None or not self.made:
            return self.keys, self.values
        heads, length, width = self.shape
        both = self.last(self._trunk[0]()).view(length, 2, heads, width)
        keys, values = both.permute(1, 2, 0, 3)
        return keys, values

    def forward(self) -> tuple[Tensor, Tensor]:
        keys, values = self.pair()
        if self.cos is not None and self.sin is not None:
            keys = rotate(keys, (self.cos, self.sin))
        return keys, values

    def replaced(self) -> None:
        """An attention has no prefix of its own."""

    def settle(self, keys: Tensor, values: Tensor) -> None:
        """Be these from now on; the MLP is dropped."""
        for parameter, value in ((self.keys, keys), (self.values, values)):
            set_parameter_(parameter, value)
            parameter.requires_grad_(True)
        if self.last is not None:
            _empty(*self.last.parameters(), *self._trunk[0].parameters())


def _empty(*parameters: nn.Parameter) -> None:
    """Take a parameter's memory; it stays the same object, for an optimizer may know it."""
    for parameter in parameters:
        parameter.data = parameter.data.new_empty(0)
        parameter.grad = None
        parameter.requires_grad_(False)


class AttentionSite(NamedTuple):
    attention: nn.Module
    kind: str  # of KINDS
    layer: int


def attention_sites(model: nn.Module) -> Iterator[tuple[str, AttentionSite]]:
    """Each attention of a model that keeps to the contract, by its dotted name."""
    stacks = (
        {"": getattr(model, "KIND", "")} if hasattr(model, "layers") else {"encoder.": "encoder", "decoder.": "decoder"}
    )
    for stack, kind in stacks.items():
        layers = getattr(model.get_submodule(stack[:-1]) if stack else model, "layers", ())
        for layer, block in enumerate(layers):
            for name, what in (("attention", kind), ("cross_attention", "cross")):
                attention = getattr(block, name, None)
                if isinstance(attention, nn.Module) and hasattr(attention, "prefix"):
                    yield f"{stack}layers.{layer}.{name}", AttentionSite(attention, what, layer)


class PrefixTuning(Method):
    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = "trained keys and values before those of every row, in each attention"
    default_lr: ClassVar[float] = 5e-2
    trains_matrices: ClassVar[bool] = False
    needs_own_model: ClassVar[str | None] = NEEDS_SOCKETS
    starts_at_base: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "PREFIX_TUNING"
    prefix: ClassVar[str] = OUTER_PREFIX

    length: int = Field(20, ge=1, description="how many keys and values; they take no place of the context")
    attentions: tuple[Literal["all", "encoder", "decoder", "cross"], ...] = Field(
        ("all",), description="which get a prefix: self-attention of the encoder or decoder, cross-attention, or all"
    )
    start: Literal["random", "zero"] = Field(
        "random", description="random: close to 0; zero: at 0, where it takes its share of attention and gives nothing"
    )
    mlp: bool = Field(False, description="while training, an MLP makes the prefix (steadier at small rates)")
    mlp_width: int = Field(512, ge=1, description="its inner width")

    def idle_knobs(self) -> dict[str, str]:
        return {} if self.mlp else {"mlp_width": "method.mlp is off. Leave it out, or set method.mlp=true"}

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        wanted = self._wanted(model)
        device = next(model.parameters()).device
        trunk = None
        if self.mlp:
            trunk = Trunk(self.length, cast(Any, model).config.hidden_size, self.mlp_width, device)
            model.add_module("prefix_trunk", trunk)
        ropes = getattr(cast(Any, model).config, "ropes", None)
        for place in wanted.values():
            rope = ropes[place.layer] if ropes else getattr(place.attention, "rope", None)
            width: int = place.attention.head_dim  # type: ignore[assignment]
            heads = _keys_width(place.attention) // width
            prefix = Prefix(heads, self.length, width, rope, device)
            if trunk is not None:
                prefix.make_by(trunk)
            if self.start == "zero":
                for parameter in (prefix.keys, prefix.values) if prefix.last is None else prefix.last.parameters():
                    nn.init.zeros_(parameter)
            place.attention.prefix = prefix

    def _wanted(self, model: nn.Module) -> dict[str, AttentionSite]:
        found = dict(attention_sites(model))
        there = sorted({place.kind for place in found.values()}, key=KINDS.index)
        if not there:
            raise ConfigError(f"{type(model).__name__} has no attention that takes a prefix; choose lora")
        if absent := [kind for kind in self.attentions if kind != "all" and kind not in there]:
            raise ConfigError(
                f"method.attentions: {absent[0]!r} is not in this model; it has {', '.join(there)} (or all)"
            )
        if not self.attentions:
            raise ConfigError(f"method.attentions is empty; this model has {', '.join(there)}, or all")
        every = "all" in self.attentions
        return {name: place for name, place in found.items() if every or place.kind in self.attentions}

    def _prefixes(self, model: nn.Module) -> dict[str, Prefix]:
        found = {name: place.attention.prefix for name, place in attention_sites(model)}
        return {name: prefix for name, prefix in found.items() if isinstance(prefix, Prefix)}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Keys and values; of a decoder in one tensor as peft has them, (l, layers * 2 * KV Dh)."""
        pairs = {name: prefix.pair() for name, prefix in self._prefixes(model).items()}
        if _one_stack(model):
            return {STATE: torch.cat([x.transpose(0, 1).flatten(1) for pair in pairs.values() for x in pair], 1)}
        ends = ("keys", "values")
        return {f"{name}.{end}": x for name, pair in pairs.items() for end, x in zip(ends, pair, strict=True)}

    def load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        check_fits({name: tensor.shape for name, tensor in self.state(model).items()}, state)
        at = 0
        for name, prefix in self._prefixes(model).items():
            heads, length, width = prefix.shape
            if _one_stack(model):
                both = state[STATE][:, at : at + 2 * heads * width].view(length, 2, heads, width)
                keys, values = both.permute(1, 2, 0, 3)
                at += 2 * heads * width
            else:
                keys, values = state[f"{name}.keys"], state[f"{name}.values"]
            prefix.settle(keys, values)

    def _mlp(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The MLP's parameters, as long as it makes the prefixes."""
        prefixes = self._prefixes(model)
        parts: dict[str, nn.Module] = {
            f"{name}.last": prefix.last for name, prefix in prefixes.items() if prefix.last is not None
        }
        parts |= {"trunk": trunk} if isinstance(trunk := getattr(model, "prefix_trunk", None), Trunk) else {}
        return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The MLP, which `state` has only the outcome of."""
        return {name: parameter for name, parameter in self._mlp(model).items() if parameter.numel()}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        if not state:
            return
        for name, parameter in self._mlp(model).items():
            set_parameter_(parameter, state[name])
            parameter.requires_grad_(True)
        for prefix in self._prefixes(model).values():
            _empty(prefix.keys, prefix.values)

    def has_peft_format(self, model: nn.Module) -> bool:
        """On a decoder in which it is no matter that peft's prefix has places of the text: in a window it goes out of
        sight, and positions that are embedded begin behind it."""
        config = cast(Any, model).config if _one_stack(model) else None
        return config is not None and not any(config.windows) and not config.positions

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        if not self.has_peft_format(model):
            return None
        width = next(iter(self._prefixes(model).values())).shape
        own = {"token_dim": width[0] * width[2], "num_attention_heads": width[0]}
        return virtual_tokens(self, model, self.length) | own | {"prefix_projection": False}

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Also of one that an MLP made: what peft saves is the outcome."""
        return {"length": length_of_peft(config)}


def _keys_width(attention: nn.Module) -> int:
    """KV * Dh, also where q, k and v are one matrix, of which a decoder's may have fewer keys than queries."""
    if (k := getattr(attention, "k", None)) is not None:
        return int(k.out_features)
    widths = getattr(attention, "widths", None)  # of q, k and v
    return int(widths[1] if widths else cast(Any, attention).qkv.out_features // 3)


def _one_stack(model: nn.Module) -> bool:
    return getattr(model, "KIND", "") == "decoder"
