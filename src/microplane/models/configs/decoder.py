"""What a config.json of a decoder means: of the families in `SPECS` of models/configs/decoder_families.py.

Read as transformers 4 and 5 write it; written so that both understand it. Dropout is applied where the family's own
training had it (`DecoderSpec.dropouts`); of the others `attention_dropout` is not, whatever a config.json says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microplane.errors import ModelError
from microplane.models.configs.decoder_families import (
    ARCHITECTURES,
    DROPOUTS,
    GRANITE,
    HEADLESS,
    SPECS,
    DecoderSpec,
    has_rope,
)
from microplane.models.configs.fields import NUMBER, SIZE, SWITCH, Wanted, architecture_of, check_types
from microplane.nn.layers import ACTIVATIONS
from microplane.nn.position import Rope

FULL, SLIDING = "full_attention", "sliding_attention"  # Hugging Face's names of the types of layers


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


SHARE, ORIGINAL = "partial_rotary_factor", "original_max_position_embeddings"
PARALLEL = "use_parallel_residual"
BY_LAYER = "scale_attn_by_inverse_layer_idx"
OF_THE_FAMILY = (*("qk_norm", "qk_norm_whole", "norm_after", "layer_norm", "fused", "fused_by_head", "gated", "gemma"),)
GROUPS = ("num_key_value_heads", "head_dim")
NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


# What a field must be, where it is given.
WANTED: Wanted = {
    **dict.fromkeys((*SIZES, "num_key_value_heads", "head_dim"), SIZE),
    **dict.fromkeys(("sliding_window", "sliding_window_pattern", "no_rope_layer_interval"), SIZE),
    **dict.fromkeys(("max_position_embeddings",), SIZE),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "rope_local_base_freq"), NUMBER),
    **dict.fromkeys(("query_pre_attn_scalar", "initializer_range"), NUMBER),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", *GRANITE), NUMBER),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), ("an object", lambda x: isinstance(x, dict))),
    **dict.fromkeys(("layer_types", "no_rope_layers"), ("a list", lambda x: isinstance(x, list))),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), SWITCH),
    **dict.fromkeys(("use_parallel_residual", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"), SWITCH),
    **dict.fromkeys(DROPOUTS, ("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)),
}


@dataclass(frozen=True)
class DecoderConfig:
    """The hyperparameters of a `Decoder`."""

    architecture: str  # Hugging Face's class name
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]  # per layer: how many tokens back attention reaches, itself counted; None for all
    ropes: tuple[Rope | None, ...]  # per layer: None for a layer that knows no positions
    activation: str = "silu"
    norm_eps: float = 1e-6
    attention_scale: float | None = None  # of the scores; 1 / sqrt(Dh) if None
    scale_by_layer: bool = False  # and divided by the number of the layer, counted from 1
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of each sub-layer's output
    logits_scaling: float = 1.0  # that the logits are divided by
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # a norm on each head of q and k
    qk_norm_whole: bool = False  # or one on all heads together
    norm_after: bool = False  # the norm of a sub-layer stands behind it, before its output is added, and none before it
    layer_norm: bool = False  # norms take the mean away and have biases (arXiv 1607.06450)
    fused: bool = False  # q, k and v are one linear layer, and gate and up too
    fused_by_head: bool = False  # where the first head's q, k and v stand before the second's
    parallel: bool = False  # both sub-layers get the block's input
    gated: bool = True  # the feed-forward layer is down(act(gate(x)) * up(x))
    positions: bool = False  # are embedded: one vector for each, added to the words
    embed_dropout: float = 0.0
    hidden_dropout: float = 0.0  # of each sub-layer's output
    mlp_dropout: float = 0.0  # of what the last layer of the feed-forward layer gets
    attention_dropout: float = 0.0  # of the shares
    gemma: bool = False  # scaled embeddings, norms around one, a norm also behind each sub-layer
    tied: bool = False  # the head is the embedding
    context: int = 2048  # most tokens of a row: max_position_embeddings, but for longrope
    longest: int = 0  # longrope: max_position_embeddings; the tokens beyond `context` are not read here
    init_std: float = 0.02

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """From the fields of a config.json, of transformers 4 or 5.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        named = architecture_of(config, ARCHITECTURES)
        architecture = HEADLESS.get(named, named)
        spec = SPECS[architecture]
        fields = _filled(spec, config)
        told, wanted = ({spec.spelled(name): x for name, x in table.items()} for table in (fields, WANTED))
        check_types(told, wanted, tuple(spec.spelled(name) for name in SIZES))
        _check_values(spec, fields)
        heads = fields["num_attention_heads"]
        windows = _windows(spec, fields)
        ropes, context = _ropes(spec, fields, windows), fields.get("max_position_embeddings", 2048)
        within = next((rope.original for rope in ropes if rope and rope.kind == "longrope"), context)
        return cls(
            architecture=architecture,
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=fields.get("num_key_value_heads") or heads,
            head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
            windows=windows,
            ropes=ropes,
            activation=_activation(spec, fields),
            norm_eps=fields.get("rms_norm_eps", 1e-6),
            attention_scale=_scale(spec, fields),
            scale_by_layer=BY_LAYER in spec.defaults and fields[BY_LAYER],
            **{name: fields[name] for name in GRANITE if spec.multiplies and name != "attention_multiplier"},
            attn_logit_softcapping=fields.get("attn_logit_softcapping") if spec.gemma else None,
            final_logit_softcapping=fields.get("final_logit_softcapping") if spec.gemma else None,
            **_biases(spec, fields),
            **_of_the_family(spec, fields),
            tied=named in HEADLESS or fields.get("tie_word_embeddings", False),
            context=min(within, context),
            longest=context if within < context else 0,
            init_std=fields.get("initializer_range", 0.02),
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json. Rotary settings are written as transformers 4 and as 5 read them."""
        spec = SPECS[self.architecture]
        window = next((window for window in self.windows if window), None)
        fields: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "hidden_activation" if self.gemma else "hidden_act": self.activation,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.longest or self.context,
            "initializer_range": self.init_std,
        }
        fields |= {"num_key_value_heads": self.num_kv_heads, "head_dim": self.head_dim} if spec.grouped else {}
        fields |= {name: getattr(self, name) for name in spec.dropouts}
        if not spec.biases:
            biases = {"attention_bias": self.o_bias, "mlp_bias": self.mlp_bias}
            told = [name for name in biases if biases[name] or name in spec.defaults]
            fields |= {name: biases[name] for name in told if name not in spec.unread}
        if PARALLEL in spec.defaults:
            fields[PARALLEL] = self.parallel
        if BY_LAYER in spec.defaults:
            fields |= {BY_LAYER: self.scale_by_layer, "scale_attn_weights": self.attention_scale is None}
        if spec.multiplies:
            fields |= {name: getattr(self, name) for name in GRANITE if name != "attention_multiplier"}
            fields["attention_multiplier"] = self.attention_scale
        fields |= {"sliding_window": window} if spec.slides else {}
        fields |= {"use_sliding_window": window is not None} if spec.switch else {}
        if spec.layer_types:
            fields["layer_types"] = [SLIDING if window else FULL for window in self.windows]
        if spec.no_rope:
            fields["no_rope_layers"] = [int(rope is not None) for rope in self.ropes]
        if self.gemma:
            scalar = round((self.attention_scale or 1.0) ** -2, 6)
            fields["query_pre_attn_scalar"] = int(scalar) if scalar.is_integer() else scalar
            fields["attn_logit_softcapping"] = self.attn_logit_softcapping
            fields["final_logit_softcapping"] = self.final_logit_softcapping
        fields |= self._ropes_to_hf(spec) if spec.rotary else {}
        named = {"architectures": [self.architecture], "model_type": spec.model_type}
        return named | {spec.spelled(name): value for name, value in fields.items()}

    def _ropes_to_hf(self, spec: DecoderSpec) -> dict[str, Any]:
        ropes = {window is None: rope for window, rope in zip(self.windows, self.ropes, strict=True) if rope}
        far = ropes.get(True) or ropes.get(False) or Rope(10_000.0)
        scaling = far.to_hf() if far.kind != "default" else None
        fields = {"rope_parameters": far.to_hf(), "rope_theta": far.base, "rope_scaling": scaling}
        fields |= {SHARE: far.share} if spec.partial else {}
        fields |= {ORIGINAL: far.original} if far.kind == "longrope" else {}
        if spec.local_rope:
            near = ropes.get(False) or far
            fields |= {"rope_parameters": {FULL: far.to_hf(), SLIDING: near.to_hf()}, "rope_local_base_freq": near.base}
        return fields


def _filled(spec: DecoderSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the family's class reads, by Llama's names, with those that config.json may leave out."""
    unread = {*spec.unread, *spec.fields} - {*spec.also}
    told = {name: x for name, x in config.items() if x is not None or name in NULLABLE}
    given = {name: x for name, x in told.items() if name not in unread}
    given |= {ours: told[theirs] for ours, theirs in spec.fields.items() if theirs in told}
    fields = spec.defaults | {name: x for name, x in given.items() if spec.grouped or name not in GROUPS}
    if spec.inner and isinstance(fields.get("hidden_size"), int):
        fields["intermediate_size"] = given.get(spec.spelled("intermediate_size")) or spec.inner * fields["hidden_size"]
    return fields


def _of_the_family(spec: DecoderSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    dropouts = {name: float(fields[name]) for name in spec.dropouts}
    return {name: getattr(spec, name) for name in OF_THE_FAMILY} | {
        "positions": not spec.rotary,
        "parallel": PARALLEL in spec.defaults and fields[PARALLEL],
        **dropouts,
    }


def _biases(spec: DecoderSpec, fields: Mapping[str, Any]) -> dict[str, bool]:
    attention = spec.biases or bool(fields.get("attention_bias"))
    mlp = spec.biases or bool(fields.get("mlp_bias"))
    return {"qkv_bias": attention or spec.qkv_bias, "o_bias": attention, "mlp_bias": mlp}


def _scale(spec: DecoderSpec, fields: Mapping[str, Any]) -> float | None:
    if spec.multiplies:
        return float(fields["attention_multiplier"])
    if BY_LAYER in spec.defaults:
        return None if fields["scale_attn_weights"] else 1.0
    return float(fields["query_pre_attn_scalar"] ** -0.5) if spec.gemma else None


def _check_values(spec: DecoderSpec, fields: Mapping[str, Any]) -> None:
    for name, value in spec.only.items():
        if fields.get(name, value) != value:
            called = spec.spelled(name)
            raise ModelError(f"{called} = {fields[name]!r} in config.json is not supported; only {value!r} is")
    width, count = spec.spelled("hidden_size"), spec.spelled("num_attention_heads")
    if not spec.grouped and fields["hidden_size"] % fields["num_attention_heads"]:
        wide, many = fields["hidden_size"], fields["num_attention_heads"]
        raise ModelError(f"in config.json, {width} = {wide} is not a multiple of {count} = {many}")
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads") or 1
    if heads % kv_heads:
        raise ModelError(
            f"in config.json, {count} = {heads} is not a multiple of {spec.spelled('num_key_value_heads')} = {kv_heads}"
        )
    if (no_rope := fields.get("no_rope_layers")) and len(no_rope) < layers:
        raise ModelError(f"no_rope_layers in config.json has {len(no_rope)} entries for num_hidden_layers = {layers}")
    for name, causal in (("use_bidirectional_attention", False), ("is_causal", True)):
        if bool(fields.get(name, causal)) is not causal:
            told = str(not causal).lower()
            raise ModelError(f"{name} = {told} in config.json is not supported; attention is causal here")


def _activation(spec: DecoderSpec, fields: Mapping[str, Any]) -> str:
    name = "hidden_activation" if spec.gemma else "hidden_act"
    activation = fields.get(name, "silu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(
            f"the activation {activation!r} in config.json is not supported ({spec.spelled(name)}); "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    return activation


def _windows(spec: DecoderSpec, fields: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers, window = range(fields["num_hidden_layers"]), fields.get("sliding_window")
    if spec.slides is None or window is None or (spec.switch and not fields.get("use_sliding_window")):
        return (None,) * len(layers)
    types = fields.get("layer_types") if spec.layer_types else None
    if types is None:
        types = [SLIDING if spec.slides(fields, i) else FULL for i in layers]
    if len(types) != len(layers) or not all(kind in (FULL, SLIDING) for kind in types):
        raise ModelError(
            f"layer_types = {types} in config.json: expected {len(layers)} entries (num_hidden_layers),"
            f" each {FULL} or {SLIDING}"
        )
    return tuple(window if kind == SLIDING else None for kind in types)


def _entry(written: dict[str, Any], kind: str, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of one type of layer, where config.json has them per type."""
    entry = written.get(kind) or otherwise
    if not isinstance(entry, dict):
        raise ModelError(f"rope_parameters in config.json has {kind} = {entry!r}: expected an object")
    return entry


def _check_turned(rope: Rope, fields: Mapping[str, Any]) -> None:
    width = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    turned = rope.turned(width)
    if not 0 < turned <= width:
        raise ModelError(
            f"in config.json, {SHARE} = {rope.share} of a head's {width} dimensions leaves no pair to turn"
        )
    for name, factors in (("short", rope.short), ("long", rope.long)):
        if rope.kind == "longrope" and len(factors) != turned // 2:
            raise ModelError(f"{name}_factor in config.json has {len(factors)} numbers for {turned // 2} pairs")


def _ropes(spec: DecoderSpec, fields: Mapping[str, Any], windows: tuple[int | None, ...]) -> tuple[Rope | None, ...]:
    if not spec.rotary:
        return (None,) * len(windows)
    context, base = fields.get("max_position_embeddings", 2048), fields.get("rope_theta", 10_000.0)
    written, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    beside = (SHARE, ORIGINAL) if spec.longrope else (SHARE,)
    partial = {name: fields[name] for name in beside if name in fields}
    entry = {**partial, **_entry(written, FULL, written), **scaling}
    rope = Rope.from_hf(entry, base, context, spec.partial, spec.longrope)
    _check_turned(rope, fields)
    if spec.local_rope:  # and they are not scaled
        near = Rope.from_hf(_entry(written, SLIDING, {}), fields["rope_local_base_freq"], context)
        return tuple(near if window else rope for window in windows)
    if spec.no_rope:
        return tuple(rope if has_rope(fields, i) else None for i in range(len(windows)))
    return (rope,) * len(windows)
