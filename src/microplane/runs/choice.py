"""What `auto` decides by: what is known of each candidate, and which of them that leaves. Plain values, so that a
decision that was interrupted goes on with what it knew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from microplane.report.words import duration, size
from microplane.training.monitor import Check, is_worse

Knob = Literal["method.name", "method.rank"]
LONG = 300  # steps: a run of no more is tried whole, and of a longer one that many at least
HALF = 0.5  # of a run, that is tried at most where its rate is searched behind the choice, so that no trial can be it
PART = 0.25  # of the run's steps, that all trials of a rank, and of methods where that is longer, may take together
LEAST = 8  # steps of a trial
RANKS = (0, -1, 1, -2, 2)  # powers of two times the method's own rank, as many as there are steps for
ENOUGH = 2  # raises of the rank in a row without a gain, and it is raised no more


@dataclass
class Candidate:
    """One of those that are chosen from, and the evidence for or against it.

    Attributes:
        name: of the method, or `rank 8`.
        knobs: of the section `method` of a run with it.
        memory_bytes: that its training takes at most, by forecast.
        steps, tokens, seconds: of its trial.
        loss: the best validation loss of that.
        check: that validation, with the sums that it is of.
        held_bytes: the most memory that the process held in its trial.
        reason: why it got no trial, or its trial failed.
        why: it was taken or left, in a sentence.
    """

    name: str
    knobs: dict[str, Any]
    memory_bytes: int | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    check: Check = field(default_factory=dict)
    held_bytes: int = 0
    reason: str | None = None
    why: str = ""

    def line(self) -> str:
        """All that is known of it."""
        told = [] if self.memory_bytes is None else [f"{size(self.memory_bytes)} by forecast"]
        if self.loss is not None:
            tried = f"validation loss {self.loss:.4g} after {self.steps:,} steps, {self.tokens:,} tokens"
            told.append(f"{tried} ({duration(max(self.seconds, 0.01))})")
        return f"{self.name:10}" + "; ".join([*told, self.why])


@dataclass
class Choice:
    """Of a method, or of a rank.

    Attributes:
        knob: what was left open.
        run_steps: of the run that it is made for.
        share: of these, that each trial gets; 0 where none is made.
        candidates: in the order in which they are tried.
        steps, seconds: of all trials.
        start: which of them the rule begins with, and `rule` why.
        near: `loss` and `shuffled` of `evaluation.nearness`, and their `share`; None where it was not measured.
        chosen: its name; empty as long as it is not decided. `why` in a sentence.
    """

    knob: Knob
    run_steps: int
    share: float = 0.0
    candidates: list[Candidate] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    start: str = ""
    rule: str = ""
    near: dict[str, float] | None = None
    chosen: str = ""
    why: str = ""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Raises: KeyError, TypeError for what is not one."""
        return cls(**{**values, "candidates": [Candidate(**one) for one in values["candidates"]]})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def possible(self) -> list[Candidate]:
        return [one for one in self.candidates if one.reason is None]

    @property
    def tried(self) -> list[Candidate]:
        return [one for one in self.possible if one.loss is not None]

    @property
    def taken(self) -> Candidate:
        """The one that was chosen."""
        return next(one for one in self.candidates if one.name == self.chosen)

    @property
    def whole(self) -> bool:
        """Whether each trial was the whole run that the method would make, so that the best of them is the run."""
        return self.share == 1

    def named(self, name: str) -> Candidate | None:
        return next((one for one in self.possible if one.name == name), None)

    def lines(self) -> Iterator[str]:
        """One of each candidate, and one of the decision."""
        for one in self.candidates:
            yield one.line()
        what = "rank" if self.knob == "method.rank" else "method"
        yield f"{what}    {self.chosen.removeprefix('rank ')}: {self.why}. {self.cost()}"

    def cost(self) -> str:
        if not self.steps:
            return "No trials were made"
        part = "whole runs, of which the best is this run" if self.whole else f"the run has {self.run_steps:,}"
        return f"The trials took {duration(max(self.seconds, 0.01))} ({self.steps:,} steps, {part})"


def method_share(run_steps: int, count: int, searched: bool) -> float:
    """Of its run's steps, that a trial of each of so many methods gets.

    A short trial of a few hundred steps tells who starts fast, and not who ends best (docs/auto.md), so the methods of
    a short run are tried to their ends.

    Args:
        searched: the rate is searched behind the choice, so that no trial can be the run.
    """
    return max(PART / count, min(HALF if searched else 1.0, LONG / run_steps))


def trial_share(run_steps: int, count: int) -> float:
    """Of a run's steps that each of so many trials gets; 0 where they would be too short to tell anything."""
    share = PART / count
    return share if int(share * run_steps) >= LEAST else 0.0


def ladder(own: int, run_steps: int) -> list[int]:
    """Ranks to try, the lowest first: about a method's own, as many as there are steps for; it alone where for none."""
    count = next((count for count in range(len(RANKS), 1, -1) if trial_share(run_steps, count)), 1)
    return sorted({max(1, int(own * 2.0**power)) for power in RANKS[:count]})


def raised_enough(tried: Sequence[Candidate]) -> bool:
    """Whether the last ranks gained nothing that is more than chance over the best before them."""
    if len(tried) <= ENOUGH:
        return False
    before = best_of(tried[:-ENOUGH])
    return not any(is_worse(before.check, one.check) for one in tried[-ENOUGH:])


def decide_method(choice: Choice) -> None:
    """Of whole runs the one that ended lowest; else the rule's method, unless another is better by more than chance."""
    start = choice.named(choice.start) or choice.possible[0]
    if not choice.tried:
        _take(choice, start, _untried(choice, start))
        return
    if start.loss is None:  # its trial failed
        start = choice.tried[0]
    best = best_of(choice.tried)
    if choice.whole:
        alone = f"the rule alone: {choice.start}, as {choice.rule}"
        _take(choice, best, f"of {len(choice.tried)} whole runs its validation loss is the lowest ({alone})")
    elif best is not start and is_worse(start.check, best.check):
        _take(
            choice, best, f"its trial ended lower than that of {start.name}, which the rule begins with, beyond chance"
        )
    elif best is start:
        _take(choice, start, f"the rule begins with it ({choice.rule}), and its trial ended lowest")
    else:
        _take(choice, start, f"the rule begins with it ({choice.rule}), and no trial ended lower beyond chance")


def decide_rank(choice: Choice) -> None:
    """The lowest rank that none beats by more than chance."""
    if not choice.tried:
        start = choice.named(choice.start) or choice.possible[0]
        _take(choice, start, _untried(choice, start))
        return
    best = best_of(choice.tried)
    taken = next(one for one in choice.tried if one is best or not is_worse(one.check, best.check))
    last = choice.tried[-1]
    higher = "none was tried above it" if taken is last else f"up to {last.name} none gained more than chance"
    _take(choice, taken, f"the lowest that suffices: {higher}")


def _untried(choice: Choice, start: Candidate) -> str:
    if len(choice.possible) == 1 and len(choice.candidates) > 1:
        return "no other one can be trained here"
    least = LEAST * len(choice.possible) / PART
    return f"{choice.rule}; a run of {choice.run_steps:,} steps is too short for trials, which need {least:,.0f}"


def best_of(tried: Sequence[Candidate]) -> Candidate:
    """The one with the lowest validation loss."""
    return min(tried, key=lambda one: one.loss if one.loss is not None else float("inf"))


def _take(choice: Choice, taken: Candidate, why: str) -> None:
    choice.chosen, choice.why = taken.name, why
    for one in choice.candidates:
        if one is taken:
            one.why = "taken"
        elif one.reason is not None:
            one.why = f"dropped: {one.reason.splitlines()[0]}"
        elif one.loss is None:
            one.why = "not tried"
        elif is_worse(one.check, taken.check):
            one.why = f"worse than {taken.name} beyond chance"
        elif is_worse(taken.check, one.check):
            one.why = f"better than {taken.name} beyond chance"
        else:
            one.why = f"not told apart from {taken.name}"
