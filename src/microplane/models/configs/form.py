"""How Hugging Face's classes with a task head lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DROPOUT = "classifier_dropout"


@dataclass(frozen=True)
class Form:
    """How one of Hugging Face's classes lays out its head."""

    plain: str  # the architecture that it stands on
    out: str  # what its last linear layer is called
    prefix: str = ""  # what stands before the names of the model beneath
    tokens: bool = False  # one prediction for each token
    dense: str | None = None  # what the linear layer before it is called
    norm: str | None = None  # and the norm behind that
    activation: str = "tanh"  # of the hidden layer, where config.json does not say it
    activation_field: str | None = None  # config.json's field that may say it
    dropout_first: bool = False  # dropout also before the hidden layer
    dropout: str | None = DROPOUT  # config.json's field of it; None: as the blocks have it, unless ours says otherwise
    out_bias: bool = True
    poolings: tuple[str, ...] = ("cls",)
    pooling_names: Mapping[str, str] = field(default_factory=dict)  # ours -> config.json's, where they differ
    usual_pooling: str = "cls"  # what it means that config.json says none
    minds_padding: bool = False  # whether a row that was padded is scored otherwise there than alone
