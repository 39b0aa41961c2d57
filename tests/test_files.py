"""How files get to their place whole, what becomes of those that did not, and how small ones are read."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from microplane import files
from microplane.errors import AdapterError, ModelError
from microplane.files import aside, clean, folder_aside, is_leftover, json_lines, lock, read_object, reserve
from microplane.models.files.load import save_model
from tests.tiny import tiny


def test_only_a_file_that_is_not_there_has_a_stand_in(tmp_path):
    (tmp_path / "file").write_text("[]")
    assert read_object(tmp_path / "none.json", ModelError, absent={}) == {}
    with pytest.raises(AdapterError, match="cannot read .*none.json: No such file"):
        read_object(tmp_path / "none.json", AdapterError)
    with pytest.raises(ModelError, match="cannot read .*below.json: Not a directory"):
        read_object(tmp_path / "file" / "below.json", ModelError, absent={})
    with pytest.raises(ModelError, match="must hold a JSON object, but holds a list"):
        read_object(tmp_path / "file", ModelError, absent={})


@pytest.mark.parametrize("content", [b"\xff\x00", b'{"a": ', b"[" * 100_000])
def test_what_is_no_json_is_told_as_such(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ModelError, match="x.json is not valid JSON"):
        read_object(tmp_path / "x.json", ModelError)


# Writing aside

HOLD = """
import sys, time
from pathlib import Path
from microplane.files import aside, folder_aside

kind, place = sys.argv[1], Path(sys.argv[2])
with {"file": aside, "folder": folder_aside}[kind](place) as temporary:
    if kind == "file":
        temporary.write_bytes(b"half")
    else:
        (temporary / "x").write_bytes(b"half")
    print(temporary, flush=True)
    sys.stdin.readline()
"""
SAVE = """
import os, sys
from pathlib import Path
from microplane.models.files import load
from tests.tiny import tiny

def half(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    os.kill(os.getpid(), 9)

load.save_file = half
load.save_model(tiny(), Path(sys.argv[1]))
"""
WRITERS = {"file": aside, "folder": folder_aside}


@pytest.fixture
def writer():
    """Starts processes that are about to write a file or a folder, and tells where."""
    started = []

    def start(kind: str, place: Path) -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(place)], stdin=-1, stdout=-1, text=True)
        started.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def write(kind: str, place: Path) -> None:
    with WRITERS[kind](place) as temporary:
        (temporary if kind == "file" else temporary / "x").write_bytes(b"whole")


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_process_left_goes_when_the_same_is_written_again(tmp_path, writer, kind):
    killed, dead = writer(kind, tmp_path / "place")
    other, alive = writer(kind, tmp_path / "place")
    assert not is_leftover(dead)
    killed.kill()
    killed.wait()
    assert is_leftover(dead)
    assert not is_leftover(alive)
    write(kind, tmp_path / "place")
    assert sorted(tmp_path.iterdir()) == sorted([alive, tmp_path / "place"])
    assert other.poll() is None


@pytest.mark.parametrize("kind", WRITERS)
def test_cleaning_takes_what_is_ours_and_dead_and_nothing_else(tmp_path, writer, kind):
    (tmp_path / "below").mkdir()
    others = [tmp_path / name for name in (".x.tmp", ".x.12345678.tmp", "x.tmp", ".abcdef-1-12345678.tmp")]
    for path in others:
        path.write_text("not ours")
    killed, dead = writer(kind, tmp_path / "below" / "place")
    _, alive = writer(kind, tmp_path / "below" / "other")
    killed.kill()
    killed.wait()
    clean(tmp_path)
    assert dead.exists(), "that lies deeper"
    clean(tmp_path, deep=True)
    assert not dead.exists()
    assert alive.exists()
    assert all(path.exists() for path in others)


def test_a_zombie_writes_no_more(tmp_path, writer):
    killed, dead = writer("file", tmp_path / "x")
    killed.kill()
    end = time.monotonic() + 30
    while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
    assert is_leftover(dead)  # nobody has waited for it yet


def test_a_number_that_was_given_to_a_later_process_is_not_the_writers(tmp_path, writer, monkeypatch):
    _, path = writer("file", tmp_path / "x")
    assert not is_leftover(path)
    later = path.stat().st_ctime + 3600
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: later)
    assert is_leftover(path)


@pytest.mark.parametrize(("minutes", "left"), [(59, False), (61, True)])
@pytest.mark.parametrize("kind", WRITERS)
def test_of_another_machine_what_is_an_hour_old_was_left(tmp_path, monkeypatch, kind, minutes, left):
    monkeypatch.setattr(files, "_machine", lambda: "abcdef")
    with WRITERS[kind](tmp_path / "x") as temporary:
        temporary.touch() if kind == "file" else (temporary / "y").touch()
        monkeypatch.setattr(files, "_machine", lambda: "123456")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 60 * minutes)
        assert is_leftover(temporary) == left


def test_a_model_whose_saving_was_killed_leaves_nothing_for_ever(tmp_path):
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    command = [sys.executable, "-c", SAVE, str(tmp_path / "model")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False, cwd=root)
    assert done.returncode == -9
    assert [item.name for item in (tmp_path / "model").iterdir() if item.name.startswith(".")]
    save_model(tiny(), tmp_path / "model")
    assert sorted(item.name for item in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_saving_a_checkpoint_that_was_killed_leaves_nothing_for_ever(tmp_path, writer):
    killed, dead = writer("folder", tmp_path / "resume" / "step-00000007")
    killed.kill()
    killed.wait()
    with folder_aside(tmp_path / "resume" / "step-00000007", there="replace") as temporary:
        (temporary / "x").touch()
    assert not dead.exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_the_disk_holds_file_and_name_before_writing_ends(tmp_path, monkeypatch, kind):
    """A power cut after the block must not leave an empty file under the right name."""
    synced, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (synced.append(f"rename to {new}"), replace(old, new)))
    with WRITERS[kind](tmp_path / "x") as temporary:
        if kind == "file":
            temporary.touch()
            content = [str(temporary)]
        else:
            (temporary / "below").mkdir()
            (temporary / "below" / "y").touch()
            content = [str(temporary), str(temporary / "below"), str(temporary / "below" / "y")]
    assert sorted(synced[: len(content)]) == content
    assert synced[len(content) :] == [f"rename to {tmp_path / 'x'}", str(tmp_path)]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_user_gives_to_others(tmp_path, mask):
    """Whoever writes them may make files that nobody else can read, as the library of tensors does."""
    before = os.umask(mask)
    try:
        with aside(tmp_path / "one") as temporary:
            save_file({"x": torch.zeros(2)}, temporary)
        with folder_aside(tmp_path / "several") as temporary:
            (temporary / "below").mkdir()
            save_file({"x": torch.zeros(2)}, temporary / "below" / "two")
    finally:
        os.umask(before)
    for name in ("one", "several/below/two"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
    for name in ("several", "several/below"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("kind", WRITERS)
def test_a_name_may_be_as_long_as_names_may_be(tmp_path, kind):
    for name in ("x" * 255, "é" * 127):
        write(kind, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["x" * 255, "é" * 127])


@pytest.mark.parametrize("kind", WRITERS)
def test_errors_name_the_place_and_leave_it_as_it_was(tmp_path, kind):
    write(kind, tmp_path / "x")
    for told in (None, "temporary", "elsewhere"):
        with pytest.raises(OSError, match="No space left") as error, WRITERS[kind](tmp_path / "x") as temporary:
            raise OSError(28, "No space left on device", str(temporary / "y") if told == "temporary" else told)
        assert error.value.filename == ("elsewhere" if told == "elsewhere" else str(tmp_path / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_there_is_refused_kept_or_replaced(tmp_path):
    def make(content: str, **how) -> str:
        with folder_aside(tmp_path / "x", **how) as temporary:
            (temporary / "y").write_text(content)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        return (tmp_path / "x" / "y").read_text()

    (tmp_path / "x").mkdir()
    assert make("first") == "first", "an empty one gives way"
    with pytest.raises(OSError, match="not empty") as error:
        make("second")
    assert error.value.filename == str(tmp_path / "x")
    assert make("second", there="keep") == "first"
    assert make("second", there="replace") == "second"


def test_locks_are_seen_by_others_and_end_with_their_holder(tmp_path):
    first = lock(tmp_path, shared=True)
    second = lock(tmp_path, shared=True)
    assert first is not None
    assert second is not None
    assert lock(tmp_path) is None
    first.release()
    del second
    alone = lock(tmp_path)
    assert alone is not None
    assert lock(tmp_path, shared=True) is None
    assert alone.holds(tmp_path)
    assert not alone.holds(tmp_path.parent)
    assert lock(tmp_path / "none") is None


def test_a_copy_of_a_lock_holds_nothing_and_ends_nothing(tmp_path):
    held = lock(tmp_path)
    for make in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        make(held).release()
        assert lock(tmp_path) is None


def test_lines_of_json_end_with_a_line_feed_alone(tmp_path):
    texts = ["a\u2028b", "c\x85d\u2029", "e\rf\x0b\x0c", "\ud83d half"]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "surrogatepass") for text in texts]
    (file := tmp_path / "x.jsonl").write_bytes(b"\n".join([*lines, b""]))
    assert [line["text"] for line in json_lines(file)] == texts
    assert [line["text"] for line in json_lines(file, 2)] == texts[:2]


def test_room_that_the_disk_has_not_is_told_before_it_is_used(tmp_path, monkeypatch):
    reserve(tmp_path / "x", 5)
    assert (tmp_path / "x").read_bytes() == bytes(5)
    if hasattr(os, "posix_fallocate"):
        with pytest.raises(OSError, match=r"No space left|File too large|Invalid argument"):
            reserve(tmp_path / "y", 2**62)
