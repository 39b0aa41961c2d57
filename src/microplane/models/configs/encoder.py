"""What a config.json of an encoder means: of the families in `SPECS` of models/configs/encoder_families.py.

Read as transformers 4 and 5 write it; written so that both understand it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from microplane.errors import ModelError
from microplane.models.configs.encoder_families import ARCHITECTURES, MODERNBERT, PRETRAINED, SPECS, EncoderSpec
from microplane.models.configs.fields import NUMBER, SIZE, SWITCH, Wanted, architecture_of, check_types
from microplane.nn.disentangled import Distances
from microplane.nn.layers import ACTIVATIONS
from microplane.nn.position import Rope

FULL, SLIDING = "full_attention", "sliding_attention"  # Hugging Face's names of the types of layers
BUCKETS = "relative_attention_num_buckets"
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHARE = ("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)
COUNT = ("a whole number, 0 or more", lambda x: type(x) is int and x >= 0)
OBJECT = ("an object", lambda x: isinstance(x, dict))
DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    *("attention_dropout", "mlp_dropout", "embedding_dropout", "seq_classif_dropout", "cls_dropout"),
    "classifier_dropout_prob",
)
WANTED: Wanted = {
    **dict.fromkeys((*SIZES, "max_position_embeddings", "embedding_size", "conv_groups", "num_hidden_groups"), SIZE),
    **dict.fromkeys(("local_attention", "global_attn_every_n_layers"), SIZE),
    **dict.fromkeys(("layer_norm_eps", "norm_eps", "initializer_range"), NUMBER),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta", "rope_theta", "rms_norm_eps"), NUMBER),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), SIZE),
    **dict.fromkeys(DROPOUTS, SHARE),
    **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "is_decoder"), SWITCH),
    **dict.fromkeys(("pad_token_id", "conv_kernel_size", "type_vocab_size"), COUNT),
    "layer_types": ("a list", lambda x: isinstance(x, list)),
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
}


@dataclass(frozen=True)
class Convolution:
    """Over neighbouring tokens, of what enters the first block; added to what leaves it (DeBERTa-v2)."""

    width: int  # tokens that it sees at once, an odd number
    groups: int = 1
    activation: str = "tanh"

    def to_hf(self) -> dict[str, Any]:
        return {"conv_kernel_size": self.width, "conv_groups": self.groups, "conv_act": self.activation}


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
    embedding_size: int = 0  # width of the embeddings, from which a linear layer leads to the blocks; 0: hidden_size
    own_blocks: int = 0  # blocks with weights of their own, of which each is several layers in turn; 0: all layers
    num_kv_heads: int = 0  # heads of keys and values, each shared by several of queries; 0: as many as these
    head_dim: int = 0  # width of a head; 0: hidden_size / num_heads
    activation: str = "gelu"
    norm_eps: float = 1e-12
    token_types: int = 0  # how many kinds of segments have an embedding
    buckets: int = 0  # of distances, each with a bias per head that is added to the scores of all layers
    distances: Distances | None = None  # that have vectors of their own in the scores
    convolution: Convolution | None = None
    positions: bool = True  # whether positions are embedded
    first_position: int = 0  # row of the table of positions that belongs to a row's first token
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    embed_dropout: float = 0.0
    hidden_dropout: float = 0.0  # of each sub-layer's output; of the attention's only where the family has it so
    attention_dropout: float = 0.0  # of the shares, and of ModernBERT's attention output
    mlp_dropout: float = 0.0  # inside of the feed-forward layer
    init_std: float = 0.02
    pad_id: int = 0
    tied: bool = field(default=False, init=False)  # there is no head

    @property
    def spec(self) -> EncoderSpec:
        return SPECS[self.architecture]

    @property
    def modern(self) -> bool:
        return self.spec.modern

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def block_of_layer(self) -> tuple[int, ...]:
        """Which block each layer is, of those with weights of their own."""
        layers, blocks = self.num_layers, self.own_blocks or self.num_layers
        return tuple(int(layer / (layers / blocks)) for layer in range(layers))  # as transformers rounds it

    @property
    def score_terms(self) -> int:
        """How many products are summed to a score of attention."""
        return 1 if self.distances is None else self.distances.terms

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """From the fields of a config.json, of transformers 4 or 5.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        named = architecture_of(config, ARCHITECTURES)
        architecture = PRETRAINED.get(named, named)
        spec = SPECS[architecture]
        told = {name: x for name, x in config.items() if x is not None}
        given = {name: x for name, x in told.items() if name not in spec.fields or name in spec.also}
        given |= {ours: told[theirs] for ours, theirs in spec.fields.items() if theirs in told}
        fields = spec.defaults | given
        spelled, wanted = ({spec.spelled(name): x for name, x in table.items()} for table in (fields, WANTED))
        check_types(spelled, wanted, tuple(spec.spelled(name) for name in SIZES))
        _check_values(spec, fields)
        special = _modern(fields) if spec.modern else _pre_norm(fields) if spec.norm_before else _classic(spec, fields)
        if spec.rotary and not spec.norm_before:
            special |= {"ropes": _ropes(fields), "positions": False, "attention_bias": False, "mlp_bias": False}
        if architecture == "DebertaV2Model":
            special |= _deberta(fields)
        return cls(
            architecture=architecture,
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            activation=_activation(spec, fields),
            init_std=fields.get("initializer_range", 0.02),
            pad_id=fields["pad_token_id"],
            **special,
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json."""
        spec = SPECS[self.architecture]
        fields: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "max_position_embeddings": self.context + self.first_position,
            "initializer_range": self.init_std,
            "pad_token_id": self.pad_id,
        }
        if spec.norm_before and not spec.modern:
            fields |= self._pre_norm_to_hf()
        else:
            fields |= self._modern_to_hf() if self.modern else self._classic_to_hf()
        if spec.rotary and (rope := self.ropes[0]) is not None:
            fields |= {"rope_parameters": rope.to_hf(), "rope_theta": rope.base}
        named = {"architectures": [self.architecture], "model_type": spec.model_type}
        return named | {spec.spelled(name): value for name, value in fields.items()}

    def _classic_to_hf(self) -> dict[str, Any]:
        fields = {
            "hidden_act": self.activation,
            "layer_norm_eps": self.norm_eps,
            "type_vocab_size": self.token_types,
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "embedding_size": self.embedding_size or self.hidden_size,
            "num_hidden_groups": self.own_blocks,
            "inner_group_num": 1,
            "relative_attention_num_buckets": self.buckets,
            "position_biased_input": self.positions,
        }
        known = SPECS[self.architecture].defaults
        found = {name: value for name, value in fields.items() if name in known}
        for part in (self.distances, self.convolution):
            found |= {} if part is None else part.to_hf()
        return found

    def _pre_norm_to_hf(self) -> dict[str, Any]:
        return {
            "hidden_act": self.activation,
            "rms_norm_eps": self.norm_eps,
            "num_key_value_heads": self.num_kv_heads or self.num_heads,
            "head_dim": self.head_width,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "attention_dropout": self.attention_dropout,
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


def _check_values(spec: EncoderSpec, fields: Mapping[str, Any]) -> None:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        size, count = spec.spelled("hidden_size"), spec.spelled("num_attention_heads")
        raise ModelError(f"in config.json, {size} = {width} is not a multiple of {count} = {heads}")
    if fields.get("is_decoder"):
        raise ModelError("is_decoder = true in config.json is not supported; this family reads in both directions")
    if (kind := fields.get("position_embedding_type", "absolute")) != "absolute":
        raise ModelError(f"position_embedding_type = {kind!r} in config.json is not supported; only 'absolute' is")
    wanted = spec.defaults.get(BUCKETS)
    if wanted and fields[BUCKETS] != wanted:  # transformers takes this many, whatever config.json says
        raise ModelError(f"{BUCKETS} = {fields[BUCKETS]!r} in config.json is not supported; only {wanted} is")


def _activation(spec: EncoderSpec, fields: Mapping[str, Any]) -> str:
    name = "hidden_activation" if spec.modern else "hidden_act"
    activation = "gelu_pytorch_tanh" if fields[name] == "gelu_new" else fields[name]  # two names of one function
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(
            f"the activation {activation!r} in config.json is not supported ({spec.spelled(name)}); "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    return activation


def _classic(spec: EncoderSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    layers, first = fields["num_hidden_layers"], spec.first_position
    if spec.counts_from_pad:
        first = fields["pad_token_id"] + 1
    places = fields["max_position_embeddings"]
    if places <= first:
        raise ModelError(
            f"max_position_embeddings = {places} in config.json leaves no room: positions begin at {first} here,"
            " behind pad_token_id"
        )
    known = {name: fields[name] for name in spec.defaults}  # a field of another family counts for nothing
    embedding = known.get("embedding_size", 0)
    return {
        "context": places - first,
        "first_position": first,
        "windows": (None,) * layers,
        "ropes": (None,) * layers,
        "embedding_size": 0 if embedding == fields["hidden_size"] and not spec.always_projects else embedding,
        "own_blocks": known.get("num_hidden_groups", 0),
        "norm_eps": known["layer_norm_eps"],
        "token_types": known.get("type_vocab_size", 0),
        "buckets": known.get(BUCKETS, 0),
        "embed_dropout": fields["hidden_dropout_prob"],
        "hidden_dropout": fields["hidden_dropout_prob"],
        "attention_dropout": fields["attention_probs_dropout_prob"],
    }


def _deberta(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What DeBERTa-v2 and v3 have beside BERT's kind."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    only = {"embedding_size": width, "pooler_hidden_size": width, "attention_head_size": width // heads}
    for name, value in (only | {"pooler_dropout": 0}).items():
        if fields.get(name, value) != value:
            raise ModelError(f"{name} = {fields[name]!r} in config.json is not supported; only {value} is")
    convolution = None
    if size := fields["conv_kernel_size"]:
        convolution = Convolution(size, fields["conv_groups"], fields["conv_act"])
        if size % 2 == 0 or width % convolution.groups or convolution.activation not in ("tanh", *ACTIVATIONS):
            raise ModelError(f"in config.json, {convolution.to_hf()} are not supported for hidden_size = {width}")
    return {
        "distances": Distances.from_hf(fields, fields["max_position_embeddings"]),
        "convolution": convolution,
        "positions": bool(fields["position_biased_input"]),
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
        "positions": False,
        "norm_eps": fields["norm_eps"],
        "attention_bias": bool(fields.get("attention_bias")),
        "mlp_bias": bool(fields.get("mlp_bias")),
        "norm_bias": bool(fields.get("norm_bias")),
        "embed_dropout": fields.get("embedding_dropout", 0.0),
        "attention_dropout": fields.get("attention_dropout", 0.0),
        "mlp_dropout": fields.get("mlp_dropout", 0.0),
    }


def _pre_norm(fields: Mapping[str, Any]) -> dict[str, Any]:
    heads, shared = fields["num_attention_heads"], fields.get("num_key_value_heads", 0)
    if shared and heads % shared:
        raise ModelError(
            f"in config.json, num_attention_heads = {heads} is no multiple of num_key_value_heads = {shared}"
        )
    width = fields.get("head_dim", 0)
    return {
        "context": fields["max_position_embeddings"],
        "windows": (None,) * fields["num_hidden_layers"],
        "ropes": _ropes(fields),
        "positions": False,
        "num_kv_heads": 0 if shared == heads else shared,
        "head_dim": 0 if width * heads == fields["hidden_size"] else width,
        "norm_eps": fields["rms_norm_eps"],
        "attention_bias": fields["attention_bias"],
        "mlp_bias": fields["mlp_bias"],
        "norm_bias": False,
        "attention_dropout": fields["attention_dropout"],
    }


def _ropes(fields: Mapping[str, Any]) -> tuple[Rope, ...]:
    """The same for all layers."""
    written = {**(fields.get("rope_parameters") or {}), **(fields.get("rope_scaling") or {})}
    layers: int = fields["num_hidden_layers"]
    return (Rope.from_hf(written, fields["rope_theta"], fields["max_position_embeddings"]),) * layers


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
