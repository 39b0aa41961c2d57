"""What a run looks like in a terminal: one live line while something lasts, plain lines for what stays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from microplane.evaluation.evaluate import describe_scores
from microplane.runs.train import Run

QUIET_SECONDS = 15  # between two lines of progress where there is no terminal to redraw


def make_console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Terminal:
    """Draws a run (it is a `microplane.runs.train.Watcher`)."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.last_line = 0.0
        self.validation = math.nan
        self.tokens_per_second: float | None = None
        self.seconds_per_step: float | None = None

    def say(self, text: str) -> None:
        self.close()
        self.console.print(text, markup=False)

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A bar that appears after the first report and goes when all is done."""
        self.close()

        def show(done: int, total: int) -> None:
            self._show(what, done, total, "")
            if done >= total:
                self.close()

        return show

    def record(self, record: dict[str, Any]) -> None:
        """One step or validation of the training loop."""
        if "validation_loss" in record:
            self.validation = record["validation_loss"]
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
        self._show("training", record["step"], record["steps"], facts)

    def _above(self, text: str) -> None:
        (self.live.console if self.live else self.console).print(text, markup=False)

    def _show(self, what: str, done: int, total: int, facts: str) -> None:
        if not self.console.is_terminal:
            return self._line(what, done, total, facts)
        if self.live is None:
            columns = (
                "{task.description}",
                BarColumn(16),
                "{task.completed}/{task.total}",
                TextColumn("{task.fields[facts]}"),
            )
            self.live = Progress(
                *columns, "ETA", TimeRemainingColumn(compact=True), console=self.console, transient=True
            )
            self.live.start()
            self.task = self.live.add_task(what, total=total, facts=facts)
        assert self.task is not None
        self.live.update(self.task, description=what, completed=done, total=total, facts=facts)
        return None

    def _line(self, what: str, done: int, total: int, facts: str) -> None:
        now = time.monotonic()
        if done <= 1 or not self.last_line:
            self.started, self.first, self.last_line = now, done, now
        elif now - self.last_line >= QUIET_SECONDS and done > self.first:
            left = (now - self.started) / (done - self.first) * (total - done)
            self.console.print(f"{what} {done}/{total}  {facts}  ETA {clock(left)}", markup=False)
            self.last_line = now

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        self.last_line = 0.0


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def tell(done: Run) -> None:
    """What came of a run, and what to do next."""
    figures = done.result["train"]
    if done.result["status"] == "stopped":
        print(f"stopped after step {figures['steps']} of {figures['steps_planned']}; all is saved.")
        print(f"go on:    microplane train --resume {done.folder}")
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
    print(f"try it:   microplane generate {done.folder} --interactive")
    print(f"merge it: microplane merge {done.folder} FOLDER")


def decision_table(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the method decided during the run, one line each under a heading; nothing if it decided nothing."""
    if not decisions:
        return []
    lines = [f"{one['step']:>6}  {one['validation_loss']:>15.4f}  {one['decision']}" for one in decisions]
    return [f"{'step':>6}  {'validation loss':>15}  decision", *lines]
