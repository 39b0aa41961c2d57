"""Examples -> pairs of rows for an encoder-decoder: what is read, and what is written.

A pair is stored as one row, the source and behind it the target, with the length of the source beside it. Both end with
the model's end token, put there by its tokenizer; but not a source where that puts something before a text and nothing
behind it, as T5Gemma's does. A target never begins with the token that the decoder is started by.
"""

from __future__ import annotations

from collections.abc import Sequence

from microplane.data.reading.example import Example, Message
from microplane.data.rendering.interface import RowTraits
from microplane.data.rendering.plain_template import refuse_beside
from microplane.data.store import Lost, TokenRow
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError


class Seq2SeqRenderer:
    """How conversations become pairs, for one tokenizer and system prompt.

    The last answer that is trained is the target. All before it is the source: one user's text as it stands, a longer
    conversation as lines that begin with who speaks.
    """

    def __init__(self, tokenizer: Tokenizer, system: str | None = None):
        self.tokenizer, self.system = tokenizer, system
        self.stops = tuple(dict.fromkeys(tokenizer.eos_ids))
        if not self.stops:
            raise DataError("the tokenizer names no end token, so an answer could not end; expected an eos_token")
        self.end = self.stops[0]
        self.start = tokenizer.source.decoder_start if tokenizer.source else None
        bare, whole = tokenizer.encode("a", special=False), tokenizer.encode("a", special=True)
        front = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        self.front, self.behind = front, max(0, len(whole) - front - len(bare))  # tokens that stand around a source
        self.left_open = self.front > 0 and self.behind == 0

    @property
    def traits(self) -> RowTraits:
        return RowTraits("plain", self.stops, bounds_target=True)

    def rows(self, example: Example, max_length: int, max_target: int) -> list[TokenRow]:
        """A source longer than `max_length` loses its end, but a conversation its start, behind the system prompt, for
        what is to be answered stands at its end. A target longer than `max_target` loses its end."""
        if example.messages is None:  # plain text, which is cut into pairs later (denoising_dataset.py)
            ids = self._ended(self.tokenizer.encode(example.text or "", special=True))
            return [TokenRow(ids, [True] * len(ids))]
        refuse_beside(example.messages, example.tools, "an encoder-decoder's row")
        last = max((n for n, m in enumerate(example.messages) if m.role == "assistant" and m.trained), default=-1)
        if last < 0:  # nothing is to be trained
            return [TokenRow([])]
        source, lost = self._source(example.messages[:last], max_length)
        target = self.tokenizer.encode_target(example.messages[last].content)
        target = self._ended(target[1:] if target[:1] == [self.start] else target)
        if len(target) > max_target:
            target, lost = target[:max_target], "answer"
        targets = [False] * len(source) + [True] * len(target)
        return [TokenRow(source + target, targets, lost, source_length=len(source))]

    def _source(self, messages: Sequence[Message], most: int) -> tuple[list[int], Lost]:
        """What the encoder reads, at most so many tokens of it, and which end was lost."""
        ids = self.prompt(messages)
        if len(ids) <= most:
            return ids, ""
        if sum(message.role != "system" for message in messages) == 1:
            behind = max(1, self.behind)
            return (ids[:most] if self.left_open else [*ids[: most - behind], *ids[-behind:]]), "end"
        rules, _ = self.tokenizer.encode_with_offsets(_rules(self._with_system(messages)), special=False)
        kept = ids[: self.front]
        with_rules = [*kept, *rules]
        kept = with_rules if 2 * len(with_rules) < most and ids[: len(with_rules)] == with_rules else kept
        return [*kept, *ids[len(kept) - most :]], "start"

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the encoder reads."""
        ids = self.tokenizer.encode(source_text(self._with_system(messages)), special=True)
        return ids if self.left_open or self.behind > 1 else self._ended(ids)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.system and messages and messages[0].role != "system":
            return [Message("system", self.system), *messages]
        return messages

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids[-1:] and ids[-1] in self.stops else [*ids, self.stops[0]]


def source_text(messages: Sequence[Message]) -> str:
    """A conversation so far as one text."""
    spoken = [message for message in messages if message.role != "system"]
    if len(spoken) == 1:
        return _rules(messages) + spoken[0].content
    return _rules(messages) + "\n".join(f"{message.role}: {message.content}" for message in spoken)


def _rules(messages: Sequence[Message]) -> str:
    """The system prompt, as it stands before what is spoken."""
    return "".join(f"{message.content}\n\n" for message in messages if message.role == "system" and message.content)
