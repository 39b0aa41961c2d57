"""The configuration of a run that goes on: as it was written down, but for what may change, and where files lie now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microplane.config.build import build, place, read_yaml, shown
from microplane.config.knobs import RunKnobs
from microplane.data.reading.lines import SUFFIXES
from microplane.errors import CheckpointError, ConfigError, ModelError, check_type
from microplane.models.files.hub import resolve
from microplane.runs.inline_data import with_data
from microplane.training.resume import CHANGEABLE


def going_on(run: Path, knobs: Mapping[str, Any]) -> RunKnobs:
    """The configuration of the run in a folder, with other knobs than before.

    Raises:
        ConfigError: for a knob that would make another run of it.
        CheckpointError: for a base or rows that are not where they were.
    """
    check_type(knobs, "set", Mapping, 'a mapping of knobs, as {"train.epochs": 3}')
    written = read_yaml(run / "run.yaml")
    data = written.setdefault("data", {})
    data.setdefault("unicode", "as-is")  # an earlier version left texts as they are, and told the day of asking
    data.setdefault("date", None)
    config = _changed(build(RunKnobs, written, where=str(run / "run.yaml")), knobs, run)
    return _located(config.model_copy(update={"name": run.name, "runs": str(run.parent)}), run)


def _changed(config: RunKnobs, knobs: Mapping[str, Any], run: Path) -> RunKnobs:
    values = config.model_dump(mode="json")
    for name, value in knobs.items():
        if name not in CHANGEABLE:
            known = ", ".join(sorted(CHANGEABLE))
            if not name.startswith("method"):  # whose knobs the method knows
                asked: dict[str, Any] = {}
                place(asked, name, value)
                build(RunKnobs, asked)  # raises for what is no knob, or not its value
            a_method = name.startswith(("method", "model."))  # which an adapter has its own of
            start = "MODEL DATA" if a_method else f"--from {run} DATA"
            raise ConfigError(
                f"{name} cannot be changed in a run that goes on ({known} can). Begin a new run"
                f"{'' if a_method else ' from its adapter'}: microplane train {start} --set {name}={shown(value)}"
            )
        place(values, name, value)
    if config.train.steps and "train.epochs" in knobs and "train.steps" not in knobs:
        raise ConfigError(f"train.epochs would change nothing: train.steps = {config.train.steps} decides. Set that")
    return build(RunKnobs, values)


def _located(config: RunKnobs, run: Path) -> RunKnobs:
    """With the rows that the run's folder holds, where that folder itself has moved."""
    own = run / Path(config.data.train).name
    if not Path(config.data.train).exists() and own.is_file():
        config = with_data(config, own.absolute())
    for name in ("train", "validation", "test"):
        file = Path(getattr(config.data, name) or ".").expanduser()
        if not file.exists() and set(SUFFIXES).intersection(file.suffixes):
            raise CheckpointError(
                f"data.{name}: there is no file {file} any more. If it lies elsewhere now, name that place: "
                f"microplane train --resume {run} --set data.{name}=FILE"
            )
    try:
        resolve(config.model.name, config.model.revision)
    except ModelError as error:
        raise CheckpointError(
            f"{error}. If the base lies elsewhere now, name that place: "
            f"microplane train --resume {run} --set model.name=FOLDER"
        ) from None
    return config
