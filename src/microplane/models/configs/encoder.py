"""What a config.json of the encoder family means: BERT, RoBERTa, XLM-RoBERTa and ModernBERT.

Read as transformers 4 and 5 write it; written so that both understand it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from microplane.errors import ModelError
from microplane.models.configs.fields import NUMBER, SIZE, SWITCH, Wanted, architecture_of, check_types
from microplane.nn.layers import ACTIVATIONS
from microplane.nn.position import Rope

FULL, SLIDING = "full_attention", "sliding_attention"  # Hugging Face's names of the types of layers


@dataclass(frozen=True)
class EncoderSpec:
    """Properties of an architecture that its config.json does not say."""

    model_type: str
    prefix: str  # what stands before the names of its tensors in a model with a head
    defaults: dict[str, Any]  # of fields that config.json may leave out
    modern: bool = False  # ModernBERT's block: norms before, fused gated feed-forward, rotary positions, windows
    counts_from_pad: bool = False  # positions begin behind the number of the pad token


BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
ROBERTA = BERT | {"vocab_size": 50265, "pad_token_id": 1}
MODERNBERT: dict[str, Any] = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "pad_token_id": 50283,
}

SPECS = {
    "BertModel": EncoderSpec("bert", "bert.", BERT),
    "RobertaModel": EncoderSpec("roberta", "roberta.", ROBERTA, counts_from_pad=True),
    "XLMRobertaModel": EncoderSpec("xlm-roberta", "roberta.", ROBERTA | {"vocab_size": 30522}, counts_from_pad=True),
    "ModernBertModel": EncoderSpec("modernbert", "model.", MODERNBERT, modern=True),
}
PRETRAINED = {  # a model with the head of its pre-training, which is of no use here -> the model alone
    "BertForMaskedLM": "BertModel",
    "BertForPreTraining": "BertModel",
    "RobertaForMaskedLM": "RobertaModel",
    "XLMRobertaForMaskedLM": "XLMRobertaModel",
    "ModernBertForMaskedLM": "ModernBertModel",
}
ARCHITECTURES = {name: spec.model_type for name, spec in SPECS.items()}
ARCHITECTURES |= {name: SPECS[plain].model_type for name, plain in PRETRAINED.items()}

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHARE = ("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)
COUNT = ("a whole number, 0 or more", lambda x: type(x) is int and x >= 0)
OBJECT = ("an object", lambda x: isinstance(x, dict))
DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    *("attention_dropout", "mlp_dropout", "embedding_dropout"),
)
WANTED: Wanted = {
    **dict.fromkeys((*SIZES, "max_position_embeddings", "type_vocab_size"), SIZE),
    **dict.fromkeys(("local_attention", "global_attn_every_n_layers"), SIZE),
    **dict.fromkeys(("layer_norm_eps", "norm_eps", "initializer_range"), NUMBER),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta"), NUMBER),
    **dict.fromkeys(DROPOUTS, SHARE),
    **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "is_decoder"), SWITCH),
    "pad_token_id": COUNT,
    "layer_types": ("a list", lambda x: isinstance(x, list)),
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
}


@dataclass(frozen=True)
class EncoderConfig:
    """The hyperparameters of an `Encoder`."""

    architecture: str  # Hugging Face's class name of the model without a head
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    context: int  # most tokens of a row
    windows: tuple[int | None, ...]  # per layer: a token sees those less than so many places away; None for all
    ropes: tuple[Rope | None, ...]  # per layer; None where positions are embedded
    activation: str = "gelu"
    norm_eps: float = 1e-12
    token_types: int = 0  # how many kinds of segments have an embedding
    first_position: int = 0  # row of the table of positions that belongs to a row's first token
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    embed_dropout: float = 0.0
    hidden_dropout: float = 0.0  # of each sub-layer's output
    attention_dropout: float = 0.0  # of the shares, and of ModernBERT's attention output
    mlp_dropout: float = 0.0  # inside of the feed-forward layer
    init_std: float = 0.02
    pad_id: int = 0
    tied: bool = field(default=False, init=False)  # there is no head

    @property
    def modern(self) -> bool:
        return SPECS[self.architecture].modern

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """From the fields of a config.json, of transformers 4 or 5.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        named = architecture_of(config, ARCHITECTURES)
        architecture = PRETRAINED.get(named, named)
        spec = SPECS[architecture]
        fields = spec.defaults | {name: x for name, x in config.items() if x is not None}
        check_types(fields, WANTED, SIZES)
        _check_values(fields)
        special = _modern(fields) if spec.modern else _classic(spec, fields)
        return cls(
            architecture=architecture,
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            activation=_activation(fields),
            init_std=fields.get("initializer_range", 0.02),
            pad_id=fields["pad_token_id"],
            **special,
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json."""
        spec = SPECS[self.architecture]
        fields = {
            "architectures": [self.architecture],
            "model_type": spec.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "max_position_embeddings": self.context + self.first_position,
            "initializer_range": self.init_std,
            "pad_token_id": self.pad_id,
        }
        return fields | (self._modern_to_hf() if self.modern else self._classic_to_hf())

    def _classic_to_hf(self) -> dict[str, Any]:
        return {
            "hidden_act": self.activation,
            "layer_norm_eps": self.norm_eps,
            "type_vocab_size": self.token_types,
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
        }

    def _modern_to_hf(self) -> dict[str, Any]:
        """Fields for windows and rotary settings, as transformers 4 and as 5 read them."""
        ropes = dict(zip(self.windows, self.ropes, strict=True))
        window = next((window for window in self.windows if window), None)
        far = ropes.get(None) or Rope(MODERNBERT["global_rope_theta"])
        near = ropes.get(window) if window else None
        near = near or Rope(MODERNBERT["local_rope_theta"])
        fields: dict[str, Any] = {
            "hidden_activation": self.activation,
            "norm_eps": self.norm_eps,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "norm_bias": self.norm_bias,
            "embedding_dropout": self.embed_dropout,
            "attention_dropout": self.attention_dropout,
            "mlp_dropout": self.mlp_dropout,
            "layer_types": [SLIDING if window else FULL for window in self.windows],
            "rope_parameters": {FULL: far.to_hf(), SLIDING: near.to_hf()},
            "global_rope_theta": far.base,
            "local_rope_theta": near.base,
        }
        return fields | ({"local_attention": 2 * (window - 1)} if window else {})


def _check_values(fields: Mapping[str, Any]) -> None:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise ModelError(f"in config.json, hidden_size = {width} is not a multiple of num_attention_heads = {heads}")
    if fields.get("is_decoder"):
        raise ModelError("is_decoder = true in config.json is not supported; this family reads in both directions")
    if (kind := fields.get("position_embedding_type", "absolute")) != "absolute":
        raise ModelError(f"position_embedding_type = {kind!r} in config.json is not supported; only 'absolute' is")


def _activation(fields: Mapping[str, Any]) -> str:
    name = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    activation = "gelu_pytorch_tanh" if fields[name] == "gelu_new" else fields[name]  # two names of one function
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(
            f"the activation {activation!r} in config.json is not supported ({name}); "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    return activation


def _classic(spec: EncoderSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    layers, first = fields["num_hidden_layers"], fields["pad_token_id"] + 1 if spec.counts_from_pad else 0
    places = fields["max_position_embeddings"]
    if places <= first:
        raise ModelError(
            f"max_position_embeddings = {places} in config.json leaves no room: positions begin at {first} here,"
            " behind pad_token_id"
        )
    return {
        "context": places - first,
        "first_position": first,
        "windows": (None,) * layers,
        "ropes": (None,) * layers,
        "norm_eps": fields["layer_norm_eps"],
        "token_types": fields["type_vocab_size"],
        "embed_dropout": fields["hidden_dropout_prob"],
        "hidden_dropout": fields["hidden_dropout_prob"],
        "attention_dropout": fields["attention_probs_dropout_prob"],
    }


def _modern(fields: Mapping[str, Any]) -> dict[str, Any]:
    windows = _windows(fields)
    context = fields["max_position_embeddings"]
    written, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    ropes = {}
    for kind, base in ((FULL, fields["global_rope_theta"]), (SLIDING, fields["local_rope_theta"])):
        entry = written.get(kind) or {}
        if not isinstance(entry, dict):
            raise ModelError(f"rope_parameters in config.json has {kind} = {entry!r}: expected an object")
        ropes[kind] = Rope.from_hf({**entry, **scaling}, base, context)
    return {
        "context": context,
        "windows": windows,
        "ropes": tuple(ropes[SLIDING if window else FULL] for window in windows),
        "norm_eps": fields["norm_eps"],
        "attention_bias": bool(fields.get("attention_bias")),
        "mlp_bias": bool(fields.get("mlp_bias")),
        "norm_bias": bool(fields.get("norm_bias")),
        "embed_dropout": fields.get("embedding_dropout", 0.0),
        "attention_dropout": fields.get("attention_dropout", 0.0),
        "mlp_dropout": fields.get("mlp_dropout", 0.0),
    }


def _windows(fields: Mapping[str, Any]) -> tuple[int | None, ...]:
    """`local_attention` counts both sides: a token sees half of it to the left, as much to the right, and itself."""
    layers, every = fields["num_hidden_layers"], fields["global_attn_every_n_layers"]
    types = fields.get("layer_types") or [SLIDING if i % every else FULL for i in range(layers)]
    if len(types) != layers or not all(kind in (FULL, SLIDING) for kind in types):
        raise ModelError(
            f"layer_types = {types} in config.json: expected {layers} entries (num_hidden_layers),"
            f" each {FULL} or {SLIDING}"
        )
    reach = fields["local_attention"] // 2 + 1
    return tuple(reach if kind == SLIDING else None for kind in types)
