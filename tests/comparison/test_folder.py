"""The folder of a comparison: broken off in its planning, held by another, on a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from microplane.comparison.folder import PLAN, PLANNING, held_folder, new_folder
from microplane.comparison.plan import Plan
from microplane.errors import ConfigError, TrainingError
from microplane.files import lock


def broken_off(folder: Path) -> Path:
    """As `kill -9` leaves it, while rows are copied, or just before the plan is written."""
    (folder / "data").mkdir(parents=True)
    for name in (PLANNING, "rows.jsonl", "trials.yaml", "data/train.jsonl", "data/.test.jsonl.abcdef-1-01234567.tmp"):
        (folder / name).touch()
    return folder


def begun(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_text("{}")
    return folder


def test_one_that_was_killed_in_its_planning_begins_again_in_the_same_folder(tmp_path):
    out = broken_off(tmp_path / "out")
    (out / "mine.txt").touch()  # somebody's own, put there meanwhile
    assert new_folder(out, "model", "rows.jsonl") == out
    with held_folder(out, begins=True):
        kept = {path.name for path in out.rglob("*")}
        assert kept - {"data", ".test.jsonl.abcdef-1-01234567.tmp"} == {PLANNING, "mine.txt"}
        begun(out)
    assert not (out / PLANNING).exists()
    with pytest.raises(ConfigError, match="exists. Go on with: microplane compare --resume"):
        new_folder(out, "model", "rows.jsonl")


def test_what_was_planned_in_vain_is_taken_away(tmp_path):
    out = tmp_path / "a" / "out"

    def planned() -> None:
        with held_folder(out, begins=True):
            (out / "data").mkdir()
            (out / "data" / "train.jsonl").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        planned()
    assert not hasattr(interrupt.value, "__notes__")
    assert not out.exists()


def test_to_go_on_with_one_that_has_no_plan_says_why_not(tmp_path):
    with pytest.raises(ConfigError, match="stopped before its plan was made. Begin it again as you did"):
        Plan.read(broken_off(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"it has no plan\.json"):
        Plan.read(tmp_path)


def test_a_folder_that_is_no_comparison_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="is there already, and no comparison"):
        new_folder(tmp_path, "model", "rows.jsonl")


def test_a_name_is_used_again_where_nothing_came_of_it_and_nobody_is_at_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun(Path("runs/compare-model-rows"))
    left = broken_off(Path("runs/compare-model-rows-2"))
    assert new_folder(None, "my/model", "rows.jsonl") == left
    held = lock(left)
    assert held is not None
    assert new_folder(None, "my/model", "rows.jsonl").name == "compare-model-rows-3"
    with pytest.raises(ConfigError, match="is running in another process"), held_folder(left, begins=True):
        pass
    held.release()
    assert (left / "rows.jsonl").exists()  # of the other one


def test_one_that_another_process_began_meanwhile_is_left_alone(tmp_path):
    out = begun(tmp_path / "out")
    with pytest.raises(ConfigError, match="exists. Go on with"), held_folder(out, begins=True):
        pass
    assert (out / PLAN).read_text() == "{}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_fails_is_one_message_and_what_is_done_is_kept(tmp_path, number):
    said = os.strerror(number)

    def fails(folder: Path, begins: bool) -> str:
        with pytest.raises(TrainingError) as told, held_folder(folder, begins=begins):
            raise OSError(number, said, "ledger.json")
        return str(told.value)

    assert fails(tmp_path / "new", True) == f"ledger.json: {said}. Make room, and begin the comparison again"
    assert not (tmp_path / "new").exists()
    old = begun(tmp_path / "old")
    kept = f"All that is done is kept: make room, and go on with: microplane compare --resume {old}"
    assert fails(old, False) == f"ledger.json: {said}. {kept}"
    assert (old / PLAN).exists()


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), held_folder(tmp_path / "out", begins=True):
        raise PermissionError(errno.EACCES, "Permission denied", "rows.jsonl")
