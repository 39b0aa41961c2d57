"""Entities in the tags of words: B-x begins one, I-x goes on; E-x, L-x end it, S-x, U-x are one alone, O is none.

As conlleval and seqeval's default mode read them: an I-x behind another kind begins an entity too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

Span = tuple[str, int, int]  # its kind, and the places of its first word and behind its last

_TAG = re.compile("O|[BIELSU]-.+")


def are_span_tags(classes: Collection[str]) -> bool:
    """Whether tags are of this kind: all of them, and at least one begins or continues an entity."""
    return all(map(_TAG.fullmatch, classes)) and any(name != "O" for name in classes)


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities of one row."""
    found: set[Span] = set()
    open_kind, start, closed = "", 0, True  # closed: the last word ended its entity by its tag
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        begins = prefix in "BSU" or kind != open_kind or closed
        if open_kind and (prefix == "O" or begins):
            found.add((open_kind, start, place))
            open_kind = ""
        if prefix != "O" and begins:
            open_kind, start = kind, place
        closed = prefix in "ESLU"
    return found
