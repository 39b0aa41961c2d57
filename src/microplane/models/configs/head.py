"""Task heads in a config.json: what they predict, how a row is pooled, and how Hugging Face's classes lay them out.

A head that Hugging Face has a class for is read and written as that class. Any other is ours: dropout and one linear
layer, stored as `task_head.out` beside the model without a head, so that nobody opens it as something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from microplane.errors import ModelError
from microplane.models.configs import decoder_families, encoder_families
from microplane.models.configs import t5 as t5_config
from microplane.models.configs import t5gemma as t5gemma_config
from microplane.models.configs import transformer as transformer_config
from microplane.models.configs.form import DROPOUT, Form
from microplane.nn.layers import ACTIVATIONS

Task = Literal["classification", "multilabel", "regression", "tokens"]
TASKS: tuple[Task, ...] = get_args(Task)
PER_TOKEN: Task = "tokens"  # the one that says something of each token, and not of a row as a whole
PROBLEMS: dict[str, str] = {  # task -> Hugging Face's problem_type
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
IGNORED = -100  # the label of a token that has none: special tokens, and all of a word but its first
POOLINGS = ("cls", "mean", "last")
OWN = "task_head"  # our entry in config.json, and what the names of its tensors begin with
HIDDEN_ACTIVATIONS = ("tanh", *ACTIVATIONS)  # of a head's hidden layer


def _encoder_forms() -> dict[str, Form]:
    forms: dict[str, Form] = {}
    for plain, family in encoder_families.SPECS.items():
        name = plain.removesuffix("Model")
        forms[f"{name}ForSequenceClassification"] = replace(family.rows, plain=plain, prefix=family.prefix)
        forms[f"{name}ForTokenClassification"] = replace(family.tokens, plain=plain, prefix=family.prefix)
    return forms


def _other_forms() -> dict[str, Form]:
    forms: dict[str, Form] = {}
    for plain, family in decoder_families.SPECS.items():
        name = decoder_families.stem(plain)
        sequence = Form(plain, "score", out_bias=False, poolings=("last",))
        if family.labels_rows:
            forms[f"{name}ForSequenceClassification"] = sequence
        if family.labels_tokens:
            forms[f"{name}ForTokenClassification"] = Form(plain, family.labels_tokens, tokens=True)
    for plain in t5gemma_config.ARCHITECTURES:
        name = plain.removesuffix("ForConditionalGeneration")
        row = Form(plain, "score.out_proj", dropout="classifier_dropout_rate", poolings=("last",), minds_padding=True)
        forms[f"{name}ForSequenceClassification"] = row
    for plain in t5_config.ARCHITECTURES:
        forms[f"{plain.removesuffix('ForConditionalGeneration')}ForSequenceClassification"] = Form(
            plain,
            out="classification_head.out_proj",
            prefix="transformer.",
            dense="classification_head.dense",
            dropout_first=True,
            poolings=("last",),
        )
    for plain, spec in transformer_config.SPECS.items():
        if spec.labels_rows:
            forms[spec.labels_rows] = Form(
                plain,
                out="classification_head.out_proj",
                dense="classification_head.dense",
                dropout_first=True,
                poolings=("last",),
            )
    return forms


FORMS = _encoder_forms() | _other_forms()


@dataclass(frozen=True)
class HeadConfig:
    """All that a `TaskHead` is made of, D being the width of the model beneath."""

    task: str  # of `TASKS`
    labels: tuple[str, ...]  # names of the classes, or of the values of a regression
    width: int  # D
    pooling: str = "mean"  # of `POOLINGS`; of no use to tokens
    form: str | None = None  # Hugging Face's class, None for a head of ours
    dropout: float = 0.0
    activation: str = "tanh"  # of the hidden layer, where the form has one
    dense_bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-5

    @property
    def per_token(self) -> bool:
        """One prediction for each token, and none for the row as a whole."""
        return self.task == PER_TOKEN

    @property
    def reads_decoder(self) -> bool:
        """On an encoder-decoder: whether it looks at the decoder's states, and not at the encoder's alone."""
        return self.pooling == "last" and not self.per_token

    def __post_init__(self) -> None:
        assert self.task in TASKS, self.task
        assert self.pooling in POOLINGS, self.pooling

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json, beside those of the model beneath."""
        numbered = dict(enumerate(self.labels))
        fields: dict[str, Any] = {
            "id2label": {str(number): label for number, label in numbered.items()},
            "label2id": {label: number for number, label in numbered.items()},
            "problem_type": PROBLEMS.get(self.task),
        }
        if self.form is None:
            settings = asdict(self)
            return fields | {OWN: {name: settings[name] for name in ("task", "pooling", "dropout")}}
        fields |= {"architectures": [self.form]}
        if self.form not in FORMS:  # of a family without an implementation here
            return fields
        fields |= {FORMS[self.form].dropout or DROPOUT: self.dropout}
        if (told := FORMS[self.form].activation_field) is not None:
            fields |= {told: self.activation}
        if FORMS[self.form].norm:
            fields |= {"classifier_bias": self.dense_bias}
        if len(FORMS[self.form].poolings) > 1 and not FORMS[self.form].tokens:
            fields |= {"classifier_pooling": FORMS[self.form].pooling_names.get(self.pooling, self.pooling)}
        return fields


def plain_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the model beneath the head, which has no head for words any more."""
    form = _form_of(config)
    plain = {name: value for name, value in config.items() if name != OWN}
    if form is None and OWN not in config:
        return plain
    if form is not None:
        plain["architectures"] = [FORMS[form].plain]
    return plain | {"tie_word_embeddings": True, "scale_decoder_outputs": False}


def width_of(model: Any, task: str, pooling: str) -> int:
    """How wide the states are that a head on a model of that configuration reads."""
    reads_decoder = pooling == "last" and task != PER_TOKEN
    width: int = model.hidden_size if reads_decoder else getattr(model, "source_size", model.hidden_size)
    return width


def head_of(config: Mapping[str, Any], model: Any) -> HeadConfig | None:
    """What a config.json says of a head on a model of the configuration `model`, None if there is none.

    Raises:
        ModelError: for settings that are wrong or not supported.
    """
    form = _form_of(config)
    if form is None and OWN not in config:
        return None
    labels = _labels(config)
    if form is None:
        return _own(config[OWN], labels, model)
    layout = FORMS[form]
    task = PER_TOKEN if layout.tokens else _task(config, len(labels))
    pooling = "mean" if layout.tokens else pooling_of(layout, config)
    return shaped(form, task, labels, width_of(model, task, pooling), pooling, config)


def pooling_of(layout: Form, config: Mapping[str, Any]) -> str:
    """How a class of that layout pools, by what config.json says.

    Raises:
        ModelError: for a way that is not supported.
    """
    if len(layout.poolings) == 1:
        return layout.poolings[0]
    told = config.get("classifier_pooling", layout.usual_pooling)
    known = {layout.pooling_names.get(pooling, pooling): pooling for pooling in layout.poolings}
    if told not in known:
        raise ModelError(
            f"classifier_pooling = {told!r} in config.json: expected {' or '.join(known)} of a {layout.plain}"
        )
    return known[told]


def told_pooling(architecture: str, config: Mapping[str, Any]) -> str | None:
    """How a class for rows of a plain architecture pools by its config.json, where it has several ways; None where that
    says nothing, or names a way that is not supported."""
    layouts = (form for form in FORMS.values() if form.plain == architecture and len(form.poolings) > 1)
    if (layout := next(layouts, None)) is None:
        return None
    known = {layout.pooling_names.get(pooling, pooling): pooling for pooling in layout.poolings}
    return known.get(str(config.get("classifier_pooling")))


def head_of_class(form: str, tokens: bool, config: Mapping[str, Any], width: int, pooling: str) -> HeadConfig:
    """What a config.json says of the head of a class of Hugging Face's that has no layout here.

    Raises:
        ModelError: for settings that are wrong.
    """
    labels = _labels(config)
    task = PER_TOKEN if tokens else _task(config, len(labels))
    return HeadConfig(task, labels, width, "mean" if tokens else pooling, form)


def shaped(
    form: str,
    task: str,
    labels: tuple[str, ...],
    width: int,
    pooling: str,
    config: Mapping[str, Any],
    dropout: float | None = None,
) -> HeadConfig:
    """A head as Hugging Face's class `form` makes it from the fields of a config.json."""
    if FORMS[form].norm is None:
        share = _dropout(form, config) if dropout is None else dropout
        return HeadConfig(task, labels, width, pooling, form, share, _activation(FORMS[form], config))
    return HeadConfig(
        task,
        labels,
        width,
        pooling,
        form,
        _dropout(form, config) if dropout is None else dropout,
        _activation(FORMS[form], config),
        dense_bias=bool(config.get("classifier_bias", False)),
        norm_bias=bool(config.get("norm_bias", False)),
        norm_eps=config.get("norm_eps", 1e-5),
    )


def _form_of(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    listed = named if isinstance(named, list) and not encoder_families.left_to_transformers(config) else []
    return next((name for name in listed if isinstance(name, str) and name in FORMS), None)


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """By number, from `id2label`, or by their count alone, of which two is the default."""
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or count < 1:
            raise ModelError(f"num_labels = {count!r} in config.json: expected a whole number above 0")
        return tuple(f"LABEL_{number}" for number in range(count))
    try:
        by_number = {int(number): str(label) for number, label in names.items()}
    except (AttributeError, TypeError, ValueError):
        by_number = {}
    if not by_number or sorted(by_number) != list(range(len(by_number))):
        raise ModelError(
            f"id2label = {str(names)[:80]} in config.json: expected the number of each class from 0 on, and its name"
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def _task(config: Mapping[str, Any], labels: int) -> str:
    """As transformers decides, where it can without seeing labels: one output is a regression."""
    problem = config.get("problem_type")
    if problem is None:
        return "regression" if labels == 1 else "classification"
    for task, name in PROBLEMS.items():
        if name == problem:
            return task
    raise ModelError(f"problem_type = {problem!r} in config.json: expected one of {', '.join(PROBLEMS.values())}")


def _activation(layout: Form, config: Mapping[str, Any]) -> str:
    """Of a head's hidden layer."""
    name = layout.activation_field
    activation: str = config.get(name, layout.activation) if name else layout.activation
    if activation not in HIDDEN_ACTIVATIONS:
        raise ModelError(
            f"{name} = {activation!r} in config.json is not supported; supported are {', '.join(HIDDEN_ACTIVATIONS)}"
        )
    return activation


def _dropout(form: str, config: Mapping[str, Any]) -> float:
    layout = FORMS[form]
    called, family = layout.dropout or DROPOUT, encoder_families.SPECS.get(layout.plain)
    share = config.get(called)
    if share is None and family is not None:
        share = family.defaults.get(called)
        usual = config.get(family.spelled("hidden_dropout_prob"), 0.0 if layout.norm else 0.1)
        share = usual if share is None else share
    if share is None:
        share = 0.1 if layout.tokens else 0.0
    return _share(share, called)


def _share(share: Any, name: str) -> float:
    if type(share) not in (int, float) or not 0 <= share < 1:
        raise ModelError(f"{name} = {share!r} in config.json: expected a number from 0 to below 1")
    return float(share)


def _own(settings: Any, labels: tuple[str, ...], model: Any) -> HeadConfig:
    fields = settings if isinstance(settings, dict) else {}
    task, pooling = fields.get("task"), fields.get("pooling")
    if task not in TASKS or pooling not in POOLINGS:
        raise ModelError(
            f"{OWN} in config.json has task = {task!r} and pooling = {pooling!r}: expected one of {', '.join(TASKS)},"
            f" and one of {', '.join(POOLINGS)}"
        )
    width = width_of(model, task, pooling)
    return HeadConfig(task, labels, width, pooling, dropout=_share(fields.get("dropout", 0.0), f"{OWN}.dropout"))


def form_for(architecture: str, task: str, pooling: str) -> str | None:
    """Hugging Face's class for such a head on a plain architecture, None if it has none."""
    return next((name for name, form in FORMS.items() if _suits(form, architecture, task, pooling)), None)


def _suits(form: Form, architecture: str, task: str, pooling: str) -> bool:
    if form.plain != architecture or form.tokens != (task == PER_TOKEN):
        return False
    return form.tokens or pooling in form.poolings


def check_labels(task: str, labels: Sequence[str]) -> None:
    """Raises: ModelError, for names of which no head can be made."""
    if len(set(labels)) != len(labels):
        raise ModelError(f"the labels {', '.join(labels)} of the task head are not all different")
    least = 2 if task in ("classification", "tokens") else 1
    if len(labels) < least:
        raise ModelError(f"a head for {task} needs at least {least} labels, and was given {len(labels)}")
