"""What a config.json of T5Gemma (arXiv 2504.06225) and of T5Gemma 2 (2512.14856) means: an encoder and a decoder, each
with the fields of a Gemma 2 or 3.

The objects `encoder` and `decoder` are read as models/configs/decoder.py reads a Gemma, and written so. Dropout stands
beside them and counts for both, whatever they say themselves. T5Gemma 2's encoder sees pictures too: its `text_config`
is what is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from microplane.errors import ModelError
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.configs.fields import SWITCH, TOKEN, Wanted, architecture_of, check_types
from microplane.nn.attention import Window

FIRST, SECOND = {"T5GemmaForConditionalGeneration": "t5gemma"}, {"T5Gemma2ForConditionalGeneration": "t5gemma2"}
ARCHITECTURES = FIRST | SECOND
DEFAULTS = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "bos_token_id": 2}
DROPOUTS = ("embed_dropout", "hidden_dropout", "mlp_dropout")  # all of the same size
SHARE = ("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)
WANTED: Wanted = {
    **dict.fromkeys(("encoder", "decoder"), ("an object", lambda x: isinstance(x, Mapping))),
    **dict.fromkeys(("dropout_rate", "attention_dropout"), SHARE),
    "tie_word_embeddings": SWITCH,
}


@dataclass(frozen=True)
class T5GemmaConfig:
    """The hyperparameters of a `T5Gemma`. As of other models: what is said of no side is said of the decoder."""

    KNOWN: ClassVar[Mapping[str, str]] = FIRST  # architectures
    BLOCK: ClassVar[str] = "Gemma2ForCausalLM"  # whose blocks these are
    scales_apart: ClassVar[bool] = True  # transformers scales whatever is given in place of embeddings, a prompt too
    SIDE_TYPES: ClassVar[Mapping[str, str]] = dict.fromkeys(("encoder", "decoder"), "t5_gemma_module")

    architecture: str  # Hugging Face's class name
    encoder: DecoderConfig
    decoder: DecoderConfig
    decoder_start: int = 2  # the token that every answer begins with, before the first that is predicted
    tied: bool = True  # the head is the decoder's embedding

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.decoder.hidden_size

    @property
    def source_size(self) -> int:
        """Width of the encoder, which may be another."""
        return self.encoder.hidden_size

    @property
    def num_layers(self) -> int:
        return self.encoder.num_layers

    @property
    def num_decoder_layers(self) -> int:
        return self.decoder.num_layers

    @property
    def num_heads(self) -> int:
        return self.decoder.num_heads

    @property
    def context(self) -> int:
        return min(self.encoder.context, self.decoder.context)

    @property
    def final_logit_softcapping(self) -> float | None:
        return self.decoder.final_logit_softcapping

    @property
    def init_std(self) -> float:
        return self.decoder.init_std

    def encoder_window(self, window: int | None) -> Window:
        """How far a layer of the encoder looks, as `MaskSpec` takes it: config.json says the greatest distance."""
        return None if window is None else window + 1

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the fields of a config.json.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        architecture = architecture_of(config, cls.KNOWN)
        fields = {name: x for name, x in config.items() if x is not None}
        check_types(fields, WANTED, ("encoder", "decoder"))
        if not fields.get("is_encoder_decoder", True):
            raise ModelError(
                "is_encoder_decoder = false in config.json says that the encoder is there alone, which is not"
                " supported. Give the whole model; a head with model.pooling=mean reads its encoder alone"
            )
        drops: dict[str, Any] = dict.fromkeys(DROPOUTS, fields.get("dropout_rate", 0.0))
        drops["attention_dropout"] = fields.get("attention_dropout", 0.0)
        sides = {name: replace(cls._side(name, fields[name]), **drops) for name in ("encoder", "decoder")}
        return cls(
            architecture,
            **sides,
            decoder_start=_start(fields["decoder"], sides),
            tied=fields.get("tie_word_embeddings", True),
        )

    @classmethod
    def _side(cls, name: str, told: Mapping[str, Any]) -> DecoderConfig:
        fields = {**DEFAULTS, **{key: x for key, x in told.items() if x is not None or key not in DEFAULTS}}
        if name == "encoder":
            fields.pop("is_causal", None)  # it is not, whatever config.json says
        try:
            return DecoderConfig.from_hf({**fields, "architectures": [cls.BLOCK]})
        except ModelError as error:
            raise ModelError(f"the {name} of config.json: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json; of the two sides those that are told here."""
        return {
            "architectures": [self.architecture],
            "model_type": ARCHITECTURES[self.architecture],
            "is_encoder_decoder": True,
            "encoder": _side_to_hf(self.encoder, self.SIDE_TYPES["encoder"]),
            "decoder": _side_to_hf(self.decoder, self.SIDE_TYPES["decoder"]) | {"bos_token_id": self.decoder_start},
            "vocab_size": self.vocab_size,
            "dropout_rate": self.decoder.hidden_dropout,
            "attention_dropout": self.decoder.attention_dropout,
            "tie_word_embeddings": self.tied,
        }


@dataclass(frozen=True)
class T5Gemma2Config(T5GemmaConfig):
    """The hyperparameters of a `T5Gemma2`."""

    KNOWN: ClassVar[Mapping[str, str]] = SECOND
    BLOCK: ClassVar[str] = "Gemma3ForCausalLM"
    scales_apart: ClassVar[bool] = False
    SIDE_TYPES: ClassVar[Mapping[str, str]] = {"encoder": "t5gemma2_text", "decoder": "t5gemma2_decoder"}

    end_of_image: int = 256_000  # the token that has a vector of its own, which is not scaled

    def encoder_window(self, window: int | None) -> Window:
        """Of the tokens that config.json says, the half before, itself counted, and the rest behind."""
        return None if window is None else ((window + 1) // 2, window // 2 + 1)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the fields of a config.json.

        Raises:
            ModelError: as for `T5GemmaConfig`; for sides of two widths, or with embeddings of their own.
        """
        encoder = config.get("encoder")
        whole = encoder if isinstance(encoder, Mapping) else {}
        if not isinstance(text := whole.get("text_config"), Mapping):
            raise ModelError(f"the encoder of config.json has text_config = {text!r}: expected an object")
        if config.get("tie_word_embeddings") is False:
            raise ModelError(
                "tie_word_embeddings = false in config.json is not supported; T5Gemma 2 has one table of words for its"
                " encoder, its decoder and its head"
            )
        for name, side in (("encoder", text), ("decoder", config.get("decoder"))):
            if isinstance(side, Mapping) and side.get("attn_logit_softcapping") is not None:
                cap = side["attn_logit_softcapping"]
                raise ModelError(
                    f"the {name} of config.json: attn_logit_softcapping = {cap!r} is not supported, and transformers"
                    " leaves it out here; only null is"
                )
        found = super().from_hf({**config, "encoder": text})
        if found.source_size != found.hidden_size:
            raise ModelError(
                f"hidden_size in config.json is {found.source_size} of the encoder and {found.hidden_size} of the"
                " decoder; T5Gemma 2 has one width"
            )
        end = whole.get("eoi_token_index", 256_000)
        if not TOKEN[1](end):
            raise ModelError(f"eoi_token_index = {end!r} of the encoder in config.json: expected the id of a token")
        return replace(found, end_of_image=end)

    def to_hf(self) -> dict[str, Any]:
        fields = super().to_hf()
        del fields["vocab_size"]
        return fields | {"encoder": {"text_config": fields["encoder"], "eoi_token_index": self.end_of_image}}


def _side_to_hf(side: DecoderConfig, model_type: str) -> dict[str, Any]:
    fields = {name: x for name, x in side.to_hf().items() if name not in ("architectures", "tie_word_embeddings")}
    dropouts = {"dropout_rate": side.hidden_dropout, "attention_dropout": side.attention_dropout}
    return fields | {"model_type": model_type} | dropouts


def _start(decoder: Mapping[str, Any], sides: Mapping[str, DecoderConfig]) -> int:
    sizes = {name: side.vocab_size for name, side in sides.items()}
    if len(set(sizes.values())) > 1:
        raise ModelError(
            f"config.json has vocab_size = {sizes['encoder']} of the encoder and {sizes['decoder']} of the decoder;"
            " only one vocabulary is supported"
        )
    start = decoder.get("bos_token_id", DEFAULTS["bos_token_id"])
    if not TOKEN[1](start) or start >= sizes["decoder"]:
        raise ModelError(
            f"bos_token_id = {start!r} of the decoder in config.json, which every answer begins with: expected the id"
            f" of one of {sizes['decoder']} tokens"
        )
    found: int = start
    return found
