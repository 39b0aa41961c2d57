"""Token ids in, text out, as soon as its characters are complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microplane.data.tokenizers.tokenizer import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for part of a character


class TextStream:
    """Token ids in, text out, as soon as its characters are complete. The parts add up to `decode` of all ids.

    Only among bytes that make no text they may differ: SentencePiece's decoding gives up a whole run of bytes for one.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = []
        self.start = self.done = 0  # ids from `start` are decoded together; those up to `done` are out

    def feed(self, token: int) -> str:
        """The text that became complete with this token, often none."""
        self.ids.append(token)
        text = self._pending()
        if not text or text.endswith(BROKEN):
            return ""
        self.start, self.done = self.done, len(self.ids)
        return text

    def with_next(self, token: int) -> str:
        """The text that would be out next with this token, which is not fed; part of a character at its end is
        U+FFFD."""
        before = self.tokenizer.decode(self.ids[self.start : self.done], self.skip_special)
        return self.tokenizer.decode([*self.ids[self.start :], token], self.skip_special)[len(before) :]

    def flush(self) -> str:
        """What is left at the end: part of a character, if the ids stop inside one."""
        text = self._pending()
        self.start = self.done = len(self.ids)
        return text

    def _pending(self) -> str:
        # the last tokens that are out are decoded once more: the first token of a text loses its space in some
        before = self.tokenizer.decode(self.ids[self.start : self.done], self.skip_special)
        return self.tokenizer.decode(self.ids[self.start :], self.skip_special)[len(before) :]
