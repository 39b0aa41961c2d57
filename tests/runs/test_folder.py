"""Each run gets a folder of its own, however many begin at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from microplane.errors import ConfigError
from microplane.runs.folder import run_folder

PARTS = ["smollm2", "lora", "rows"]
MAKE = """
import sys, time
from pathlib import Path
from microplane.errors import ConfigError
from microplane.runs.folder import run_folder

runs, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20 if not name else 1):
    try:
        print(run_folder(runs, name, ["smollm2", "lora", "rows"]).name)
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
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert len(set(names)) == 60


def test_of_processes_that_want_the_same_name_one_gets_it(tmp_path):
    told = processes(4, tmp_path, "mine")
    assert sorted(told)[0] == "mine"
    others = [line for line in told if line != "mine"]
    assert len(others) == 3
    assert all(f"the run {tmp_path}/mine is being started by another" in line for line in others), others


def at_once(count: int, ask) -> list:
    barrier = threading.Barrier(count)

    def one(_):
        barrier.wait()
        try:
            return ask().name
        except ConfigError:
            return None

    with ThreadPoolExecutor(count) as pool:
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
    make = Path.mkdir

    def interrupted(path, *arguments, **named):
        make(path, *arguments, **named)
        monkeypatch.setattr(Path, "mkdir", make)
        assert run_folder(tmp_path, "smollm2-lora-rows", PARTS) == path

    monkeypatch.setattr(Path, "mkdir", interrupted)
    assert run_folder(tmp_path, "", PARTS).name == "smollm2-lora-rows-2"


def test_what_a_killed_process_left_of_a_run_is_free_again(tmp_path):
    kill = "import os; from microplane.runs.folder import run_folder; from pathlib import Path; import sys; "
    kill += "folder = run_folder(Path(sys.argv[1]), 'mine', []); "
    kill += "from microplane.files import aside; cm = aside(folder / 'run.yaml'); cm.__enter__().write_text('half'); "
    kill += "os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", kill, str(tmp_path)], check=False).returncode == -9
    assert [path.suffix for path in (tmp_path / "mine").iterdir()] == [".tmp"]
    assert run_folder(tmp_path, "mine", PARTS) == tmp_path / "mine"
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_run_that_exists_is_refused_by_its_name(tmp_path):
    folder = run_folder(tmp_path, "mine", PARTS)
    (folder / "run.yaml").write_text("")
    with pytest.raises(ConfigError, match=f"the run {folder} exists. Continue it with `microplane train --resume"):
        run_folder(tmp_path, "mine", PARTS)
    assert run_folder(tmp_path, "mine", PARTS, again=True) == folder


def test_a_run_that_came_to_nothing_gives_its_name_back(tmp_path):
    run_folder(tmp_path, "mine", PARTS).rmdir()
    assert run_folder(tmp_path, "mine", PARTS) == tmp_path / "mine"
