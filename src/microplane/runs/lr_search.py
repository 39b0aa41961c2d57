"""`train.lr = auto`: the rate of a run is searched once, before its first step, and then stands in its run.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from microplane.config.build import to_yaml
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Watcher
from microplane.errors import ConfigError
from microplane.files import json_value, object_in, write_aside, write_json
from microplane.models.contract import Model
from microplane.models.heads import head_trains_alone
from microplane.runs.fit import KEPT_PASSES, if_kept
from microplane.runs.prepare import Prepared
from microplane.training.lr_range import RangeTest, range_test
from microplane.training.optim import peak_lr
from microplane.training.ranks import Ranks

FOUND = "lr_search.json"  # in the run's folder


def refuse_many(config: RunKnobs, ranks: Ranks) -> None:
    """Raises: ConfigError, for a search by several processes."""
    if config.train.lr == "auto" and ranks.size > 1:
        raise ConfigError(
            f"train.lr = auto with {ranks.size} processes: search with one of them, and set the rate that its run.yaml "
            "then has"
        )


def _swept(prepared: Prepared, model: Model, watch: Watcher) -> RangeTest:
    how = prepared.splits.train, prepared.config.train, prepared.weighted_objective
    return range_test(model, prepared.method, *how, watch.progress("searching the learning rate"))


def _own_rate(prepared: Prepared, model: Model) -> RangeTest | None:
    """The method's own rate, of a head alone that reads what is kept of its rows so often that a sweep, which sees rows
    for the first time, finds too high a rate (docs/auto.md); else None."""
    knobs = prepared.config.train
    passes = prepared.batch_plan.passes(if_kept(model, knobs))
    if not head_trains_alone(model) or knobs.feature_cache == "off" or passes < KEPT_PASSES:
        return None
    own = peak_lr(prepared.method, model, knobs)
    why = f"{prepared.method.name}'s own, without a sweep: that sees rows for the first time, and this head reads what "
    return RangeTest(own, why + f"is kept of them {passes:g} times, for which its rates were too high", (), (), False)


def searched(prepared: Prepared, model: Model, folder: Path, watch: Watcher) -> tuple[Prepared, dict[str, Any] | None]:
    """The run with its rate, and what the search came to, if there was one; that of an earlier sitting is taken.

    Args:
        model: to which the method is attached; it stays as it is.

    Raises:
        ConfigError: see `training.lr_range.range_test`.
    """
    found = object_in(folder / FOUND) or None
    if prepared.config.train.lr != "auto":
        return prepared, found
    if found is None:
        found = json_value(_own_rate(prepared, model) or _swept(prepared, model, watch))
        write_json(folder / FOUND, found)
    watch.say(f"train.lr  {found['chosen']:g}: {found['why']}")
    config = prepared.config
    train = config.train.model_copy(update={"lr": float(found["chosen"])})
    prepared = replace(prepared, config=config.model_copy(update={"train": train}))
    write_aside(folder / "run.yaml", to_yaml(prepared.config).encode())
    return prepared, found
