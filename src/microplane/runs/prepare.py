"""What a run works on, made ready from its configuration before any weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from microplane.checkpoints.adapter import read_method
from microplane.checkpoints.attach_saved import fingerprint, weights_fingerprint
from microplane.config.knobs import DataKnobs, RunKnobs, TrainKnobs
from microplane.data.batch_plan import BatchPlan
from microplane.data.preparing.load_splits import load_splits
from microplane.data.progress import Watcher, counting
from microplane.data.store import Dataset
from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.device import name_of
from microplane.errors import ConfigError, ModelError, notice
from microplane.evaluation.evaluate import choose_rows
from microplane.forecast.memory import Shapes
from microplane.inference.check_ids import check_ids
from microplane.inference.languages import in_languages, write_in
from microplane.methods import Method, make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.hub import resolve
from microplane.models.files.load import build_on_meta, open_checkpoint, open_config
from microplane.models.files.opened import OpenedBase
from microplane.models.heads import ensure_head, meta_copy
from microplane.models.stays_wide import told_of_what_stays_wide
from microplane.nn.head_attention import large_scores, rounds_otherwise
from microplane.nn.number_format import NumberFormat, slowdown
from microplane.nn.quantised import QUANTISED, weight_count
from microplane.objectives.base import AnyObjective
from microplane.objectives.select import AnyCandidates, AnySplits, candidates
from microplane.runs.asked import how_asked
from microplane.runs.check_knobs import check_knobs, check_knobs_for_data, check_knobs_for_model, class_weighted
from microplane.runs.general import General, open_general
from microplane.runs.max_length import within_context
from microplane.runs.trackers import check_trackers
from microplane.training.numbers import Numbers, begin_with, with_unit
from microplane.training.optim import left_undecayed, peak_lr
from microplane.training.resume import CLASSES, UNIT

DROPOUT_MASKS = "by hash"  # how they are drawn: other masks are another run
SLOW = 2.0  # times as long as float32: that is told
MICRO_BATCHES = "by tokens"  # how they are cut where rows are long: other cuts draw other masks
ATTENTION = "by torch in float32"  # how it is computed: another way rounds otherwise


@dataclass(frozen=True)
class Prepared:
    """Everything that is decided before the first weight is read.

    Args:
        config: with all that was inferred filled in, so that run.yaml says what was done.
        checkpoint: the base's opened files; its config alone where the weights are new.
        form: in which format the base is held and multiplied.
        held_out: rows that are measured on: the test rows, or else the validation rows.
        answer_rows: numbers of those for which answers are generated.
        general: text that is measured for what the model forgets, if `eval.general` asks for it.
    """

    config: RunKnobs
    method: Method
    path: Path
    checkpoint: Checkpoint
    form: NumberFormat
    tokenizer: Tokenizer
    splits: AnySplits
    held_out: Dataset
    answer_rows: tuple[int, ...]
    general: General | None

    @cached_property
    def fingerprint(self) -> str:
        """Of the base's files."""
        return fingerprint(self.path)

    @cached_property
    def weights(self) -> str | None:
        """The fingerprint of the base's weights; None of new ones, which the files do not hold."""
        return weights_fingerprint(self.path) if self.checkpoint.tensors else None

    @cached_property
    def shapes(self) -> Shapes:
        """The run's model on the meta device, with its head and its method.

        Raises:
            MicroplaneError: if the method does not fit the model.
        """
        plain, summary = build_on_meta(self.checkpoint), self.splits.summary
        with torch.device("meta"):
            ensure_head(plain, summary.task, summary.labels, self.config.model.pooling, seed=0)
            attach_method(self.method, attached := meta_copy(plain))
        return Shapes(self.checkpoint.config, plain, attached, self.method, self.form)

    @cached_property
    def batch_plan(self) -> BatchPlan:
        """Which rows make which optimizer step."""
        return BatchPlan.of(self.splits.train.lengths, self.config.train)

    @property
    def objective(self) -> AnyObjective:
        """What is learnt from the rows."""
        return self.splits.objective

    @property
    def weighted_objective(self) -> AnyObjective:
        """The same as it trains and chooses: with the weights of `train.class_weights`, and numbers in their unit."""
        return with_unit(class_weighted(self.objective, self.config, self.splits.summary), self.numbers)

    @cached_property
    def numbers(self) -> Numbers | None:
        """Of the training rows, where a number is learnt."""
        return Numbers.of(self.splits.train) if self.splits.summary.task == "regression" else None

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it continues."""
        dropout, longest = getattr(self.method, "dropout", 0.0), int(self.splits.train.lengths.max())
        train = self.config.train.model_dump(mode="json")
        if train["class_weights"] == "none":  # runs of an earlier version do not have it
            del train["class_weights"]
        return {
            "train rows": self.splits.train.fingerprint,
            "validation rows": self.splits.validation.fingerprint,
            "model": self.fingerprint,
            **self._base(),
            "model.dtype": self.form.name,
            "model.compute": self.form.compute,
            "tokenizer": self.tokenizer.fingerprint,
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "train": train,
            "threads": torch.get_num_threads(),
            "device": self.form.device.type,
            "torch": torch.__version__,
            **({"masks of method.dropout": DROPOUT_MASKS} if dropout else {}),
            **({"micro-batches of rows above 512 tokens": MICRO_BATCHES} if large_scores(longest) else {}),
            **({"attention of long rows": ATTENTION} if rounds_otherwise(longest, self.form.dtype) else {}),
            **({} if self.numbers is None else {UNIT: self.numbers.unit}),
            **({CLASSES: self.splits.summary.labels} if self.splits.summary.labels else {}),
            **left_undecayed(self.method, self.shapes.attached, self.config.train),
        }

    @property
    def steps_asked(self) -> int | None:
        """How many the user asked for, by steps or passes; None where the run decides."""
        knobs = self.config.train
        if knobs.steps is None and knobs.epochs is None:
            return None
        return self.batch_plan.run_steps(knobs)

    def _base(self) -> dict[str, Any]:
        """What of the base's files is read; nothing of new weights."""
        if self.weights is None:
            return {}
        config = json.dumps(self.checkpoint.config, sort_keys=True, default=str)
        return {
            "weights": self.weights,
            "config.json": hashlib.sha256(config.encode()).hexdigest()[:32],
        }

    def adapter_metadata(self) -> dict[str, Any]:
        """What an adapter says of its making, but for the head."""
        name, data = self.config.model.name, self.config.data
        # A local model is found again from any folder; a short name or a Hub name stays what it is.
        base = str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name
        splits = self.splits
        return {
            "base": base,
            "revision": self.config.model.revision,
            "base_weights": self.weights,
            "base_dtype": self.form.name,
            "base_compute": self.form.compute,
            **how_asked(splits.objective, splits.train, self.tokenizer, data, splits.summary),
        }


def check_config(config: RunKnobs, watch: Watcher, begun: bool = False) -> Method:
    """The method of a run, once all is checked that needs no file.

    Args:
        begun: it goes on with what an earlier version may have begun: knobs without effect stay so.

    Raises:
        ConfigError: for knobs that do not go together, or no data.
    """
    method = make_method(config.method)
    check_trackers(config.track)
    if not begun:
        for line in check_knobs(config, method):
            watch.say(line)
    if not config.data.train:
        raise ConfigError("data.train is not set: give the rows to train on, as in microplane train MODEL DATA")
    return method


def prepare(
    config: RunKnobs,
    method: Method,
    watch: Watcher,
    begun: bool = False,
    opening: Callable[[Path], Checkpoint] = open_checkpoint,
) -> Prepared:
    """Find the model, read the data, and decide everything that `config` leaves open.

    Args:
        begun: see `check_config`.
        opening: of the model's files.

    Raises:
        MicroplaneError: for a model or data that cannot be used, saying why.
    """
    watch.say(f"opening {config.model.name}, reading {config.data.train}")
    opened = open_for_data(config, method, watch, opening)
    config, method, path, checkpoint, tokenizer, possible, plain = opened
    form = base_format(config.model, method, checkpoint.stored)
    if form.device.type != "cpu" and config.model.device == "auto":
        watch.say(f"device    {name_of(form.device)}, as torch sees it; --set model.device=cpu for the processor")
    _tell_slow(form)
    splits = load_splits(config.data, tokenizer, possible, counting(watch), config.train.seed)
    if not begun:
        check_knobs_for_data(config, splits.objective, splits.summary, tokenizer)
    held_out = splits.test or splits.validation
    writes = not splits.objective.needs_head
    general = open_general(config, plain, tokenizer, method.num_virtual_tokens, counting(watch)) if writes else None
    return Prepared(
        config=_resolved(config, method, plain, form, splits, tokenizer.date or config.data.date),
        method=method,
        path=path,
        checkpoint=checkpoint,
        form=form,
        tokenizer=tokenizer,
        splits=splits,
        held_out=held_out,
        answer_rows=tuple(choose_rows(held_out, config.eval.rows)),
        general=general,
    )


def _tell_slow(form: NumberFormat) -> None:
    """Say it where the number format that is asked for is none of this processor's own."""
    if form.device.type == "cpu" and (times := slowdown(form)) > SLOW:
        knob, better = ("model.compute", "auto") if form.quantised else ("model.dtype", "float32")
        slow = f"{form.compute} takes {times:.0f} times as long as float32 on this processor"
        notice(f"{slow}: --set {knob}={better}")


class Opened(NamedTuple):
    """What a model says of how rows are to be read."""

    config: RunKnobs  # with `data.max_length` as the model can read it
    method: Method
    path: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    possible: AnyCandidates  # what the model may be trained for
    plain: Model  # its shapes, without weights


def open_for_data(
    config: RunKnobs, method: Method, watch: Watcher, opening: Callable[[Path], Checkpoint] = open_checkpoint
) -> Opened:
    """Find the model, without reading its weights.

    Args:
        opening: see `prepare`.

    Raises:
        MicroplaneError: for a model that cannot be used, saying why.
    """
    path = resolve(config.model.name, config.model.revision)
    checkpoint = open_config(path) if config.model.init == "random" else opening(path)
    tokenizer = load_tokenizer(path).with_unicode(config.data.unicode).with_segment(config.data.segment)
    tokenizer = tokenizer.with_date(config.data.date)
    method = method.with_tokens(lambda text: tokenizer.encode(text, special=False))
    plain = build_on_meta(checkpoint)
    tokenizer, data = _languages(config.data, tokenizer, plain)
    data = within_context(data, plain.config.context, method.num_virtual_tokens, watch.say)
    config = config.model_copy(update={"data": data})
    if config.model.init == "random":
        check_room(plain)
    if plain.load_notice:
        watch.say(plain.load_notice)
    if config.model.dtype in QUANTISED and (told := told_of_what_stays_wide(plain, config.model.dtype)):
        watch.say(told)
    return Opened(config, method, path, checkpoint, tokenizer, candidates(plain, config.data), plain)


def _languages(data: DataKnobs, tokenizer: Tokenizer, plain: Model) -> tuple[Tokenizer, DataKnobs]:
    """The tokenizer for the languages of the rows, and the knobs with them; the model is told in which to write.

    Raises:
        ConfigError: for codes that there are not, or none where the model needs them.
    """
    tokenizer = in_languages(tokenizer, plain, data.source_language, data.target_language)
    if (languages := tokenizer.languages) is not None:
        chosen = {"source_language": languages.need("source")}
        if data.task in ("auto", "answers") and plain.task_head is None:
            chosen["target_language"] = languages.need("target")
        data = data.model_copy(update=chosen)
    write_in(plain, tokenizer)
    return tokenizer, data


def check_room(model: Model) -> None:
    """Raises: ModelError, for a model whose new weights this machine's memory cannot hold."""
    need, there = 4 * weight_count(model), psutil.virtual_memory().total
    if need > there:
        raise ModelError(
            f"a model of this config.json has {need / 4e9:,.1f} billion weights, {need / 1e9:,.0f} GB, and this "
            f"machine has {there / 1e9:,.0f} GB of memory; its sizes may be written wrongly"
        )


def open_base(prepared: Prepared, begun: Path | None = None) -> tuple[OpenedBase, str | None]:
    """The base in memory, with a task head where labels are learnt; and what is to be said of that head.

    Args:
        begun: the folder of a run that is gone on with, perhaps of a version that chose another head.

    Raises:
        MicroplaneError: for what would be refused minutes later: a method that does not fit, rows with tokens that the
            model does not have.
    """
    config = prepared.config
    seed = config.train.seed if config.model.init == "random" else None
    tell = partial(write_in, tokenizer=prepared.tokenizer)
    base = OpenedBase(prepared.path, prepared.checkpoint, prepared.form, seed, tell)
    summary = prepared.splits.summary
    pooling = (_saved_pooling(begun) if begun is not None else None) or config.model.pooling
    frozen = prepared.method.frozen_below(base.model) == base.model.config.num_layers
    own = base.model.task_head
    notice = ensure_head(base.model, summary.task, summary.labels, pooling, config.train.seed, frozen)
    with torch.device("meta"):
        attach_method(prepared.method, shapes := meta_copy(base.model))
    if begun is None:
        check_knobs_for_model(config, prepared.method, shapes)
    for rows in (prepared.splits.train, prepared.splits.validation, prepared.held_out):
        check_ids(base.model, prepared.tokenizer, [rows.highest_id])
    if (numbers := prepared.numbers) is not None:
        how = prepared.objective, base.model, prepared.splits.train, base.model.task_head is not own
        begin_with(numbers, *how, config.train.at_once)
    return base, notice


def _saved_pooling(folder: Path) -> str | None:
    """How the head that a run has saved pools."""
    if not (folder / "adapter" / "method.json").is_file():
        return None
    head = read_method(folder / "adapter")[1].get("head")
    return str(head["pooling"]) if head else None


def _resolved(
    config: RunKnobs, method: Method, model: Model, form: NumberFormat, splits: AnySplits, date: str | None
) -> RunKnobs:
    """The configuration with everything that was inferred filled in.

    But for the name: run.yaml lies in the folder of that name, and shall run again as it is, into another one.
    """
    compute = {"compute": form.compute} if form.quantised else {}
    return config.model_copy(
        update={
            "name": None,
            "method": {"name": method.name, **method.model_dump(mode="json")},
            "model": config.model.model_copy(update={"dtype": form.name, **compute}),
            "train": config.train.model_copy(update=_inferred_training(method, model, config.train)),
            "data": config.data.model_copy(update=inferred(splits) | {"date": date}),
        }
    )


def _inferred_training(method: Method, model: Model, knobs: TrainKnobs) -> dict[str, Any]:
    """The rate, unless it is to be searched, and whether it may be lowered, which follows from who chose it."""
    lr = "auto" if knobs.lr == "auto" else peak_lr(method, model, knobs)
    return {"lr": lr, "on_divergence": "lower_lr" if knobs.lowers_lr else "go_on"}


def inferred(splits: AnySplits) -> dict[str, Any]:
    """The knobs of the data that were left open, as the data decided them."""
    summary = splits.summary
    form = {"task": summary.task} if summary.task else {"format": summary.format_name}
    return {
        **form,
        "template": summary.template if summary.template != "none" else "plain",
        "unicode": summary.unicode,
    }
