"""Would this run succeed, and mean something? Everything that can be known before it, in well under a minute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from microplane.config.knobs import RunKnobs
from microplane.data.progress import Silent, Watcher
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import MicroplaneError
from microplane.methods import make_method
from microplane.objectives.base import AnyObjective
from microplane.report.words import duration, size
from microplane.runs.continued import continued
from microplane.runs.folder import run_folder
from microplane.runs.inline_data import configuration, in_a_file
from microplane.runs.method_search import left_open, stand_in
from microplane.runs.own_forecast import own_forecast
from microplane.runs.prepare import Prepared, check_config, prepare
from microplane.runs.rehearsal import Rehearsed, rehearse
from microplane.runs.room import lacking, tight
from microplane.training.context import run_context

Level = Literal["wrong", "doubtful"]
LEAST_STEPS = 3  # of a run, below which that is doubted
SAMPLES = 3  # rows that are shown as they are trained


@dataclass(frozen=True)
class Finding:
    """`wrong`: the run would end in an error, or what it saves would not be what it trained. `doubtful`: it would run,
    and its figures might not mean what they seem to."""

    level: Level
    text: str


@dataclass
class Checked:
    """What `check` found. Nothing in `findings` means that nothing is known against the run.

    Attributes:
        facts: lines on what was understood, as `train` prints them.
        samples: rows as they are trained, see `sample`.
        memory_bytes: that the real run's training takes at most, by its forecast.
        rehearsed: the small run, where it came to its end.
        seconds: of the real run's training, a forecast from the rehearsal's two steps.
    """

    findings: list[Finding] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    memory_bytes: int | None = None
    rehearsed: Rehearsed | None = None
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; there may be doubts."""
        return not any(finding.level == "wrong" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}

    def wrong(self, texts: Iterable[str]) -> None:
        self.findings += [Finding("wrong", text) for text in texts]


def check(
    model: str | Path | None = None,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    method: str | None = None,
    set: Mapping[str, Any] | None = None,
    knobs: RunKnobs | None = None,
    rehearsal: bool = True,
    watch: Watcher | None = None,
) -> Checked:
    """Look for what would make a run fail, or its figures mean nothing, and rehearse it on eight rows.

    The whole of the data is read and checked, the model's files are opened, memory and disk are looked at, and then
    a run of two steps is trained, evaluated, saved, read back and merged. Nothing is left behind but caches.

    Args:
        model: and data, method, set, knobs, watch: as in `microplane.train`.
        rehearsal: whether to train two steps; without them the weights are not read.

    Raises:
        ConfigError: for arguments of another type, or knobs that do not exist.

    Examples:
        >>> [finding.text for finding in microplane.check("smollm2", "commands.jsonl").findings]
        ['12 of 300 training rows ask the same and are answered otherwise, as ...']
    """
    config, inline = configuration(model, data, method, set, knobs)
    found, watch = Checked(), watch or Silent()
    with in_a_file(config, inline) as there, run_context(there.train):
        found.wrong(_no_folder(there))
        prepared = _prepared(found, there, watch)
        if prepared is not None:
            _look(found, prepared, rehearsal, watch)
    return found


def _no_folder(config: RunKnobs) -> list[str]:
    """Why the run's folder cannot be made, or is another's; it is made, and taken away."""
    try:
        with run_folder(Path(config.runs), config.name or "", ["check"]):
            return []
    except MicroplaneError as error:
        return [str(error)]


def _prepared(found: Checked, config: RunKnobs, watch: Watcher) -> Prepared | None:
    """The run made ready; what stands in its way is noted, and as far as data are at fault they are read all the
    same."""
    try:
        if knob := left_open(config):
            config = stand_in(config)
            found.facts.append(f"{knob} = auto: checked with {make_method(config.method).name}, one of what it may be")
        config = continued(config)
        method = check_config(config, watch)
    except MicroplaneError as error:
        found.wrong([str(error)])
        return None
    lenient = config.data.model_copy(update={"skip_bad_rows": True, "max_unknown": 1.0})
    for attempt in (config, config.model_copy(update={"data": lenient})):
        try:
            return prepare(attempt, method, watch)
        except MicroplaneError as error:
            if str(error) not in [finding.text for finding in found.findings]:
                found.wrong([str(error)])
    return None


def _look(found: Checked, prepared: Prepared, rehearsal: bool, watch: Watcher) -> None:
    summary = prepared.splits.summary
    found.facts += [line for line in summary.lines() if not line.startswith("warning")]
    found.findings += [Finding("doubtful", text) for text in summary.warnings]
    rows = prepared.splits.train
    how = prepared.objective, rows, prepared.tokenizer, summary.labels
    found.samples = [sample(row, *how) for row in range(min(SAMPLES, len(rows)))]
    found.findings += [Finding("doubtful", text) for text in _too_short(prepared)]
    try:
        lacks = lacking(prepared)
        found.wrong(lacks)
        found.memory_bytes = own_forecast(prepared).peak_memory_bytes
        if not lacks and (line := tight(found.memory_bytes)):
            found.findings.append(Finding("doubtful", line))
        if rehearsal and not lacks:
            found.rehearsed = rehearse(prepared, watch)
    except MicroplaneError as error:
        found.wrong([str(error)])
    if found.rehearsed is not None:
        found.wrong(found.rehearsed.wrong())
        found.findings += [Finding("doubtful", text) for text in found.rehearsed.doubtful()]
        found.seconds = _seconds(prepared, found.rehearsed)


def _too_short(prepared: Prepared) -> Iterator[str]:
    steps = prepared.batch_plan.run_steps(prepared.config.train)
    if steps < LEAST_STEPS:
        yield (
            f"the whole training is {steps} step{'s' if steps > 1 else ''} of the optimizer, in which next to nothing "
            "is learnt: more train.epochs, or a smaller train.batch_size"
        )


def sample(
    row: int, objective: AnyObjective, rows: Dataset, tokenizer: Tokenizer, classes: Sequence[str]
) -> dict[str, Any]:
    """One row as text: `where` it stands, and its `parts`, each a `text` and whether it is `trained`; of a row with
    labels, the labels are."""
    parts = objective.parts(rows, row, tokenizer, classes)
    return {"where": rows.where(row), "parts": [{"text": text, "trained": trained} for text, trained in parts]}


def _seconds(prepared: Prepared, rehearsed: Rehearsed) -> float:
    """Of the training of the real run, without its evaluations."""
    train, lengths = prepared.config.train, prepared.splits.train.lengths
    return float(lengths.sum()) * prepared.batch_plan.passes(train) / rehearsed.tokens_per_second


def lines(found: Checked) -> Iterator[str]:
    """What was found, for a terminal."""
    yield from found.facts
    if found.memory_bytes is not None:
        yield f"memory    {size(found.memory_bytes)} at most in training, by forecast"
    if (done := found.rehearsed) is not None:
        passed = sum(check.passed is True for check in done.checks)
        yield (
            f"rehearsal trained, evaluated, saved and read back on its longest rows: loss {done.loss_before:.3f} to "
            f"{done.loss_after:.3f} in two steps, {passed} checks passed"
        )
        if found.seconds is not None:
            rate = f"{done.tokens_per_second:,.0f} tokens/s"
            yield f"time      about {duration(max(found.seconds, 0.1))} of training, by two steps ({rate})"
    for finding in found.findings:
        yield f"{finding.level:9} {finding.text}"
    wrong = sum(finding.level == "wrong" for finding in found.findings)
    doubtful = len(found.findings) - wrong
    yield f"found     {wrong} wrong, {doubtful} doubtful" if found.findings else "found     nothing against this run"
