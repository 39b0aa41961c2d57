"""One optimizer step, and what it follows from: everything is decided by the configuration and the step's number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan, micro_batches
from microplane.data.store import Dataset
from microplane.device import out_of_memory
from microplane.errors import ConfigError, TrainingError
from microplane.methods import Method
from microplane.models.contract import Model, device_of
from microplane.nn.sharded import local, whole
from microplane.objectives.base import AnyObjective
from microplane.objectives.collate import batch_of
from microplane.training.ahead import Ahead, StepRows
from microplane.training.log import Record
from microplane.training.monitor import CHECK_STEP
from microplane.training.optim import make_optimizer, schedule, set_lr, still_frozen, temporarily_frozen, warmup_steps
from microplane.training.ranks import ALONE, Ranks

RETREAT, FROM_START = 1 / 3, 1 / 10  # of the rate after a divergence; of the first one, where a run starts anew
RETREATS = 3  # at most
FAR = 100.0  # units from 0, where a step of a usual rate may be less than what float32 tells apart
SMALLER_OPTIMIZER = (
    "Hold less for each weight that trains: train.optimizer=adamw_8bit or adafactor; or train fewer weights"
)


class NotFiniteError(TrainingError):
    """A loss or a gradient that is no number."""


@dataclass
class Totals:
    """What a run has done so far; part of a checkpoint."""

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)  # since the last validation
    retreats: list[Record] = field(default_factory=list)  # after divergence: see `Training.retreat`
    halvings: int = 0  # of what is computed at once, where memory did not hold it: see `Training.take_less`

    @property
    def lr_factor(self) -> float:
        """What is left of the learning rate."""
        return float(self.retreats[-1]["lr_factor"]) if self.retreats else 1.0

    def lowered(self, from_start: bool) -> float:
        """What is left of the learning rate after one more divergence."""
        third = self.lr_factor * RETREAT
        return min(FROM_START, third) if from_start else third


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
    ranks: Ranks = ALONE
    ahead: Ahead = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ahead", Ahead(self._rows))

    @classmethod
    def of(
        cls,
        objective: AnyObjective,
        model: nn.Module,
        method: Method,
        train: Dataset,
        knobs: TrainKnobs,
        ranks: Ranks = ALONE,
    ) -> TrainState:
        most = min(len(train), len(train) if knobs.batch_tokens else knobs.batch_size)
        if ranks.size > most:
            raise ConfigError(
                f"there are more processes ({ranks.size}) than rows in a step ({most}): start fewer, or raise "
                "train.batch_size"
            )
        plan = BatchPlan.of(train.lengths, knobs)
        total = plan.run_steps(knobs)
        warmup = warmup_steps(knobs.warmup, total)
        optimizer = make_optimizer(method, model, knobs)
        return cls(objective, model, method, train, knobs, plan, total, warmup, optimizer, ranks)

    def at_once(self, totals: Totals) -> int:
        """The most tokens of a micro-batch; a longer row is one alone. Who shares out the weights shares out these too:
        what blocks keep for the backward pass is the larger part."""
        among = self.ranks.size if self.ranks.sharded else 1
        return max(1, (self.knobs.at_once // among) >> totals.halvings)

    def cut(self, step: int, at_once: int) -> tuple[Dataset, np.ndarray, list[list[int]]]:
        """The data set as a step's epoch has it, the step's rows, and the micro-batches of this process's share."""
        epoch, rows = self.plan.at(step)
        train = self.train.at(epoch)
        return train, rows, micro_batches(self.ranks.share(rows, train.lengths), train.lengths, at_once)

    def _rows(self, step: int, at_once: int) -> StepRows:
        train, rows, parts = self.cut(step, at_once)
        batches = [batch_of(self.objective, self.model, train, indices) for indices in parts]
        return StepRows(step, at_once, train, rows, parts, batches)

    def still_frozen(self, step: int) -> dict[str, nn.Parameter]:
        """What gradual unfreezing has not reached in the step of this number, counted from 0."""
        return still_frozen(self.model, self.knobs.unfreeze_every, step)

    def may_not_move(self, steps: int) -> set[str]:
        """What has had too few steps to have moved for certain, after so many of them."""
        return {
            *self.still_frozen(steps - CHECK_STEP),
            *self.method.may_not_move(self.model),
            *self._beyond_a_step(),
        }

    def _beyond_a_step(self) -> set[str]:
        """The bias of a head for numbers that are far from 0, as years are: it begins at their mean."""
        head = getattr(self.model, "task_head", None)
        bias = None if head is None or head.last is None or head.config.task != "regression" else head.last.bias
        if bias is None or whole(bias).abs().max() < FAR:
            return set()
        return {name for name, parameter in self.model.named_parameters() if parameter is bias}

    @property
    def eval_every(self) -> int:
        return self.knobs.eval_every or max(1, math.ceil(self.total / 10))


def train_step(state: TrainState, totals: Totals) -> Record:
    """One optimizer step: losses are summed over all its rows and divided once, by all its trained tokens."""
    model, knobs, number, ranks = state.model, state.knobs, totals.step + 1, state.ranks
    taken = state.ahead.take(totals.step, state.at_once(totals))
    train, rows, parts, batches = taken.train, taken.rows, taken.parts, taken.batches
    counts = ranks.each((sum(batch.count for batch in batches), len(parts)))
    again = max(count for _, count in counts) - len(parts) if ranks.sharded else 0
    tokens, trained = int(train.lengths[rows].sum()), sum(count for count, _ in counts)
    before = sum(count for _, count in counts[: ranks.rank])  # micro-batches of this step on other ranks
    if not trained:
        raise TrainingError(f"step {number} has no trained token in its rows {_places(train, rows)}")
    shares = []
    with temporarily_frozen(state.still_frozen(totals.step).values()):
        for part, batch in enumerate(batches, start=before):
            torch.manual_seed(_seed(knobs.seed, totals.step, part))  # of dropout
            share = state.objective.loss(cast(Model, model), batch, knobs.label_smoothing) / trained
            torch.autograd.backward(share)
            shares.append(share.detach())
        for _ in range(again):  # who holds a part of the model computes whenever the others do
            _compute_for_others(state, train, rows)
    if number < state.total and device_of(model).type != "cpu":  # which has no time to spare
        state.ahead.prepare(number, taken.at_once)
    # read once, so that a device works on until here
    losses: list[float] = torch.stack(shares).tolist() if shares else []
    loss = 0.0
    for indices, part_loss in ranks.joined_lists(list(zip(parts, losses, strict=True))):
        if not math.isfinite(part_loss):
            raise NotFiniteError(_not_finite("loss", part_loss, number, state, indices))
        loss += part_loss
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    ranks.sum_gradients(parameters)
    penalty = state.method.penalty(model)  # which all ranks compute as a whole
    if isinstance(penalty, torch.Tensor):
        torch.autograd.backward(penalty)
    norm = _clipped(parameters, knobs.clip or math.inf, ranks)
    if not math.isfinite(norm):
        raise NotFiniteError(_not_finite("gradient norm", norm, number, state, rows.tolist()))
    lr = set_lr(state.optimizer, schedule(knobs.schedule, totals.step, state.total, state.warmup) * totals.lr_factor)
    with out_of_memory(TrainingError, SMALLER_OPTIMIZER):  # a part of the weights may have moved: no step to begin anew
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


def _compute_for_others(state: TrainState, train: Dataset, rows: np.ndarray) -> None:
    """A pass over the shortest row of a step, which adds nothing to the gradients."""
    shortest = int(rows[np.argmin(train.lengths[rows])])
    batch = batch_of(state.objective, state.model, train, [shortest])
    torch.autograd.backward(state.objective.loss(cast(Model, state.model), batch, 0.0) * 0.0)


def _clipped(parameters: list[torch.nn.Parameter], most: float, ranks: Ranks) -> float:
    """The norm of the gradients; they are scaled down to `most` if it is above, and else not touched."""
    grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norm = ranks.norm(torch.nn.utils.get_total_norm(grads, foreach=True))
    size = norm.item()
    if not size <= most and ranks.sharded:  # torch's takes the parameters, and a norm of their kind
        scale = most / (norm + 1e-6)
        for grad in grads:
            grad.mul_(scale)
    elif not size <= most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm, foreach=True)
    return size


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _places(train: Dataset, rows: Any) -> str:
    places = [train.where(int(row)) for row in rows]
    return ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")


def _not_finite(what: str, value: float, step: int, state: TrainState, rows: list[int]) -> str:
    rate = max((group["lr"] for group in state.optimizer.param_groups), default=0.0)
    decay = max((group["lr"] * group.get("weight_decay", 0.0) for group in state.optimizer.param_groups), default=0.0)
    if step == 1:
        suspect = (
            "Nothing was trained yet, so these rows or the weights are to blame; or model.dtype, if it is not float32."
        )
    elif decay > 1:  # a step then takes more off a weight than the weight is
        suspect = f"The weight decay is too high: a step took {decay:.3g} times each weight off it. Try a "
        suspect += "smaller train.weight_decay."
    else:
        suspect = f"The first suspect is the learning rate, {rate:.3g} in the step before: try a smaller train.lr, a "
        suspect += "longer train.warmup, train.clip=0.3, or model.dtype=float32."
    return (
        f"the {what} became {value} in step {step}, in the rows {_places(state.train, rows)}. Nothing was changed by "
        f"this step; the best adapter so far is kept.\n{suspect}"
    )
