"""Each run gets a folder of its own, however many begin at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from microplane.errors import CheckpointError, ConfigError
from microplane.runs.folder import RUNNING, run_folder

PARTS = ["smollm2", "lora", "rows"]
MAKE = """
import sys
from contextlib import ExitStack
from pathlib import Path
from microplane.errors import ConfigError
from microplane.runs.folder import run_folder

runs, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
held = ExitStack()
for _ in range(20 if not name else 1):
    try:
        print(held.enter_context(run_folder(runs, name, ["smollm2", "lora", "rows"])).name)
    except ConfigError as error:
        print(f"refused: {error}")
sys.stdout.flush()
sys.stdin.readline()  # it lives until all have asked
"""


def processes(count: int, runs: Path, name: str) -> list[str]:
    """What this many processes are told that ask at the same moment."""
    command = [sys.executable, "-c", MAKE, str(runs), name]
    made = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(count)]
    for process in made:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in made:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = []
    for process in made:
        assert process.stdout is not None
        lines += [process.stdout.readline().strip() for _ in range(20 if not name else 1)]
    for process in made:
        process.communicate("end\n")
        assert process.returncode == 0
    return lines


def test_processes_that_start_at_once_get_different_folders(tmp_path):
    names = processes(3, tmp_path, "")
    assert len(set(names)) == 60
    assert list(tmp_path.iterdir()) == []  # nothing came of them


def test_of_processes_that_want_the_same_name_one_gets_it(tmp_path):
    told = processes(4, tmp_path, "mine")
    assert sorted(told)[0] == "mine"
    others = [line for line in told if line != "mine"]
    assert len(others) == 3
    assert all(f"the run {tmp_path}/mine is running in process" in line for line in others), others


def at_once(count: int, ask) -> list:
    barrier = threading.Barrier(count)

    def one(_):
        barrier.wait()
        try:
            return held.enter_context(ask()).name
        except ConfigError:
            return None

    with ExitStack() as held, ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("number", range(5))
def test_sixteen_threads_get_sixteen_folders(tmp_path, number):
    names = at_once(16, lambda: run_folder(tmp_path, "", PARTS))
    assert sorted(names) == sorted(["smollm2-lora-rows", *(f"smollm2-lora-rows-{n}" for n in range(2, 18))][:16])


@pytest.mark.parametrize("number", range(5))
def test_of_sixteen_threads_that_want_the_same_name_one_gets_it(tmp_path, number):
    (tmp_path / "mine").mkdir()  # an empty folder may be taken
    names = at_once(16, lambda: run_folder(tmp_path, "mine", PARTS))
    assert sorted(name for name in names if name) == ["mine"]


def test_a_folder_that_is_taken_before_its_maker_has_it_is_left_to_the_other(tmp_path, monkeypatch):
    """Somebody names a run as one is called that was given no name, in the moment between making and taking."""
    make, held = Path.mkdir, ExitStack()

    def interrupted(path, *arguments, **named):
        make(path, *arguments, **named)
        monkeypatch.setattr(Path, "mkdir", make)
        assert held.enter_context(run_folder(tmp_path, "smollm2-lora-rows", PARTS)) == path

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with held, run_folder(tmp_path, "", PARTS) as folder:
        assert folder.name == "smollm2-lora-rows-2"
        assert (tmp_path / "smollm2-lora-rows").is_dir()


def test_what_a_killed_process_left_of_a_run_is_free_again(tmp_path):
    kill = "import os; from microplane.runs.folder import run_folder; from pathlib import Path; import sys; "
    kill += "held = run_folder(Path(sys.argv[1]), 'mine', []); folder = held.__enter__(); "
    kill += "from microplane.files import aside; cm = aside(folder / 'run.yaml'); cm.__enter__().write_text('half'); "
    kill += "os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", kill, str(tmp_path)], check=False).returncode == -9
    assert {path.suffix for path in (tmp_path / "mine").iterdir()} == {".tmp", ""}
    with run_folder(tmp_path, "mine", PARTS) as folder:
        assert folder == tmp_path / "mine"
        assert [path.name for path in folder.iterdir()] == [RUNNING]
        assert f"process {os.getpid()} on" in (folder / RUNNING).read_text()


def test_a_run_that_exists_is_refused_by_its_name(tmp_path):
    with run_folder(tmp_path, "mine", PARTS) as folder:
        (folder / "run.yaml").write_text("")
    with pytest.raises(ConfigError, match=f"the run {folder} exists. Continue it with `microplane train --resume"):
        run_folder(tmp_path, "mine", PARTS).__enter__()
    with run_folder(tmp_path, "mine", PARTS, again=True) as same:
        assert same == folder
    assert [path.name for path in folder.iterdir()] == ["run.yaml"]


def test_a_run_that_goes_on_elsewhere_is_neither_begun_nor_resumed(tmp_path):
    with run_folder(tmp_path, "mine", PARTS) as folder:
        (folder / "run.yaml").write_text("")
        for again, error in ((False, ConfigError), (True, CheckpointError)):
            with pytest.raises(error, match=f"mine is running in process {os.getpid()} on "):
                run_folder(tmp_path, "mine", PARTS, again=again).__enter__()
    with run_folder(tmp_path, "mine", PARTS, again=True):
        pass


def test_a_run_that_came_to_nothing_gives_its_name_back(tmp_path):
    with run_folder(tmp_path / "new" / "runs", "mine", PARTS) as folder:
        (folder / "half").write_text("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "mine"])
def test_an_interrupt_between_making_and_taking_a_folder_leaves_none(tmp_path, monkeypatch, name):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("microplane.runs.folder.lock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_folder(tmp_path / "runs", name, PARTS).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_nothing_is_no_place_for_runs(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="cannot be made at"):
        run_folder(tmp_path / "runs", "", PARTS).__enter__()


def test_a_run_that_cannot_be_written_to_is_not_sent_to_another_place_for_runs(tmp_path, monkeypatch):
    """Which --resume does not take."""
    (tmp_path / "runs" / "mine").mkdir(parents=True)

    def refused(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("microplane.runs.folder.lock", refused)
    with pytest.raises(CheckpointError, match="Read-only file system. .* go on with the copy") as told:
        run_folder(tmp_path / "runs", "mine", PARTS, again=True).__enter__()
    assert "--set runs" not in str(told.value)
