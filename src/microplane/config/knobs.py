"""Every knob, declared once: its name, type, default, bounds and one line of help.

YAML files, `--set a.b=c`, the `run.yaml` written beside a run, `microplane knobs` and the docs all come from here.
The method's own knobs (`method.rank`, ...) are the fields of the method itself, in `methods/<name>.py`.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from microplane.config.extensions import Choice
from microplane.config.section import Knobs
from microplane.errors import nearest


class ModelKnobs(Knobs):
    name: str = Field(
        "smollm2",
        description="a short name, a folder in Hugging Face layout, a .gguf file, or a Hub name such as org/model",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    device: str = Field(
        "auto",
        description="where the run computes: cpu, cuda, cuda:N, mps or xpu; auto: an accelerator if torch sees one",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = Field(
        "auto",
        description="number format of the frozen base: float32, bfloat16, int8 or nf4 (4 bits); int8 and nf4 are for "
        "the linear layers of the blocks only. If the base itself trains, its weights are float32 and this is the "
        "format that they are multiplied in. auto: the fastest on this machine, or what the method needs",
    )
    compute: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="number format in which an int8 or nf4 base is multiplied; auto: the faster of float32 and "
        "bfloat16; int8 rounds the inputs to 8 bits too, twice as fast on processors with 8-bit products",
    )
    cache_dequantised: bool = Field(
        False, description="keep the weights of an int8 or nf4 base dequantised: faster, but no memory is saved"
    )
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: train from new random weights; only the folder's config.json is read"
    )
    adapter: str | None = Field(
        None,
        description="a run or an adapter whose weights the run starts from; its base, its method and its template are "
        "taken with it",
    )
    pooling: Literal["auto", "cls", "mean", "last"] = Field(
        "auto",
        description="the vector of a row that a new task head gets: of its first token (cls), of its last, or the mean "
        "of all; auto: last, but on an encoder what transformers' class does (cls, or as config.json says), and the "
        "mean where the blocks stay as they are",
    )

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", value):
            raise ValueError("must be auto, cpu, cuda, cuda:N, mps or xpu")
        return value


_FORMATS = (
    *("auto", "prompt/completion", "instruction/input/output", "inputs/targets"),
    *("messages", "conversations", "text/label", "text"),
)
_DENOISING = ("auto", "span_corruption", "prefix_lm")
PARTS = (
    *("prompt", "completion", "instruction", "input", "history", "system", "messages", "tools"),
    *("text", "text_pair", "label", "tokens", "tags", "split"),
)  # of a row, as `data.fields` calls them


def name_of(value: Any) -> str:
    """The name of a class that YAML reads as a number or a truth."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class DataKnobs(Knobs):
    train: str = Field(
        "",
        description="a file (JSONL, JSON, CSV, Parquet), a folder with train/validation/test files, a mixture.yaml, or "
        "a data set of the Hub (hf://org/name:split)",
    )
    validation: str | None = Field(None, description="a file to validate on; otherwise a share is split off")
    test: str | None = Field(None, description="a file that is only measured before and after training")
    format: Annotated[str, AfterValidator(Choice(_FORMATS, "microplane.formats"))] = Field(
        "auto", description="how rows are read; auto recognises it by looking at the keys"
    )
    fields: dict[str, str | None] | None = Field(
        None,
        description="which column is which part of a row, where its name does not say so, as in {text: description, "
        "label: price}; null for a part that the rows do not have. Parts: " + ", ".join(PARTS),
    )
    template: Literal["auto", "chat", "plain"] = Field(
        "auto", description="chat: the model's chat template; plain: prompt, then answer; auto: chat if there is one"
    )
    system: str | None = Field(
        None, description="system prompt for rows without one; '' switches a template's default off"
    )
    source_language: str | None = Field(
        None, description="what is read, as eng_Latn, of a model with a token for each language (NLLB, M2M100, mBART)"
    )
    target_language: str | None = Field(
        None, description="the language that such a model writes, which it is told by the first token of its answers"
    )
    unicode: Literal["auto", "nfc", "nfkc", "as-is"] = Field(
        "auto",
        description="the Unicode form that every text is brought into, in the rows and when the run is asked: nfc "
        "writes a letter with its marks as one character; nfkc also turns variants (ﬁ, ½, ²) into plain characters; "
        "as-is: none; auto: nfc, unless the vocabulary knows letters and marks only apart",
    )
    segment: Literal["none", "vi"] = Field(
        "none",
        description="join the syllables of each word by _ before anything else, for models that were trained on such "
        "text (PhoBERT): vi by the package pyvi (microplane[vi]); for rows with labels",
    )
    date: str | None = Field(
        "auto",
        description="the day, as 2026-11-28, that a chat template which tells the date is given, in the rows and when "
        "the run is asked; auto: the day on which the run begins; null: whatever day it is",
    )
    max_length: int = Field(
        1024,
        ge=8,
        description="the longest row in tokens; a longer conversation loses its start, a text with labels or for an "
        "encoder-decoder its end; plain text is cut into rows",
    )
    long_rows: Literal["cut", "windows"] = Field(
        "cut",
        description="what becomes of a text with a label above data.max_length: cut loses its end; windows makes "
        "several rows of it, overlapping by a quarter, with its label, and the mean of what is said of them counts",
    )
    max_target_length: int | None = Field(
        None, ge=2, description="tokens of an encoder-decoder's answer; data.max_length otherwise"
    )
    max_unknown: float = Field(
        0.05, ge=0, le=1, description="share of <unk> among the tokens of inputs or answers above which data is refused"
    )
    task: Literal["auto", "answers", "classification", "multilabel", "regression", "tokens"] = Field(
        "auto", description="answers in text, or labels from a task head; auto: labels for encoders, else answers"
    )
    no_label: tuple[str, ...] = Field(
        ("auto",),
        description="labels that mean that there is none: such rows are left out, such words not trained; auto: -100 "
        "(also for the -1 of a class on the Hub), and -1 beside the numbers of three classes or more; [] for none",
    )
    objective: Annotated[str, AfterValidator(Choice(_DENOISING, "microplane.objectives"))] = Field(
        "auto",
        description="what an encoder-decoder learns from plain text, or an installed package's objective for any rows; "
        "auto: span corruption",
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=0.9,
        description="share split off by a stable hash when none is given; of rows with classes the same of each class",
    )
    validation_rows: int = Field(
        200, ge=1, description="at most this many rows are split off, or one of each class where these are more"
    )
    skip_bad_rows: bool = Field(False, description="skip bad rows and count them, instead of refusing the file")
    limit: int | None = Field(None, ge=1, description="use only this many rows from the start of the training file")

    @field_validator("date")
    @classmethod
    def _a_day(cls, value: str | None) -> str | None:
        if value in (None, "auto"):
            return value
        try:
            return date.fromisoformat(str(value)).isoformat()
        except ValueError:
            raise ValueError("must be a day, as 2026-11-28") from None

    @field_validator("fields")
    @classmethod
    def _known_parts(cls, value: dict[str, str | None] | None) -> dict[str, str | None] | None:
        for part in value or {}:
            if part not in PARTS:
                raise ValueError(f"there is no part {part!r}.{nearest(part, PARTS)} Possible: {', '.join(PARTS)}")
        columns = [column for column in (value or {}).values() if column]
        if twice := next((column for column in columns if columns.count(column) > 1), None):
            raise ValueError(f"the column {twice!r} is two parts")
        return value

    @field_validator("no_label", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Numbers are names too, and one alone needs no brackets."""
        items = value if isinstance(value, list | tuple) else [value]
        return [name_of(item) if isinstance(item, int) else item for item in items]


MICRO_TOKENS = 2048


class TrainKnobs(Knobs):
    epochs: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="passes over the training rows; if not set 1, of few rows up to 3 (until 400 steps are made), and "
        "where a head alone trains on kept features up to 30; the weights of the best validation are kept",
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    batch_size: int = Field(8, ge=1, description="rows in an optimizer step")
    batch_tokens: int | None = Field(None, ge=16, description="tokens in an optimizer step; overrides batch_size")
    micro_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] = Field(
        MICRO_TOKENS,
        description="tokens computed at once; a longer row is computed alone. auto: as many, and half of them each "
        "time that the memory does not hold a step",
    )
    recompute: Literal["none", "cheap", "blocks"] = Field(
        "none",
        description="activation checkpointing: cheap computes norms, activations and attention scores again in "
        "backward (a third less memory, a few percent more time); blocks computes whole blocks again (least memory, a "
        "third more time)",
    )
    shard: bool = Field(
        False,
        description="of several processes that fine-tune a whole model, each holds a part of weights, gradients and "
        "averages (FSDP2), and computes its part of train.micro_tokens at once",
    )
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        None,
        description="peak learning rate; the method's own otherwise, by the model's kind and width. auto: found by a "
        "short sweep over rates on the run's own rows before it starts, and then written into run.yaml",
    )
    on_divergence: Literal["auto", "lower_lr", "go_on"] = Field(
        "auto",
        description="lower_lr: a run whose loss leaves its course goes back to its best weights and on at a third of "
        "the rate, at a tenth where the best are those of the start; auto: so where train.lr is not set",
    )
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = Field(
        "cosine", description="learning rate after the warm-up; inverse_sqrt falls as 1/sqrt(step)"
    )
    warmup: float = Field(0.05, ge=0, description="share of the steps (below 1) or number of steps (1 and more)")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw",
        description="AdamW; adamw_8bit: its averages in 8 bits, 2 bytes a weight instead of 8; or Adafactor as T5 uses "
        "it, whose state needs very little memory",
    )
    scale_parameter: bool = Field(
        False,
        description="Adafactor: steps are relative to each tensor's size (train.lr is 1e-3 if not set); not for "
        "adapters, whose tensors start at zero and would hardly move",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled: each step takes lr x this share off the weights, but norms and biases"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW: decay of its two running averages")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target that is spread over all tokens, in training only"
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none",
        description="of rows with classes: what a class counts in the loss, in training and in the validation that "
        "chooses the weights. balanced: all classes the same, however many rows they have; or a number for each, as in "
        "{spam: 3}, 1 for others",
    )
    clip: float = Field(1.0, ge=0, description="gradients are scaled down to at most this norm; 0: no clipping")
    seed: int = Field(
        0, ge=0, le=2**31, description="seed of the order of rows, of new weights, of dropout and of span corruption"
    )
    deterministic: bool = Field(
        False, description="use only operations that give the same bits each time; a CPU always does"
    )
    threads: int | None = Field(None, ge=1, description="processor threads; the number of physical cores otherwise")
    eval_every: int | None = Field(None, ge=1, description="steps between validations; a tenth of the run otherwise")
    patience: int = Field(3, ge=0, description="validations without improvement before training stops early; 0: never")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; at each validation otherwise")
    feature_cache: Literal["auto", "off"] = Field(
        "auto",
        description="compute the output of the lowest blocks once and keep it on disk, if the method freezes them",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a block, as a share of that of the block above; the head has lr"
    )
    unfreeze_every: int | None = Field(
        None,
        ge=1,
        description="gradual unfreezing: the head trains alone at first, then from the top one block more every so "
        "many steps",
    )

    @property
    def at_once(self) -> int:
        """Tokens computed at once, at the run's start."""
        return MICRO_TOKENS if self.micro_tokens == "auto" else self.micro_tokens

    @property
    def lowers_lr(self) -> bool:
        """Whether a run that diverges goes back to its best weights and on at a smaller rate."""
        by_itself = not isinstance(self.lr, float)
        return by_itself if self.on_divergence == "auto" else self.on_divergence == "lower_lr"

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights(cls, value: Any) -> Any:
        if value is None or value in ("none", "balanced"):
            return value or "none"
        numbers = isinstance(value, dict) and all(
            type(weight) in (int, float) and 0 < weight < 1e6 for weight in value.values()
        )
        if not numbers or not value:
            raise ValueError("must be none, balanced, or a number above 0 for each class, as in {spam: 3}")
        return {name_of(name): weight for name, weight in value.items()}

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and below 1")
        return betas


class GenerateKnobs(Knobs):
    max_new_tokens: int = Field(256, ge=1, description="most tokens of an answer; if not set, as the context allows")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token; higher is more random")
    top_k: int = Field(0, ge=0, description="sample among the k likeliest tokens; 0 for all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens that make up this probability")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens below this share of the highest probability")
    repetition_penalty: float = Field(
        1.0, ge=1e-3, le=1e3, description="above 1: tokens that already occur in the text become less likely"
    )
    beams: int = Field(1, ge=1, le=256, description="width of the beam search; 1 for none")
    length_penalty: float = Field(1.0, description="beam scores are divided by length to this power")
    stop: tuple[str, ...] = Field((), description="texts that end the answer, besides the model's stop tokens")
    seed: int = Field(0, ge=0, description="seed of sampling")

    @field_validator("temperature")
    @classmethod
    def _temperature(cls, temperature: float) -> float:
        if 0 < temperature < 1e-3:  # what scores are divided by; below this they overflow
            raise ValueError("must be 0, or at least 0.001")
        return temperature


class EvalKnobs(Knobs):
    metrics: tuple[str, ...] = Field(
        ("auto",),
        description="exact_match, json_valid, json_equal, accuracy, macro_f1, rouge, bleu, chrf; auto: chosen by the "
        "answers in the data",
    )
    rows: int = Field(100, ge=0, description="held-out rows to generate answers for, before and after; 0 for none")
    batch_tokens: int = Field(8192, ge=16, description="tokens computed at once during validation")
    max_new_tokens: int | None = Field(
        None, ge=1, description="most tokens of an answer; twice the longest target otherwise"
    )
    shots: int = Field(
        0,
        ge=0,
        le=64,
        description="training rows before each question, as many as fit, for what the untouched model answers when it "
        "is shown examples; 0: that is not measured",
    )
    speed: bool = Field(
        False,
        description="after training, time the tuned model as it is used, merged where the method merges: tokens "
        "that it writes in a second, or rows that it labels",
    )
    general: str | None = Field(
        None,
        description="text on which a model that writes loses what it could before: its loss there is measured before "
        "and after training. default: 50 short English texts of the package; or a file (.txt with a text a paragraph, "
        "or rows with a column text)",
    )


class RunKnobs(Knobs):
    """One run. A run is a pure function of this."""

    name: str | None = Field(None, description="name of the run's folder; made of model, method and data otherwise")
    runs: str = Field("runs", description="the folder that holds the runs")
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="programs that are told how the run goes, and get its report and adapter where they keep files"
    )
    model: ModelKnobs = ModelKnobs()
    method: dict[str, Any] = Field({"name": "lora"}, description="the method's name, or auto, and its own knobs")
    data: DataKnobs = DataKnobs()
    train: TrainKnobs = TrainKnobs()
    eval: EvalKnobs = EvalKnobs()

    @field_validator("model", "method", "data", "train", "eval", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        """`train:` with nothing below it, as is left when all its lines are commented out."""
        return {} if value is None else value

    @field_validator("method")
    @classmethod
    def _named_method(cls, method: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(method.get("name", ""), str):
            raise ValueError("its name must be text, as in {name: lora}")
        return method
