"""Rows of multiple choice: a list of options beside a question, and an answer that is the number or letter of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from microplane.data.reading.label_values import unpacked
from microplane.data.reading.values import is_filled, listed
from microplane.errors import DataError

COLUMNS = ("choices", "options", "answer_choices")
_ONE = re.compile(  # a column that is one of the options
    r"(?:(?:choice|option|opt|op|ending|sol|solution|answer|response|alternative|candidate)[ _-]?\d|"
    r"(?:choice|option|opt|op|ending|sol|solution|answer|response|alternative|candidate)?[ _-]?[a-f])",
    re.IGNORECASE,
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_Options = Callable[[Mapping[str, Any]], list[str]]


def refuse_unseen_options(
    rows: Sequence[Mapping[str, Any]],
    file: str,
    prompts: Sequence[str],
    answer: str,
    others: Sequence[str],
    is_class: bool = False,
) -> None:
    """Refuse rows of which the answer names an option that the prompt does not show: nobody can learn them so.

    Args:
        rows: the first ones.
        prompts: the columns that the prompt is made of, first that of the question.
        answer: the column of the answer.
        others: columns that are not used.
        is_class: the answer is learnt as a class. The same options in all rows are classes, then.

    Raises:
        DataError: if most rows with options are such.
    """
    for column, options in _columns(others):
        looked = [row for row in rows if options(row)]
        unseen = sum(_is_unseen(row, options(row), prompts, answer) for row in looked)
        different = {tuple(options(row)) for row in looked}
        if 2 * unseen <= len(looked) or (is_class and len(different) == 1):
            continue
        if is_class:
            raise DataError(
                f"{file}: {answer!r} is the number or letter of an option in {column}, and the options are others in "
                "each row, so that it is no class. Make a row of each option, with the question as `text`, the option "
                "as `text_pair` and the label 1 or 0; or give a model that writes the question and its options as "
                f"`prompt`. If it is a class all the same: --set 'data.fields={{label: {answer}}}'"
            )
        raise DataError(
            f"{file}: {answer!r} is the number or letter of an option in {column}, and {prompts[0]!r} does not "
            f"show the options, so nothing tells what the answer means. Write them into {prompts[0]!r}, each with "
            f"its letter, or give the option's own text as {answer!r}"
        )


def _columns(names: Sequence[str]) -> list[tuple[str, _Options]]:
    """Columns that hold options, as a message names them, and what finds the options of a row there."""
    found: list[tuple[str, _Options]] = []
    for name in names:
        if name.strip().lower() in COLUMNS:
            found.append((repr(name), partial(_in_one, name=name)))
    single: dict[str, list[str]] = {}
    for name in names:
        if _ONE.fullmatch(name.strip()):
            single.setdefault(name.strip().lower()[:-1], []).append(name)
    for stem, several in single.items():
        if len(several) >= (2 if stem else 3):  # letters alone are called many things
            found.append((listed(several), partial(_in_columns, names=several)))
    return found


def _in_one(row: Mapping[str, Any], name: str) -> list[str]:
    return options_of(row.get(name))


def _in_columns(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The options of a row that stand in a column each; a row may have fewer of them."""
    options = [str(row[name]) for name in names if is_filled(row.get(name))]
    return options if len(options) > 1 else []


def options_of(value: Any) -> list[str]:
    """The options of a row: a list of texts, {text: [...], label: [...]}, or {A: ..., B: ...}, each also as text. Empty
    where it is something else."""
    value = unpacked(value)
    if isinstance(value, Mapping):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) for item in value):
        return []
    return value


def _is_unseen(row: Mapping[str, Any], options: Sequence[str], prompts: Sequence[str], answer: str) -> bool:
    said = str(row.get(answer, "")).strip().strip("().").upper()
    names = {*_LETTERS[: len(options)], *map(str, range(len(options) + 1))}
    if said not in names or str(row.get(answer)).strip() in (option.strip() for option in options):
        return False
    shown = "\n".join(str(row.get(prompt, "")) for prompt in prompts)
    return not all(option.strip() in shown for option in options)
