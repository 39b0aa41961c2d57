"""No knob is ignored in silence: what was set either does what it says, or the run is refused with the reason.

A value other than a knob's default is refused where nothing would follow from it, unless it says what is so anyway (as
`data.template=plain` of rows that no template touches). A default is never refused, so a run.yaml, which holds all
knobs, runs again as it is. Where one knob overrides another by its own description, a line says which one decides.

What is refused is refused as soon as it can be known: from the configuration alone (`check_knobs`), from the data
(`check_knobs_for_data`), or from what trains (`check_knobs_for_model`); always before the untouched model is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from microplane.config.build import fields, shown
from microplane.config.knobs import RunKnobs
from microplane.data.mixtures.spec import is_mixture
from microplane.data.preparing.summary import DataSummary
from microplane.data.reading.installed import FORMATS
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import ConfigError
from microplane.evaluation import text_metrics
from microplane.hardware import usable_cores
from microplane.inference.pipeline import Pipeline
from microplane.methods import Method, trainable
from microplane.models.contract import levels, module_map_of
from microplane.objectives.base import AnyObjective
from microplane.objectives.class_weights import with_class_weights
from microplane.objectives.seq2seq import Seq2Seq
from microplane.training.optim import peak_lr

MOST_THREADS = 8  # of each processor
Idle = Iterable[tuple[str, str]]  # a knob's dotted name; why it would change nothing, and the way round


def check_knobs(knobs: RunKnobs, method: Method) -> list[str]:
    """Check what the configuration alone decides.

    Args:
        method: made of `knobs.method`.

    Returns:
        What is to be said of knobs that others override: one line each.

    Raises:
        ConfigError: for knobs that would change nothing, all of them at once; for an optimizer that does not suit the
            method; for a metric that does not exist.
    """
    _check_optimizer(knobs, method)
    _check_threads(knobs.train.threads)
    text_metrics.check(knobs.eval.metrics)
    _refuse(_idle_by_configuration(knobs), values_set(knobs))
    _refuse(((f"method.{name}", why) for name, why in method.idle_knobs().items()), _values_of_method(method))
    return _overridden(values_set(knobs))


def check_knobs_for_data(knobs: RunKnobs, objective: AnyObjective, summary: DataSummary, tokenizer: Tokenizer) -> None:
    """Check what depends on the rows and on what is trained for.

    Args:
        objective: what is learnt from the rows.

    Raises:
        ConfigError: for knobs that would change nothing, all of them at once.
    """
    plain_text = summary.plain_text
    idle = (
        [*_idle_with_labels(knobs, summary.task)]
        if summary.task
        else [*_idle_without_labels(knobs, objective, plain_text, named=summary.format_name == "text/label")]
    )
    if tokenizer.date is None:
        idle.append(("data.date", "the model's chat template tells no date. Leave it out"))
    if summary.validation_from == "file" and not is_mixture(Path(knobs.data.train).expanduser()):
        idle += _no_split_off(f"{knobs.data.train} comes with validation rows")
    _refuse(idle, values_set(knobs))
    class_weighted(objective, knobs, summary)


def class_weighted(objective: AnyObjective, knobs: RunKnobs, summary: DataSummary) -> AnyObjective:
    """What is learnt, with the weights of `train.class_weights`.

    Raises:
        ConfigError: for a class that the rows do not have.
    """
    counts, rows = summary.label_counts.get("train", {}), summary.rows["train"]
    return with_class_weights(objective, knobs.train.class_weights, summary.labels, counts, rows)


BY_BLOCKS: tuple[tuple[str, float | None], ...] = (("layer_decay", 1.0), ("unfreeze_every", None))  # knob, and its rest


def check_knobs_for_model(knobs: RunKnobs, method: Method, model: nn.Module) -> None:
    """Check what depends on which parameters train.

    Args:
        model: with `method` attached; its shapes are enough, so it may be on the meta device.

    Raises:
        ConfigError: for knobs that would change nothing, all of them at once; for those that need the order of the
            blocks, where it is not known.
    """
    if module_map_of(model) is not None:
        for name, plain in BY_BLOCKS:
            if (value := getattr(knobs.train, name)) != plain:
                raise ConfigError(
                    f"train.{name} = {value}: it needs to know which blocks a model has and in which order, as "
                    "Microplane's own are known, and this one runs through transformers. Leave it out"
                )
    _refuse(_idle_by_parameters(knobs, method, model), values_set(knobs))


def check_knobs_for_eval(knobs: RunKnobs, loaded: Pipeline) -> list[str]:
    """Check the knobs of a measurement of `loaded`, which trains nothing.

    Returns:
        What is to be said: one line of the knobs that only training uses, as a whole run.yaml has them, and one of each
        that another overrides.

    Raises:
        ConfigError: for knobs of the measurement that would change nothing, all of them at once.
    """
    given, used = values_set(knobs), _USED_BY_EVAL
    if loaded.method is not None:  # it is asked with the template that it was trained with
        used = used - {"data.template"}
    head = loaded.model.task_head
    task = None if head is None else head.config.task
    if task is None:
        idle = list(_idle_without_labels(knobs, loaded.objective, plain_text=False, named=True))
    else:
        idle = list(_idle_with_labels(knobs, task))
        if knobs.data.task not in ("auto", task):
            idle.append(("data.task", f"the model's head is for {task}. Leave it at auto"))
    _refuse(idle, {name: value for name, value in given.items() if name in used})
    told = _overridden({name: value for name, value in given.items() if name in used})
    unused = [name for name in given if name not in used]
    return told + ([f"not used to measure a model: {', '.join(unused)}"] if unused else [])


_USED_BY_EVAL = {
    *("model.name", "model.revision", "model.dtype", "model.device"),
    *(
        "data.train",
        "data.format",
        "data.fields",
        "data.template",
        "data.system",
        "data.max_length",
        "data.max_target_length",
        "data.unicode",
        "data.source_language",
        "data.target_language",
    ),
    *("data.task", "data.no_label", "data.skip_bad_rows", "data.limit"),
    *("eval.metrics", "eval.rows", "eval.batch_tokens", "eval.max_new_tokens", "eval.general"),
}


def values_set(knobs: RunKnobs) -> dict[str, object]:
    """The knobs that are not at their default, by dotted name. The method's own are one of them, as a dictionary."""
    found: dict[str, object] = {}
    for name, field in fields(RunKnobs):
        value: object = knobs
        for part in name.split("."):
            value = getattr(value, part)
        if value != field.default:
            found[name] = value
    return found


def _values_of_method(method: Method) -> dict[str, object]:
    """As `values_set`, of a method."""
    found = {name: getattr(method, name) for name in type(method).model_fields}
    return {
        f"method.{name}": value for name, value in found.items() if value != type(method).model_fields[name].default
    }


def _refuse(idle: Idle, given: Mapping[str, object]) -> None:
    """Raise a ConfigError for those of the idle knobs that are set."""
    lines = [f"  {name} = {_written(given[name])}: {why}" for name, why in idle if name in given]
    if lines:
        which = "This knob" if len(lines) == 1 else "These knobs"
        raise ConfigError(f"{which} would change nothing in this run:\n" + "\n".join(lines))


def _written(value: object) -> str:
    """As one writes it after `--set name=`."""
    if isinstance(value, bool):
        return str(value).lower()
    return shown(list(value)) if isinstance(value, tuple) else shown(value)


def _overridden(given: Mapping[str, object]) -> list[str]:
    """What is to be said of knobs that are set and give way to another, as its description says."""
    stronger = {name: given[name] for name in ("train.steps", "train.batch_tokens") if name in given}
    stronger |= {"eval.rows": 0} if given.get("eval.rows") == 0 else {}  # no answers are generated
    return [
        f"{name} = {_written(given[name])} is not used: {other} = {stronger[other]} decides"
        for name, other in _GIVES_WAY.items()
        if name in given and other in stronger
    ]


_GIVES_WAY = {
    "train.epochs": "train.steps",
    "train.batch_size": "train.batch_tokens",
    "eval.metrics": "eval.rows",
    "eval.max_new_tokens": "eval.rows",
    "eval.shots": "eval.rows",
}


def _no_split_off(why: str) -> Idle:
    """Nothing is split off for validation."""
    for name in ("data.validation_share", "data.validation_rows"):
        yield name, f"{why}, so none are split off the training rows. Leave it out"


def _idle_by_configuration(knobs: RunKnobs) -> Idle:
    if knobs.train.optimizer == "adafactor":
        for name in ("train.betas", "train.eps"):
            yield name, "it belongs to AdamW, and Adafactor has none. Leave it out, or set train.optimizer=adamw"
    if knobs.data.format in FORMATS:
        yield "data.fields", f"the format {knobs.data.format} of a package knows its columns itself. Leave it out"
    if knobs.data.validation:
        yield from _no_split_off(f"data.validation = {shown(knobs.data.validation)} gives the validation rows")


def _idle_with_labels(knobs: RunKnobs, task: str | None) -> Idle:
    """For rows with labels, which a task head learns."""
    head = f"the rows have labels, which a task head learns ({task})"
    yield "data.format", f"{head}, and these are recognised by their keys. Leave it at auto"
    yield "data.max_target_length", f"{head}, so there is no answer to cut. Leave it out; data.max_length cuts texts"
    if knobs.data.template != "plain":
        yield "data.template", f"{head}, and texts are read without a template. Leave it at auto"
    if knobs.data.system:
        yield "data.system", f"{head}, and texts are read without a system prompt. Put it into the rows' texts"
    if task == "tokens":
        yield "model.pooling", "each token has a label of its own, so nothing is pooled. Leave it at auto"
        yield "data.long_rows", "each word has a label of its own, and words lose their row. Leave it at cut"
    if task == "regression":
        yield "train.class_weights", f"{head}, and numbers have no classes. Leave it out"
    yield "data.target_language", f"{head}, and nothing is written in it. Leave it out"
    yield "train.label_smoothing", f"{head}; only the loss of tokens is smoothed. Leave it out"
    yield "eval.metrics", f"{head}, and it is measured by all metrics of its task. Leave it at auto"
    yield "eval.max_new_tokens", f"{head}, and none is generated. Leave it out"
    yield "eval.shots", f"{head}, which is new in the untouched model: examples would show it nothing. Leave it out"
    yield "eval.general", f"{head}, and it writes no text of which something could be forgotten. Leave it out"


def _idle_without_labels(knobs: RunKnobs, objective: AnyObjective, plain_text: bool, named: bool) -> Idle:
    """For rows of text, which the model learns to write; `named` where the answers may be names of classes."""
    yield "model.pooling", "it is for a task head, and these rows have no labels. Leave it out, or set data.task"
    yield "train.class_weights", "it is for a task head, and these rows have no labels. Leave it out, or set data.task"
    if not named:
        yield "data.no_label", "these rows have no labels. Leave it out, or set data.task"
    yield "data.long_rows", "it is for texts with labels, and these rows have none. Leave it at cut"
    yield "data.segment", "it is for texts with labels, and these are rendered as they stand. Leave it out"
    pairs = isinstance(objective, Seq2Seq)
    if not pairs:
        yield "data.max_target_length", "prompt and answer are one row here. Leave it out, and set data.max_length"
    elif plain_text:
        yield "data.max_target_length", "of plain text, data.objective makes the targets. Set data.max_length"
    if (plain_text or pairs) and knobs.data.template == "chat":
        what = "plain text has" if plain_text else "an encoder-decoder reads"
        yield "data.template", f"{what} no chat template. Leave it at auto"
    if plain_text:
        yield "eval.shots", "the rows are plain text, and no questions with answers. Leave it out"
    if plain_text and knobs.data.system:
        yield "data.system", "the rows are plain text, which has no place for a system prompt. Leave it out"


def _idle_by_parameters(knobs: RunKnobs, method: Method, model: nn.Module) -> Idle:
    groups = [group for group in method.param_groups(model, peak_lr(method, model, knobs.train)) if group["params"]]
    if groups and all("weight_decay" in group for group in groups):
        yield "train.weight_decay", f"what {method.name} trains is never decayed towards 0. Leave it out"
    if module_map_of(model) is None and _trains_the_top_alone(model):
        why = f"{method.name} trains what is above the blocks alone"
        yield "train.recompute", f"{why}, so nothing of a block is kept for backward. Set it to none"
        yield "train.layer_decay", f"{why}, which has train.lr. Leave it out"
        yield "train.unfreeze_every", f"{why}, so there is nothing to unfreeze. Leave it out"


def _trains_the_top_alone(model: nn.Module) -> bool:
    """Whether all that trains is the last norm and the heads."""
    found = levels(model)
    return {found[name] for name in trainable(model)} == {max(found.values())}


def _check_threads(threads: int | None) -> None:
    """Raises: ConfigError, for so many that the system would refuse them in the middle, or they would only wait."""
    cores = usable_cores()
    if threads and threads > MOST_THREADS * cores:
        raise ConfigError(
            f"train.threads = {threads}: this process may run on {cores} processor{'s' if cores > 1 else ''}. Choose "
            "at most as many, or leave it out"
        )


def _check_optimizer(knobs: RunKnobs, method: Method) -> None:
    """Raises: ConfigError, if the method cannot train with this optimizer, or not with what is asked of it."""
    train = knobs.train
    if method.optimizers is not None and train.optimizer not in method.optimizers:
        raise ConfigError(
            f"train.optimizer = {train.optimizer!r}: the method {method.name} works with "
            f"{' or '.join(method.optimizers)} only"
        )
    if train.scale_parameter and train.optimizer != "adafactor":
        raise ConfigError(
            f"train.scale_parameter = true is a part of Adafactor, but train.optimizer = {train.optimizer!r}; "
            "set train.optimizer=adafactor, or train.scale_parameter=false"
        )
    if train.scale_parameter and method.trains != "weights":
        raise ConfigError(
            f"train.scale_parameter = true makes steps relative to a tensor's size, but {method.name} trains "
            "tensors that begin at or near zero: they would move by train.lr x 0.001 and learn next to nothing. "
            "Set train.scale_parameter=false"
        )
    for name, plain in BY_BLOCKS:
        if (value := getattr(train, name)) != plain and not method.trains_base:
            raise ConfigError(
                f"train.{name} = {value}: it is for methods that train the model's own weights, as full does; "
                f"{method.name} adds new ones. Leave it out"
            )
