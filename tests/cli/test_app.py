"""The command line as a user meets it: help is instant and teaches."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from microplane.cli import app as cli
from microplane.cli.app import app

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
FORBIDDEN = (
    "import sys; sys.modules['torch'] = None; from microplane.cli.app import main; "
    "sys.argv = ['microplane', {}]; main()"
)


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def told(*arguments):
    """What a command says, in this process."""
    shown = CliRunner().invoke(app, list(arguments))
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def test_the_promised_commands_are_there():
    assert {"train", "eval", "generate", "merge", "data", "models", "report", "demo"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_shows_an_example(name):
    assert f"Example:  microplane {name}" in told(name, "--help")


def test_help_needs_no_torch():
    shown = run("-c", FORBIDDEN.format("'--help'"))
    assert shown.returncode == 0, shown.stderr
    assert "train" in shown.stdout


def test_a_program_of_its_own_is_the_module():
    shown = run("-m", "microplane.cli.app", "train", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Example:  microplane train" in shown.stdout


def test_knobs_and_methods_list_what_there_is():
    knobs = told("knobs", "train")
    assert "train.lr = null (float or auto or null): peak learning rate" in knobs
    methods = told("methods")
    assert "lora: low-rank updates" in methods
    assert "method.rank = 16 (int): r, the rank of the update" in methods


def test_generate_takes_its_knobs_as_they_are_listed(monkeypatch, capsys):
    for name in ("temperature", "generate.temperature"):
        monkeypatch.setattr("sys.argv", ["microplane", "generate", "nowhere", "hello", "--set", f"{name}=0.0001"])
        with pytest.raises(SystemExit):
            cli.main()
        assert "must be 0, or at least 0.001" in capsys.readouterr().err.replace("\n", " ")
