"""What a config.json of the decoder family means: Llama 2/3, SmolLM2/3, Mistral, Qwen2/2.5, Qwen3, OLMo2, Granite,
Gemma 2 and 3 text.

Read as transformers 4 and 5 write it; written so that both understand it. Dropout of the original training is not
applied, whatever a config.json says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from microplane.errors import ModelError
from microplane.models.configs.fields import NUMBER, SIZE, SWITCH, Wanted, architecture_of, check_types
from microplane.nn.layers import ACTIVATIONS
from microplane.nn.position import Rope

FULL, SLIDING = "full_attention", "sliding_attention"  # Hugging Face's names of the types of layers


@dataclass(frozen=True)
class DecoderSpec:
    """Properties of an architecture that its config.json does not say."""

    model_type: str
    defaults: dict[str, Any] = field(default_factory=dict)  # of fields that config.json may leave out
    slides: Callable[[Mapping[str, Any], int], bool] | None = None  # has a layer a window?
    layer_types: bool = False  # whether its config.json has layer_types
    switch: bool = False  # a window is in force only with use_sliding_window
    qkv_bias: bool = False  # always; attention_bias decides otherwise
    qk_norm: bool = False
    qk_norm_whole: bool = False
    norm_after: bool = False
    multiplies: bool = False  # embeddings, scores, what is added, and logits are scaled by fields of config.json
    gemma: bool = False
    labels_rows: bool = True  # whether Hugging Face has a class of it that does
    labels_tokens: bool = True
    local_rope: bool = False  # layers with a window have their own rotary base
    no_rope: bool = False  # some layers have no rotary positions


GEMMA = {
    "num_attention_heads": 8,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
GEMMA2 = GEMMA | {"vocab_size": 256_000, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3 = GEMMA | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
SMOLLM3 = {"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True}
GRANITE = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
QWEN = {"sliding_window": 4096, "max_window_layers": 28}

SPECS = {
    "LlamaForCausalLM": DecoderSpec("llama"),
    "SmolLM3ForCausalLM": DecoderSpec(
        "smollm3", SMOLLM3, slides=lambda c, i: not _has_rope(c, i), layer_types=True, switch=True, no_rope=True
    ),
    "MistralForCausalLM": DecoderSpec(
        "mistral", {"num_key_value_heads": 8, "sliding_window": 4096}, slides=lambda c, i: True
    ),
    "Qwen2ForCausalLM": DecoderSpec(
        "qwen2", QWEN, slides=lambda c, i: i >= c["max_window_layers"], layer_types=True, switch=True, qkv_bias=True
    ),
    "Qwen3ForCausalLM": DecoderSpec(
        "qwen3",
        QWEN | {"head_dim": 128},
        slides=lambda c, i: i >= c["max_window_layers"],
        layer_types=True,
        switch=True,
        qk_norm=True,
    ),
    "Olmo2ForCausalLM": DecoderSpec(
        "olmo2", {"rms_norm_eps": 1e-5}, qk_norm=True, qk_norm_whole=True, norm_after=True, labels_tokens=False
    ),
    "GraniteForCausalLM": DecoderSpec("granite", GRANITE, multiplies=True, labels_rows=False, labels_tokens=False),
    "Gemma2ForCausalLM": DecoderSpec("gemma2", GEMMA2, slides=lambda c, i: i % 2 == 0, layer_types=True, gemma=True),
    "Gemma3ForCausalLM": DecoderSpec(
        "gemma3_text",
        GEMMA3,
        slides=lambda c, i: (i + 1) % (c.get("sliding_window_pattern") or 6) != 0,
        layer_types=True,
        qk_norm=True,
        gemma=True,
        labels_tokens=False,
        local_rope=True,
    ),
}
HEADLESS = {  # a model without a head for words -> the same with one, which is its embedding here
    ("Gemma3TextModel" if name.startswith("Gemma3") else f"{name.removesuffix('ForCausalLM')}Model"): name
    for name in SPECS
}
ARCHITECTURES = {name: spec.model_type for name, spec in SPECS.items()}
ARCHITECTURES |= {name: SPECS[whole].model_type for name, whole in HEADLESS.items()}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


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
    gemma: bool = False  # scaled embeddings, norms around one, a norm also behind each sub-layer
    tied: bool = False  # the head is the embedding
    context: int = 2048  # max_position_embeddings
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
        fields = spec.defaults | {name: x for name, x in config.items() if x is not None or name in NULLABLE}
        check_types(fields, WANTED, SIZES)
        _check_values(fields)
        heads = fields["num_attention_heads"]
        bias = bool(fields.get("attention_bias"))
        windows = _windows(spec, fields)
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
            ropes=_ropes(spec, fields, windows),
            activation=_activation(fields),
            norm_eps=fields.get("rms_norm_eps", 1e-6),
            attention_scale=_scale(spec, fields),
            **{name: fields[name] for name in GRANITE if spec.multiplies and name != "attention_multiplier"},
            attn_logit_softcapping=fields.get("attn_logit_softcapping") if spec.gemma else None,
            final_logit_softcapping=fields.get("final_logit_softcapping") if spec.gemma else None,
            qkv_bias=bias or spec.qkv_bias,
            o_bias=bias,
            mlp_bias=bool(fields.get("mlp_bias")),
            qk_norm=spec.qk_norm,
            qk_norm_whole=spec.qk_norm_whole,
            norm_after=spec.norm_after,
            gemma=spec.gemma,
            tied=named in HEADLESS or fields.get("tie_word_embeddings", False),
            context=fields.get("max_position_embeddings", 2048),
            init_std=fields.get("initializer_range", 0.02),
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json. Rotary settings are written as transformers 4 and as 5 read them."""
        spec = SPECS[self.architecture]
        window = next((window for window in self.windows if window), None)
        fields: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": spec.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_activation" if self.gemma else "hidden_act": self.activation,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.context,
            "initializer_range": self.init_std,
        }
        fields |= {"attention_bias": True} if self.o_bias else {}
        fields |= {"mlp_bias": True} if self.mlp_bias else {}
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
        return fields | self._ropes_to_hf(spec)

    def _ropes_to_hf(self, spec: DecoderSpec) -> dict[str, Any]:
        ropes = {window is None: rope for window, rope in zip(self.windows, self.ropes, strict=True) if rope}
        far = ropes.get(True) or ropes.get(False) or Rope(10_000.0)
        scaling = far.to_hf() if far.kind != "default" else None
        fields = {"rope_parameters": far.to_hf(), "rope_theta": far.base, "rope_scaling": scaling}
        if spec.local_rope:
            near = ropes.get(False) or far
            fields |= {"rope_parameters": {FULL: far.to_hf(), SLIDING: near.to_hf()}, "rope_local_base_freq": near.base}
        return fields


def _scale(spec: DecoderSpec, fields: Mapping[str, Any]) -> float | None:
    if spec.multiplies:
        return float(fields["attention_multiplier"])
    return float(fields["query_pre_attn_scalar"] ** -0.5) if spec.gemma else None


def _check_values(fields: Mapping[str, Any]) -> None:
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads") or 1
    if heads % kv_heads:
        raise ModelError(
            f"in config.json, num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
        )
    if (no_rope := fields.get("no_rope_layers")) and len(no_rope) < layers:
        raise ModelError(f"no_rope_layers in config.json has {len(no_rope)} entries for num_hidden_layers = {layers}")
    if fields.get("use_bidirectional_attention"):
        raise ModelError("use_bidirectional_attention = true in config.json is not supported; attention is causal here")


def _activation(fields: Mapping[str, Any]) -> str:
    activation = fields.get("hidden_activation") or fields.get("hidden_act") or "silu"
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(
            f"the activation {activation!r} in config.json is not supported (hidden_act); "
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


def _has_rope(fields: Mapping[str, Any], layer: int) -> bool:
    layers = fields.get("no_rope_layers")  # in spite of its name, 1 stands for a layer that has it
    if layers is None:
        return bool((layer + 1) % fields.get("no_rope_layer_interval", 4))
    return bool(layers[layer])


def _entry(written: dict[str, Any], kind: str, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of one type of layer, where config.json has them per type."""
    entry = written.get(kind) or otherwise
    if not isinstance(entry, dict):
        raise ModelError(f"rope_parameters in config.json has {kind} = {entry!r}: expected an object")
    return entry


def _ropes(spec: DecoderSpec, fields: Mapping[str, Any], windows: tuple[int | None, ...]) -> tuple[Rope | None, ...]:
    context, base = fields.get("max_position_embeddings", 2048), fields.get("rope_theta", 10_000.0)
    written, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    partial = {name: fields[name] for name in ("partial_rotary_factor",) if name in fields}
    rope = Rope.from_hf({**partial, **_entry(written, FULL, written), **scaling}, base, context)
    if spec.local_rope:  # and they are not scaled
        near = Rope.from_hf(_entry(written, SLIDING, {}), fields["rope_local_base_freq"], context)
        return tuple(near if window else rope for window in windows)
    if spec.no_rope:
        return tuple(rope if _has_rope(fields, i) else None for i in range(len(windows)))
    return (rope,) * len(windows)
