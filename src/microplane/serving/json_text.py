"""Answers that are one object in JSON: a token that would break it is never written (RFC 8259).

No mask over the vocabulary is made. The token that would be written is tried, and where its text cannot go on, the next
one is chosen without it: of what is drawn this leaves the probabilities of the rest as they were to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from microplane.data.tokenizers.text_stream import BROKEN
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.inference.generate import GenerationRow

SPACES = " \t\n\r"
MOST_SPACES = 64  # one after another outside of texts, which a model may fall into and not come out of
DIGITS = "0123456789"
LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
# what a number may go on with: state -> characters -> state
NUMBERS = {
    "minus": {"0": "zero", **dict.fromkeys(DIGITS[1:], "whole")},
    "zero": {".": "point", "e": "e", "E": "e"},
    "whole": {**dict.fromkeys(DIGITS, "whole"), ".": "point", "e": "e", "E": "e"},
    "point": dict.fromkeys(DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(DIGITS, "fraction"), "e": "e", "E": "e"},
    "e": {"+": "sign", "-": "sign", **dict.fromkeys(DIGITS, "power")},
    "sign": dict.fromkeys(DIGITS, "power"),
    "power": dict.fromkeys(DIGITS, "power"),
}
ENDED = {"zero", "whole", "fraction", "power"}  # a number may end here


class State(NamedTuple):
    """What was read of an object so far, as far as it matters for what may follow."""

    expects: str = "start"  # see `_step`; or a state of a number
    inside: str = ""  # the brackets that are open
    left: str = ""  # of a literal; of an escape in a text the hexadecimal digits, as x's
    is_key: bool = False  # of a text

    @property
    def is_whole(self) -> bool:
        return self.expects == "end"

    def read(self, text: str) -> State | None:
        """The state behind `text`; None where that cannot stand here."""
        state: State | None = self
        for character in text:
            state = state._step(character) if state is not None else None
        return state

    def _step(self, c: str) -> State | None:
        if self.expects in ("text", "escape", "hex"):
            return self._in_text(c)
        if self.expects == "literal":
            rest = self.left[1:]
            return None if c != self.left[0] else self._replace(left=rest) if rest else self._behind_value()
        if self.expects in NUMBERS:
            if (then := NUMBERS[self.expects].get(c)) is not None:
                return self._replace(expects=then)
            return self._behind_value()._step(c) if self.expects in ENDED else None
        if c in SPACES:
            return self
        return self._between(c)

    def _between(self, c: str) -> State | None:
        """A character that begins or ends a value, or stands between two."""
        expects = self.expects
        if expects == "start":
            return State("key or close", "{") if c == "{" else None
        if expects == "colon":
            return self._replace(expects="value") if c == ":" else None
        if c in "}]":
            opened = "{" if c == "}" else "["
            closes = expects == "comma" or expects == ("key or close" if c == "}" else "value or close")
            return (
                self._replace(inside=self.inside[:-1])._behind_value()
                if closes and self.inside[-1:] == opened
                else None
            )
        if expects == "comma":
            return self._replace(expects="key" if self.inside[-1] == "{" else "value") if c == "," else None
        if expects in ("key", "key or close"):
            return self._replace(expects="text", is_key=True) if c == '"' else None
        return self._value(c) if expects in ("value", "value or close") else None

    def _value(self, c: str) -> State | None:
        if c == '"':
            return self._replace(expects="text", is_key=False)
        if c in "{[":
            return self._replace(expects="key or close" if c == "{" else "value or close", inside=self.inside + c)
        if c in LITERALS:
            return self._replace(expects="literal", left=LITERALS[c])
        number = {"-": "minus", "0": "zero", **dict.fromkeys(DIGITS[1:], "whole")}.get(c)
        return None if number is None else self._replace(expects=number)

    def _in_text(self, c: str) -> State | None:
        if self.expects == "hex":
            rest = self.left[1:]
            return (
                self._replace(expects="hex" if rest else "text", left=rest) if c in "0123456789abcdefABCDEF" else None
            )
        if self.expects == "escape":
            if c == "u":
                return self._replace(expects="hex", left="xxxx")
            return self._replace(expects="text") if c in '"\\/bfnrt' else None
        if c == "\\":
            return self._replace(expects="escape")
        if c == '"':
            return self._replace(expects="colon") if self.is_key else self._behind_value()
        return self if c >= " " else None

    def _behind_value(self) -> State:
        return self._replace(expects="comma" if self.inside else "end", left="")


class JsonGuide:
    """Of one answer: what it may go on with."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]):
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.state, self.walked = State(), 0

    def is_whole(self, text: str) -> bool:
        """Whether the object is complete, so that the answer ends."""
        return self._after(text).is_whole

    def choose(self, scores: Tensor, pick: Callable[[Tensor], int], row: GenerationRow) -> int:
        """The token that `pick` takes out of scores (1, V), among those that can stand here.

        Raises:
            DataError: if there is none.
        """
        state, scores = self._after(row.text), scores.clone()
        while bool((scores > -torch.inf).any()):
            token = pick(scores)
            if self._fits(state, token, row):
                return token
            scores[0, token] = -torch.inf
        raise DataError("no token of this model's vocabulary goes on with the JSON that was begun")

    def _after(self, text: str) -> State:
        state = self.state.read(text[self.walked :])
        assert state is not None, "what was written was tried before"
        self.state, self.walked = state, len(text)
        return state

    def _fits(self, state: State, token: int, row: GenerationRow) -> bool:
        if token in self.stop_ids:
            return False
        text = row.stream.with_next(token)
        whole = text.rstrip(BROKEN)  # part of a character may stand in a text alone
        behind = state.read(whole)
        if not text or behind is None:
            return False
        if whole != text:
            return behind.expects == "text"
        run = (row.text + text)[-MOST_SPACES - 1 :]
        return behind.expects in ("text", "end") or len(run) <= MOST_SPACES or not run.isspace()


def can_write_json(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary has what JSON is written with. T5's own has no braces."""
    text = '{"a": [1, true]}'
    return "".join(tokenizer.decode(tokenizer.encode(text, special=False)).split()) == "".join(text.split())
