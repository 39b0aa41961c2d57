"""`microplane cache`, as it looks in a terminal of 80 columns."""

from __future__ import annotations

import os
import time

import pytest

from microplane.cli import app as cli


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path))
    monkeypatch.delenv("MICROPLANE_CACHE_LIMIT", raising=False)

    def call(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr("sys.argv", ["microplane", "cache", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return code, (told.out + told.err).splitlines()

    return call


@pytest.fixture
def filled(tmp_path):
    for kind, number, size, hours in [
        *(("data", n, 1234, n * 0.6) for n in range(12)),
        ("features", 1, 3_400_000, 80),
        ("number_format", 1, 10, 1),
        ("new kind", 1, 10, 1),
    ]:
        folder = tmp_path / kind / f"{number:08x}{'0' * 24}"
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(bytes(size))
        if kind == "data":
            (folder / "about.txt").write_text(
                f"rows of a file with a name that is rather long {number}.jsonl as tokens\n"
            )
        os.utime(folder, (time.time() - hours * 3600 - 1,) * 2)
    models = tmp_path / "models"
    models.mkdir()
    for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.ok"):
        (models / name).write_bytes(bytes(5_000_000))


def test_list(ask, filled, tmp_path):
    code, lines = ask("list")
    assert code == 0
    assert all(len(line) <= 80 for line in lines[:-1]), lines
    assert lines[0] == "name                     what                                size     last used"
    assert lines[1] == "data/0000000000          rows of a file with a name that   1.3 kB      just now"
    assert lines[3] == "data/0000000200          rows of a file with a name that   1.3 kB    1 hour ago"
    assert lines[11] == "data/...                 2 more (--all lists them)         2.6 kB"
    assert lines[12] == "features/0000000100      outputs of a frozen model         3.4 MB    3 days ago"
    assert lines[13] == "number_format/0000000100 the speed of number formats         10 B    1 hour ago"
    assert lines[14] == "models/SmolLM2-135M-Inst a downloaded model or tokenizer  10.0 MB      just now"
    assert lines[-2] == "3.4 MB of at most 20.0 GB (MICROPLANE_CACHE_LIMIT), and 10.0 MB of models"
    assert lines[-1] == f"in {tmp_path}"
    assert len(ask("list", "--all")[1]) == len(lines) + 1


def test_an_empty_cache(ask, tmp_path):
    assert ask("list") == (0, [f"the cache in {tmp_path} is empty"])
    assert ask("path") == (0, [str(tmp_path)])
    assert ask("prune", "data") == (0, ["deleted 0 entries, 0 B"])


def test_prune(ask, filled, tmp_path):
    code, lines = ask("prune", "--older-than", "2d", "--dry-run")
    assert code == 0
    assert lines[-1] == "would delete 1 entry, 3.4 MB"
    assert lines[0].startswith("features/0000000100 ")
    assert ask("prune", "--older-than", "2d")[1][-1] == "deleted 1 entry, 3.4 MB"
    assert ask("prune", "data", "--to", "3kB")[1][-1] == "deleted 10 entries, 13.0 kB"
    assert ask("prune", "models/Smol")[1][-1] == "deleted 1 entry, 10.0 MB"
    assert ask("prune", "number_format")[1][-1] == "deleted 1 entry, 10 B"
    assert (tmp_path / "new kind").is_dir()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune"], "error: say what may go: a KIND, --to SIZE or --older-than AGE."),
        (["prune", "--to", "5 apples"], "error: --to '5 apples' is no size; expected one such as 500MB or 5GB"),
        (["prune", "--older-than", "1y"], "error: --older-than '1y' is no age; expected minutes, hours, days or weeks"),
        (["prune", "modles"], "error: the cache has no kind 'modles' and nothing whose name begins so. Did you mean"),
    ],
)
def test_what_cannot_be_done(ask, arguments, says):
    code, lines = ask(*arguments)
    assert code == 1
    assert lines[0].startswith(says)


def test_a_limit_that_is_none(ask, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", "2 parsecs")
    code, lines = ask("list")
    assert code == 1
    assert lines == [
        "error: MICROPLANE_CACHE_LIMIT '2 parsecs' is no size; expected one such as 500MB or 5GB, or none for no limit"
    ]
