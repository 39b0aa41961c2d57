"""Examples -> pairs of rows for an encoder-decoder: what is read, and what is written.

A pair is stored as one row, the source and behind it the target, with the length of the source beside it. Both end with
the model's end token, put there by its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from microplane.data.reading.formats import Example, Message
from microplane.data.rendering.interface import RowTraits
from microplane.data.store import TokenRow
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError


class Seq2SeqRenderer:
    """How conversations become pairs, for one tokenizer and system prompt.

    The last answer is the target. All before it is the source: one user's text as it stands, a longer conversation as
    lines that begin with who speaks.
    """

    def __init__(self, tokenizer: Tokenizer, system: str | None = None):
        self.tokenizer, self.system = tokenizer, system
        self.stops = tuple(dict.fromkeys(tokenizer.eos_ids))
        if not self.stops:
            raise DataError("the tokenizer names no end token, so an answer could not end; expected an eos_token")
        self.end = self.stops[0]

    @property
    def traits(self) -> RowTraits:
        return RowTraits("plain", self.stops, loses="end", bounds_target=True)

    def row(self, example: Example, max_length: int, max_target: int) -> TokenRow:
        """A source longer than `max_length` loses its end, and so does a target longer than `max_target`."""
        if example.messages is None:  # plain text, which is cut into pairs later (denoising_dataset.py)
            ids = self._ended(self.tokenizer.encode(example.text or "", special=True))
            return TokenRow(ids, [True] * len(ids))
        source = self.prompt(example.messages[:-1])
        target = self._ended(self.tokenizer.encode_target(example.messages[-1].content))
        lost = "answer" if len(target) > max_target else "prompt" if len(source) > max_length else ""
        source, target = _shorten(source, max_length, self.stops), target[:max_target]
        targets = [False] * len(source) + [True] * len(target)
        return TokenRow(source + target, targets, lost, source_length=len(source))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the encoder reads."""
        return self._ended(self.tokenizer.encode(source_text(messages, self.system), special=True))

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids[-1:] and ids[-1] in self.stops else [*ids, self.stops[0]]


def source_text(messages: Sequence[Message], system: str | None = None) -> str:
    """A conversation so far as one text."""
    if system and messages and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    spoken = [message for message in messages if message.role != "system"]
    rules = "".join(f"{message.content}\n\n" for message in messages if message.role == "system" and message.content)
    if len(spoken) == 1:
        return rules + spoken[0].content
    return rules + "\n".join(f"{message.role}: {message.content}" for message in spoken)


def _shorten(ids: list[int], most: int, stops: Sequence[int]) -> list[int]:
    if len(ids) <= most:
        return ids
    return [*ids[: most - 1], ids[-1]] if ids[-1] in stops else ids[:most]
