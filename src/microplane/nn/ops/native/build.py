"""The compiler is called once for the same sources, flags, compiler and processor; the result lies in the cache.

A folder of the cache holds the library and its checksum, which is compared before anything of it is loaded: a library
that was cut off, or is another's, would end the process. A compile that failed is remembered there too, for a day.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microplane.cache.entries import ABOUT, touch
from microplane.cache.eviction import new_entry
from microplane.errors import DataError, notice
from microplane.files import cache_dir, file_sha256, remove
from microplane.hardware import processor, run_program

FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-strict-aliasing"),  # infinities must work
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)


@dataclass(frozen=True)
class Sources:
    """The C++ files of a folder, which make one library.

    Attributes:
        flags: of the compiler.
        libraries: to be linked with; their flags come last.
    """

    folder: Path
    flags: tuple[str, ...]
    libraries: tuple[str, ...] = ()


OPERATIONS = Sources(Path(__file__).parent, FLAGS)
PATIENCE = 120.0  # seconds for the compiler
LIBRARY, NOTE = "operations.so", "build.json"
REMEMBERED = 24 * 3600.0  # seconds in which a compile that failed is not tried again


class CompileError(Exception):
    """Why there are no compiled operations, as the user is told."""


def load_or_compile(sources: Sources = OPERATIONS) -> ctypes.CDLL:
    """The library of compiled operations, or of other sources, for this processor.

    Raises:
        CompileError: if there is none to be had.
    """
    compiler = _compiler()
    folder = cache_dir() / "native" / _key(sources, compiler)
    built = _open(folder) or _compile(sources, folder, compiler)
    touch(folder)
    return built


def _compiler() -> list[str]:
    """The command of the C++ compiler: that of $CXX, with its arguments, or the system's."""
    named = os.environ.get("CXX", "").strip()
    if named:
        try:
            program, *arguments = shlex.split(named)
        except ValueError as error:
            raise CompileError(f"CXX={named!r} is no command: {error}") from None
        if found := shutil.which(program):
            return [found, *arguments]
        raise CompileError(f"there is no C++ compiler {named!r}, which CXX names")
    if found := shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return [found]
    raise CompileError("there is no C++ compiler c++, g++ or clang++ on this machine")


def _key(sources: Sources, compiler: list[str]) -> str:
    """What the result depends on: the sources, the flags, the compiler and the processor."""
    try:
        version = run_program([*compiler, "--version"], PATIENCE).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{shlex.join(compiler)} cannot be run: {error}") from None
    digest = hashlib.sha256(f"{sources.flags} {compiler} {processor()} {version}".encode())
    for source in sorted([*sources.folder.glob("*.cpp"), *sources.folder.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _open(folder: Path) -> ctypes.CDLL | None:
    """What was built before, if it is whole. A library that was cut off would end the process when it is loaded.

    Raises:
        CompileError: if the compile failed within a day, or what came of it cannot be loaded here.
    """
    note = _note(folder)
    if failed := note.get("failed"):
        if time.time() - note.get("when", 0.0) < REMEMBERED:
            raise CompileError(f"{failed} (not tried again within a day; `microplane cache prune native` forgets it)")
    elif note:
        with suppress(OSError):
            if file_sha256(folder / LIBRARY) == note.get("sha256"):
                return _load(folder)
        notice(f"native    {folder / LIBRARY} is damaged: compiled again")
    with suppress(OSError):
        remove(folder)
    return None


def _note(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return note if isinstance(note, dict) else {}
    return {}


def _compile(sources: Sources, folder: Path, compiler: list[str]) -> ctypes.CDLL:
    """Compile into the cache, and load what came of it.

    Raises:
        CompileError: if either fails.
    """
    try:
        with new_entry(folder, "they") as temporary:
            note = _try(sources, compiler, temporary / LIBRARY)
            (temporary / NOTE).write_text(json.dumps(note), encoding="utf-8")
            what = "a compile that failed" if "failed" in note else "compiled operations"
            (temporary / ABOUT).write_text(f"{what}, by {Path(compiler[0]).name}\n", encoding="utf-8")
    except DataError as error:
        raise CompileError(str(error)) from None
    if failed := note.get("failed"):
        raise CompileError(failed)
    return _load(folder)


def _load(folder: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(folder / LIBRARY))
    except OSError as error:
        raise CompileError(f"what was compiled cannot be loaded: {error}") from None


def _try(sources: Sources, compiler: list[str], target: Path) -> dict[str, Any]:
    """What is to be noted of one call of the compiler: the checksum of the library, or why there is none."""
    files = [str(source) for source in sorted(sources.folder.glob("*.cpp"))]
    try:
        done = run_program([*compiler, *sources.flags, *files, "-o", str(target), *sources.libraries], PATIENCE)
    except subprocess.TimeoutExpired:
        failed = f"{shlex.join(compiler)} did not end within {PATIENCE:.0f} s"
    else:
        if done.returncode == 0 and target.is_file():
            return {"sha256": file_sha256(target), "bytes": target.stat().st_size}
        failed = f"{shlex.join(compiler)} failed: {_last_line(done.stderr) or f'exit code {done.returncode}'}"
    target.unlink(missing_ok=True)
    return {"failed": failed, "when": time.time()}


def _last_line(said: str) -> str:
    """The last line of a compiler that tells of an error; drawings of the code, say, tell nothing."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")[:300]
