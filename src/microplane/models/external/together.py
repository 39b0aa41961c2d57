"""Which rows a model of transformers computes together, so that each comes out as it does alone: tried, not assumed.

    B, S  rows and the longest of them, as a padded rectangle

Most models take no notice of padding. FNet mixes it in; RecurrentGemma, RWKV and some MiniMax pass it on in their
states. Of those, only rows of equal length are computed together, or each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import torch
from torch import Tensor

from microplane.nn.attention import MaskSpec
from microplane.nn.rows import Rows


class Together(Enum):
    """Rows that come out as each does alone."""

    PADDED = "of any length"
    EVEN = "of equal length"
    ALONE = "one by one"


NOTICES = {
    Together.PADDED: "",
    Together.EVEN: "only rows of equal length are computed together, for padding changes what it gives",
    Together.ALONE: "rows are computed one by one, for each changes what it gives for the others",
}
# What transformers may raise where a model does not take what it is given.
FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError),
    *(ImportError, NotImplementedError),
)
LENGTHS = (7, 4, 7)  # of the rows that are tried


def groups(rows: Rows, together: Together, keys: Sequence[int] | None = None) -> Iterator[tuple[list[int], Rows]]:
    """The rows in runs that are computed together, by their numbers. Where rows may be padded, those of similar length
    as attention has them, so that one long row doesn't widen all.

    Args:
        keys: the numbers of keys of each row, if not its own length.
    """
    count = len(rows.lengths)
    if together is Together.PADDED:
        chosen = [list(range(count))[one] for one, _ in MaskSpec(rows, causal=False, keys=keys).groups]
    elif together is Together.ALONE:
        chosen = [[number] for number in range(count)]
    else:
        sizes = list(zip(rows.lengths, keys or rows.lengths, strict=True))
        chosen = [[n for n in range(count) if sizes[n] == size] for size in dict.fromkeys(sizes)]
    for numbers in chosen:
        yield numbers, rows if len(numbers) == count else take(rows, numbers)


def take(rows: Rows, numbers: Sequence[int]) -> Rows:
    """Some of the rows."""
    lengths = list(rows.lengths)

    def of(x: Tensor) -> Tensor:
        parts = torch.split(x, lengths)
        return torch.cat([parts[number] for number in numbers])

    types = None if rows.types is None else of(rows.types)
    return Rows(of(rows.ids), of(rows.positions), tuple(lengths[number] for number in numbers), types)


def in_order(found: Sequence[tuple[list[int], Sequence[Tensor]]]) -> list[Tensor]:
    """One tensor for each row, from those of the groups."""
    by_number = {number: row for numbers, own in found for number, row in zip(numbers, own, strict=True)}
    return [by_number[number] for number in range(len(by_number))]


def trial_rows(vocab_size: int, pad: int | None) -> list[list[int]]:
    """Rows of ordinary tokens."""
    ids = [token for token in ((37 * k + vocab_size // 2) % vocab_size for k in range(64)) if token != pad]
    starts = [sum(LENGTHS[:number]) for number in range(len(LENGTHS))]
    return [ids[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


def try_together(rows: Rows, compute: Callable[[Rows, Together], Tensor], dtype: torch.dtype) -> Together:
    """The most that may be computed together.

    Args:
        compute: what the model gives for rows, each row's numbers behind those of the one before.
        dtype: the format that it computes in.
    """
    return first_that_agrees(compute(rows, Together.ALONE), lambda way: compute(rows, way), dtype) or Together.ALONE


def first_that_agrees(wanted: Tensor, compute: Callable[[Together], Tensor], dtype: torch.dtype) -> Together | None:
    """The first of the ways to compute rows together that gives what is wanted, but for rounding; None if none does."""
    rounding = max(1e-5, 8 * torch.finfo(dtype).eps)
    for way in Together:
        try:
            found = compute(way)
        except FAILURES:
            continue
        if (found.float() - wanted.float()).norm() <= rounding * wanted.float().norm():
            return way
    return None
