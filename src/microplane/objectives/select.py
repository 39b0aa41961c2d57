"""Which objective it is. The only place that decides: by the model's family and head, the knobs, and the data's format.

family            format of the rows     objective
decoder           any                    next_token
encoder-decoder   conversations          seq2seq
encoder-decoder   plain text             data.objective, else span_corruption
encoder           labels                 by the labels, or data.task
any with a head   labels                 the head's task, or data.task
any               any                    an installed package's objective, where data.objective names one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, cast

from microplane.config.extensions import Registry
from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import Splits
from microplane.data.reading.formats import TEXT, recognise
from microplane.data.reading.installed import FORMATS, InstalledFormat
from microplane.data.reading.label_values import AUTO
from microplane.data.rendering.interface import RowFormat
from microplane.data.rendering.labelled import LabelFormat
from microplane.errors import ConfigError
from microplane.models.configs.head import TASKS, Task
from microplane.models.contract import Model
from microplane.models.heads import label_names_of
from microplane.objectives import HEAD_OBJECTIVES, OBJECTIVES, AnyObjective
from microplane.objectives.next_token import NextToken

WRITES = {"decoder": ("next_token", "next_token"), "encoder-decoder": ("seq2seq", "span_corruption")}
"""Families that write text: what conversations are trained for, and what plain text is."""


@dataclass(frozen=True)
class TextCandidates:
    """What a model that writes may be trained for."""

    conversations: AnyObjective
    plain_text: AnyObjective
    denoising: str = "auto"  # as the user set data.objective
    classes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # with their versions, whose objective or format it is
    needs_head: ClassVar[bool] = False

    def key(self) -> list[str | None]:
        """See `Candidates`; which of the two it is follows from the files."""
        return [self.conversations.name, self.plain_text.name, *self.packages]

    def read_format(self, rows: Sequence[Mapping[str, Any]], file: str, knobs: DataKnobs) -> RowFormat:
        """See `formats.recognise`; a format that a package adds is taken where `data.format` names it only."""
        wanted = knobs.format
        if wanted not in FORMATS:
            return recognise(rows, file, wanted, knobs.fields, knobs.no_label)
        return InstalledFormat(wanted, FORMATS[wanted])

    def objective(self, format_name: str) -> AnyObjective:
        """Raises: ConfigError, if `data.objective` is set and these rows are no plain text."""
        if format_name == TEXT:
            return self.plain_text
        if self.denoising != "auto":
            raise ConfigError(
                f"data.objective = {self.denoising} says how plain text becomes pairs, and these rows are "
                f"{format_name}, which are pairs already; leave data.objective at auto, or read them with "
                "data.format=text"
            )
        return self.conversations


@dataclass(frozen=True)
class LabelCandidates:
    """What a model with a task head may be trained for."""

    task: Task | None  # None: the labels decide
    classes: tuple[str, ...] = ()  # that its head knows already
    no_label: tuple[str, ...] = AUTO  # as the user set data.no_label
    needs_head: ClassVar[bool] = True

    def key(self) -> list[str | None]:
        """See `Candidates`; without a task, it follows from the files."""
        return ["labels", self.task]

    def read_format(self, rows: Sequence[Mapping[str, Any]], file: str, knobs: DataKnobs) -> RowFormat:
        """See `LabelFormat`."""
        task = self.task or (knobs.task if knobs.task in TASKS else None)
        return LabelFormat(rows, file, task, self.classes, self.no_label, knobs.fields)

    def objective(self, format_name: str) -> AnyObjective:
        """That of the task, after which the format of labels is called."""
        return HEAD_OBJECTIVES[format_name]


AnyCandidates = TextCandidates | LabelCandidates
AnySplits: TypeAlias = Splits[AnyObjective]
NEXT_TOKEN = TextCandidates(NextToken(), NextToken())


def candidates(model: Model, knobs: DataKnobs | None = None) -> AnyCandidates:
    """What `model` may be trained for, or is measured by. The format of the rows decides among it.

    Args:
        knobs: `task`, `objective` and `no_label` of them count.

    Raises:
        ConfigError: for answers of a model that cannot write, or a `data.objective` that does not apply to the model.
    """
    task, denoising = (knobs.task, knobs.objective) if knobs else ("auto", "auto")
    packages = _packages(knobs) if knobs else ()
    if denoising in OBJECTIVES and OBJECTIVES.package_of(denoising):
        installed = OBJECTIVES[denoising](model)
        return TextCandidates(installed, installed, packages=packages)
    head = model.task_head
    if task == "answers" and model.KIND not in WRITES:
        raise ConfigError(
            f"data.task = answers: {model.config.architecture} reads and cannot write; leave data.task at auto for "
            "labels (text/label, premise/hypothesis/label, tokens/tags), or choose a decoder or an encoder-decoder"
        )
    if task in TASKS or (task == "auto" and (head is not None or model.KIND not in WRITES)):
        _refuse_denoising(denoising, "rows with labels are trained with a task head")
        chosen = task if task in TASKS else head.config.task if head is not None else None
        no_label = knobs.no_label if knobs else AUTO
        return LabelCandidates(cast("Task | None", chosen), label_names_of(model), no_label)
    conversations, plain_text = WRITES[model.KIND]
    if conversations == plain_text:
        _refuse_denoising(denoising, f"{model.config.architecture} learns the next token of plain text")
    elif denoising != "auto":
        plain_text = denoising
    made = OBJECTIVES[conversations](model), OBJECTIVES[plain_text](model)
    return TextCandidates(*made, denoising, packages=packages)


def _packages(knobs: DataKnobs) -> tuple[str, ...]:
    """With their versions: those whose code decides the tokens."""
    chosen: tuple[tuple[Registry[Any], str], ...] = ((FORMATS, knobs.format), (OBJECTIVES, knobs.objective))
    versions = (registry.version_of(name) for registry, name in chosen if name in registry)
    return tuple(version for version in versions if version)


def _refuse_denoising(denoising: str, reason: str) -> None:
    if denoising != "auto":
        raise ConfigError(
            f"data.objective = {denoising} says what an encoder-decoder (T5) learns from plain text, and {reason}; "
            "leave data.objective at auto, or choose an encoder-decoder"
        )


def objective_of(model: Model) -> AnyObjective:
    """What a model answers by when it is used: its task head, else its text."""
    if model.task_head is not None:
        return HEAD_OBJECTIVES[model.task_head.config.task]
    conversations, _ = WRITES.get(model.KIND, WRITES["decoder"])  # an encoder reads one row, too
    return OBJECTIVES[conversations](model)
