"""Files of a folder of rows that nobody reads."""

from __future__ import annotations

from pathlib import Path

from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.spec import is_mixture
from microplane.data.reading.hub_rows import is_on_hub
from microplane.data.reading.read import unread_files
from microplane.data.reading.values import listed


def told_unread(knobs: DataKnobs) -> list[str]:
    """A sentence on files of the folder of rows that look like rows, belong to no split, and are named by no knob; none
    where there are no such."""
    path = Path(knobs.train).expanduser()
    if is_mixture(path) or is_on_hub(knobs.train):
        return []
    named = {Path(given).expanduser().resolve() for given in (knobs.validation, knobs.test) if given}
    unread = [name for name in unread_files(path) if (path / name).resolve() not in named]
    if not unread:
        return []
    are = "is not read: it is" if len(unread) == 1 else "are not read: they are"
    return [f"{path.name}: {listed(unread)} {are} not called train, validation or test, with the ending of a data file"]
