import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing import side_by_side as module
from microplane.data.preparing.side_by_side import CHUNK, side_by_side
from microplane.errors import DataError
from tests.tiny import text_splits

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all is done in one process")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)


def where(number: int) -> tuple[int, int]:
    """Which process is asked, and, of every tenth, late."""
    if number % CHUNK == 0 and number // CHUNK % 3 == 0:
        time.sleep(0.02)
    return number * number, os.getpid()


def one_by_one(function, items, count):
    """Each item with what the function makes of it."""
    with closing(side_by_side(lambda chunk: [(item, function(item)) for item in chunk], items, count)) as chunks:
        for chunk in chunks:
            yield from chunk


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def left(known: frozenset[int] = frozenset()) -> set[int]:
    """Children that have not ended, once they had time to."""
    end = time.monotonic() + 5
    while (alive := set(children()) - known) and time.monotonic() < end:
        time.sleep(0.01)
    return alive


@linux
def test_many_items_are_done_by_other_processes_and_come_back_in_order(two_cores):
    before = set(children())
    found = list(one_by_one(where, iter(range(module.WORTH + 17)), module.WORTH + 17))
    assert [item for item, _ in found] == list(range(module.WORTH + 17))
    assert [square for _, (square, _) in found] == [item * item for item in range(module.WORTH + 17)]
    processes = {process for _, (_, process) in found}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert set(children()) == before


@pytest.mark.parametrize(("count", "cores", "platform"), [(10, 2, "linux"), (5_000, 1, "linux"), (5_000, 2, "darwin")])
def test_few_items_one_core_and_other_systems_are_done_here(monkeypatch, count, cores, platform):
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    monkeypatch.setattr(sys, "platform", platform)
    found = list(one_by_one(where, iter(range(count)), count))
    assert [item for item, _ in found] == list(range(count))
    assert {process for _, (_, process) in found} == {os.getpid()}


@linux
@pytest.mark.parametrize("name", ["ProcessPoolExecutor", "_begin"])
def test_where_the_system_allows_no_other_process_all_is_done_here(two_cores, monkeypatch, name):
    def refused(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module, name, refused)
    found = list(one_by_one(where, iter(range(module.WORTH)), module.WORTH))
    assert {process for _, (_, process) in found} == {os.getpid()}
    assert not left()


@linux
def test_the_first_process_ends_where_there_is_no_room_for_the_second(two_cores, monkeypatch):
    forks, fork = [], os.fork

    def one_fork() -> int:
        if forks:
            raise OSError(11, "Resource temporarily unavailable")
        forks.append(1)
        return fork()

    before = frozenset(children())
    monkeypatch.setattr(os, "fork", one_fork)
    found = list(one_by_one(where, iter(range(module.WORTH)), module.WORTH))
    assert {process for _, (_, process) in found} == {os.getpid()}
    assert forks
    assert not left(before)


@linux
def test_a_thread_may_ask_as_well(two_cores):
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: list(one_by_one(where, iter(range(module.WORTH)), module.WORTH))).result()
    assert [item for item, _ in found] == list(range(module.WORTH))
    assert os.getpid() not in {process for _, (_, process) in found}


@linux
def test_what_is_under_way_does_not_grow_with_the_items(two_cores):
    taken = 0

    def items():
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield number

    with closing(one_by_one(abs, items(), 100_000)) as found:
        for _ in range(3 * CHUNK):
            next(found)
    assert taken <= (3 + 2 * module.AHEAD) * CHUNK


@linux
def test_who_stops_early_leaves_no_process_behind(two_cores):
    before = set(children())
    with closing(one_by_one(abs, iter(range(100_000)), 100_000)) as found:
        next(found)
        assert len(set(children()) - before) == 2
    assert set(children()) == before


@linux
def test_a_process_that_is_ended_from_outside_is_told_and_not_waited_for(two_cores):
    def ends(number: int) -> int:
        if number == 3 * CHUNK:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(DataError, match="for want of memory"):
        list(one_by_one(ends, iter(range(5_000)), 5_000))
    assert not left()


@linux
def test_ctrl_c_is_not_for_the_copies(two_cores):
    def ignores_ctrl_c(number: int) -> int:
        return int(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)

    count = module.WORTH
    assert {found for _, found in one_by_one(ignores_ctrl_c, iter(range(count)), count)} == {1}


@linux
def test_an_error_of_the_function_arrives_as_it_is(two_cores):
    def refuses(number: int) -> int:
        if number == 1_234:
            raise KeyError("what was not foreseen")
        return number

    with pytest.raises(KeyError, match="what was not foreseen"):
        list(one_by_one(refuses, iter(range(5_000)), 5_000))


@linux
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_copies_end_with_the_process_they_were_made_from(tmp_path, sent):
    program = tmp_path / "many.py"
    program.write_text(
        "import time\n"
        "from microplane.data.preparing import side_by_side as module\n"
        "module.usable_cores = lambda: 2\n"
        "def slow(number):\n"
        "    time.sleep(0.001)\n"
        "    return number\n"
        "def all_of(numbers):\n"
        "    return [slow(number) for number in numbers]\n"
        "for number, _ in enumerate(module.side_by_side(all_of, iter(range(10**6)), 10**6)):\n"
        "    if number == 0:\n"
        "        print('begun', flush=True)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, str(program)], **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    copies = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(copies) == 2
    if sent == signal.SIGINT:  # the terminal sends it to all
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    _, told = process.communicate(timeout=30)
    assert told.count("Traceback") <= 1, "a copy told of Ctrl-C too"
    end = time.monotonic() + 10
    while any(runs(pid) for pid in copies) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(runs(pid) for pid in copies)


def runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def rows(path: Path, count: int) -> str:
    lines = [
        json.dumps({"prompt": f"ask {number} <s>" if number % 7 else "?", "completion": "yes " * (number % 40 + 1)})
        for number in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@linux
def test_a_file_becomes_the_same_arrays_as_in_one_process(tmp_path, cache, make_tiny, monkeypatch):
    tokenizer = make_tiny(("<s>", "</s>"), eos="</s>", bos="<s>", adds_bos=True)
    written = []
    for cores in (1, 2):
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / f"cache {cores}"))
        text_splits(DataKnobs(train=rows(tmp_path / "train.jsonl", 3_000), max_length=60), tokenizer)
        (entry,) = (tmp_path / f"cache {cores}" / "data").iterdir()
        written.append({file.name: file.read_bytes() for file in entry.iterdir() if file.name != "about.txt"})
    assert written[0] == written[1]
    assert json.loads(written[0]["summary.json"])["summary"]["truncated"]["train"] > 100


@linux
@pytest.mark.parametrize("skip", [False, True])
def test_rows_that_the_template_refuses_are_told_in_the_same_words(tmp_path, make_tiny, monkeypatch, skip):
    template = (
        "{% for m in messages %}{% if m.content == '?' %}{{ raise_exception('nothing is asked') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = make_tiny(("<s>", "</s>"), eos="</s>", bos="<s>", template=template)
    told = []
    for cores in (1, 2):
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / f"cache {cores}"))
        knobs = DataKnobs(train=rows(tmp_path / "train.jsonl", 3_000), skip_bad_rows=skip)
        if skip:
            summary = text_splits(knobs, tokenizer).summary
            told.append((summary.bad, summary.bad_examples, summary.rows))
        else:
            with pytest.raises(DataError) as caught:
                text_splits(knobs, tokenizer)
            told.append(str(caught.value))
    assert told[0] == told[1]
    assert "nothing is asked" in str(told[0])


@linux
@pytest.mark.parametrize("cores", [1, 2])
def test_rows_that_were_found_bad_take_no_place_of_others(tmp_path, make_tiny, monkeypatch, cores):
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    lines = [{"prompt": f"q{number}", "completion": "" if number % 5 == 3 else f"a{number}"} for number in range(3_000)]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join("{" if number % 7 == 2 else json.dumps(line) for number, line in enumerate(lines)))
    splits = text_splits(DataKnobs(train=str(path), skip_bad_rows=True, validation_rows=50), make_tiny())
    good = [number for number in range(3_000) if number % 7 != 2 and number % 5 != 3]
    found = {}
    for rows in (splits.train, splits.validation):
        for row in range(len(rows)):
            ids, targets = rows[row]
            found[rows.where(row)] = make_tiny().decode(ids[targets].tolist())
    assert found == {f"train.jsonl:{number + 1}": f"a{number}" for number in good}


def test_rows_of_all_chunks_are_counted(tmp_path, make_tiny, monkeypatch):
    """Of 700 rows, in four chunks, every 7th is cut and every 6th holds a special token."""
    path = tmp_path / "train.jsonl"
    rows = ({"prompt": "q" * (90 if n % 7 == 0 else 9), "completion": "<s>" * (n % 6 == 0) + "yes"} for n in range(700))
    path.write_text("\n".join(map(json.dumps, rows)))
    told = []
    for chunk in (40, 1000):
        monkeypatch.setattr(module, "CHUNK", chunk)
        monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / f"cache {chunk}"))
        tokenizer = make_tiny(("<s>", "</s>"), eos="</s>", bos="<s>")
        summary = text_splits(DataKnobs(train=str(path), max_length=60), tokenizer).summary
        told.append(summary)
    assert told[0] == told[1]
    assert sum(told[0].truncated.values()) == 100
    assert any(warning.startswith("117 rows hold special tokens") for warning in told[0].warnings)
