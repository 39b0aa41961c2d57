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
from microplane.runs.prepare import Prepared
from microplane.training.lr_range import range_test
from microplane.training.ranks import Ranks

FOUND = "lr_search.json"  # in the run's folder


def refuse_many(config: RunKnobs, ranks: Ranks) -> None:
    """Raises: ConfigError, for a search by several processes."""
    if config.train.lr == "auto" and ranks.size > 1:
        raise ConfigError(
            f"train.lr = auto with {ranks.size} processes: search with one of them, and set the rate that its run.yaml "
            "then has"
        )


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
        how = prepared.splits.train, prepared.config.train, prepared.weighted_objective
        test = range_test(model, prepared.method, *how, watch.progress("searching the learning rate"))
        found = json_value(test)
        write_json(folder / FOUND, found)
    watch.say(f"train.lr  {found['chosen']:g}: {found['why']}")
    config = prepared.config
    train = config.train.model_copy(update={"lr": float(found["chosen"])})
    prepared = replace(prepared, config=config.model_copy(update={"train": train}))
    write_aside(folder / "run.yaml", to_yaml(prepared.config).encode())
    return prepared, found
