"""What a config.json of the T5 family means: T5 v1.0, v1.1 and FLAN-T5, ByT5, mT5 and umT5.

Two questions are answered differently by versions of transformers, and by us as the models were trained:
- Whether the decoder's output is divided by sqrt(D) before the head. T5 v1.0, whose head is the embedding, does so;
  those with a head of their own do not. Version 4 says it by `tie_word_embeddings`; version 5 calls every model tied,
  and says it by `scale_decoder_outputs`. mT5 never divides. Version 5 divides for umT5 even where its file says
  otherwise; we follow the file.
- Whether the head is the embedding. The tensors of a checkpoint decide (models/load.py): they are two if both are there
  and differ. Without a checkpoint, `tie_word_embeddings` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from microplane.errors import ModelError
from microplane.models.configs.fields import NUMBER, SIZE, SWITCH, TOKEN, Wanted, architecture_of, check_types

ARCHITECTURES = {
    "T5ForConditionalGeneration": "t5",
    "MT5ForConditionalGeneration": "mt5",
    "UMT5ForConditionalGeneration": "umt5",
}
# Hugging Face's names of feed-forward layers -> (gated, our name of the activation)
FEED_FORWARD = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gelu_new": (False, "gelu_pytorch_tanh"),
    "gated-relu": (True, "relu"),
    "gated-silu": (True, "silu"),
    "gated-gelu": (True, "gelu_pytorch_tanh"),  # by this name the tanh form has always been meant
    "gated-gelu_new": (True, "gelu_pytorch_tanh"),
}
DEFAULTS = {
    "t5": {"feed_forward_proj": "relu"},
    "mt5": {"feed_forward_proj": "gated-gelu"},
    "umt5": {"feed_forward_proj": "gated-gelu"},
}
SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
WANTED: Wanted = {
    **dict.fromkeys((*SIZES, "num_decoder_layers", "relative_attention_max_distance"), SIZE),
    **dict.fromkeys(("layer_norm_epsilon", "initializer_factor"), NUMBER),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), TOKEN),
    **dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), SWITCH),
    "relative_attention_num_buckets": ("an even number above 2", lambda x: type(x) is int and x > 2 and x % 2 == 0),
    "dropout_rate": ("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1),
    "feed_forward_proj": (f"one of {', '.join(FEED_FORWARD)}", lambda x: isinstance(x, str) and x in FEED_FORWARD),
}


@dataclass(frozen=True)
class T5Config:
    """The hyperparameters of a `T5`."""

    # Relative positions know no limit, and whatever is far counts as equally far; memory bounds a row, not the model.
    context: ClassVar[int] = 1 << 20
    final_logit_softcapping: ClassVar[None] = None

    architecture: str  # Hugging Face's class name
    vocab_size: int
    hidden_size: int
    head_dim: int
    intermediate_size: int
    num_layers: int  # of the encoder
    num_decoder_layers: int
    num_heads: int
    buckets: int = 32  # of relative distances, both directions together
    max_distance: int = 128  # from here on, all distances are alike
    bias_everywhere: bool = False  # each layer has a relative bias of its own; else the first one's serves all
    gated: bool = True
    activation: str = "gelu_pytorch_tanh"
    norm_eps: float = 1e-6
    dropout: float = 0.1  # while training
    tied: bool = False  # the head is the embedding
    scaled: bool = False  # the decoder's output is divided by sqrt(D) before the head
    decoder_start: int = 0  # the token that every answer begins with, before the first that is predicted
    init_factor: float = 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> T5Config:
        """From the fields of a config.json, of transformers 4 or 5.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        architecture = architecture_of(config, ARCHITECTURES)
        kind = ARCHITECTURES[architecture]
        fields: dict[str, Any] = DEFAULTS[kind] | {name: x for name, x in config.items() if x is not None}
        check_types(fields, WANTED, SIZES)
        buckets, far = (
            fields.get("relative_attention_num_buckets", 32),
            fields.get("relative_attention_max_distance", 128),
        )
        if far <= buckets // 2:  # the last exact distance of a decoder; the logarithm begins there
            raise ModelError(
                f"in config.json, relative_attention_max_distance = {far} must be above half of"
                f" relative_attention_num_buckets = {buckets}"
            )
        gated, activation = FEED_FORWARD[fields["feed_forward_proj"]]
        tied = fields.get("tie_word_embeddings", True)
        start = fields.get("decoder_start_token_id", fields.get("pad_token_id", 0))
        if start >= fields["vocab_size"]:
            raise ModelError(
                f"decoder_start_token_id = {start} in config.json is no token of vocab_size = {fields['vocab_size']}"
            )
        return cls(
            architecture=architecture,
            vocab_size=fields["vocab_size"],
            hidden_size=fields["d_model"],
            head_dim=fields["d_kv"],
            intermediate_size=fields["d_ff"],
            num_layers=fields["num_layers"],
            num_decoder_layers=fields.get("num_decoder_layers", fields["num_layers"]),
            num_heads=fields["num_heads"],
            buckets=buckets,
            max_distance=far,
            bias_everywhere=kind == "umt5",
            gated=gated,
            activation=activation,
            norm_eps=fields.get("layer_norm_epsilon", 1e-6),
            dropout=float(fields.get("dropout_rate", 0.1)),
            tied=tied,
            scaled=kind != "mt5" and fields.get("scale_decoder_outputs", tied),
            decoder_start=start,
            init_factor=fields.get("initializer_factor", 1.0),
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json, with the answers for transformers 4 and for 5."""
        shape = (self.gated, self.activation)
        return {
            "architectures": [self.architecture],
            "model_type": ARCHITECTURES[self.architecture],
            "is_encoder_decoder": True,
            "vocab_size": self.vocab_size,
            "d_model": self.hidden_size,
            "d_kv": self.head_dim,
            "d_ff": self.intermediate_size,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.num_decoder_layers,
            "num_heads": self.num_heads,
            "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.max_distance,
            "feed_forward_proj": next(name for name, meant in FEED_FORWARD.items() if meant == shape),
            "layer_norm_epsilon": self.norm_eps,
            "dropout_rate": self.dropout,
            "initializer_factor": self.init_factor,
            "tie_word_embeddings": self.tied,
            "scale_decoder_outputs": self.scaled,
            "decoder_start_token_id": self.decoder_start,
        }
