"""The training loop: one function.

Everything a step does follows from the configuration and the step's number (its rows, its dropout, its learning
rate), so a run that is continued from a checkpoint repeats the bits of one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil
from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.cpu_memory import give_back_memory
from microplane.data.store import Dataset
from microplane.device import give_back_device_memory, is_out_of_memory, out_of_memory
from microplane.errors import TrainingError, notice
from microplane.methods import Method
from microplane.models.contract import device_of
from microplane.nn.sharded import reshard
from microplane.objectives.base import AnyObjective
from microplane.training import resume as checkpoint
from microplane.training.activation_checkpointing import recomputed_in_backward
from microplane.training.context import interruptible
from microplane.training.log import Log, NoLog, Record
from microplane.training.monitor import CHECK_STEP, Check, Monitor, Movement, ValidationLoss, Verdict
from microplane.training.ranks import ALONE, Ranks
from microplane.training.sharding import shard
from microplane.training.step import (
    RETREATS,
    NotFiniteError,
    Totals,
    TrainState,
    train_step,
)

TRIM_EVERY = 10  # steps
SMALLER = (
    "Take less at once: half of train.micro_tokens, train.recompute=cheap (or blocks), a smaller eval.batch_tokens; or "
    "hold the base in fewer bits: model.dtype=nf4"
)
BEFORE = {"train_error": 0.0, "end_loss": math.inf, "end_error": 0.0, "passes": 0.0, "groups": []}
"""What a check of version 0.1 doesn't have."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. The best weights are in `adapter/`, not in the model."""

    totals: Totals
    steps_planned: int
    best_step: int
    validation_loss: float
    train_loss: float
    stopped_early: bool
    interrupted: bool
    best: Check  # the validation of the best step
    verdict: Verdict | None  # what went wrong at the end, if anything did
    retreats: list[Record]  # after divergence: step, from_step, lr_factor, why, checks
    moved: int | None  # trainable tensors that moved; None if there were too few steps to tell
    tensors: int  # trainable tensors whose training had begun
    decisions: list[Record]  # of the method: step, validation_loss, decision


@dataclass
class MemoryTrimmer:
    """Gives freed memory back to the system, but only once it has piled up: the step after touches its memory anew,
    which costs it about a sixth."""

    baseline: int = 0  # the most bytes held after one of the first TRIM_EVERY steps since the last trim
    steps: int = 0  # since then

    def update(self, held: int) -> None:
        """Call after each step, with the bytes that the process holds in memory."""
        self.steps += 1
        if self.steps <= TRIM_EVERY:
            self.baseline = max(self.baseline, held)
        elif self.steps % TRIM_EVERY == 0 and held > 1.1 * self.baseline:
            give_back_memory()
            self.baseline = self.steps = 0


def fit(
    model: nn.Module,
    method: Method,
    train: Dataset,
    knobs: TrainKnobs,
    folder: Path,
    *,
    objective: AnyObjective,
    validate: Callable[[nn.Module], ValidationLoss | float],
    save_best: Callable[[int, float], None],
    identity: Record,
    resume: bool = False,
    on_record: Callable[[Record], None] = lambda record: None,
    ranks: Ranks = ALONE,
    rehearsal: bool = False,
) -> Outcome:
    """Train `model`, to which `method` is attached, and leave the best weights in `adapter/`.

    Args:
        folder: of the run; gets metrics.jsonl, speed.jsonl and resume/.
        objective: what is learnt from the rows.
        validate: the loss on held-out rows, the same ones each time; a bare number says nothing of chance.
        save_best: writes `adapter/` for (step, validation loss).
        identity: what must be the same for a resume: fingerprints of data and model, the method, the knobs.
        resume: continue from the last checkpoint, if there is one.
        on_record: sees every line of metrics.jsonl, with the clock's figures added.
        ranks: the processes that train together. The first one writes; when training is done the others are done too,
            and theirs is not what a method makes of the best weights at the end.
        rehearsal: nothing will go on from this run: it keeps no checkpoints, and what it leaves in `adapter/` are never
            the weights that it began with.

    Raises:
        TrainingError: loss or gradient not finite; a tensor that does not move; nothing to train on.
        CheckpointError: a checkpoint of another run, or damaged.
    """
    ranks.check_same("weights to begin with", Movement.of(model).start)
    if knobs.shard and ranks.size > 1:
        shard(model, ranks)
    state = TrainState.of(objective, model, method, train, knobs, ranks)
    log = Log(folder, on_record) if ranks.is_first else NoLog()
    training = Training(state, folder, validate, save_best, identity, log, rehearsal)
    with recomputed_in_backward(model, knobs.recompute), out_of_memory(TrainingError, SMALLER):
        training.begin(resume)
        model.train()
        trimmer = MemoryTrimmer()
        with interruptible(ranks.is_first, orderly=not rehearsal) as interrupted:
            while training.goes_on and not ranks.any(interrupted()):
                training.step()
                trimmer.update(psutil.Process().memory_info().rss)
                training.after_step(ranks.any(interrupted()))
            # after the last step too: whoever asked does not want to wait for what follows
            cut_short = ranks.any(interrupted())
        outcome = training.outcome(cut_short)
    ranks.leave()
    return training.finish(outcome) if method.finishes and ranks.is_first and not cut_short else outcome


@dataclass
class Training:
    """A run of the loop: what it trains with, where it stands, and how it validates and saves."""

    state: TrainState
    folder: Path
    validate: Callable[[nn.Module], ValidationLoss | float]
    save_best: Callable[[int, float], None]
    identity: Record
    log: Log | NoLog
    rehearsal: bool = False
    totals: Totals = field(init=False)
    monitor: Monitor = field(init=False)
    movement: Movement = field(init=False)

    def __post_init__(self) -> None:
        self.totals, self.monitor = Totals(), Monitor(self.state.knobs.patience)
        self.movement = Movement.of(self.state.model)

    @property
    def goes_on(self) -> bool:
        return self.totals.step < self.state.total and not self.monitor.exhausted

    @property
    def resume_folder(self) -> Path:
        return self.folder / "resume"

    def begin(self, resume: bool) -> None:
        """Take up the last checkpoint, if one is asked for and there; else measure and save where the run starts."""
        if resume:
            checkpoint.check_resumable(self.folder, self.identity, self.state.total)
        saved = checkpoint.checkpoints(self.resume_folder) if resume else []
        if not saved:
            self.log.rewind(0, 0)
            return self.check()
        size = self._restore(saved[-1])
        self.state.ranks.each(None)  # all have read it
        self._rewind_log(size)
        if (verdict := self.monitor.verdict()) and verdict.kind == "divergence":
            self.retreat(verdict.text)  # killed before it could
        if not self.goes_on and self.state.ranks.is_first:
            notice(checkpoint.nothing_left(self.totals.step, self.state.total, self.state.knobs.patience))
        return None

    def step(self) -> None:
        started, state = time.perf_counter(), self.state
        try:
            while (record := self._step_if_memory_holds_it()) is None:
                self.take_less()
        except NotFiniteError as error:
            if not self.retreat(str(error).splitlines()[0]):
                raise
            return
        self.log.write(record, _clock(record, time.perf_counter() - started, state.total))
        if self.totals.step == CHECK_STEP:
            self.movement.check(state.model, self.totals.step, state.may_not_move(self.totals.step))

    def _step_if_memory_holds_it(self) -> Record | None:
        """A step's record; None where there is no memory for it, and less can be computed at once."""
        state = self.state
        try:
            return train_step(state, self.totals)
        except (RuntimeError, MemoryError) as error:
            *_, parts = state.cut(self.totals.step, state.at_once(self.totals))
            alone = state.ranks.size == 1  # others would wait for this process
            if state.knobs.micro_tokens == "auto" and alone and is_out_of_memory(error) and max(map(len, parts)) > 1:
                return None  # so that what the error holds is let go of first
            raise

    def take_less(self) -> None:
        """Compute half as many tokens at once from here on."""
        before = self.state.at_once(self.totals)
        self.state.optimizer.zero_grad(set_to_none=True)
        give_back_memory()
        give_back_device_memory(device_of(self.state.model))
        self.totals.halvings += 1
        notice(
            f"step {self.totals.step + 1}: the memory does not hold {before:,} tokens at once; on with "
            f"{self.state.at_once(self.totals):,} (train.micro_tokens=auto)"
        )

    def after_step(self, interrupted: bool) -> None:
        """What is due now: a validation, which saves too, or a checkpoint alone."""
        step, knobs = self.totals.step, self.state.knobs
        if step % self.state.eval_every == 0 or step == self.state.total:
            self.check()
        elif (knobs.save_every and step % knobs.save_every == 0) or interrupted:
            self.save()

    def check(self) -> None:
        """Validate; keep the weights if they are the best so far; let the method decide; save."""
        state, totals, method = self.state, self.totals, self.state.method
        loss = self._validation()
        give_back_memory()
        passes = totals.tokens / int(state.train.lengths.sum())
        kept = bool(totals.step) or not self.rehearsal
        settled = kept and method.can_be_result(totals.step, state.total)
        best = self.monitor.add(totals.step, loss, totals.losses, passes, settled)
        totals.losses = []
        if state.ranks.size > 1 and not state.ranks.sharded:
            state.ranks.check_same("weights any more", Movement.of(state.model).start, TrainingError)
        if best and kept and (state.ranks.is_first or state.ranks.sharded):
            self.save_best(totals.step, loss.mean)
            if method.finishes:
                checkpoint.save_best(self.resume_folder, state.model, method)
        record: Record = {"step": totals.step, "validation_loss": loss.mean, "best": best}
        verdict = self.monitor.verdict()
        retreats = verdict is not None and verdict.kind == "divergence" and self.way_back is not None
        if not retreats and (decision := self._decision()):
            record["decision"] = decision
        self.log.write(record, {"verdict": str(verdict) if verdict else None})
        self.save()
        if verdict and retreats:
            self.retreat(verdict.text)

    def _validation(self) -> ValidationLoss:
        found = self.validate(self.state.model)
        reshard(self.state.model)
        return found if isinstance(found, ValidationLoss) else ValidationLoss(found)

    def _decision(self) -> str | None:
        """What the method decides after a validation, carried out and noted."""
        method, state = self.state.method, self.state
        decision = method.after_validation(state.model, state.optimizer, self.monitor.checks, state.total)
        if decision:
            self.monitor.decide(decision)
            self.movement.extend(state.model)
        return decision

    @property
    def way_back(self) -> int | None:
        """The step that a run that diverged goes back to: of its best check; or the start, where it ignores its inputs
        in the first half of its steps, or again, for then its best weights were half ruined already. None where it
        may not, or where the method has decided something since, which can't be taken back."""
        best = self.monitor.best
        if best is None or not self.state.knobs.lowers_lr or len(self.totals.retreats) >= RETREATS:
            return None
        again = any(event.get("collapsed") for event in self.totals.retreats)
        ruined = self._collapsed and (again or 2 * self.totals.step <= self.state.total)
        return next(filter(self._may_go_back_to, [0, int(best["step"])] if ruined else [int(best["step"])]), None)

    @property
    def _collapsed(self) -> bool:
        last = self.monitor.checks[-1]
        return int(last["step"]) == self.totals.step and self.monitor.collapsed(last)

    def _may_go_back_to(self, step: int) -> bool:
        decided = any("decision" in check for check in self.monitor.checks if check["step"] >= step)
        there = checkpoint.of_step(self.resume_folder, step).is_dir()  # not of a run begun by 0.1
        return self.state.ranks.first_says(there) and self.totals.step > step and not decided

    def retreat(self, why: str) -> bool:
        """Go back to the best check and on at a third of the rate, or at a tenth from the start; false where it can't.

        The steps since are taken back, in the log too. What is left to do is in a checkpoint before anything is
        deleted, so a kill at any moment leaves a run that resumes to the same bits.
        """
        step, then, collapsed = self.way_back, self.totals, self._collapsed
        if step is None:
            return False
        left = [_brief(check) for check in self.monitor.checks if check["step"] > step]
        self.log.bytes = self._restore(checkpoint.of_step(self.resume_folder, step))
        self.state.ranks.each(None)  # all have read it
        self.state.optimizer.zero_grad(set_to_none=True)
        event: Record = {"step": self.totals.step, "from_step": then.step, "why": why, "checks": left}
        event |= {"collapsed": True} if collapsed else {}
        event["lr_factor"] = then.lowered(from_start=not step)
        self.totals.retreats = [*then.retreats, event]
        self.save()
        if self.state.ranks.is_first:
            checkpoint.forget_after(self.resume_folder, self.totals.step)
        self._rewind_log(self.log.bytes)
        return True

    def _restore(self, folder: Path) -> int:
        """Stand where a checkpoint stood, but for the log, of which it gives the bytes that were there."""
        state = checkpoint.read_state(folder)
        checkpoint.load_checkpoint(folder, self.state.model, self.state.method, self.state.optimizer)
        self.totals, self.monitor.checks = Totals(**state["totals"]), [BEFORE | check for check in state["checks"]]
        self.movement.start = state["movement"]
        return int(state["log_bytes"])

    def _rewind_log(self, size: int) -> None:
        """Take the log back to a checkpoint, behind which the retreats to that step are written."""
        self.log.rewind(size, self.totals.step)
        for event in self.totals.retreats:
            if event["step"] == self.totals.step:
                self.log.write({"step": event["step"], "retreat": event}, {})

    def save(self) -> None:
        """A checkpoint: all that is needed to go on as if nothing had happened, with any number of processes."""
        if self.rehearsal:
            return
        if not self.state.ranks.is_first:
            if self.state.ranks.sharded:
                checkpoint.hand_in_checkpoint(self.state.model, self.state.method, self.state.optimizer)
            return
        state: Record = {"identity": self.identity, "totals": asdict(self.totals), "checks": self.monitor.checks}
        state |= {"movement": self.movement.start, "log_bytes": self.log.bytes}
        model, method, optimizer = self.state.model, self.state.method, self.state.optimizer
        best = self.monitor.best if self.state.knobs.lowers_lr else None
        keep = {0, int(best["step"])} if best else set()
        checkpoint.save_checkpoint(self.resume_folder, self.totals.step, model, method, optimizer, state, keep)

    def outcome(self, cut_short: bool) -> Outcome:
        return _outcome(self.state, self.totals, self.monitor, self.movement, cut_short)

    def finish(self, outcome: Outcome) -> Outcome:
        """Let the method change the best weights once more, and measure and save what comes of it."""
        model, method = self.state.model, self.state.method
        checkpoint.load_best(self.resume_folder, model, method)
        decision = method.finish(model, lambda: self._validation().mean)
        loss = self._validation().mean
        self.save_best(outcome.best_step, loss)
        last = [{"step": outcome.best_step, "validation_loss": loss, "decision": decision}] if decision else []
        return replace(outcome, validation_loss=loss, decisions=outcome.decisions + last)


def _outcome(state: TrainState, totals: Totals, monitor: Monitor, movement: Movement, cut_short: bool) -> Outcome:
    best, begun = monitor.best, set(movement.start) - state.may_not_move(totals.step)
    assert best is not None
    return Outcome(
        totals=totals,
        steps_planned=state.total,
        best_step=int(best["step"]),
        validation_loss=best["validation_loss"],
        train_loss=monitor.checks[-1]["train_loss"],
        stopped_early=monitor.exhausted and totals.step < state.total,
        interrupted=cut_short,
        best=best,
        verdict=monitor.verdict() if cut_short else monitor.at_end(),
        retreats=totals.retreats,
        moved=len(begun - set(movement.still(state.model))) if totals.step >= CHECK_STEP else None,
        tensors=len(begun),
        decisions=[
            {name: check[name] for name in ("step", "validation_loss", "decision")}
            for check in monitor.checks
            if "decision" in check
        ],
    )


def _brief(check: Check) -> Record:
    return {name: check[name] for name in ("step", "validation_loss", "train_loss")}


def _clock(record: Record, seconds: float, total: int) -> Record:
    return {
        "step": record["step"],
        "steps": total,
        "seconds": seconds,
        "tokens_per_second": record["tokens"] / seconds,
        "trained_tokens_per_second": record["trained_tokens"] / seconds,
        "memory_bytes": psutil.Process().memory_info().rss,
    }
