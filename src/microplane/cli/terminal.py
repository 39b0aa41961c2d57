"""What a run looks like in a terminal: one live line while something lasts, plain lines for what stays."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from microplane.evaluation.evaluate import describe_scores
from microplane.methods import make_method
from microplane.runs.fit import VALIDATING
from microplane.runs.train import Run

QUIET_SECONDS = 5  # between two lines of progress where there is no terminal to redraw


def make_console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Terminal:
    """Draws a run (it is a `microplane.runs.train.Watcher`)."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.validation = math.nan
        self.pace = Pace()
        self.going = ""  # what lasts just now
        self.started, self.first, self.last_line = 0.0, 0, 0.0  # of it: when, with how much done; the last plain line

    def say(self, text: str) -> None:
        self.close()
        self.console.print(text, markup=False)

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A bar that appears after the first report and goes when all is done."""
        self.close()
        self.pace.begin(what)

        def show(done: int, total: int) -> None:
            self._show(what, done, total, "", None)
            if total and done >= total:
                self.pace.end(what)
                self.close()

        return show

    def record(self, record: dict[str, Any]) -> None:
        """One step or validation of the training loop."""
        if "validation_loss" in record:
            self.validation = record["validation_loss"]
            self.pace.validated(record["step"])
            note = "best so far" if record["best"] else record.get("verdict")
            self._above(f"step {record['step']}: validation loss {self.validation:.4f}{f' ({note})' if note else ''}")
            if record.get("decision"):
                self._above(record["decision"])
            return
        if event := record.get("retreat"):
            self._above(f"{event['why']}\nback to step {event['step']}, and on at {event['lr_factor']:.2g} of the rate")
            return
        rate, trained = record["tokens_per_second"], record["trained_tokens_per_second"]
        facts = f"loss {record['loss']:.3f}  {trained:,.0f} trained of {rate:,.0f} tokens/s  "
        facts += f"{record['memory_bytes'] / 1e9:.1f} GB"
        self.pace.step(record["seconds"])
        self._show("training", record["step"], record["steps"], facts, self.pace.left(record["step"], record["steps"]))

    def expect(self, seconds: float) -> None:
        """How long the evaluation after the training will take, where that of the untouched model was not awaited."""
        self.pace.last = seconds

    def _above(self, text: str) -> None:
        (self.live.console if self.live else self.console).print(text, markup=False)

    def _show(self, what: str, done: int, total: int, facts: str, left: float | None) -> None:
        now = time.monotonic()
        if what != self.going:
            self.going, self.started, self.first = what, now, done
            self.last_line = self.last_line or now  # what is short may follow on what is short for long
        if left is None and total and done > self.first:
            left = (now - self.started) / (done - self.first) * (total - done)
        eta = "" if left is None else f"ETA {clock(left)}"
        of = f"{done:,}/{total:,}" if total else f"{done:,}"
        if not self.console.is_terminal:
            if now - self.last_line >= QUIET_SECONDS:
                self.console.print("  ".join(part for part in (f"{what} {of}", facts, eta) if part), markup=False)
                self.last_line = now
            return
        if self.live is None:
            self.live = Progress(
                "{task.description}",
                BarColumn(16),
                *(TextColumn(f"{{task.fields[{name}]}}") for name in ("of", "facts", "eta")),
                console=self.console,
                transient=True,
            )
            self.live.start()
            self.task = self.live.add_task(what, total=total or None, of=of, facts=facts, eta=eta)
        assert self.task is not None
        self.live.update(self.task, description=what, completed=done, total=total or None, of=of, facts=facts, eta=eta)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        self.going = ""


class Pace:
    """How long is left of a run: its steps, its validations, and the evaluation after them, which takes as long as that
    of the untouched model took, in this run or an earlier one."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.seconds, self.steps, self.validations = 0.0, 0, 0
        self.last = 0.0  # what the evaluation took in an earlier run
        self.validated_at: list[int] = []  # the steps of the last two validations

    def begin(self, what: str) -> None:
        self.began[what] = time.monotonic()

    def end(self, what: str) -> None:
        self.took[what] = self.took.get(what, 0.0) + time.monotonic() - self.began[what]
        self.validations += what == VALIDATING

    def step(self, seconds: float) -> None:
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1

    def validated(self, step: int) -> None:
        self.validated_at = [*self.validated_at[-1:], step]

    def left(self, step: int, steps: int) -> float:
        """Seconds, once `step` of `steps` are done."""
        apart = self.validated_at[-1] - self.validated_at[0] if self.validated_at else 0
        more = (steps - step) / (apart or max(1, steps) / 10)  # validations: a tenth of the run apart by default
        validating = self.took.get(VALIDATING, 0.0) / max(1, self.validations) * more
        last = sum(seconds for what, seconds in self.took.items() if what.endswith("of the untouched model"))
        return self.seconds / max(1, self.steps) * (steps - step) + validating + (last or self.last)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def tell(done: Run) -> None:
    """What came of a run, and what to do next."""
    figures, folder = done.result["train"], shlex.quote(str(done.folder))
    if done.result["status"] == "stopped":
        print(f"stopped after step {figures['steps']} of {figures['steps_planned']}; all is saved.")
        print(f"go on:    microplane train --resume {folder}")
        print(f"report:   {done.folder / 'report.html'}")
        return
    if beaten := done.metrics.get("beaten"):
        print(f"not worth it: {beaten}")
    if figures["stopped_early"]:
        print(f"stopped early, after step {figures['steps']} of {figures['steps_planned']}")
    if figures["verdict"]:
        print(figures["verdict"]["text"])
    for line in decision_table(figures.get("decisions") or []):
        print(line)
    print(f"before:   {describe_scores(done.metrics['before'])}")
    print(f"after:    {describe_scores(done.metrics['after'])}")
    for check in done.result["checks"]:
        value = check["value"]
        unchecked = "not checked" if value is None else "for information"
        word = {True: "passed", False: "FAILED", None: unchecked}[check["passed"]]
        shown = f"{value:.2g}" if isinstance(value, float) else value or check["detail"]
        print(f"check:    {check['name']}: {word} ({shown})")
    print(f"report:   {done.folder / 'report.html'}")
    print(f"try it:   microplane generate {folder} --interactive")
    method = make_method(done.result["run"]["method"])
    if method.mergeable or method.whole_model:
        print(f"merge it: microplane merge {folder} FOLDER")


def decision_table(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the method decided during the run, one line each under a heading; nothing if it decided nothing."""
    if not decisions:
        return []
    lines = [f"{one['step']:>6}  {one['validation_loss']:>15.4f}  {one['decision']}" for one in decisions]
    return [f"{'step':>6}  {'validation loss':>15}  decision", *lines]
