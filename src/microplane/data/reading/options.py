"""Rows of multiple choice: a list of options beside a question, and an answer that is the number or letter of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from microplane.data.reading.label_values import unpacked
from microplane.errors import DataError

COLUMNS = ("choices", "options", "answer_choices")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def refuse_unseen_options(
    rows: Sequence[Mapping[str, Any]], file: str, prompts: Sequence[str], answer: str, others: Sequence[str]
) -> None:
    """Refuse rows of which the answer names an option that the prompt does not show: nobody can learn them so.

    Args:
        rows: the first ones.
        prompts: the columns that the prompt is made of, first that of the question.
        answer: the column of the answer.
        others: columns that are not used.

    Raises:
        DataError: if most rows with options are such.
    """
    for column in others:
        if column.strip().lower() not in COLUMNS:
            continue
        looked = [row for row in rows if options_of(row.get(column))]
        unseen = sum(_is_unseen(row, options_of(row[column]), prompts, answer) for row in looked)
        if looked and 2 * unseen > len(looked):
            raise DataError(
                f"{file}: {answer!r} is the number or letter of an option in {column!r}, and {prompts[0]!r} does not "
                f"show the options, so nothing tells what the answer means. Write them into {prompts[0]!r}, each with "
                f"its letter, or give the option's own text as {answer!r}"
            )


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
