"""How long trials take, from those that are done: what a method's process takes beside its steps, and each step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from microplane.comparison.plan import ANSWERING, LEAST_STEPS, PROBE_ANSWERS, Plan, Trial
from microplane.comparison.search import BEST, GRID, MORE, PARTS, rates
from microplane.comparison.trials import Outcome
from microplane.errors import ConfigError


@dataclass
class Pace:
    """What is known of how long trials take."""

    plan: Plan
    done: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        if outcome.ok:
            self.done.append(outcome)

    def seconds(self, trial: Trial) -> float | None:
        """A forecast of a trial; by all methods where nothing is known of its own, None where of none."""
        own = [one for one in self.done if one.trial.method == trial.method] or self.done
        if not own:
            return None
        answers = trial.stage in ANSWERING
        alike = [one for one in own if (one.trial.stage in ANSWERING if answers else one.trial.stage == trial.stage)]
        steps = sum(one.result["train"]["steps"] for one in own)
        step = sum(one.result["train"]["seconds"] for one in own) / max(steps, 1)
        beside = fmean(one.seconds - one.result["train"]["seconds"] for one in alike or own)
        if answers and not alike:
            beside += self._answers(own)
        return float(beside + step * trial.steps)

    def _answers(self, own: Sequence[Outcome]) -> float:
        """Of generating the answers to all test rows, by what those to a few took."""
        probed = [one for one in own if one.trial.stage == "probe" and not self.plan.task]
        measuring = [float(one.result.get("measuring_seconds") or 0.0) for one in probed]
        return fmean(measuring) / PROBE_ANSWERS * self.plan.answer_rows if measuring else 0.0

    def total(self, trials: Iterable[Trial]) -> float | None:
        """Of several; None as long as nothing is known."""
        each = [self.seconds(trial) for trial in trials]
        return None if any(one is None for one in each) else sum(one for one in each if one is not None)


def expected(plan: Plan, advised: str | None = None) -> list[Trial]:
    """All trials of a comparison, in their order. Rates that depend on earlier ones (all but those of the grid) stand
    as the method's own.

    Args:
        advised: the method whose learning curve is made; the reference stands for it as long as it is not known.
    """
    lengths, own = plan.lengths, plan.defaults
    searching = [
        Trial(name, "short", rate, lengths.short)
        for name in plan.methods
        for rate in [*rates(own[name], {}), *[own[name]] * MORE]
    ]
    searching += [Trial(name, "half", own[name], lengths.half) for name in plan.methods for _ in range(BEST)]
    finals = [
        Trial(name, "final", own[name], lengths.final, seed) for seed in range(plan.seeds) for name in plan.methods
    ]
    chosen = advised or plan.reference
    parts = [
        Trial(chosen, "part", own[chosen], lengths.part(percent), seed, percent)
        for seed in range(plan.seeds if plan.learning_curve else 0)
        for percent in PARTS
    ]
    return searching + finals + parts


def within_time(plan: Plan, pace: Pace, spent: float) -> Plan:
    """With runs as long as the budget of time allows.

    Args:
        spent: seconds that the probes took.

    Raises:
        ConfigError: if it is too small for one trial of each method.
    """
    assert plan.budget is not None
    left = plan.budget.amount - spent

    def seconds(steps: int) -> float:
        sized = replace(plan, steps=steps)
        return max(pace.total(expected(sized, name)) or 0.0 for name in plan.methods)  # whichever is advised

    if seconds(LEAST_STEPS) > left:
        least = seconds(LEAST_STEPS) + spent
        raise ConfigError(
            f"--budget of {plan.budget.amount:,.0f} s is too little for {len(plan.methods)} methods with their search "
            f"and {plan.seeds} seeds: at least {least:,.0f} s are needed here, or fewer methods"
        )
    longer = range(LEAST_STEPS + 1, plan.most_steps + 1)
    return replace(plan, steps=LEAST_STEPS + bisect_right(longer, left, key=seconds))


def shares(plan: Plan) -> str:
    """What each method gets, in words."""
    lengths = plan.lengths
    of_parts = " and ".join(f"{lengths.part(percent):,}" for percent in PARTS)
    parts = f"; the one that is advised, {plan.seeds} times {of_parts} on parts of the rows" * plan.learning_curve
    return (
        f"each method gets {lengths.of_method(plan.seeds):,} optimizer steps: {lengths.search:,} for its learning rate "
        f"({len(GRID) + MORE} runs of {lengths.short:,}, {BEST} of {lengths.half:,}), and {plan.seeds} seeds of "
        f"{lengths.final:,}{parts}"
    )
