"""Files -> rows. JSONL, JSON, CSV, TSV and Parquet, streamed; every row with its place, bad rows as complaints.

Text files may be compressed (.gz, .bz2). Nothing here knows what the keys of a row mean; `formats.py` does.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from microplane.data.reading.bad_rows import Problem, RowError, show
from microplane.errors import DataError, nearest

MAX_LINE = 16 * 2**20  # bytes; a longer line is reported and never given to a parser
MAX_JSON = 2**30  # bytes; a JSON list is read whole, JSONL is not
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"PAR1": "a Parquet file", b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file", b"PK\x03\x04": "a zip file"}


@dataclass(frozen=True)
class RawRow:
    """One row: its values, or the complaint about it. `line` counts lines from 1 (rows in JSON and Parquet)."""

    line: int
    values: dict[str, Any] | None = None
    problem: Problem | None = None


def file_type(path: Path) -> str:
    """The suffix that says how a file is read, without a compression's.

    Raises:
        DataError: for a name that says nothing known.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            raise DataError(f"{path}: Parquet is compressed inside; unpack the file first")
    if suffixes and suffixes[-1] in SUFFIXES:
        return suffixes[-1]
    found = suffixes[-1] if suffixes else ""
    has = f"files ending in {found!r} are not known" if found else "the name has no ending that tells its type"
    raise DataError(f"{path}: {has}.{nearest(found, SUFFIXES)} Possible: {', '.join(SUFFIXES)}, also with .gz or .bz2")


def read_rows(path: Path) -> Iterator[RawRow]:
    """All rows of a file, in order, in bounded memory (except JSON lists, which must be below 1 GB).

    Raises:
        DataError: for a file that cannot be read as a whole. What is wrong with single rows is in the rows.
    """
    kind = file_type(path)
    check_file(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        _refuse_binary(path)
        with _open(path) as file:
            yield from _READERS[kind](path, _Lines(file))
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def check_file(path: Path) -> None:
    """Refuse what is missing, no file, or empty, before anything is read."""
    if not path.exists():
        near = nearest(path.name, [item.name for item in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no file {path}.{near}")
    if not path.is_file():
        raise DataError(f"{path} is no file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, _COMPRESSED.get(path.suffix.lower(), open)(path, "rb"))


def _refuse_binary(path: Path) -> None:
    with _open(path) as file:
        head = file.read(4096)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {name} by its content, not {file_type(path)} text; give it the right ending")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in head:
        raise DataError(f"{path} is a binary file (byte {head.index(0)} is zero), expected {file_type(path)} text")


class _LongLineError(Exception):
    """A line above the bound; the file stands behind it."""


class _Lines:
    """The lines of a file as bytes, bounded. Unlike a generator it goes on after a line that was too long."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.number = 0  # of the line that was given last, from 1
        self.start = 0  # its first byte in the file
        self._end = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.file.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.start = self._end
        self._end += len(line)
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := self.file.readline(MAX_LINE)):
                self._end += len(line)
            raise _LongLineError
        return line.removeprefix(_BOM) if self.number == 1 else line

    def too_long(self) -> Problem:
        size = (self._end - self.start) / 2**20
        return Problem("line too long", f"the line holds {size:,.0f} MB, at most {MAX_LINE // 2**20} MB are read")


# JSONL and JSON


def _jsonl(path: Path, lines: _Lines) -> Iterator[RawRow]:
    while True:
        try:
            line = next(lines, None)
            if line is None:
                return
            if line.strip():
                yield RawRow(lines.number, parse_object(line, lines.start))
        except _LongLineError:
            yield RawRow(lines.number, problem=lines.too_long())
        except RowError as error:
            yield RawRow(lines.number, problem=error.problem)


def parse_object(line: bytes, start: int = 0) -> dict[str, Any]:
    """The JSON object on one line, which begins at byte `start` of its file.

    Raises:
        RowError: for invalid UTF-8, broken JSON, or a value that is no object.
    """
    try:
        value = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of the line, {start + error.start} of the file"
        raise RowError("invalid UTF-8", f"{place} is 0x{line[error.start]:02x}, expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RowError("broken JSON", _broken(error)) from None
    except (ValueError, RecursionError):  # a number of 5,000 digits; ten thousand brackets
        raise RowError("broken JSON", "a number or a nesting in it is too long to be read") from None
    if not isinstance(value, dict):
        raise RowError("not an object", f'the line is {show(value)}, expected an object such as {{"prompt": ...}}')
    return value


def _broken(error: json.JSONDecodeError) -> str:
    near = error.doc[max(0, error.pos - 20) : error.pos + 20].strip()
    return f"{error.msg} at column {error.colno}, near {near!r}; expected one whole JSON object on the line"


def _json(path: Path, lines: _Lines) -> Iterator[RawRow]:
    if _is_jsonl(path):
        yield from _jsonl(path, lines)
        return
    content = lines.file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise DataError(f"{path} is above 1 GB, and a JSON list is read whole; save it as JSONL, one object on a line")
    for number, value in enumerate(_rows_in(path, _load_json(path, content)), 1):
        if isinstance(value, dict):
            yield RawRow(number, value)
        else:
            yield RawRow(number, problem=Problem("not an object", f"the item is {show(value)}, expected an object"))


def _is_jsonl(path: Path) -> bool:
    """Whether a .json file holds one object per line, as many do."""
    with _open(path) as file:
        filled = (line for line in _Lines(file) if line.strip())
        try:
            parse_object(next(filled, b""))
            return next(filled, None) is not None
        except (_LongLineError, RowError):
            return False


def _load_json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content.removeprefix(_BOM).decode())
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(f"{path}: byte {error.start} is 0x{byte:02x}, expected UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path} is broken JSON: {error.msg} at {place}; expected a list of objects") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is broken JSON: a number or a nesting in it is too long to be read") from None


def _rows_in(path: Path, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {show(value)}, expected a list of objects")
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(lists) > 1 and "data" in lists:
        lists = {"data": lists["data"]}
    if len(lists) != 1:
        has = f"lists below {sorted(lists)[:10]}" if lists else f"the keys {sorted(value)[:10]} and no list"
        raise DataError(f"{path} is one object with {has}; expected a list of objects, or one list below 'data'")
    return next(iter(lists.values()))


# CSV


def _csv(path: Path, lines: _Lines) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE)
    try:
        header, delimiter = _header(path, lines)
    except _LongLineError:
        raise DataError(f"{path}: {lines.too_long().message}; expected the names of the columns") from None
    reader = csv.reader(_texts(lines), delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield RawRow(line, _named(cells, header))
        except _LongLineError:
            yield RawRow(line, problem=lines.too_long())
            reader = csv.reader(
                _texts(lines), delimiter=delimiter, strict=True
            )  # the generator ended with the exception
        except csv.Error as error:
            yield RawRow(line, problem=Problem("broken CSV", f"{error}; is a quote left open, or a line end stray?"))
        except RowError as error:
            yield RawRow(line, problem=error.problem)


def _texts(lines: _Lines) -> Iterator[str]:
    """Lines as text. Bytes that are not UTF-8 become lone surrogates, which the row's check finds."""
    for line in lines:
        yield line.decode(errors="surrogateescape")


def _header(path: Path, lines: _Lines) -> tuple[list[str], str]:
    """The columns' names and the character between them: a tab in .tsv, else the first of `,` `;` tab that occurs."""
    first = next((line for line in _texts(lines) if line.strip()), "")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    if file_type(path) == ".tsv":
        delimiter = "\t"
    try:
        header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is broken ({error})") from None
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if not named or twice:
        what = f"names {twice[0]!r} twice" if twice else "names no column"
        raise DataError(f"{path}: the first line {what}; it must name each column once")
    return header, delimiter


def _named(cells: list[str], header: list[str]) -> dict[str, Any]:
    for cell in cells:
        if not cell.isascii() and (bad := re.search("[\udc80-\udcff]", cell)):
            byte = ord(bad[0]) - 0xDC00
            raise RowError("invalid UTF-8", f"a cell holds the byte 0x{byte:02x}, expected UTF-8 text: {show(cell)}")
    if len(cells) != len(header):
        near = f"; it begins with {show(cells[0])}"
        raise RowError("ragged row", f"the row has {len(cells)} cells, expected {len(header)} as in the header{near}")
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}


# Parquet


def _parquet(path: Path) -> Iterator[RawRow]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{path} is a Parquet file, which needs the package pyarrow, and that is not installed. "
            "Install it: pip install 'microplane[parquet]'; or save the data as JSONL"
        ) from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(number, values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:200]
        place = f" behind row {number:,}" if number else ""
        raise DataError(f"{path} is no readable Parquet file{place}: {what}") from None


_READERS: dict[str, Callable[[Path, _Lines], Iterator[RawRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
}

# Folders

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def find_splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split. A file is all training data; a folder holds `train.*`, `validation.*`, `test.*`.

    A split may be cut into shards named as in `train-00000-of-00002.parquet`.

    Raises:
        DataError: if nothing is there, no file is the training data, or two are.
    """
    if not path.is_dir():
        check_file(path)
        return {"train": [path]}
    names = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
    splits = {split: files for split in SPLITS if (files := _files_of(split, names))}
    if "train" not in splits:
        has = ", ".join(item.name for item in names[:10]) or "no file"
        expected = "Expected train.jsonl, .json, .csv, .tsv or .parquet, or give the file itself"
        raise DataError(f"the folder {path} has no train file; it holds {has}. {expected}")
    return splits


def _files_of(split: str, files: list[Path]) -> list[Path]:
    known = [file for file in files if any(suffix.lower() in SUFFIXES for suffix in file.suffixes)]
    found = [file for file in known if file.name.split(".")[0].lower() in SPLITS[split]]
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise DataError(f"{found[0].parent}: {names} could all be the {split} file; keep one, or name it")
    shard = re.compile(rf"({'|'.join(SPLITS[split])})-\d+-of-\d+\..+", re.IGNORECASE)
    return found or [file for file in known if shard.fullmatch(file.name)]
