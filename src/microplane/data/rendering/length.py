"""Rows that are longer than they may be: plain text becomes several, a conversation loses its start."""

from __future__ import annotations

from collections.abc import Iterator

from microplane.data.store import Lost, last_run


def pieces(ids: list[int], max_length: int, bos: int | None) -> Iterator[tuple[list[int], int]]:
    """A text as rows of at most `max_length` tokens, each with the number of its tokens at the start that are not
    trained. Of the whole text every token but the first is trained, once: a later piece begins with `bos`, if there is
    one, and with the last token of the piece before it.
    """
    yield ids[:max_length], 1
    head = ids[:1] if ids[0] == bos else []
    room = max_length - len(head) - 1
    for start in range(max_length, len(ids), room):
        yield [*head, *ids[start - 1 : start + room]], len(head) + 1


def truncate(
    ids: list[int], trained: list[bool], max_length: int, bos: int | None
) -> tuple[list[int], list[bool], Lost]:
    """Cut a row of a conversation to its length, and say what was lost.

    What follows the last trained token goes, as nothing depends on it. Then the start of the prompt goes, except
    `bos`; only of an answer that is too long by itself, the end goes too. An earlier answer of which only the end is
    left, or no token before it, is not trained: generation never stands there.
    """
    start, end = last_run(trained)
    ids, trained = ids[:end], trained[:end]
    if end <= max_length:
        return ids, trained, ""
    head = 1 if ids[0] == bos else 0
    begin = end - (max_length - head)
    cut: Lost = "start"
    if start < begin + 1 - head:  # a target needs one token before it
        begin, cut = start - 1 + head, "answer"
    stop = begin + max_length - head
    torn = next(place for place in range(begin, stop) if not trained[place] or place == start)
    kept = [False] * (torn - begin) + trained[torn:stop]
    return ids[:head] + ids[begin:stop], [False, *(trained[:head] + kept)[1:]], cut
