"""The cache keeps within its limit, by deleting what was used least recently and nothing that is in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microplane.cache import eviction
from microplane.cache.entries import KINDS, entries, hold
from microplane.cache.eviction import limit, new_entry, parse_age, parse_size, prune, trim
from microplane.errors import ConfigError, DataError, notices_to

HOUR = 3600.0
USE = """
import sys
from pathlib import Path
from microplane.cache.entries import hold
held = hold(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MICROPLANE_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


def key(number: int) -> str:
    return f"{number:032x}"


def age(path: Path, hours: float) -> None:
    for one in (path, *path.rglob("*")):
        os.utime(one, (time.time() - hours * HOUR,) * 2)


def make(cache: Path, kind: str, number: int, size: int, hours: float) -> Path:
    folder = cache / kind / key(number)
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(bytes(size))
    age(folder, hours)
    return folder


def names() -> list[str]:
    return [f"{entry.kind.name} {int(entry.key, 16)}" for entry in entries()]


def trimmed(monkeypatch, most: str) -> list[str]:
    """What is said."""
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", most)
    said: list[str] = []
    with notices_to(said.append):
        trim()
    return said


def test_nothing_goes_while_there_is_room(cache, monkeypatch):
    make(cache, "data", 1, 1000, 99)
    assert trimmed(monkeypatch, "1000") == []
    assert trimmed(monkeypatch, "none") == []
    assert names() == ["data 1"]


def test_what_was_used_least_recently_goes_first_of_all_kinds(cache, monkeypatch):
    for number, (kind, hours) in enumerate(
        [("data", 9), ("features", 7), ("mixtures", 8), ("data", 2), ("baseline", 3)]
    ):
        make(cache, kind, number, 1000, hours)
    [said] = trimmed(monkeypatch, "3kB")
    assert names() == ["data 3", "features 1", "baseline 4"]
    assert said == (
        "cache     deleted the 2 entries used least recently, 2.0 kB: 3.0 kB stay, MICROPLANE_CACHE_LIMIT is 3.0 kB"
    )


def test_what_was_used_within_the_hour_stays_and_it_is_said(cache, monkeypatch):
    make(cache, "data", 1, 1000, 0.9)
    make(cache, "data", 2, 1000, 1.1)
    trimmed(monkeypatch, "10B")
    assert names() == ["data 1"]
    [said] = trimmed(monkeypatch, "10B")
    assert "holds 1.0 kB, more than MICROPLANE_CACHE_LIMIT = 10 B" in said


def test_what_another_process_uses_stays_until_that_ends(cache, monkeypatch):
    folder = make(cache, "features", 1, 1000, 5)
    user = subprocess.Popen([sys.executable, "-c", USE, str(folder)], stdin=-1, stdout=-1, text=True)
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        age(folder, 5)  # it runs for hours
        trimmed(monkeypatch, "0")
        assert names() == ["features 1"]
        assert [entry.key for entry in prune("features").in_use] == [key(1)]
        assert [entry.key for entry in prune("features", dry_run=True).in_use] == [key(1)]
    finally:
        user.kill()
        user.communicate()
    trimmed(monkeypatch, "0")
    assert names() == []


def test_data_that_is_open_stays(cache, monkeypatch):
    folder = make(cache, "data", 1, 1000, 5)
    held = hold(folder)
    assert entries()[0].used > time.time() - 60, "it counts as used now"
    age(folder, 5)
    trimmed(monkeypatch, "0")
    assert names() == ["data 1"]
    del held
    trimmed(monkeypatch, "0")
    assert names() == []


def test_what_lies_elsewhere_is_not_touched(tmp_path, cache):
    (tmp_path / "mine").mkdir()
    age(tmp_path / "mine", 5)
    assert hold(tmp_path / "mine") is None
    assert (tmp_path / "mine").stat().st_mtime < time.time() - HOUR


def test_models_go_only_by_name(cache, monkeypatch):
    folder = cache / "models" / "minilm"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "model.ok"):
        (folder / name).write_bytes(bytes(500))
    for name in ("a.gguf", "a.ok"):
        (cache / "models" / name).write_bytes(bytes(100))
    make(cache, "data", 1, 1000, 5)
    age(cache / "models", 99)
    trimmed(monkeypatch, "1000")  # they are not counted
    assert len(entries()) == 3
    prune(to=0)
    prune(older_than=0)
    assert {entry.name: entry.bytes for entry in entries()} == {"models/a.gguf": 200, "models/minilm": 1000}
    prune("models/a")
    assert [path.name for path in (cache / "models").iterdir()] == ["minilm"]
    prune("models")
    assert list((cache / "models").iterdir()) == []


def test_in_a_folder_that_has_other_things_only_our_own_go(cache, monkeypatch):
    """MICROPLANE_CACHE may name a home."""
    others = [
        cache / place
        for place in ("data/taxes", "models/mine", "features/.keep", "other/" + key(1), "data/" + "x" * 32)
    ]
    for path in others:
        path.mkdir(parents=True)
        (path / "x").write_bytes(bytes(1000))
        age(path, 99)
    (cache / "models" / "own.gguf").write_bytes(bytes(1000))
    make(cache, "data", 1, 1000, 99)
    trimmed(monkeypatch, "0")
    prune(to=0)
    prune("models")
    assert entries() == []
    assert all((path / "x").exists() for path in others)
    assert (cache / "models" / "own.gguf").exists()


def test_files_of_one_key_are_one_entry(cache):
    (cache / "number_format").mkdir(parents=True)
    for name in (f"{key(1)}.json", f"{key(1)}.txt", f"{key(2)}.json"):
        (cache / "number_format" / name).write_bytes(bytes(10))
    assert sorted((int(entry.key, 16), entry.bytes) for entry in entries()) == [(1, 20), (2, 10)]


def test_a_new_entry_makes_room_for_itself(cache, monkeypatch):
    make(cache, "data", 1, 1000, 5)
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", "1500")
    said: list[str] = []
    with notices_to(said.append), new_entry(cache / "data" / key(2), "the data", "of a test") as temporary:
        (temporary / "x").write_bytes(bytes(1000))
    assert names() == ["data 2"]
    assert entries()[0].about == "of a test"
    assert len(said) == 1


def write_entry(cache: Path, number: int, size: int) -> None:
    with new_entry(cache / "data" / key(number), "the data") as temporary:
        (temporary / "x").write_bytes(bytes(size))


@pytest.fixture
def looks(monkeypatch) -> list[None]:
    """One for each time that all entries are looked at."""
    seen: list[None] = []

    def counted():
        seen.append(None)
        return entries()

    monkeypatch.setattr(eviction, "entries", counted)
    return seen


def test_a_cache_with_room_is_looked_at_once_a_day(cache, looks):
    for number in range(5):
        write_entry(cache, number, 1000)
    assert len(looks) == 1
    assert json.loads((cache / eviction.COUNT).read_text())["bytes"] == 5000
    (cache / eviction.COUNT).write_text(json.dumps({"bytes": 5000, "since": time.time() - 25 * HOUR}))
    write_entry(cache, 5, 1000)
    write_entry(cache, 6, 1000)
    assert len(looks) == 2


def test_what_was_added_since_the_count_is_in_it(cache, looks, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", "3500")
    for number in range(3):
        write_entry(cache, number, 1000)
        age(cache / "data" / key(number), 9 - number)
    write_entry(cache, 3, 1000)
    assert len(looks) == 2
    assert names() == ["data 1", "data 2", "data 3"]
    assert json.loads((cache / eviction.COUNT).read_text())["bytes"] == 3000


@pytest.mark.parametrize(
    "count",
    ["", "7", "{}", '{"bytes": "many", "since": 0}', '{"bytes": 0, "since": 1e12}', '{"bytes": 0, "since": null}'],
)
def test_a_count_that_is_none_is_made_anew(cache, looks, count):
    cache.mkdir()
    (cache / eviction.COUNT).write_text(count)
    write_entry(cache, 1, 1000)
    assert len(looks) == 1
    assert json.loads((cache / eviction.COUNT).read_text())["bytes"] == 1000


def test_leftovers_of_killed_processes_are_cleaned(cache, monkeypatch):
    script = f"""
import os
from pathlib import Path
from microplane.cache.eviction import new_entry
with new_entry(Path({str(cache)!r}) / "features" / "{key(1)}", "x") as temporary:
    (temporary / "x").write_bytes(bytes(1000))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert len(list((cache / "features").iterdir())) == 1
    trimmed(monkeypatch, "none")
    assert list((cache / "features").iterdir()) == []


def test_an_entry_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    with (
        pytest.raises(DataError, match="the data cannot be written to .* MICROPLANE_CACHE"),
        new_entry(tmp_path / "cache" / "data" / key(1), "the data"),
    ):
        pass


def test_a_limit_that_is_no_size_is_told_before_the_work(cache, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", "much")
    with (
        pytest.raises(ConfigError, match="MICROPLANE_CACHE_LIMIT 'much' is no size; expected one such as 500MB or 5GB"),
        new_entry(cache / "data" / key(1), "the data"),
    ):
        raise AssertionError("the work has begun")


def test_prune_to_a_size_and_by_age(cache):
    for number, hours in enumerate([50, 40, 30, 20]):
        make(cache, "data", number, 1000, hours)
    make(cache, "features", 9, 1000, 99)
    assert len(prune(older_than=45 * HOUR, dry_run=True).deleted) == 2
    assert len(entries()) == 5
    prune("data", older_than=45 * HOUR)
    assert names() == ["data 1", "data 2", "data 3", "features 9"]
    prune("data", to=2000)
    assert names() == ["data 2", "data 3", "features 9"]
    prune(to=1000)
    assert names() == ["data 3"]
    prune(f"data/{key(3)[:31]}")
    assert names() == []


def test_what_is_no_kind_is_told_with_the_nearest(cache):
    with pytest.raises(ConfigError, match=r"no kind 'featurs'.*Did you mean 'features'\? Kinds are data, mixtures"):
        prune("featurs")
    with pytest.raises(ConfigError, match="nothing whose name begins so"):
        prune("data/0123")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 gb", 15 * 10**8), ("2GiB", 2 << 30), ("7", 7), ("0", 0), ("3kB", 3000), ("1TB", 10**12)],
)
def test_sizes(text, size, monkeypatch):
    assert parse_size(text, "--to") == size
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", text)
    assert limit() == size


def test_the_limit_has_a_default_and_can_be_lifted(monkeypatch):
    assert limit() == 20 * 10**9
    monkeypatch.setenv("MICROPLANE_CACHE_LIMIT", "None")
    assert limit() is None


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1GB", "1e9", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="--to .* is no size; expected one such as 500MB or 5GB"):
        parse_size(text, "--to")


def test_ages():
    assert [parse_age(text, "x") for text in ("90m", "12h", "30d", "1.5w")] == [5400, 43200, 2592000, 907200]
    for text in ("30", "30y", "d", "-1d"):
        with pytest.raises(ConfigError, match="--older-than .* is no age; expected .* 30d"):
            parse_age(text, "--older-than")


def test_an_entry_that_was_used_meanwhile_stays(cache):
    folder = make(cache, "data", 1, 1000, 5)
    [entry] = entries()
    os.utime(folder)
    assert not eviction.delete(entry)
    assert folder.is_dir()


def test_every_kind_says_what_it_is():
    assert all(kind.what and len(kind.what) <= 31 for kind in KINDS.values())


def test_entries_of_a_kind_are_listed_by_when_they_were_used(cache):
    for number, hours in ((1, 2), (2, 9), (3, 5)):
        make(cache, "data", number, 10, hours)
    assert names() == ["data 2", "data 3", "data 1"]
    hold(cache / "data" / key(2))
    assert names() == ["data 3", "data 1", "data 2"]


def test_an_entry_of_several_files_is_as_new_as_its_newest(cache):
    (cache / "number_format").mkdir(parents=True)
    for number, name, hours in ((1, "a", 9), (1, "b", 1), (2, "a", 4)):
        file = cache / "number_format" / f"{key(number)}.{name}"
        file.touch()
        age(file, hours)
    assert names() == ["number_format 2", "number_format 1"]
