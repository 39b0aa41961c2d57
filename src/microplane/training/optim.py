"""The optimizer over a method's parameter groups, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import Method, trainable
from microplane.models.contract import hf_names, levels
from microplane.training.adafactor import Adafactor
from microplane.training.adamw_8bit import AdamW8bit
from microplane.training.own_optimizer import unmarked

DECAYED_VECTORS = "weight decay falls on norms and biases"
DECAYED_OWN = "weight decay falls on what is not 0 at the base"  # DoRA's magnitudes
RELATIVE_LR = 1e-3  # T5's constant rate with parameter scaling, where lr is a share of a tensor's size


class AdamW(torch.optim.AdamW):
    """torch's, without what keeps its functions from torch's compiler, which nothing here uses: each of these marks
    imports it, and that takes a process 2 to 3 seconds."""

    zero_grad = unmarked(torch.optim.Optimizer.zero_grad)
    add_param_group = unmarked(torch.optim.Optimizer.add_param_group)
    step = torch.no_grad()(unmarked(torch.optim.AdamW.step))


def peak_lr(method: Method, model: nn.Module, knobs: TrainKnobs) -> float:
    """train.lr where it is a number, else the method's rate for the model; with train.scale_parameter T5's, as steps
    are relative there."""
    if isinstance(knobs.lr, float):
        return knobs.lr
    return RELATIVE_LR if knobs.scale_parameter else method.rate(model)


def by_level(model: nn.Module, groups: list[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """The groups split by level (see `levels`), where each level has the rate of the next higher one times `decay`.

    Discriminative rates (ULMFiT, arXiv 1801.06146, eq. 2) in ELECTRA's form (2003.10555): the head keeps its rate.
    The highest level comes first.
    """
    if decay == 1:
        return groups
    found, names = levels(model), {id(tensor): name for name, tensor in trainable(model).items()}
    top, split = max(found.values()), []
    for level in range(top, -1, -1):
        for group in groups:
            params = [tensor for tensor in group["params"] if found[names[id(tensor)]] == level]
            split += [{**group, "params": params, "lr": group["lr"] * decay ** (top - level)}] if params else []
    return split


def still_frozen(model: nn.Module, every: int | None, step: int) -> dict[str, nn.Parameter]:
    """Parameters that gradual unfreezing (arXiv 1801.06146, section 3.3) keeps frozen in step `step`, counted from 0.

    At first all but the last norm and the head, then one block less after each `every` steps; none if `every` is None.
    Before the first step (step < 0) all are frozen.
    """
    if not every or step < 0:
        return trainable(model) if every else {}
    found = levels(model)
    lowest = max(found.values()) - step // every
    return {name: tensor for name, tensor in trainable(model).items() if found[name] < lowest}


@contextmanager
def temporarily_frozen(tensors: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these tensors get no gradient: the optimizer skips them, and nothing is computed for them."""
    frozen = list(tensors)
    for tensor in frozen:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(True)


def make_optimizer(method: Method, model: nn.Module, knobs: TrainKnobs) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101; in 8 bits 2110.02861) or Adafactor (1804.04235) over the method's groups.

    Each group remembers its peak rate as `peak_lr`.

    Raises:
        ConfigError: if nothing trains.
    """
    groups = [group for group in method.param_groups(model, peak_lr(method, model, knobs)) if group["params"]]
    if knobs.weight_decay:  # without, nothing is split
        groups = _without_decay_apart(method, model, groups)
    groups = by_level(model, groups, knobs.layer_decay)
    if not groups:
        raise ConfigError(f"method {method.name}: nothing trains with these knobs")
    for group in groups:
        group["peak_lr"] = group["lr"]
    if knobs.optimizer == "adafactor":
        return Adafactor(groups, scale_parameter=knobs.scale_parameter, weight_decay=knobs.weight_decay)
    if knobs.optimizer == "adamw_8bit":
        return AdamW8bit(groups, betas=knobs.betas, eps=knobs.eps, weight_decay=knobs.weight_decay)
    return AdamW(groups, betas=knobs.betas, eps=knobs.eps, weight_decay=knobs.weight_decay, fused=True)


def _without_decay_apart(method: Method, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups split so that decay does not fall on the model's own norms and biases, nor on those of its head (a
    norm's weight stands around 1, and a bias gives no function that is too steep), nor on what the method names."""
    vectors = {id(tensor) for tensor in (*_own_vectors(model), *method.without_decay(model))}
    split = []
    for group in groups:
        matrices, rest = ([p for p in group["params"] if (id(p) in vectors) == is_one] for is_one in (False, True))
        split += [{**group, "params": matrices}] if matrices else []
        split += [{**group, "params": rest, "weight_decay": 0.0}] if rest else []
    return split


def _own_vectors(model: nn.Module) -> list[nn.Parameter]:
    """The model's own norms and biases, as far as they train."""
    own = hf_names(model)
    return [tensor for name, tensor in trainable(model).items() if name in own and tensor.dim() < 2]


def left_undecayed(method: Method, model: nn.Module, knobs: TrainKnobs) -> dict[str, bool]:
    """Of what decay leaves alone in this run, by what it is called in a checkpoint: False. Earlier versions decayed it,
    so that a run of theirs cannot go on as it was."""
    if not knobs.weight_decay:
        return {}
    spared = {DECAYED_VECTORS: _own_vectors(model), DECAYED_OWN: method.without_decay(model)}
    return {name: False for name, tensors in spared.items() if tensors}


def add_groups(method: Method, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Add parameters to the optimizer that the method has created since the optimizer was made."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    peak = optimizer.param_groups[0]["peak_lr"]
    for group in method.param_groups(model, peak):
        new = [parameter for parameter in group["params"] if id(parameter) not in known]
        if new:
            optimizer.add_param_group({**group, "params": new, "peak_lr": group["lr"]})


def warmup_steps(warmup: float, total: int) -> int:
    """Number of steps: train.warmup below 1 is a share of all steps, else it is the number itself."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def schedule(name: str, step: int, total: int, warmup: int) -> float:
    """The factor on the peak rate at optimizer step `step` (from 0) of `total`.

    Rises linearly over the first `warmup` steps, then stays, falls linearly, or falls as half a cosine to 0; or falls
    as one over the root of the step (arXiv 1706.03762, eq. 3, as a share of its peak).
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "inverse_sqrt":
        return math.sqrt(max(1, warmup) / (step + 1))
    if name == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    if name == "linear":
        return 1.0 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set all groups to `factor` of their peak; returns the first group's rate, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
