"""Files -> rows. JSONL, JSON, CSV, TSV and Parquet, streamed; every row with its place, bad rows as complaints.

Text files may be compressed (.gz, .bz2). Nothing here knows what the keys of a row mean; `formats.py` does.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from microplane.config.section import is_utf8
from microplane.data.reading.bad_rows import Problem, RowError, show
from microplane.data.reading.class_names import ByName, class_columns, class_names
from microplane.data.reading.csv_rows import csv_rows
from microplane.data.reading.example import texts_in
from microplane.data.reading.lines import BOM, SUFFIXES, Lines, LongLineError, RawRow, file_type, open_file
from microplane.data.reading.values import PartOfRow
from microplane.errors import DataError, nearest

MAX_JSON = 2**30  # bytes; a JSON list is read whole, JSONL is not
_MAGIC = {b"PAR1": "a Parquet file", b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file", b"PK\x03\x04": "a zip file"}


def read_rows(path: Path, keys: Collection[str] = ()) -> Iterator[RawRow]:
    """All rows of a file, in order, in bounded memory (except JSON lists, which must be below 1 GB).

    Args:
        keys: the columns that are of use, if known: of Parquet no others are read.

    Raises:
        DataError: for a file that cannot be read as a whole. What is wrong with single rows is in the rows.
    """
    kind = file_type(path)
    check_file(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path, keys)
            return
        _refuse_binary(path)
        with open_file(path) as file:
            yield from _READERS[kind](path, Lines(file))
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def check_file(path: Path) -> None:
    """Refuse what is missing, no file, or empty, before anything is read."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a link to {path.readlink()}, which is not there")
    if not path.exists():
        near = nearest(path.name, [item.name for item in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no file {path}.{near}")
    if not path.is_file():
        raise DataError(f"{path} is no file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")


def _refuse_binary(path: Path) -> None:
    with open_file(path) as file:
        head = file.read(4096)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {name} by its content, not {file_type(path)} text; give it the right ending")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in head:
        raise DataError(f"{path} is a binary file (byte {head.index(0)} is zero), expected {file_type(path)} text")


# JSONL and JSON


def _jsonl(path: Path, lines: Lines) -> Iterator[RawRow]:
    while True:
        try:
            line = next(lines, None)
            if line is None:
                return
            if line.strip():
                yield RawRow(lines.number, parse_object(line, lines.start))
        except LongLineError:
            yield RawRow(lines.number, problem=lines.too_long())
        except RowError as error:
            yield RawRow(lines.number, problem=error.problem)


class _TwiceError(ValueError):
    """An object has a key with two values, so that it is not known which was meant."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and (torn := [key for key, value in pairs if value != found[key]]):
        raise _TwiceError(f"an object has the key {torn[0][:60]!r} twice, with two values; expected one")
    return found


_decode = json.JSONDecoder(object_pairs_hook=_once).decode


def parse_object(line: bytes, start: int = 0) -> dict[str, Any]:
    """The JSON object on one line, which begins at byte `start` of its file.

    Raises:
        RowError: for invalid UTF-8, broken JSON, or a value that is no object.
    """
    try:
        value = _decode(line.decode().rstrip())
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of the line, {start + error.start} of the file"
        raise RowError("invalid UTF-8", f"{place} is 0x{line[error.start]:02x}, expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RowError("broken JSON", _broken(error)) from None
    except _TwiceError as error:
        raise RowError("repeated key", str(error)) from None
    except (ValueError, RecursionError):  # a number of 5,000 digits; ten thousand brackets
        raise RowError("broken JSON", "a number or a nesting in it is too long to be read") from None
    if not isinstance(value, dict):
        raise RowError("not an object", f'the line is {show(value)}, expected an object such as {{"prompt": ...}}')
    return value


def _broken(error: json.JSONDecodeError) -> str:
    near = error.doc[max(0, error.pos - 20) : error.pos + 20].strip()
    return f"{error.msg} at column {error.colno}, near {near!r}; expected one whole JSON object on the line"


def _json(path: Path, lines: Lines) -> Iterator[RawRow]:
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
    with open_file(path) as file:
        filled = (line for line in Lines(file) if line.strip())
        try:
            parse_object(next(filled, b""))
            return next(filled, None) is not None
        except (LongLineError, RowError):
            return False


def _load_json(path: Path, content: bytes) -> Any:
    try:
        return _decode(content.removeprefix(BOM).decode())
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(f"{path}: byte {error.start} is 0x{byte:02x}, expected UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path} is broken JSON: {error.msg} at {place}; expected a list of objects") from None
    except _TwiceError as error:
        raise DataError(f"{path}: {error}") from None
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


# Parquet


def _parquet(path: Path, keys: Collection[str]) -> Iterator[RawRow]:
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
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise DataError(f"{path} has two columns {twice!r}, expected one; rename or leave out the other")
            there = [name for name in names if not keys or name in keys]
            classes = class_columns(file.schema_arrow.metadata)
            for batch in file.iter_batches(batch_size=256, columns=there):
                columns = {name: _values(column) for name, column in zip(batch.schema.names, batch, strict=True)}
                for row in range(batch.num_rows):
                    number += 1
                    part = PartOfRow((name, values[row]) for name, values in columns.items())
                    part.columns = names
                    yield _by_class_names(number, part, classes)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:200]
        place = f" behind row {number:,}" if number else ""
        raise DataError(f"{path} is no readable Parquet file{place}: {what}") from None


def named_classes(path: Path) -> dict[str, tuple[str, ...]]:
    """The names of classes that a Parquet file has beside its columns, by column; none of any other file."""
    if file_type(path) != ".parquet":
        return {}
    import pyarrow.parquet as pq

    return class_names(pq.read_schema(path).metadata)


def _by_class_names(number: int, values: PartOfRow, classes: Mapping[str, ByName]) -> RawRow:
    try:
        for name in classes.keys() & values.keys():
            values[name] = classes[name](values[name])
    except RowError as error:
        return RawRow(number, problem=error.problem)
    return RawRow(number, values)


def _values(column: Any) -> Sequence[Any]:
    """The values of a column (pyarrow.Array) as Python has them. Where it has none, as of a time in nanoseconds or of
    the year 14000, they stay pyarrow's: no text, and no harm unless this column is of use."""
    try:
        values: Sequence[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        return list(column)
    return values


_READERS: dict[str, Callable[[Path, Lines], Iterator[RawRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": csv_rows,
    ".tsv": csv_rows,
}

# Folders

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def first_texts(data: Path, rows: int) -> list[str]:
    """All texts in the first training rows of a file or a folder, as they stand there, but for half characters.

    Raises:
        DataError: see `find_splits` and `read_rows`.
    """
    file, *_ = find_splits(data)["train"]
    return [text for row in islice(read_rows(file), rows) for text in texts_in(row.values) if is_utf8(text)]


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


_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")


def unread_files(path: Path) -> list[str]:
    """Of a folder with splits, the files that look like rows and belong to none of them: `eval.jsonl`, `train2.csv`,
    `test.txt`."""
    if not path.is_dir():
        return []
    read = {file for files in find_splits(path).values() for file in files}
    others = (item for item in sorted(path.iterdir()) if item.is_file() and item not in read)
    called = {name for names in SPLITS.values() for name in names}
    return [
        item.name
        for item in others
        if not item.name.startswith(".")
        and item.name not in _ABOUT
        and (any(suffix.lower() in SUFFIXES for suffix in item.suffixes) or item.name.split(".")[0].lower() in called)
    ]


def _files_of(split: str, files: list[Path]) -> list[Path]:
    known = [file for file in files if any(suffix.lower() in SUFFIXES for suffix in file.suffixes)]
    found = [file for file in known if file.name.split(".")[0].lower() in SPLITS[split]]
    shard = re.compile(rf"({'|'.join(SPLITS[split])})-(\d+)-of-(\d+)\..+", re.IGNORECASE)
    shards = {file: place for file in known if (place := shard.fullmatch(file.name))}
    if found and len(could := [*found, *shards]) > 1:
        names = " and ".join(file.name for file in could[:3])
        raise DataError(f"{could[0].parent}: {names} could all be the {split} file; keep one, or name it")
    if shards:
        places = {file.name: (int(place[2]), int(place[3])) for file, place in shards.items()}
        _refuse_part(next(iter(shards)).parent, split, dict(sorted(places.items(), key=lambda item: item[1])))
    return found or list(shards)


def _refuse_part(folder: Path, split: str, shards: Mapping[str, tuple[int, int]]) -> None:
    """Raises: DataError, for shards that are not all there, or of two sets.

    Args:
        shards: of each file its number, and how many files there are by its name.
    """
    seen: dict[tuple[int, int], str] = {}
    for file, (number, count) in shards.items():
        other = next((name for (_, of), name in seen.items() if of != count), seen.get((number, count)))
        if other is not None:
            raise DataError(f"{folder}: {other} and {file} are of two sets of {split} files; keep one")
        seen[number, count] = file
    [(_, count), file] = next(iter(seen.items()))
    first = int((count, count) in seen)  # they are counted from 0 or from 1 on
    lacking = islice((at for at in range(first, first + count) if (at, count) not in seen), 4)
    if listed := ", ".join(map(str, lacking)):
        raise DataError(
            f"{folder} has {len(seen)} of {count:,} {split} files: beside {file} number {listed} is lacking. Fetch the "
            "rest, or give one of the files alone as DATA"
        )
