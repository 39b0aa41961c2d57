"""`microplane compare` on the command line: instant help, and one message for what is wrong."""

from __future__ import annotations

import pytest

from microplane.cli import app as cli
from tests.cli.test_app import FORBIDDEN, run
from tests.comparison.kit import place


def test_help_needs_no_torch():
    shown = run("-c", FORBIDDEN.format("'compare', '--help'"))
    assert shown.returncode == 0, shown.stderr
    assert "--dry-run" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lorra"], "there is no method 'lorra'"),
        (["--budget", "1h", "--steps", "5"], "--budget and --steps are given"),
        (["--steps", "5"], "--steps 5 is too little"),
        (["--metric", "rmse"], "cannot be compared by it"),
        (["--set", "train.lr=1"], "train.lr cannot be set for a comparison"),
    ],
)
def test_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["microplane", "compare", *place(tmp_path), "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    told = capsys.readouterr().err.replace("\n", " ")
    assert told.count("error: ") == 1
    assert message in told
    assert not out.exists()
