"""Rows that lie in no file: of a Python program, or of standard input (`-`). A run keeps them in its folder."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from microplane.config.build import assemble
from microplane.config.knobs import RunKnobs
from microplane.errors import ConfigError, DataError, check_type
from microplane.files import write_aside

STDIN = "-"


@dataclass(frozen=True)
class InlineData:
    """A file's name and what it would hold."""

    name: str
    content: bytes

    @classmethod
    def of_rows(cls, rows: Iterable[Any]) -> InlineData:
        """Rows as a JSONL file has them; numbers and lists of NumPy, of which those of a table consist, as Python's.

        Raises:
            DataError: if there is none, or naming the first row that is no mapping, or that JSON cannot hold.
        """
        lines = []
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                what = f"row {number} is a {type(row).__name__}"
                raise DataError(f"{what}: rows are mappings, as in [{{'prompt': ..., 'completion': ...}}]")
            try:
                line = json.dumps(dict(row), ensure_ascii=False, default=_of_numpy)
                lines.append(line.encode("utf-8", "surrogatepass") + b"\n")
            except (TypeError, ValueError, RecursionError) as error:
                raise DataError(f"row {number} cannot be written as JSON: {error}") from None
        if not lines:
            raise DataError("there are no rows: the data that was given is empty, or a generator that is used up")
        return cls("rows.jsonl", b"".join(lines))

    @classmethod
    def of_stdin(cls) -> InlineData:
        """All of standard input: JSON where it begins with a bracket, JSONL with a brace, else CSV.

        Raises:
            DataError: if there is nothing.
        """
        content = sys.stdin.buffer.read() if sys.stdin is not None else b""
        begins = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if not begins:
            raise DataError("standard input is empty: with - as DATA it holds the rows, as JSONL, JSON or CSV")
        return cls("stdin" + {b"{": ".jsonl", b"[": ".json"}.get(begins, ".csv"), content)

    def write(self, folder: Path) -> Path:
        write_aside(path := folder / self.name, self.content)
        return path.absolute()


def _of_numpy(value: Any) -> Any:
    if callable(plain := getattr(value, "tolist", None)):
        return plain()
    raise TypeError(f"a {type(value).__name__} is neither text nor a number, nor made of these")


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a file as JSON can hold it: what is neither text nor a number nor made of these (times and bytes of
    Parquet), of which nothing is learnt, is left out."""
    found = {key: _as_json(value) for key, value in row.items()}
    return {key: value for key, value in found.items() if value is not _NOTHING}


_NOTHING = object()


def _as_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return as_json({str(key): item for key, item in value.items()})
    if isinstance(value, list | tuple):
        items = [_as_json(item) for item in value]
        return [None if item is _NOTHING else item for item in items]
    return value if value is None or isinstance(value, str | int | float) else _NOTHING


def with_data(config: RunKnobs, path: str | Path) -> RunKnobs:
    """The same, with the rows of a file."""
    return config.model_copy(update={"data": config.data.model_copy(update={"train": str(path)})})


@contextmanager
def in_a_file(config: RunKnobs, inline: InlineData | None = None) -> Iterator[RunKnobs]:
    """A configuration whose rows lie in a file, for as long as the block lasts."""
    if inline is None and config.data.train != STDIN:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        yield with_data(config, (inline or InlineData.of_stdin()).write(Path(folder)))


def configuration(
    model: str | Path | None,
    data: str | Path | Iterable[Mapping[str, Any]] | None,
    method: str | None,
    set: Mapping[str, Any] | None,
    knobs: RunKnobs | None,
) -> tuple[RunKnobs, InlineData | None]:
    """The configuration that the arguments of `train` give, and rows that lie in no file."""
    inline = None
    if knobs is not None:
        check_type(knobs, "knobs", RunKnobs, "a RunKnobs")
        if any(given is not None for given in (model, data, method, set)):
            raise ConfigError("knobs are the whole configuration: leave out model, data, method and set")
        config = knobs
    else:
        config, inline = configured(model, data, {"method.name": method}, set)
    if config.data.train == STDIN:
        inline = InlineData.of_stdin()
        config = with_data(config, inline.name)
    return config, inline


def configured(
    model: object, data: object, more: Mapping[str, Any], set: Mapping[str, Any] | None
) -> tuple[RunKnobs, InlineData | None]:
    """The configuration that a program asks for by model, data and knobs; and rows, where `data` are some.

    Raises:
        ConfigError, DataError: for arguments of another type, or knobs that do not exist.
    """
    if model is not None:
        check_type(model, "model", (str, PathLike), "a name or a path")
    if set is not None:
        check_type(set, "set", Mapping, 'a mapping of knobs, as {"train.lr": 5e-4}')
    inline = None
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        inline = InlineData.of_rows(data)
    elif data is not None:
        check_type(data, "data", (str, PathLike), "a path, or rows as [{'prompt': ..., 'completion': ...}]")
    place = inline.name if inline else data
    given = {"model.name": model, "data.train": place} | {
        str(name): value for name, value in {**more, **(set or {})}.items()
    }
    return assemble(given={name: _text(value) for name, value in given.items()}), inline


def _text(value: Any) -> Any:
    return fspath(value) if isinstance(value, PathLike) else value
