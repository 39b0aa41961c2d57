"""What stands in a column of labels: a class, several, a number, a class for each word; or that there is none.

The first rows of a file decide which of these it is, where the user does not. What does not fit then is a bad row.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

from microplane.config.section import is_utf8
from microplane.data.reading.bad_rows import NoLabel, RowError, show
from microplane.data.reading.values import whole_text
from microplane.models.configs.head import IGNORED, PER_TOKEN, Task

Labels = tuple[str | float | None, ...]

LARGEST = 1e19  # of a number to be learnt: its square, which the loss is made of, is still a float32
AUTO = ("auto",)  # data.no_label: see `means_none`
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)  # longer ones, and digits of other scripts, are names like any other
_FLAGS = re.compile(r"\[?\s*[01](\.0*)?([\s,;|]+[01](\.0*)?)+\s*\]?")  # a multi-hot row as text
_APART = re.compile(r"""['"]\s+['"]""")  # texts without a comma between them
_MARKED = re.compile(r"\s*[$€£¥₫]?\s?[+-]?\d{1,3}([.,'’\s]?\d{3})*([.,]\d+)?\s?[%$€£¥₫]?\s*")  # 1,234.5 or 12 %
_WORDS = 3  # for what is not known, beside numbers: NaN, unknown
_FEW = 10  # numbers below which nothing follows from their being all different


@dataclass(frozen=True)
class LabelValues:
    """How the values of one column are read.

    Args:
        task: what is learnt from them.
        classes: of multi-hot rows, the names of the columns; else empty, for the rows name their classes.
        no_label: names that mean that there is no label.
        known: class names of the model's head, which are taken as they are spelled.
    """

    task: Task
    classes: tuple[str, ...] = ()
    no_label: frozenset[str] = frozenset()
    known: tuple[str, ...] = ()

    def read(self, value: Any, key: str) -> Labels:
        """The labels of a row: one class, all classes that it has, a number, or one class for each word (None where a
        word has none).

        Raises:
            RowError: with the key, the value and what was expected.
            NoLabel: if the value says that the row has no label.
        """
        place = f"key {key!r} is {show(value)}, expected"
        if self.task == "regression":
            return (self._number(value, place),)
        if self.task == "classification":
            name = self._name(value, key, f"{place} a label")
            if name in self.no_label:
                raise NoLabel
            return (name,)
        items = unpacked(value)
        if not isinstance(items, list):
            raise RowError("wrong label", f"{place} a list of {'tags' if self.task == PER_TOKEN else 'labels'}")
        if self.task == PER_TOKEN:
            return self._tags(items, key, place)
        return self._hot(items, place) if self.classes else self._several(items, key, place)

    def _number(self, value: Any, place: str) -> float:
        if is_none(value, self.no_label):
            raise NoLabel
        number = _number(value, place)
        if any(number == _as_number(name) for name in self.no_label):
            raise NoLabel
        return number

    def _tags(self, items: list[Any], key: str, place: str) -> Labels:
        if not items:
            raise RowError("no list", f"{place} a list of tags")
        names = [self._name(item, key, f"{place} a list of tags") for item in items]
        return tuple(None if name in self.no_label else name for name in names)

    def _several(self, items: list[Any], key: str, place: str) -> Labels:
        names = [self._name(item, key, f"{place} a list of labels") for item in items]
        if none := next((name for name in names if name in self.no_label), None):
            raise RowError("wrong label", f"{place} a list of labels; {none} means that there is none: leave it out")
        if len(set(names)) < len(names) and all(map(_WHOLE.fullmatch, names)):
            raise RowError("wrong label", f"{place} each label once; multi-hot rows are lists of one length of 0 and 1")
        return tuple(dict.fromkeys(names))

    def _hot(self, items: list[Any], place: str) -> Labels:
        if len(items) != len(self.classes) or not all(_is_flag(item) for item in items):
            raise RowError(
                "wrong label",
                f"{place} {len(self.classes)} numbers as in the first rows, each 0 or 1; none may be left open. If "
                "the lists name the classes of a row, write names, as c0 and c1",
            )
        return tuple(name for name, item in zip(self.classes, items, strict=True) if float(item))

    def _name(self, value: Any, key: str, expected: str) -> str:
        """A class name. White space around it does not count, and neither does how much of it lies between words."""
        if isinstance(value, str) and value in self.known:
            return value
        if (name := _plain_name(value)) is None:
            asked = ""
            if isinstance(value, float):
                one = "; for numbers choose data.task=regression"
                asked = one if self.task == "classification" else ", each a name or a whole number"
            raise RowError("wrong label", expected + asked)
        return whole_text(name, f"key {key!r}")


def look(
    values: Iterable[Any],
    task: Task | None,
    known: Sequence[str] = (),
    no_label: Sequence[str] = AUTO,
    is_number: bool = False,
) -> LabelValues:
    """How a column is read, by its values in the first rows.

    Args:
        task: what the user asked for, or what the other columns say; None: the values decide.
        known: class names of the model's head.
        no_label: as the knob `data.no_label`.
        is_number: the column's name says so: decimals are no classes, even if they are whole.
    """
    some = [unpacked(value) for value in values if value is not None and value != ""]
    task = task or _task(some, is_number)
    single = list(chain.from_iterable(value if isinstance(value, list) else [value] for value in some))
    given = frozenset(no_label)
    if tuple(no_label) == AUTO:
        given = _no_number(single) if task == "regression" else means_none(plain_names(single)) - set(known)
    return LabelValues(task, _hot_classes(some, known) if task == "multilabel" else (), given, tuple(known))


def plain_names(values: Iterable[Any]) -> set[str]:
    """The class names among values of a column."""
    return {name for value in values if (name := _plain_name(value)) is not None and is_utf8(name)}


def is_none(value: Any, no_label: Set[str]) -> bool:
    """Whether a value is one of the names that mean that there is no label."""
    return _plain_name(value) in no_label


def means_none(names: Iterable[str]) -> frozenset[str]:
    """Which of these class names mean, in the files of the field, that there is no label: -100 always, -1 beside the
    numbers of three classes or more (beside 0 and 1 it may be a class of its own, as in negative, neutral, positive).
    """
    others = {int(name) if _WHOLE.fullmatch(name) else None for name in names} - {-1, IGNORED}
    numbers = {number for number in others if number is not None}
    counts = None not in others and 0 in numbers and min(numbers) == 0 and max(numbers) >= 2
    return frozenset({str(IGNORED), "-1"} if counts else {str(IGNORED)})


def _no_number(values: Iterable[Any]) -> frozenset[str]:
    """-100 means that there is none where the other numbers are none below nought; among those it may be a number."""
    numbers = {number for value in values if (number := _as_number(value)) is not None} - {float(IGNORED)}
    return frozenset({str(IGNORED)} if numbers and min(numbers) >= 0 else ())


def label_names(names: Iterable[str]) -> list[str]:
    """Class names in an order that does not depend on the rows': by number if all are numbers, else by text."""
    names = list(names)
    if all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def same_class(name: str, classes: Sequence[str]) -> str:
    """The class that is the same number as a name: `1.0` is `1`, as tables with gaps write whole numbers. The name
    itself where it is a class, or is the same as none of them or as several."""
    number = _as_number(name)
    if name in classes or number is None:
        return name
    same = [one for one in classes if _as_number(one) == number]
    return same[0] if len(same) == 1 else name


def _task(some: list[Any], is_number: bool) -> Task:
    """By the values of the first rows. Decimals are numbers to be learnt, and so are others of which more than two in
    three are new ones; but not decimals that are text or whole, as class numbers are written where some are missing. A
    few values may be something else, or half of them a few words for what is not known; these are bad rows then."""
    if 2 * sum(isinstance(value, list) for value in some) > len(some):
        return "multilabel"
    finite = [value for value in some if isinstance(value, float | Decimal) and math.isfinite(value)]
    decimals = sum(is_number or value != int(value) for value in finite)
    if decimals and 10 * decimals >= len(some):
        return "regression"
    numbers = [number for value in some if (number := _as_written(value)) is not None]
    others = {str(value) for value in some if _as_written(value) is None}
    counted = len(numbers) if len(others) <= _WORDS and 2 * len(numbers) >= len(some) else len(some)
    are_numbers = len(some) >= _FEW and 10 * len(numbers) >= 9 * counted
    return "regression" if are_numbers and 3 * len(set(numbers)) > 2 * counted else "classification"


def _hot_classes(some: list[Any], known: Sequence[str]) -> tuple[str, ...]:
    """The classes of multi-hot rows: the names that the head has, or their numbers; none where the rows name them.

    Multi-hot rows are lists of one length of 0 and 1; one list in ten may be another, which is a bad row then.
    """
    lists = [value for value in some if isinstance(value, list)]
    lengths = Counter(len(value) for value in lists if all(_is_flag(item) or _is_open(item) for item in value))
    size, count = max(lengths.items(), key=lambda item: item[1], default=(0, 0))
    flags = sum(_is_flag(item) for value in lists for item in value)
    if size < 2 or 10 * count < 9 * len(lists) or 2 * flags < size * count:
        return ()
    return tuple(known) if len(known) == size else tuple(map(str, range(size)))


def _is_flag(value: Any) -> bool:
    """0 or 1, also as a decimal, a truth value or text."""
    return isinstance(value, bool | int | float | str | Decimal) and _in_words(value) in (0, 1)


def _is_open(value: Any) -> bool:
    """What stands in multi-hot rows for a class of which nothing is known."""
    return value is None or (isinstance(value, int | float | str | Decimal) and _in_words(value) in (-1, IGNORED))


def _in_words(value: bool | float | str | Decimal) -> Any:
    """A number that was written as text."""
    return _as_number(value) if isinstance(value, str) else value


def unpacked(value: Any) -> Any:
    """The list that a text holds in the spelling of JSON, Python or NumPy, as cells of a CSV file do, or of 0 and 1
    with something between them; others as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _FLAGS.fullmatch(text):
        return [int(flag) for flag in re.findall(r"([01])(?:\.0*)?", text)]
    if not text.startswith(("[", "(", "{")):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(_APART.sub("','", text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | tuple):
            return list(found)
        if isinstance(found, set):
            return sorted(found, key=str)
    return value


def _plain_name(value: Any) -> str | None:
    """A class name of text, a whole number or a truth value; None if it is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    if not isinstance(value, str | int):
        return None
    return " ".join(str(value).split()) or None


def _number(value: Any, place: str) -> float:
    number = _as_number(value)
    if number is None:
        plain = " as 1234.5 is, without units and marks between its digits" if _MARKED.fullmatch(str(value)) else ""
        name = _plain_name(value)
        word = isinstance(value, str) and name is not None and not any(map(str.isdigit, name))
        none = f"; if it means that there is none: data.no_label=[{name}]" if word else ""
        raise RowError("wrong label", f"{place} a number{plain}{none}")
    if not abs(number) <= LARGEST:  # nor NaN
        raise RowError(
            "number out of range",
            f"{place} a number between {-LARGEST:g} and {LARGEST:g}, whose square a float32 can hold; scale the column",
        )
    return number


def _as_written(value: Any) -> float | str | None:
    """A number; or the text of one as people write it for people, of which it is not known what its marks mean."""
    number = _as_number(value)
    return value if number is None and isinstance(value, str) and _MARKED.fullmatch(value) else number


def _as_number(value: Any) -> float | None:
    """A number, or the text of one; None for anything else."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")
