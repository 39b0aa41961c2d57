"""A learning-rate range test (arXiv 1506.01186, section 3.3): a short sweep over rates before a run.

Each step of the sweep has a higher rate than the one before. Its rows are new, so their loss is compared with what the
untouched start says of the very same rows: that takes most of the chance out of it. The rate at which the gain over
the start is largest is where training is about to leave its course; the run gets a part of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan, micro_batches
from microplane.data.progress import Progress
from microplane.data.store import Dataset
from microplane.errors import ConfigError, TrainingError
from microplane.methods import Method
from microplane.models.contract import Model, in_eval_mode
from microplane.models.files.opened import checksum, tensors_of
from microplane.objectives.base import AnyObjective
from microplane.objectives.collate import batch_of
from microplane.training.activation_checkpointing import recomputed_in_backward
from microplane.training.optim import peak_lr
from microplane.training.step import Totals, TrainState, train_step

STEPS = 48  # of a sweep, at most; a run of fewer than four times as many gets a shorter one
LEAST = 12
BELOW, ABOVE = 1e-2, 10**1.5  # of the method's own rate: from where to where
SMOOTH = 0.7  # of the average over the steps so far that stays with each step
PART = 10**-0.5  # of the rate at which the gain is largest, that the run gets
LOST = 0.5  # of the loss at the start: a sweep that is so much above it has seen enough


@dataclass(frozen=True)
class RangeTest:
    """What a sweep came to.

    Attributes:
        chosen: the rate of the run.
        why: in a sentence.
        rates: of the steps.
        gains: at each of them, how much lower the loss of its rows is than at the start, as a share of that; smoothed.
        edge: the best rate is the highest that was tried, and a better one may lie beyond.
    """

    chosen: float
    why: str
    rates: tuple[float, ...]
    gains: tuple[float, ...]
    edge: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def range_test(
    model: nn.Module,
    method: Method,
    train: Dataset,
    knobs: TrainKnobs,
    objective: AnyObjective,
    progress: Progress,
) -> RangeTest:
    """Search the rate of a run. `model`, to which the method is attached, stays as it is; the order of rows is that of
    the knob `train.seed`.

    Raises:
        ConfigError: for a run too short to search for, or a method that changes the base while it trains.
    """
    own = peak_lr(method, model, knobs)
    total = BatchPlan.of(train.lengths, knobs).run_steps(knobs)
    steps = min(STEPS, total // 4)
    if steps < LEAST:
        raise ConfigError(
            f"train.lr = auto: a sweep of at least {LEAST} steps is needed, and a run of {total} is too short to give "
            f"a quarter of itself to it. Leave train.lr out, which takes {own:g}, or raise train.epochs"
        )
    rates = [own * BELOW * (ABOVE / BELOW) ** (number / (steps - 1)) for number in range(steps)]
    with torch.random.fork_rng(devices=[]):
        gains = _sweep(model, method, train, knobs, objective, rates, progress)
    return choose(own, rates[: len(gains)], gains)


def _sweep(
    model: nn.Module,
    method: Method,
    train: Dataset,
    knobs: TrainKnobs,
    objective: AnyObjective,
    rates: Sequence[float],
    progress: Progress,
) -> list[float]:
    """The gain of each step, as far as the sweep came."""
    twin, sums = _twin(model)
    flat = knobs.model_copy(update={"lr": rates[0], "schedule": "constant", "warmup": 0.0, "steps": len(rates)})
    state, totals, gains = TrainState.of(objective, twin, method, train, flat), Totals(), list[float]()
    peaks = [group["peak_lr"] for group in state.optimizer.param_groups]
    with recomputed_in_backward(twin, knobs.recompute):
        twin.train()
        for number, rate in enumerate(rates):
            progress(number, len(rates))
            start = _loss_at_start(state, model, totals.step)
            for group, peak in zip(state.optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak * rate / rates[0]
            try:
                loss = train_step(state, totals)["loss"]
            except TrainingError:
                break
            gains.append((start - loss) / max(abs(start), 1e-12))
            if gains[-1] < -LOST:
                break
    progress(len(rates), len(rates))
    if any(checksum(tensor) != sums[name] for name, tensor in tensors_of(model) if name in sums):
        raise ConfigError(
            f"train.lr = auto: the method {method.name} changes the base's own weights while it trains, so nothing can "
            "be tried before the run. Set train.lr"
        )
    return gains


def _twin(model: nn.Module) -> tuple[nn.Module, dict[str, int]]:
    """A model of its own that shares what does not train; and the checksums of that."""
    shared = {name: tensor for name, tensor in tensors_of(model) if not tensor.requires_grad}
    extra = getattr(model, "extra_weights", {})
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*shared.values(), *extra.values()]}
    return copy.deepcopy(model, memo), {name: checksum(tensor) for name, tensor in shared.items()}


def _loss_at_start(state: TrainState, model: nn.Module, step: int) -> float:
    """Of the rows of a step, by the model as the run starts, without dropout."""
    epoch, rows = state.plan.at(step)
    train, ours = state.train.at(epoch), cast(Model, model)
    parts = micro_batches(rows, train.lengths, state.knobs.at_once)
    batches = [batch_of(state.objective, ours, train, indices) for indices in parts]
    with in_eval_mode(ours), torch.no_grad():
        losses = [state.objective.loss(ours, batch, state.knobs.label_smoothing).item() for batch in batches]
    return math.fsum(losses) / max(1, sum(int(batch.count) for batch in batches))


def choose(own: float, rates: Sequence[float], gains: Sequence[float]) -> RangeTest:
    """By the gains of a sweep.

    Args:
        own: the method's rate, which is taken where no rate gained anything.
    """
    smooth, total, weight = list[float](), 0.0, 0.0
    for gain in gains:
        total, weight = SMOOTH * total + (1 - SMOOTH) * gain, SMOOTH * weight + (1 - SMOOTH)
        smooth.append(total / weight)
    best = max(range(len(smooth)), key=lambda number: (smooth[number], -number), default=None)
    if best is None or smooth[best] <= 0:
        why = f"no rate of the sweep lowered the loss of rows that were not seen before: {own:g}, the method's own"
        return RangeTest(own, why, tuple(rates), tuple(smooth), False)
    chosen, edge = float(f"{rates[best] * PART:.3g}"), best == len(rates) - 1
    beyond = ", the highest that was tried" if edge else ", and less beyond"
    gained = f"{smooth[best]:.0%} of their loss) at {rates[best]:.2g}"
    why = f"in a sweep over rates rows not seen before gained most ({gained}{beyond}: a third of that"
    return RangeTest(chosen, why, tuple(rates), tuple(smooth), edge)
