"""Trials: each an ordinary run in a process of its own, so that memory and time are truly its own; one after another,
or several at once.

A trial's folder is all that is known of it. One that has succeeded is not repeated; one that was killed goes on from
its own checkpoint; one that outlived the process that began it is waited for.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from microplane.comparison.folder import FAILING, LEAST_ROOM, TRIALS, disk_failed
from microplane.comparison.machines import Machines, ThisMachine
from microplane.comparison.plan import ANSWERING, PROBE_ANSWERS, Plan, Trial
from microplane.comparison.processes import LostError, Running
from microplane.data.progress import Silent, Watcher
from microplane.errors import TrainingError
from microplane.files import lock, object_in, write_json
from microplane.methods import make_method
from microplane.methods.method import Method
from microplane.runs.room import free_disk
from microplane.training.log import read_lines

POLL = 0.1  # seconds between two looks at whether a process of an earlier sitting has ended
SHOWN_EVERY = 1.0  # seconds: the log that tells the progress is read whole, beside a trial whose time is measured
RESULT, LAST = "result.json", "report.html"  # of a run; the report is what it writes last
SHOTS = 4  # training rows before each question of the untouched model, unless eval.shots says another number
TOLD = 600  # characters of a reason


@dataclass(frozen=True)
class Outcome:
    """What came of a trial; `result` is its result.json, as far as it got."""

    trial: Trial
    folder: Path
    result: Mapping[str, Any]
    reason: str | None = None  # why it failed

    @property
    def ok(self) -> bool:
        return self.reason is None

    @property
    def validation_loss(self) -> float:
        """Infinite of a run that failed, or whose loss is no number."""
        loss = (self.result.get("train") or {}).get("validation_loss") if self.ok else None
        return float("inf") if loss is None else float(loss)

    @property
    def seconds(self) -> float:
        return float(self.result.get("seconds") or 0.0)

    def line(self) -> dict[str, Any]:
        """As the ledger has it."""
        train = self.result.get("train") or {}
        return {
            **asdict(self.trial),
            "name": self.trial.name,
            "status": "success" if self.ok else "failed",
            "reason": self.reason,
            "validation_loss": self.validation_loss if self.ok and self.validation_loss < float("inf") else None,
            "seconds": self.seconds,
            "train_seconds": train.get("seconds"),
            "tokens": train.get("tokens"),
            "best_step": train.get("best_step"),
            "peak_memory_bytes": train.get("peak_memory_bytes"),
        }


class StoppedError(Exception):
    """A trial was stopped with the others, or not begun."""


@dataclass
class Trials:
    """Runs trials in a comparison's folder, and keeps the ledger of them."""

    folder: Path
    plan: Plan
    watch: Watcher
    machines: Machines = field(default_factory=ThisMachine)
    ledger: dict[str, Outcome] = field(default_factory=dict)  # of this sitting, those found finished among them
    running: list[Running] = field(default_factory=list)
    stopping: bool = False
    noting: Lock = field(default_factory=Lock)  # of all that is written down

    @property
    def at_once(self) -> int:
        return self.machines.at_once

    def run(self, trial: Trial) -> Outcome:
        """Have it done, unless it is; whatever becomes of it is in the ledger, on the disk too."""
        if trial.name not in self.ledger:
            self._wait_for(trial)
            outcome = self._finished(trial) or self._make(trial)
            with self.noting:
                self.ledger[trial.name] = outcome
                write_json(self.folder / "ledger.json", [one.line() for one in self.ledger.values()])
        return self.ledger[trial.name]

    def is_done(self, trial: Trial) -> bool:
        return trial.name in self.ledger or self._finished(trial) is not None

    def place(self, trial: Trial) -> Path:
        return self.folder / TRIALS / trial.name

    def _finished(self, trial: Trial) -> Outcome | None:
        place, result = self.place(trial), object_in(self.place(trial) / RESULT)
        done = result.get("status") == "success" and (place / LAST).is_file()
        return Outcome(trial, place, result) if done else None

    def _wait_for(self, trial: Trial) -> None:
        """Until a process that was left behind has ended.

        Raises:
            StoppedError: if it is stopped meanwhile.
        """
        place, told = self.place(trial), False
        while place.is_dir() and (held := lock(place)) is None:
            if self.stopping:
                raise StoppedError
            if not told:
                self.watch.say(f"{trial.name} is still running in a process of an earlier sitting; waiting for its end")
                told = True
            time.sleep(POLL)
        if place.is_dir() and held:
            held.release()

    def _make(self, trial: Trial) -> Outcome:
        """Train it in a process of its own; once more, from where it was, if its machine was lost."""
        try:
            return self._made(trial)
        except LostError as lost:
            self.watch.say(f"{trial.name}: its machine was lost ({lost}); it goes on where it was")
        self._wait_for(trial)  # whoever began it may be gone, and its process not
        try:
            return self._finished(trial) or self._made(trial)
        except LostError as lost:
            raise TrainingError(
                f"{trial.name}: its machine was lost twice ({lost}). What is done is kept; go on with: "
                f"microplane compare --resume {self.folder}"
            ) from None

    def _made(self, trial: Trial) -> Outcome:
        """Raises: LostError, if nobody can tell what became of its process; StoppedError; TrainingError, if the disk is
        full, of which no method is to blame."""
        place, log = self.place(trial), self.folder / "logs" / f"{trial.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.stopping:
            raise StoppedError
        earlier = object_in(place / RESULT)
        process = self.machines.begin(self.command(trial), log)
        with self.noting:
            self.running.append(process)
            late = self.stopping  # who stops the others does not know of it
        if late:
            process.interrupt()
        try:
            code = self._follow(process, trial)
        finally:
            self.running.remove(process)
        if self.stopping:
            raise StoppedError
        self._wait_for(trial)  # one of an earlier sitting, still beginning when this one looked, may have been faster
        if (outcome := self._finished(trial)) is not None:
            return outcome
        result = object_in(place / RESULT)
        reason = _reason({} if result == earlier else result, log, code)
        if any(word in reason for word in FAILING) or free_disk(self.folder) < LEAST_ROOM:
            why = reason.partition(". Make room")[0].rstrip(".")
            raise TrainingError(disk_failed(self.folder, f"{trial.name}: {why}"))
        return Outcome(trial, place, result, reason)

    def command(self, trial: Trial) -> list[str]:
        """That trains it, or goes on with it."""
        program = [sys.executable, "-m", "microplane", "train", "--quiet"]
        if (self.place(trial) / "run.yaml").is_file():
            return [*program, "--resume", str(self.place(trial).absolute())]
        plan, sets = self.plan, {"method.name": trial.method}
        sets |= {f"method.{name}": json.dumps(value) for name, value in plan.method_knobs(trial.method).items()}
        sets |= {"train.lr": f"{trial.lr:g}", "train.steps": str(trial.steps), "train.seed": str(trial.seed)}
        answering = trial.stage in ANSWERING
        probed = PROBE_ANSWERS if trial.stage == "probe" and not plan.task else 0
        sets["eval.rows"] = str(plan.answer_rows if answering else probed)
        sets["eval.metrics"] = "[auto]"
        if (threads := self.machines.threads) is not None and "train.threads" not in plan.set:
            sets["train.threads"] = str(threads)
        if (every := self._eval_every(trial)) is not None:
            sets["train.eval_every"] = str(every)
        if answering:  # the one place where the test rows are read
            sets["data.test"] = plan.rows.test
        if trial.stage == "final":
            sets["eval.speed"] = json.dumps(trial.seed == 0)
            if plan.general:
                sets["eval.general"] = plan.general
                sets["eval.shots"] = str(plan.set.get("eval.shots", SHOTS))
        if trial.stage == "part":
            sets["data.train"] = plan.rows.parts[str(trial.percent)]
        arguments = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
        return [*program, "--config", str((self.folder / "trials.yaml").absolute()), "--name", trial.name, *arguments]

    def _eval_every(self, trial: Trial) -> int | None:
        """A run of the search is validated halfway and at its end: ten validations, as other runs have, take several
        times as long as its few steps. Methods that decide by their validations (`lora-auto`) keep the ten."""
        if trial.stage in ANSWERING or "train.eval_every" in self.plan.set:
            return None
        method = make_method({"name": trial.method} | self.plan.method_knobs(trial.method))
        decides = type(method).after_validation is not Method.after_validation
        return None if decides else -(-trial.steps // 2)

    def stop(self) -> None:
        """Have all that run save and end, and begin no more."""
        with self.noting:
            self.stopping, running = True, list(self.running)
        _end(running)

    def _follow(self, process: Running, trial: Trial) -> int:
        """Its exit code, once it has ended, showing how far it is; an interrupt lets it save and end first."""
        watch = self.watch if self.at_once == 1 else Silent()  # a terminal has one line for progress
        show, speed = watch.progress(str(trial)), self.place(trial) / "speed.jsonl"
        try:
            while (code := process.wait(SHOWN_EVERY)) is None:
                with suppress(OSError, IndexError):
                    show(read_lines(speed)[-1]["step"], trial.steps)
        except LostError:
            raise
        except BaseException:
            _end([process])
            raise
        show(trial.steps, trial.steps)
        return code


def _end(processes: Sequence[Running]) -> None:
    """Have all of them save and end, as Ctrl-C does; a second interrupt does not wait for that."""
    try:
        _interrupted(processes)
    except KeyboardInterrupt:
        _interrupted(processes)


def _interrupted(processes: Sequence[Running]) -> None:
    for process in processes:
        process.interrupt()
    for process in processes:
        with suppress(LostError):
            while process.wait(SHOWN_EVERY) is None:
                pass


def _reason(result: Mapping[str, Any], log: Path, code: int) -> str:
    """Why a trial failed: its own word, or the last that it said, or the signal that ended it.

    Args:
        result: of this sitting; empty where it has written none.
    """
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (": perhaps for want of memory" if name == "SIGKILL" else "")
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    told = str(result.get("error") or "") or said.rpartition("error: ")[2] or f"it ended with exit code {code}"
    return " ".join(told.split())[:TOLD]
