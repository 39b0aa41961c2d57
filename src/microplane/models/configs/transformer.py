"""What a config.json of the Transformer family means: Marian, BART, mBART, M2M100 and NLLB, Pegasus.

They share their code (models/transformer.py) and the fields of their files, and differ in what `SPECS` says of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from microplane.errors import ModelError
from microplane.models.configs.fields import NUMBER, SIZE, SWITCH, Wanted, architecture_of, check_types
from microplane.nn.layers import ACTIVATIONS


@dataclass(frozen=True)
class TransformerSpec:
    """What a family has that its config.json does not say."""

    model_type: str
    pre_norm: bool = False  # norms before the sub-layers, and a last one behind each stack; else behind the sums
    embedding_norm: bool = False  # a norm of the embeddings and positions together
    # sines: Marian's table (arXiv 1706.03762); fairseq: another one, from behind the pad's row on
    positions: Literal["sines", "fairseq", "learned"] = "sines"
    saves_positions: bool = False  # files hold the table of sines
    scales_apart: bool = False  # transformers scales what it embedded, and not what is given in place of that
    logits_bias: bool = True  # one that does not train is added to the logits
    writes_pad: bool = True  # the token for padding may be written as any other
    apart: bool = False  # source and target may have tables of their own
    labels_rows: str = ""  # Hugging Face's class that labels rows; "": none that does it as here
    xavier: bool = False  # new weights are drawn as in the paper's code, and else normal with `init_std`
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what config.json may leave out
    only: Mapping[str, Any] = field(default_factory=dict)  # fields of files that fairseq's converter wrote -> our value


BART_TOKENS = {"pad_token_id": 1, "decoder_start_token_id": 2}
SPECS = {
    "MarianMTModel": TransformerSpec(
        "marian",
        scales_apart=True,
        writes_pad=False,
        apart=True,
        xavier=True,
        only={
            "normalize_before": False,
            "normalize_embedding": False,
            "add_final_layer_norm": False,
            "static_position_embeddings": True,
        },
    ),
    "BartForConditionalGeneration": TransformerSpec(
        "bart",
        embedding_norm=True,
        positions="learned",
        labels_rows="BartForSequenceClassification",
        defaults=BART_TOKENS,
        only={
            "normalize_before": False,
            "normalize_embedding": True,
            "add_final_layer_norm": False,
            "static_position_embeddings": False,
        },
    ),
    "MBartForConditionalGeneration": TransformerSpec(
        "mbart",
        pre_norm=True,
        embedding_norm=True,
        positions="learned",
        defaults=BART_TOKENS,  # its decoder starts with the language to write in, which data.target_language says
        only={
            "normalize_before": True,
            "normalize_embedding": True,
            "add_final_layer_norm": True,
            "static_position_embeddings": False,
        },
    ),
    "M2M100ForConditionalGeneration": TransformerSpec(
        "m2m_100",
        pre_norm=True,
        positions="fairseq",
        logits_bias=False,
        defaults=BART_TOKENS | {"activation_function": "relu", "attention_dropout": 0.1, "scale_embedding": True},
    ),
    "PegasusForConditionalGeneration": TransformerSpec(
        "pegasus",
        pre_norm=True,
        scales_apart=True,
        saves_positions=True,
        defaults={"pad_token_id": 0, "decoder_start_token_id": 0},
        only={
            "normalize_before": True,
            "normalize_embedding": False,
            "add_final_layer_norm": True,
            "static_position_embeddings": True,
        },
    ),
}
WITHOUT_HEAD = {
    "MarianModel": "MarianMTModel",
    **{f"{name}Model": f"{name}ForConditionalGeneration" for name in ("Bart", "MBart", "M2M100", "Pegasus")},
}
REFUSED = {  # classes of these families that do something else
    "MBartForSequenceClassification": "it takes the decoder's state before the source's language, of a row that begins "
    "with that language, and heads here take the last one. Put a new head on the MBartForConditionalGeneration",
    "BartForQuestionAnswering": "it marks answers in the source, which no task here does",
    "MBartForQuestionAnswering": "it marks answers in the source, which no task here does",
}
ARCHITECTURES = {name: spec.model_type for name, spec in SPECS.items()} | {
    name: SPECS[writer].model_type for name, writer in WITHOUT_HEAD.items()
}
SIZES = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads"),
    *("decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
)
TOKENS = ("pad_token_id", "decoder_start_token_id")
SHARES = ("dropout", "attention_dropout", "activation_dropout")
WANTED: Wanted = {
    **dict.fromkeys((*SIZES, "decoder_vocab_size", "max_position_embeddings"), SIZE),
    **dict.fromkeys(TOKENS, ("the id of a token", lambda x: type(x) is int and x >= 0)),
    **dict.fromkeys(SHARES, ("at least 0 and below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)),
    **dict.fromkeys(("scale_embedding", "share_encoder_decoder_embeddings", "tie_word_embeddings"), SWITCH),
    "init_std": NUMBER,
}


@dataclass(frozen=True)
class TransformerConfig:
    """The hyperparameters of a `Transformer`."""

    architecture: str  # Hugging Face's class name
    vocab_size: int  # of what is written, and of what is read where embeddings are shared
    source_vocab_size: int
    hidden_size: int
    num_layers: int  # of the encoder
    num_decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_inner: int  # width of the feed-forward layers
    decoder_inner: int
    pad: int
    decoder_start: int  # token that every target begins with
    activation: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    scale_embedding: bool = False  # by sqrt(hidden_size)
    share_embeddings: bool = True  # one table for source and target; only where `tied`
    tied: bool = True  # the head is the target's embedding
    context: int = 1024  # max_position_embeddings, of the source and of the target
    init_std: float = 0.02  # of new weights

    final_logit_softcapping = None

    @property
    def spec(self) -> TransformerSpec:
        return SPECS[self.architecture]

    @property
    def scales_apart(self) -> bool:
        return self.scale_embedding and self.spec.scales_apart

    @property
    def shared(self) -> bool:
        """One table for source, target and head. Untied, all three are apart: so transformers has it."""
        return self.share_embeddings and self.tied

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """From the fields of a config.json. LayerDrop (arXiv 1909.11556) of the original training is not applied.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        named = architecture_of(config, ARCHITECTURES)
        architecture = WITHOUT_HEAD.get(named, named)
        spec = SPECS[architecture]
        fields = {**spec.defaults, **{name: x for name, x in config.items() if x is not None}}
        check_types(fields, WANTED, SIZES + TOKENS)
        _check_values(fields, spec)
        shared = fields.get("share_encoder_decoder_embeddings", True) if spec.apart else True
        target = fields["vocab_size"] if shared else fields.get("decoder_vocab_size", fields["vocab_size"])
        for name in TOKENS:
            if fields[name] >= target:
                raise ModelError(f"config.json has {name} = {fields[name]}, beyond a vocabulary of {target}")
        return cls(
            architecture=architecture,
            vocab_size=target,
            source_vocab_size=fields["vocab_size"],
            hidden_size=fields["d_model"],
            num_layers=fields["encoder_layers"],
            num_decoder_layers=fields["decoder_layers"],
            encoder_heads=fields["encoder_attention_heads"],
            decoder_heads=fields["decoder_attention_heads"],
            encoder_inner=fields["encoder_ffn_dim"],
            decoder_inner=fields["decoder_ffn_dim"],
            pad=fields["pad_token_id"],
            decoder_start=fields["decoder_start_token_id"],
            activation=fields.get("activation_function", "gelu"),
            dropout=fields.get("dropout", 0.1),
            attention_dropout=fields.get("attention_dropout", 0.0),
            activation_dropout=fields.get("activation_dropout", 0.0),
            scale_embedding=fields.get("scale_embedding", False),
            share_embeddings=shared,
            tied=fields.get("tie_word_embeddings", True),
            context=fields.get("max_position_embeddings", 1024),
            init_std=fields.get("init_std", 0.02),
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json."""
        apart = {"decoder_vocab_size": self.vocab_size, "share_encoder_decoder_embeddings": self.shared}
        fields = {
            "architectures": [self.architecture],
            "model_type": ARCHITECTURES[self.architecture],
            "is_encoder_decoder": True,
            "vocab_size": self.source_vocab_size,
            "d_model": self.hidden_size,
            "encoder_layers": self.num_layers,
            "decoder_layers": self.num_decoder_layers,
            "encoder_attention_heads": self.encoder_heads,
            "decoder_attention_heads": self.decoder_heads,
            "encoder_ffn_dim": self.encoder_inner,
            "decoder_ffn_dim": self.decoder_inner,
            "pad_token_id": self.pad,
            "decoder_start_token_id": self.decoder_start,
            "activation_function": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "scale_embedding": self.scale_embedding,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.context,
            "init_std": self.init_std,
        }
        return fields | apart if self.spec.apart else fields


def _check_values(fields: Mapping[str, Any], spec: TransformerSpec) -> None:
    for side in ("encoder", "decoder"):
        if fields["d_model"] % (heads := fields[f"{side}_attention_heads"]):
            raise ModelError(
                f"in config.json, d_model = {fields['d_model']} is not a multiple of {side}_attention_heads = {heads}"
            )
    for name, ours in spec.only.items():
        if fields.get(name, ours) != ours:
            raise ModelError(f"{name} = {fields[name]!r} in config.json is not supported; only {ours} is")
    activation = fields.get("activation_function", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(
            f"the activation {activation!r} in config.json is not supported (activation_function); "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
