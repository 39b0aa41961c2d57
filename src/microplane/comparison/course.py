"""The trials of a comparison in their order: the probes of a budget of time, the search of each rate, the seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from microplane.comparison.forecast import Pace, expected
from microplane.comparison.plan import PROBE_STEPS, Plan, Trial
from microplane.comparison.search import PARTS, best_of, finalists, rates
from microplane.comparison.trials import Outcome, Trials
from microplane.data.progress import Watcher
from microplane.errors import TrainingError
from microplane.report.words import duration

By = dict[str, list[Outcome]]  # by method
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Course:
    """The trials in their order."""

    trials: Trials
    plan: Plan
    watch: Watcher

    pace: Pace = field(init=False)
    failed: dict[str, str] = field(default_factory=dict)  # methods that are out, and why
    short: By = field(default_factory=dict)
    half: By = field(default_factory=dict)
    finals: By = field(default_factory=dict)
    parts: dict[int, list[Outcome]] = field(default_factory=dict)  # of the method that is advised, by percent

    def __post_init__(self) -> None:
        self.pace = Pace(self.plan)

    @property
    def seconds(self) -> float:
        """That the trials so far took."""
        return sum(one.seconds for one in self.pace.done)

    @property
    def going(self) -> list[str]:
        return [name for name in self.plan.methods if name not in self.failed]

    def probe(self) -> None:
        """A few steps of each method, for the clock alone."""
        for name in self.plan.methods:
            outcome = self._run(Trial(name, "probe", self.plan.defaults[name], PROBE_STEPS))
            if outcome.reason is not None:
                self.failed[name] = outcome.reason

    def check_going(self) -> None:
        """Raises: TrainingError, if none of the methods could be trained."""
        if not self.going:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
            raise TrainingError(f"no method could be trained. {reasons}")

    def search(self) -> None:
        """Of each method the best rate."""
        self._side_by_side(self._search_short, self.going)
        halves = [
            Trial(name, "half", rate, self.plan.lengths.half)
            for name in self.going
            for rate in finalists(self._losses(self.short[name]))
        ]
        for outcome in self._side_by_side(self._run, halves):
            self.half.setdefault(outcome.trial.method, []).append(outcome)

    def _search_short(self, name: str) -> None:
        """At a quarter of the length: what is tried next depends on what was."""
        while rate := self._next_rate(name):
            outcome = self._run(Trial(name, "short", rate, self.plan.lengths.short))
            self.short.setdefault(name, []).append(outcome)
            if outcome.reason is not None and len(self.short[name]) == 1:  # what its own rate cannot, none can
                self.failed[name] = outcome.reason
                break

    def _side_by_side(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Of each what comes of it, in their order: one after another, or so many at once as the trials may be."""
        if self.trials.at_once == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(self.trials.at_once) as pool:
            begun = [pool.submit(work, item) for item in items]
            try:
                return [one.result() for one in begun]
            except BaseException:
                for one in begun:
                    one.cancel()
                self.trials.stop()
                raise

    def _next_rate(self, name: str) -> float | None:
        tried = self._losses(self.short.get(name, ()))
        return next((rate for rate in rates(self.plan.defaults[name], tried) if rate not in tried), None)

    @staticmethod
    def _losses(outcomes: Iterable[Outcome]) -> dict[float, float]:
        return {one.trial.lr: one.validation_loss for one in outcomes}

    def finish(self) -> None:
        """All seeds of each method at its best rate, one seed of all methods after the other."""
        best = {name: best_of(self._losses(self.half[name])) for name in self.going}
        trials = [
            Trial(name, "final", rate, self.plan.lengths.final, seed)
            for seed in range(self.plan.seeds)
            for name, rate in best.items()
        ]
        for outcome in self._side_by_side(self._run, trials):
            self.finals.setdefault(outcome.trial.method, []).append(outcome)
        for name, runs in self.finals.items():
            if not any(run.ok for run in runs):
                self.failed[name] = str(runs[0].reason)

    def learn(self, name: str) -> None:
        """The method that is advised, on parts of the rows: at its rate, with as many passes and the same seeds."""
        rate, lengths = self.finals[name][0].trial.lr, self.plan.lengths
        trials = [
            Trial(name, "part", rate, lengths.part(percent), seed, percent)
            for seed in range(self.plan.seeds)
            for percent in PARTS
        ]
        for outcome in self._side_by_side(self._run, trials):
            self.parts.setdefault(outcome.trial.percent, []).append(outcome)

    def _run(self, trial: Trial) -> Outcome:
        known = self.trials.is_done(trial)
        outcome = self.trials.run(trial)
        with self.trials.noting:
            self.pace.add(outcome)
            self.watch.say(self._line(trial, outcome, known))
        return outcome

    def _line(self, trial: Trial, outcome: Outcome, known: bool) -> str:
        made = Counter(map(_kind, (one.trial for one in self.trials.ledger.values())))
        advised = trial.method if trial.stage == "part" else next(iter(self.going), None)
        every = expected(self.plan, advised) if self.plan.steps else []
        every, waiting = [one for one in every if one.method in self.going], []
        for one in every:
            if made[_kind(one)] > 0:
                made[_kind(one)] -= 1
            else:
                waiting.append(one)
        left = self.pace.total(waiting) if waiting else None
        left = left and left / self.trials.at_once
        at = f"{len(every) - len(waiting)}/{len(every)}" if every and trial.stage != "probe" else "probe"
        loss = outcome.validation_loss
        came = f"failed: {outcome.reason}" if not outcome.ok else f"validation loss {loss:.4g}"
        took = "done before" if known else duration(max(outcome.seconds, 0.01))
        eta = f"  ETA {duration(left)}" if left else ""
        return f"[{at}] {trial}: {came}  ({took}){eta}"


def _kind(trial: Trial) -> tuple[str, str]:
    """Trials of a kind are interchangeable in what is left to do; whose the parts are is known late."""
    return "" if trial.stage == "part" else trial.method, trial.stage
