"""A home with a model, data and a finished run, made once; each test gets a copy to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from microplane.config.build import build, set_value
from microplane.config.knobs import RunKnobs
from microplane.runs.train import train
from tests.bad_input.kit import QUICK, CommandLine, copy_home, furnish


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """model/, rows.jsonl and runs/base, never written to by tests."""
    folder = tmp_path_factory.mktemp("home")
    furnish(folder)
    values = {"name": "base", "model": {"name": "model"}, "data": {"train": "rows.jsonl"}, "method": {"rank": 2}}
    for knob in QUICK:
        set_value(values, knob)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MICROPLANE_CACHE", str(folder / "cache"))
        train(knobs=build(RunKnobs, values))
    return folder


@pytest.fixture
def here(home, tmp_path, monkeypatch) -> Path:
    """A copy of the home, and the working folder of the test."""
    copy_home(home, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def microplane(here, capsys, monkeypatch) -> CommandLine:
    return CommandLine(here, capsys, monkeypatch)
