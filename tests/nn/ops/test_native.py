"""Compiled operations that cannot be had are told of, once; a damaged library never ends the process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import microplane
from microplane.data.progress import Silent
from microplane.errors import MicroplaneWarning, notices_to
from microplane.nn.ops import native
from microplane.nn.ops.native import build
from tests.tiny import save_tiny_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="compilers are shell scripts here")


@pytest.fixture(scope="module")
def whole() -> Path:
    """A library that was compiled."""
    if (library := native.library()) is None:
        pytest.skip("nothing can be compiled here")
    return Path(library._name)


@pytest.fixture
def forget(monkeypatch, tmp_path):
    """An empty cache, and a process that knows of no library; called, it forgets again, as another process would."""
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MICROPLANE_NATIVE", raising=False)
    native._built.cache_clear()
    yield native._built.cache_clear
    native._built.cache_clear()


class Compiler:
    """A stand-in for a C++ compiler, that counts how often it was asked to compile."""

    def __init__(self, folder: Path):
        self.path, self.log = folder / "c++", folder / "calls"

    def does(self, what: str, version: str = "1.0") -> None:
        self.path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "cc {version}"; exit 0; fi\n'
            f"echo call >> {self.log}\nfor out; do :; done\n{what}\n"
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def compiler(tmp_path, monkeypatch, forget) -> Compiler:
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    return Compiler(tmp_path)


FAILS = """cat >&2 <<END
int8.cpp: In function 'f':
int8.cpp:3:10: fatal error: omp.h: No such file or directory
    3 | #include <omp.h>
      |          ^~~~~~~
compilation terminated.
END
exit 1"""


def asked() -> list[str]:
    """What is told when the library is wanted."""
    told: list[str] = []
    with notices_to(told.append):
        assert native.library() is None
    return told


def test_a_compile_that_fails_is_told_with_the_compilers_words(compiler):
    compiler.does(FAILS)
    [told] = asked()
    assert "compiled operations are off" in told
    assert f"{compiler.path} failed: int8.cpp:3:10: fatal error: omp.h: No such file or directory." in told
    assert "cross-entropy" in told
    assert "slower" in told
    assert "MICROPLANE_NATIVE=0" in told
    assert asked() == [], "once in a process is enough"


def test_threads_that_need_it_at_once_are_told_once(compiler):
    compiler.does(FAILS)
    told, barrier = list[str](), threading.Barrier(8)

    def ask(_: int) -> None:
        with notices_to(told.append):
            barrier.wait()
            assert native.library() is None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(told) == 1
    assert compiler.calls == 1


def test_without_a_listener_it_is_a_warning(compiler):
    compiler.does(FAILS)
    with pytest.warns(MicroplaneWarning, match=r"omp\.h"):
        assert native.library() is None


def test_who_wants_none_is_told_nothing(compiler, monkeypatch):
    compiler.does(FAILS)
    monkeypatch.setenv("MICROPLANE_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked() == []
    assert compiler.calls == 0


def test_a_run_tells_of_it_where_it_tells_of_all_else(compiler, tmp_path):
    compiler.does(FAILS)
    told: list[str] = []

    class Watch(Silent):
        def say(self, text: str) -> None:
            told.append(text)

    rows = [json.dumps({"prompt": f"say {n}", "completion": f"{n}"}) for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    knobs = {"train.epochs": 1, "eval.rows": 0, "model.dtype": "float32", "runs": str(tmp_path / "runs")}
    model = str(save_tiny_folder(tmp_path / "model"))
    run = microplane.train(model, str(tmp_path / "rows.jsonl"), set=knobs, watch=Watch())
    assert run.result["environment"]["compiled_operations"] is False
    assert len([line for line in told if "compiled operations are off" in line]) == 1


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("exit 3", "failed: exit code 3"),
        ("echo all is lost >&2; exit 1", "failed: all is lost"),
        ("exit 0", "failed: exit code 0"),  # and nothing was written
        ("echo text > $out", "cannot be loaded"),
    ],
)
def test_other_ways_to_fail(compiler, what, says):
    compiler.does(what)
    assert says in asked()[0]


def test_a_compiler_that_hangs_is_ended_with_all_that_it_began(compiler, monkeypatch, tmp_path):
    compiler.does(f"sleep 600 & echo $! > {tmp_path}/child; sleep 600")
    monkeypatch.setattr(build, "PATIENCE", 2.0)
    assert "did not end within 2 s" in asked()[0]
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_compiler_that_is_not_there(forget, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "there is no C++ compiler 'no-such-compiler -O2', which CXX names" in asked()[0]
    forget()
    monkeypatch.setenv("CXX", "c++ 'half")
    assert """CXX="c++ 'half" is no command: No closing quotation""" in asked()[0]
    forget()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no C++ compiler c++, g++ or clang++ on this machine" in asked()[0]


def test_a_cache_that_cannot_be_written_to(compiler, tmp_path, monkeypatch):
    compiler.does("exit 0")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "file"))
    [told] = asked()
    assert "Not a directory" in told
    assert "MICROPLANE_CACHE" in told


def test_a_failure_is_remembered_for_the_same_compiler_for_a_day(compiler, forget, tmp_path):
    compiler.does(FAILS)
    asked()
    forget()
    [told] = asked()
    assert "fatal error: omp.h" in told
    assert "microplane cache prune native" in told
    assert compiler.calls == 1
    [note] = (tmp_path / "cache" / "native").glob("*/build.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"when": time.time() - build.REMEMBERED - 1}))
    forget()
    asked()
    assert compiler.calls == 2
    compiler.does(FAILS, version="1.1")
    forget()
    asked()
    assert compiler.calls == 3, "another compiler is tried"


def test_a_compiler_with_arguments(compiler, monkeypatch, whole):
    compiler.does(f"cp {whole} $out")
    monkeypatch.setenv("CXX", f"env {compiler.path}")
    assert native.library() is not None


def test_what_cannot_be_loaded_is_not_compiled_again_and_again(compiler, forget):
    compiler.does("echo text > $out")
    for _ in range(2):
        assert "what was compiled cannot be loaded" in asked()[0]
        forget()
    assert compiler.calls == 1


def test_what_was_compiled_is_found_again(compiler, forget, whole):
    compiler.does(f"cp {whole} $out")
    assert native.library() is not None
    forget()
    assert native.library() is not None
    assert compiler.calls == 1


LOAD = """
from microplane.errors import notices_to
from microplane.nn.ops import native
import torch
with notices_to(print):
    assert native.library() is not None
from microplane.nn.ops import int8
x, weight = torch.ones(3, 64), int8.quantise(torch.ones(5, 64))
torch.testing.assert_close(int8.product(x, weight), int8.product_reference(x, weight))
"""


def cut(library: Path) -> None:
    with library.open("rb+") as file:  # the same file, that other processes may have mapped
        file.truncate(library.stat().st_size // 2)


def foreign(library: Path) -> None:
    other = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line
    )
    library.unlink()
    shutil.copy(other, library)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, True),
        (foreign, True),
        pytest.param(lambda library: library.write_bytes(b""), True, marks=pytest.mark.slow),
        pytest.param(lambda library: library.unlink(), True, marks=pytest.mark.slow),
        (lambda library: (library.parent / "build.json").unlink(), False),
        pytest.param(lambda library: (library.parent / "build.json").write_text("{"), False, marks=pytest.mark.slow),
        pytest.param(lambda library: (library.parent / "build.json").write_text("[]"), False, marks=pytest.mark.slow),
    ],
    ids=["cut off", "another library", "empty", "gone", "no note", "half a note", "another note"],
)
def test_a_damaged_library_is_compiled_again(compiler, whole, tmp_path, damage, told):
    """In processes of their own, for it would end them."""
    compiler.does(f"cp {whole} $out")
    command = [sys.executable, "-c", LOAD]
    first = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert first.stdout == ""
    [library] = (tmp_path / "cache" / "native").glob("*/operations.so")
    damage(library)
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert ("is damaged: compiled again" in done.stdout) == told
    assert library.read_bytes() == whole.read_bytes()
    assert compiler.calls == 2
