"""Steps of methods on several ranks beside the same on one; rank 0 prints a line of JSON for each case.

Started once for each rank, with RANK, WORLD_SIZE and where to meet in the environment:

    python -m tests.training.together all|few
"""

from __future__ import annotations

import faulthandler
import json
import sys
from typing import Any

import torch

from microplane.config.knobs import TrainKnobs
from microplane.evaluation.evaluate import validation_loss
from microplane.methods import Method, make_method, trainable
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.files.load import quantise_linears
from microplane.nn.number_format import NumberFormat
from microplane.nn.sharded import fill, local, reshard, shared_as, whole
from microplane.training.activation_checkpointing import recomputed_in_backward
from microplane.training.init_from_data import init_from_data
from microplane.training.monitor import Movement
from microplane.training.ranks import ALONE, Ranks, joined
from microplane.training.sharding import shard
from microplane.training.step import Totals, TrainState, train_step
from tests.contract.families import FAMILIES, Family
from tests.contract.test_methods import REFUSED

STEPS = 20
HANGS = 400  # seconds of a case, which takes a few, after which a process tells where it stands, and ends
METHODS: list[dict[str, Any]] = [
    {"name": "lora", "rank": 3},
    {"name": "lora+", "rank": 3},
    {"name": "dora", "rank": 3},
    {"name": "qlora", "rank": 3},
    {"name": "adalora", "rank": 2, "initial_rank": 4, "interval": 2},
    {"name": "scalora", "rank": 2, "interval": 3},
    {"name": "nb-lora", "rank": 3},
    {"name": "lora", "rank": "auto", "warmup": 2},
    {"name": "prefix", "length": 3},
    {"name": "bottleneck", "width": 4},
    {"name": "full"},
    {"name": "head-only"},
    {"name": "paca", "rank": 4},
    {"name": "vera", "rank": 4},
]
SHARDED: list[dict[str, Any]] = [
    {"name": "full", "shard": True},
    {"name": "full", "shard": True, "recompute": "blocks"},
]
ALL = [(family, method) for family in ("llama-tied", "t5", "bert") for method in METHODS]
ALL += [(family, method) for family in FAMILIES for method in SHARDED]
FEW = [("llama-tied", METHODS[0]), ("t5", {"name": "full"}), ("bert", {"name": "head-only"}), ("t5", SHARDED[0])]


def run(family: str, knobs: dict[str, Any], ranks: Ranks) -> tuple[dict[str, Any], dict[str, int]]:
    """What some steps give, and the checksums of all that trains."""
    here = FAMILIES[family]
    train = {name: value for name, value in knobs.items() if name in TrainKnobs.model_fields}
    method = make_method({name: value for name, value in knobs.items() if name not in train})
    model = here.build()
    quantise_linears(model, NumberFormat(torch.float32, method.quantize))
    torch.manual_seed(0)
    attach_method(method, model)
    asked = TrainKnobs(lr=1e-3, steps=STEPS, batch_size=6, micro_tokens=32, clip=0.5, **train)
    init_from_data(here.objective, model, method, here.data, asked, {})
    if asked.shard and ranks.size > 1:
        shard(model, ranks)
    with recomputed_in_backward(model, asked.recompute):
        return steps(here, model, method, asked, ranks), Movement.of(model).start


def steps(here: Family, model: Model, method: Method, asked: TrainKnobs, ranks: Ranks) -> dict[str, Any]:
    """Losses, validations with what the method decides, and the norms of what trains."""
    state, totals = TrainState.of(here.objective, model, method, here.data, asked, ranks), Totals()
    losses, checks, before = [], [{"step": 0, "validation_loss": 10.0}], ranks.summed_numbers
    trained = sum(parameter.numel() for parameter in trainable(model).values())
    for step in range(1, STEPS + 1):
        model.train()
        losses.append(train_step(state, totals)["loss"])
        if step % 5 == 0:
            loss = validation_loss(here.objective, model, here.data, 64, ranks=ranks).mean
            reshard(model)
            checks.append({"step": step, "validation_loss": loss})
            if step == 5:  # what is summed grows with a rank that does
                summed = (ranks.summed_numbers - before) / 5 / trained
            if decision := method.after_validation(model, state.optimizer, checks, STEPS):
                checks[-1]["decision"] = decision
    weights = {name: float(whole(tensor).detach().norm()) for name, tensor in trainable(model).items()}
    found = {"losses": losses, "checks": checks, "weights": weights, "summed": summed}
    if ranks.sharded:  # numbers held here, of the weights and of each of the optimizer's averages
        averages = [value for entries in state.optimizer.state.values() for value in entries.values() if value.dim()]
        found["held"] = [sum(local(tensor).numel() for tensor in model.parameters()) / trained]
        found["filled again"] = all(same_when_filled(tensor) for tensor in (*model.parameters(), *averages))
        found["held"] += [sum(local(value).numel() for value in averages) / trained / 2]
    return found


@torch.no_grad()
def same_when_filled(tensor: torch.Tensor) -> bool:
    """Whether a sharded tensor is the same when it is cut from the whole anew, and filled with it."""
    every = whole(tensor)
    cut = torch.equal(local(shared_as(tensor, every)), local(tensor))
    local(tensor).zero_()
    fill(tensor, every)
    return cut and torch.equal(whole(tensor), every)


def main(cases: list[tuple[str, dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    with joined(lambda: None) as there:
        for family, knobs in cases:
            ranks = Ranks(there.rank, there.size)  # a sharded model leaves its mark
            faulthandler.dump_traceback_later(HANGS, exit=True)
            if (knobs["name"], family) in REFUSED:
                continue
            together, sums = run(family, knobs, ranks)
            every = ranks.each(sums)
            if ranks.is_first:
                told = {"case": f"{family}/{'/'.join(map(str, knobs.values()))}", "together": together}
                told |= {"same bits": all(one == sums for one in every), "alone": run(family, knobs, ALONE)[0]}
                print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(ALL if sys.argv[1] == "all" else FEW)
