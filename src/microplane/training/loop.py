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
from typing import Any, cast

import numpy as np
import psutil
import torch
from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan, micro_batches
from microplane.data.store import Dataset
from microplane.errors import TrainingError
from microplane.hardware import give_back_memory
from microplane.methods import Method
from microplane.models.contract import Model
from microplane.objectives.base import AnyObjective
from microplane.training import resume as checkpoint
from microplane.training.activation_checkpointing import recomputed_in_backward
from microplane.training.context import interruptible
from microplane.training.log import Log, Record
from microplane.training.monitor import CHECK_STEP, Monitor, Movement
from microplane.training.optim import make_optimizer, schedule, set_lr, still_frozen, temporarily_frozen, warmup_steps

TRIM_EVERY = 10  # steps


@dataclass
class Totals:
    """What a run has done so far; part of a checkpoint."""

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)  # since the last validation


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
    overfitting: str | None
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


@dataclass(frozen=True)
class TrainState:
    """What a run trains with; fixed from its first step to its last."""

    objective: AnyObjective
    model: nn.Module
    method: Method
    train: Dataset
    knobs: TrainKnobs
    plan: BatchPlan
    total: int  # optimizer steps
    warmup: int  # of them
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(
        cls, objective: AnyObjective, model: nn.Module, method: Method, train: Dataset, knobs: TrainKnobs
    ) -> TrainState:
        plan = BatchPlan(train.lengths, knobs.batch_size, knobs.batch_tokens, knobs.seed)
        total = knobs.steps or plan.total_steps(knobs.epochs)
        warmup = warmup_steps(knobs.warmup, total)
        return cls(objective, model, method, train, knobs, plan, total, warmup, make_optimizer(method, model, knobs))

    def still_frozen(self, step: int) -> dict[str, nn.Parameter]:
        """What gradual unfreezing has not reached in the step of this number, counted from 0."""
        return still_frozen(self.model, self.knobs.unfreeze_every, step)

    def may_not_move(self, steps: int) -> set[str]:
        """What has had too few steps to have moved for certain, after so many of them."""
        return {*self.still_frozen(steps - CHECK_STEP), *self.method.may_not_move(self.model)}

    @property
    def eval_every(self) -> int:
        return self.knobs.eval_every or max(1, math.ceil(self.total / 10))


def passes(train: Dataset, knobs: TrainKnobs) -> float:
    """How often a run reads the training rows."""
    plan = BatchPlan(train.lengths, knobs.batch_size, knobs.batch_tokens, knobs.seed)
    return knobs.steps / plan.total_steps(1) if knobs.steps else knobs.epochs


def fit(
    model: nn.Module,
    method: Method,
    train: Dataset,
    knobs: TrainKnobs,
    folder: Path,
    *,
    objective: AnyObjective,
    validate: Callable[[nn.Module], float],
    save_best: Callable[[int, float], None],
    identity: Record,
    resume: bool = False,
    on_record: Callable[[Record], None] = lambda record: None,
) -> Outcome:
    """Train `model`, to which `method` is attached, and leave the best weights in `adapter/`.

    Args:
        folder: of the run; gets metrics.jsonl, speed.jsonl and resume/.
        objective: what is learnt from the rows.
        validate: the mean loss on held-out rows.
        save_best: writes `adapter/` for (step, validation loss).
        identity: what must be the same for a resume: fingerprints of data and model, the method, the knobs.
        resume: continue from the last checkpoint, if there is one.
        on_record: sees every line of metrics.jsonl, with the clock's figures added.

    Raises:
        TrainingError: loss or gradient not finite; a tensor that does not move; nothing to train on.
        CheckpointError: a checkpoint of another run, or damaged.
    """
    state = TrainState.of(objective, model, method, train, knobs)
    training = Training(state, folder, validate, save_best, identity, Log(folder, on_record))
    with recomputed_in_backward(model, knobs.recompute):
        training.begin(resume)
        model.train()
        trimmer = MemoryTrimmer()
        with interruptible() as interrupted:
            while training.goes_on and not interrupted():
                training.step()
                trimmer.update(psutil.Process().memory_info().rss)
                training.after_step(interrupted())
            cut_short = interrupted()  # after the last step too: whoever asked does not want to wait for what follows
    return training.outcome(cut_short) if cut_short or not method.finishes else training.finish()


@dataclass
class Training:
    """A run of the loop: what it trains with, where it stands, and how it validates and saves."""

    state: TrainState
    folder: Path
    validate: Callable[[nn.Module], float]
    save_best: Callable[[int, float], None]
    identity: Record
    log: Log
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
            checkpoint.check_resumable(self.folder, self.identity)
        saved = checkpoint.checkpoints(self.resume_folder) if resume else []
        if not saved:
            self.log.rewind(0, 0)
            return self.check()
        state = checkpoint.read_state(saved[-1])
        checkpoint.load_checkpoint(saved[-1], self.state.model, self.state.method, self.state.optimizer)
        self.totals, self.monitor.checks = Totals(**state["totals"]), state["checks"]
        self.movement.start = state["movement"]
        return self.log.rewind(state["log_bytes"], self.totals.step)

    def step(self) -> None:
        started, state = time.perf_counter(), self.state
        record = _step(state, self.totals)
        self.log.write(record, _clock(record, time.perf_counter() - started, state.total))
        if self.totals.step == CHECK_STEP:
            self.movement.check(state.model, self.totals.step, state.may_not_move(self.totals.step))

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
        losses = totals.losses
        loss = self.validate(state.model)
        give_back_memory()
        train_loss = sum(losses) / len(losses) if losses else math.inf
        best = self.monitor.add(totals.step, loss, train_loss, method.can_be_result(totals.step, state.total))
        totals.losses = []
        if best:
            self.save_best(totals.step, loss)
            if method.finishes:
                checkpoint.save_best(self.resume_folder, state.model, method)
        record: Record = {"step": totals.step, "validation_loss": loss, "best": best}
        if decision := method.after_validation(state.model, state.optimizer, self.monitor.checks, state.total):
            self.monitor.decide(decision)
            self.movement.extend(state.model)
            record["decision"] = decision
        self.log.write(record, {"verdict": self.monitor.verdict()})
        self.save()

    def save(self) -> None:
        """A checkpoint: all that is needed to go on as if nothing had happened."""
        state: Record = {"identity": self.identity, "totals": asdict(self.totals), "checks": self.monitor.checks}
        state |= {"movement": self.movement.start, "log_bytes": self.log.bytes}
        model, method, optimizer = self.state.model, self.state.method, self.state.optimizer
        checkpoint.save_checkpoint(self.resume_folder, self.totals.step, model, method, optimizer, state)

    def outcome(self, cut_short: bool) -> Outcome:
        return _outcome(self.state, self.totals, self.monitor, self.movement, cut_short)

    def finish(self) -> Outcome:
        """Let the method change the best weights once more, and measure and save what comes of it."""
        outcome, model, method = self.outcome(cut_short=False), self.state.model, self.state.method
        checkpoint.load_best(self.resume_folder, model, method)
        decision = method.finish(model, lambda: self.validate(model))
        loss = self.validate(model)
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
        overfitting=monitor.verdict(),
        moved=len(begun - set(movement.still(state.model))) if totals.step >= CHECK_STEP else None,
        tensors=len(begun),
        decisions=[
            {name: check[name] for name in ("step", "validation_loss", "decision")}
            for check in monitor.checks
            if "decision" in check
        ],
    )


def _step(state: TrainState, totals: Totals) -> Record:
    """One optimizer step: losses are summed over all its rows and divided once, by all its trained tokens."""
    model, knobs, number = state.model, state.knobs, totals.step + 1
    epoch, rows = state.plan.at(totals.step)
    train = state.train.at(epoch)
    parts = micro_batches(rows, train.lengths, knobs.micro_tokens)
    batches = [state.objective.collate(train, indices) for indices in parts]
    tokens, trained = int(train.lengths[rows].sum()), sum(batch.count for batch in batches)
    if not trained:
        raise TrainingError(f"step {number} has no trained token in its rows {_places(train, rows)}")
    loss = 0.0
    with temporarily_frozen(state.still_frozen(totals.step).values()):
        for part, (indices, batch) in enumerate(zip(parts, batches, strict=True)):
            torch.manual_seed(_seed(knobs.seed, totals.step, part))  # of dropout
            share = state.objective.loss(cast(Model, model), batch, knobs.label_smoothing) / trained
            if not math.isfinite(share.item()):
                raise TrainingError(_not_finite("loss", share.item(), number, train, indices))
            loss += share.item()
            torch.autograd.backward(share)
    penalty = state.method.penalty(model)
    if isinstance(penalty, torch.Tensor):
        torch.autograd.backward(penalty)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = _clipped(parameters, knobs.clip or math.inf)
    if not math.isfinite(norm):
        raise TrainingError(_not_finite("gradient norm", norm, number, train, rows.tolist()))
    lr = set_lr(state.optimizer, schedule(knobs.schedule, totals.step, state.total, state.warmup))
    state.method.step(model, state.optimizer, totals.step, state.total)
    state.optimizer.zero_grad(set_to_none=True)
    totals.step = number
    totals.tokens += tokens
    totals.trained_tokens += trained
    totals.losses.append(loss)
    return {
        "step": number,
        "epoch": round(totals.tokens / int(train.lengths.sum()), 4),
        "loss": loss,
        "lr": lr,
        "grad_norm": norm,
        "tokens": tokens,
        "trained_tokens": trained,
    }


def _clipped(parameters: list[torch.nn.Parameter], most: float) -> float:
    """The norm of the gradients; they are scaled down to `most` if it is above, and else not touched."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if not norm.item() <= most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm, foreach=True)
    return norm.item()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _places(train: Dataset, rows: Any) -> str:
    places = [train.where(int(row)) for row in rows]
    return ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")


def _not_finite(what: str, value: float, step: int, train: Dataset, rows: list[int]) -> str:
    return (
        f"the {what} became {value} in step {step}, in the rows {_places(train, rows)}. Nothing was changed by this "
        "step; the best adapter so far is kept.\nTry a smaller train.lr, a longer train.warmup, "
        "train.clip=0.3, or model.dtype=float32."
    )


def _clock(record: Record, seconds: float, total: int) -> Record:
    return {
        "step": record["step"],
        "steps": total,
        "seconds": seconds,
        "tokens_per_second": record["tokens"] / seconds,
        "trained_tokens_per_second": record["trained_tokens"] / seconds,
        "memory_bytes": psutil.Process().memory_info().rss,
    }
