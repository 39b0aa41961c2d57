"""Conversations of one shape -> tokens without rendering each: what is the same for all of them is found once.

A shape is who speaks in which order, and which answers are trained. Its layout is the text that a template writes
between the messages, for those texts that it treats as any other (`symbolic.py`). Where all of this text can be cut
from the messages at special tokens, a plan has it as tokens already, and only what people wrote is left to be encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from tokenizers import AddedToken

from microplane.data.reading.example import Message
from microplane.data.rendering.answers import THINK, UNTHINK
from microplane.data.rendering.chat_template import MARK, ChatTemplate, Span, Traced
from microplane.data.rendering.plain_template import PlainTemplate
from microplane.data.rendering.symbolic import Condition, Piece, merged, render

Tokens = tuple[list[int], list[bool]]  # ids, and for each whether it is a target
Encode = Callable[[str], tuple[int, ...]]


class Turn(NamedTuple):
    """An answer: its message, the characters of its turn before what it says, and whether it is trained."""

    message: int
    before: int
    trained: bool


@dataclass(frozen=True)
class Layout:
    """What a template makes of conversations of one shape.

    Attributes:
        literals: what it writes before each text, and behind the last.
        turns: of the assistant.
        conditions: which texts it treats so; besides, none of them is blank.
    """

    literals: tuple[str, ...]
    turns: tuple[Turn, ...]
    conditions: tuple[Condition, ...] = ()

    def holds(self, texts: Sequence[str]) -> bool:
        return all(text and not text.isspace() for text in texts) and all(
            condition.met(texts[condition.message]) for condition in self.conditions
        )

    def traced(self, texts: Sequence[str]) -> Traced:
        """The rendered conversation, as `ChatTemplate.rows` gives it."""
        written, contents, place = [self.literals[0]], [], len(self.literals[0])
        for text, behind in zip(texts, self.literals[1:], strict=True):
            contents.append((place, place + len(text)))
            written += (text, behind)
            place += len(text) + len(behind)
        turns = [(contents[turn.message][0] - turn.before, contents[turn.message][1]) for turn in self.turns]
        answers = [span for span, turn in zip(turns, self.turns, strict=True) if turn.trained]
        return Traced("".join(written), contents, [*turns], answers)


def layout_of(template: ChatTemplate | PlainTemplate, messages: Sequence[Message]) -> Layout | None:
    """The layout of conversations with the roles of these messages, which are texts alone, the last a trained answer;
    None where there is none that is sure to be what `template.rows` gives."""
    if isinstance(template, PlainTemplate):
        return _plain_layout(template, messages)
    roles = [message.role for message in messages]
    whole = render(template.source, template.variables, roles)
    if whole is None or [piece for piece in whole.pieces if isinstance(piece, int)] != [*range(len(messages))]:
        return None
    literals = _literals(whole.pieces)
    conditions, turns = set(whole.conditions), []
    for number, message in enumerate(messages):
        if message.role in ("system", "tool") and not all(
            condition.met(MARK) for condition in whole.conditions if condition.message == number
        ):
            return None  # whether it leaves them out is looked for with a mark
        if message.role != "assistant":
            continue
        asked = render(template.source, template.variables, roles[:number], True)
        alone = render(template.source, template.variables, roles[: number + 1])
        if asked is None or alone is None or not asked.pieces or not _begins(whole.pieces, asked.pieces):
            return None
        if not _begins(whole.pieces, _stripped(alone.pieces)):
            return None  # it stands there in another way once it is history
        conditions |= asked.conditions | alone.conditions
        conditions |= {Condition(number, "holds", mark) for mark in (THINK, UNTHINK)}
        behind = asked.pieces[-1] if isinstance(asked.pieces[-1], str) else ""
        turns.append(Turn(number, len(literals[number]) - len(behind), message.trained))
    return Layout(literals, tuple(turns), tuple(sorted(conditions, key=str)))


def _plain_layout(template: PlainTemplate, messages: Sequence[Message]) -> Layout:
    traced = template.trace([Message(message.role, MARK) for message in messages])
    edges = [0, *(edge for span in traced.contents for edge in span), len(traced.text)]
    literals = tuple(traced.text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    answers = ((number, message) for number, message in enumerate(messages) if message.role == "assistant")
    return Layout(literals, tuple(Turn(number, 0, message.trained) for number, message in answers))


def _literals(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Before each text, and behind the last."""
    found = [""]
    for piece in pieces:
        if isinstance(piece, str):
            found[-1] += piece
        else:
            found.append("")
    return tuple(found)


def _begins(pieces: Sequence[Piece], start: Sequence[Piece]) -> bool:
    """Whether an output begins with another one, whatever the texts are."""
    *whole, last = start
    if [*pieces[: len(whole)]] != whole or len(pieces) <= len(whole):
        return False
    found = pieces[len(whole)]
    return found == last or (isinstance(found, str) and isinstance(last, str) and found.startswith(last))


def _stripped(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Without the white space that an output surely ends with."""
    *front, last = pieces
    return merged((*front, last.rstrip())) if isinstance(last, str) else tuple(pieces)


class _Part(NamedTuple):
    """Some tokens of a row that belong together: those of a template, or a text to be encoded with what stands around
    it."""

    ids: tuple[int, ...]
    pieces: tuple[Piece, ...]  # of a text to be encoded; none of a template's own tokens
    trained: bool


class Added:
    """The tokens that were added to a vocabulary, which are looked for in a text before it is cut into others.

    Args:
        tokens: by number.
        special: the numbers of those that no text may become, and of others like them.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], special: Collection[int]):
        self.tokens, self.special = tokens, frozenset(special)
        self.parts = cache(self._parts)

    def _parts(self, number: int) -> str:
        """The text of a special token that is found whatever stands beside it, and beside which all is read as if it
        were not there; empty of another."""
        token = self.tokens.get(number)
        if token is None or number not in self.special:
            return ""
        if token.normalized or token.lstrip or token.rstrip or token.single_word:
            return ""
        own, others = token.content, [other.content for other in self.tokens.values()]
        return "" if any(_overlaps(own, other) for other in others) else own


def _overlaps(own: str, other: str) -> bool:
    """Whether another token can be found where one stands, beginning before it or with it."""
    longer = other != own and other.startswith(own)
    return longer or any(own.startswith(other[at:]) or other[at:].startswith(own) for at in range(1, len(other)))


class Plan:
    """How the conversations of a layout become tokens.

    Args:
        encode: of a text with no special token in it.
        special: tokens that no text may become.
    """

    def __init__(self, layout: Layout, parts: Sequence[_Part], encode: Encode, special: frozenset[int]):
        self.layout, self.parts, self._encode, self._special = layout, parts, encode, special

    def tokens(self, texts: Sequence[str]) -> Tokens | None:
        """Ids, and which are trained, up to the last that is; None where a special token stands in a text."""
        ids: list[int] = []
        trained: list[bool] = []
        for part in self.parts:
            own = part.ids
            if part.pieces:
                text = "".join([piece if isinstance(piece, str) else texts[piece] for piece in part.pieces])
                own = self._encode(text)
                if not self._special.isdisjoint(own):
                    return None
            ids += own
            trained += [part.trained] * len(own)
        return ids, trained


def plan_of(
    layout: Layout,
    texts: Sequence[str],
    encoded: tuple[Sequence[int], Sequence[Span]],
    encode: Encode,
    added: Added,
    stops: Collection[int],
) -> Plan | None:
    """The plan of a layout, or None where its special tokens do not part its texts from all else.

    Args:
        texts: of one conversation, in which no special token stands.
        encoded: its tokens and their places.
        encode: see `Plan`.
        stops: tokens that end an answer.
    """
    traced = layout.traced(texts)
    borders = {
        place: token
        for token, place in zip(*encoded, strict=True)
        if token in added.special and traced.text[slice(*place)] == added.parts(token)
    }
    turns = {turn[0] for turn in traced.turns if turn}
    edges = {0, len(traced.text), *(edge for place in borders for edge in place), *turns}
    if any(first < edge < last for first, last in traced.contents for edge in edges):
        return None
    answers, behind = {*traced.answers}, {last for _, last in traced.answers}
    parts: list[_Part] = []
    for start, end in pairwise(sorted(edges)):
        if (token := borders.get((start, end))) is not None:
            parts.append(_Part((token,), (), start in behind and token in stops))
            continue
        own = encode(traced.text[start:end])
        if not added.special.isdisjoint(own):
            return None
        pieces = _within(traced, start, end)
        fixed = not any(isinstance(piece, int) for piece in pieces)
        parts.append(_Part(own if fixed else (), () if fixed else pieces, (start, end) in answers))
    while parts and not parts[-1].trained:
        parts.pop()
    whole = sum(part.trained for part in parts) == 2 * len(answers) and not parts[0].trained  # each with its stop
    return Plan(layout, _together(parts), encode, added.special) if whole else None


def _within(traced: Traced, start: int, end: int) -> tuple[Piece, ...]:
    """What stands in a part of a rendered conversation."""
    pieces: list[Piece] = []
    for number, (first, last) in enumerate(traced.contents):
        if start <= first and last <= end:
            pieces += (traced.text[start:first], number)
            start = last
    return merged((*pieces, traced.text[start:end]))


def _together(parts: Iterable[_Part]) -> list[_Part]:
    """With a template's own tokens that stand side by side as one part."""
    found: list[_Part] = []
    for part in parts:
        if found and not part.pieces and not found[-1].pieces and part.trained == found[-1].trained:
            part = part._replace(ids=found.pop().ids + part.ids)
        found.append(part)
    return found
