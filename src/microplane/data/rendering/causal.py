"""Examples -> token ids, and which of them are trained, from one rendering.

Trained are the tokens of every assistant turn and the stop token behind each: exactly what generation has to produce
after `CausalRenderer.prompt`. Nothing is found by searching for token sequences; the places come from
`chat_template.py` as characters.

What people wrote never becomes a special token: a `<|im_end|>` in a user's text is tokenised as the ten characters it
is. Only plain-text examples keep theirs, since such data often holds conversations that are rendered already.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

from microplane.data.reading.example import Example, Message
from microplane.data.rendering.chat_template import MARK, ChatTemplate, Span, Tools, Traced
from microplane.data.rendering.interface import RowTraits
from microplane.data.rendering.layout import Added, Encode, Layout, Plan, Tokens, layout_of, plan_of
from microplane.data.rendering.length import pieces, truncate
from microplane.data.rendering.plain_template import PlainTemplate
from microplane.data.store import TokenRow
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError

KEPT = 256  # texts whose tokens are kept, for system prompts and short answers come again
SHORT = 2_000  # characters of such a text at most: what is kept takes a few MB
SHAPES = 256  # of conversations, whose layout is kept
OFTEN = 3  # conversations of a shape from which its layout is worth finding
PROVED = 3  # conversations that are made in both ways before a plan is trusted


@lru_cache(maxsize=8)
def causal_renderer(tokenizer: Tokenizer, template: str = "auto", system: str | None = None) -> CausalRenderer:
    """The renderer for a tokenizer, made once.

    Args:
        template: "chat" for the model's chat template, "plain" for prompt and answer on two lines, "auto" for chat
            where the model has one.
        system: a system message for conversations without one; `""` passes an empty one, which switches a template's
            default off.

    Raises:
        DataError: for "chat" without a chat template, or a tokenizer without an end token.
    """
    return CausalRenderer(tokenizer, template, system)


@dataclass
class _Shape:
    """What is known of the conversations in which the same speak in the same order."""

    seen: int = 0
    layout: Layout | None = None
    plan: Plan | None = None
    proved: int = 0


class CausalRenderer:
    """How conversations become tokens, for one tokenizer, template and system prompt.

    Attributes:
        kind: "chat" or "plain".
        stops: tokens that end an answer: the model's end tokens, and the one with which the template closes an answer.
        end: the one of them that answers are trained to end with.
        bos: the token that the tokenizer puts before every text, if it does.
    """

    def __init__(self, tokenizer: Tokenizer, template: str = "auto", system: str | None = None):
        if template == "chat" and not tokenizer.chat_template:
            raise DataError("template 'chat': the model has no chat template; possible: --set data.template=plain")
        self.tokenizer = tokenizer
        self.system = system
        self.kind = "chat" if template != "plain" and tokenizer.chat_template else "plain"
        self._literals: dict[int, str] = {}
        self._shapes: dict[tuple[tuple[str, bool], ...], _Shape] = {}
        first = tokenizer.encode("a", special=True)[:1]
        self.bos = tokenizer.bos_id if first == [tokenizer.bos_id] else None
        # Where parts of a text can be tokenised one by one. SentencePiece puts a space before each.
        parts = [*tokenizer.encode("x", special=False), *tokenizer.encode("y", special=False)]
        self.joins = tokenizer.decode(parts, skip_special=False) == "xy"
        self.stops = tuple(dict.fromkeys(tokenizer.eos_ids))
        self.template = self._template(tokenizer.chat_template)
        closing = self._probe()
        self.stops = tuple(dict.fromkeys([*self.stops, *closing]))
        self.end = next(iter(closing or self.stops), 0)
        if not self.stops:
            raise DataError("the tokenizer names no end token, so an answer could not end; expected an eos_token")

    def _template(self, source: str | None) -> ChatTemplate | PlainTemplate:
        if self.kind == "chat":
            special = {name: token for name, token in self.tokenizer.special_tokens.items() if token is not None}
            return ChatTemplate(source or "", special, self.tokenizer.date)
        return PlainTemplate(self.tokenizer.decode(list(self.stops[:1]), skip_special=False))

    @cached_property
    def _with_tools(self) -> ChatTemplate | PlainTemplate:
        """Of conversations that offer tools, for which some models have a template of its own name."""
        own = self.tokenizer.tool_template
        return self.template if own is None else self._template(own)

    def _traced(self, messages: Sequence[Message], tools: Tools) -> list[Traced]:
        return (self._with_tools if tools else self.template).rows(messages, tools)

    @property
    def traits(self) -> RowTraits:
        return RowTraits(self.kind, self.stops)

    def render(self, example: Example) -> list[Tokens]:
        """The rows that an example becomes, mostly one (see `ChatTemplate.rows`): ids, and for each whether it is a
        target. The first never is, since nothing predicts it.

        Raises:
            DataError: if the template refuses the conversation, or an answer cannot be found in what it makes of it.
        """
        if example.messages is None:
            return [self._text(example.text or "")]
        return [self._row(traced) for traced in self._traced(self._said(example.messages), example.tools)]

    def _row(self, traced: Traced) -> Tokens:
        ids, offsets = self._encode(traced)
        trained, stopped = self._mask(ids, offsets, traced)
        if not stopped:  # the template writes no end token behind the last answer; generation needs one
            ids.append(self.end)
            trained.append(True)
        return self._begin(ids, trained)

    def rows(self, example: Example, max_length: int, max_target: int) -> list[TokenRow]:
        """See `render`, `pieces` and `truncate`. The answer's own length is not bounded, for it stands in the same
        row."""
        if example.messages is None:
            ids, _ = self._text(example.text or "")
            return [
                TokenRow(piece, [place >= known for place in range(len(piece))])
                for piece, known in pieces(ids, max_length, self.bos)
            ]
        messages = self._said(example.messages)
        self._refuse_rendered(messages)
        if not example.tools and (known := self._known(messages)) is not None:
            return [TokenRow(*truncate(*known[0], max_length, self.bos), forged=known[1])]
        found = [
            TokenRow(
                *truncate(*self._row(traced), max_length, self.bos), continues=traced.continues, forged=traced.forged
            )
            for traced in self._traced(messages, example.tools)
        ]
        return found or [TokenRow([])]  # in which nothing is to be trained

    def _known(self, messages: Sequence[Message]) -> tuple[Tokens, bool] | None:
        """The row of a conversation whose shape has come before, and whether special tokens stand in it as text,
        without rendering it; None where it has to be."""
        if messages[-1:] and (messages[-1].role != "assistant" or not messages[-1].trained):
            return None
        if any(message.thoughts or message.extra for message in messages):
            return None
        shape = tuple([(message.role, message.trained) for message in messages])
        known = self._shapes.get(shape)
        if known is None:
            if len(self._shapes) < SHAPES:
                self._shapes[shape] = _Shape()
            return None
        known.seen += 1
        if known.seen == OFTEN:
            known.layout = layout_of(self.template, messages)
        texts = [message.content for message in messages]
        if known.layout is None or not known.layout.holds(texts):
            return None
        if known.proved < PROVED:
            self._prove(known, known.layout, messages, texts)
            return None
        tokens = None if known.plan is None else known.plan.tokens(texts)
        if tokens is not None:
            return self._begin(*tokens), False
        traced = known.layout.traced(texts)
        return self._row(traced), traced.forged

    def _prove(self, known: _Shape, layout: Layout, messages: Sequence[Message], texts: Sequence[str]) -> None:
        """Compare a conversation that is rendered with what is known of its shape."""
        known.proved += 1
        rendered = self._traced(messages, ())
        if rendered != [layout.traced(texts)]:
            known.layout = None
            return
        encoded = self._encode(rendered[0])
        row = truncate(*self._row(rendered[0]), len(encoded[0]) + 2, self.bos)[:2]
        apart = self.joins and self.tokenizer.rules is None and not rendered[0].forged
        if known.proved == 1 and apart:
            known.plan = plan_of(layout, texts, encoded, self._part_ids, self._added, self.stops)
        if known.plan and (found := known.plan.tokens(texts)) and self._begin(*found) != row:
            known.plan = None

    @cached_property
    def _part_ids(self) -> Encode:
        """The ids of a part of a rendered text; of short ones the last are kept."""
        tokenizer = self.tokenizer.of_templates

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, special=False))

        kept = lru_cache(KEPT)(ids)
        return lambda text: kept(text) if len(text) <= SHORT else ids(text)

    @cached_property
    def _added(self) -> Added:
        tokens = self.tokenizer.of_templates.backend.get_added_tokens_decoder()
        return Added(tokens, [token for token in {*tokens, *self.stops} if self._special(token)])

    def _refuse_rendered(self, messages: Sequence[Message]) -> None:
        """Raises: DataError, for a prompt that is rendered already and would be a second time."""
        for message in messages:
            if message.role == "user" and self._asking and message.content.rstrip().endswith(self._asking):
                raise DataError(
                    f"the prompt is rendered by the chat template already: it ends with {self._asking!r}. Give the "
                    "question alone, or prompt and answer as one text (a column `text`), of which all is trained"
                )

    @cached_property
    def _asking(self) -> str:
        """What a chat template writes between a question and its answer, if that has special tokens."""
        if self.kind != "chat":
            return ""
        try:
            asked = self.template.trace([Message("user", MARK)], generation_prompt=True).text
        except DataError:
            return ""
        behind = asked.partition(MARK)[2].strip()
        return behind if any(map(self._special, self.tokenizer.of_templates.encode(behind, special=False))) else ""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What generation starts from: the conversation so far and the template's generation prompt."""
        traced = self.template.trace(self._said(messages), generation_prompt=True)
        ids, _ = self._encode(traced)
        return self._begin(ids, [False] * len(ids))[0]

    def _said(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the system prompt before them, and without the stop tokens that answers end with as text:
        the template writes its own."""
        messages = [
            replace(message, content=self._unstopped(message.content))
            if message.role == "assistant" and message.content.rstrip().endswith(self._stop_texts)
            else message
            for message in messages
        ]
        if self.system is None or (messages and messages[0].role == "system"):
            return messages
        return [Message("system", self.system), *messages]

    def _unstopped(self, text: str) -> str:
        """A text without the stop tokens that it ends with, unless it is nothing else."""
        left = text
        while stop := next((stop for stop in self._stop_texts if left.rstrip().endswith(stop)), ""):
            left = left.rstrip().removesuffix(stop)
        return left if left.strip() else text

    @cached_property
    def _stop_texts(self) -> tuple[str, ...]:
        texts = (self.tokenizer.decode([stop], skip_special=False).strip() for stop in self.stops)
        return tuple(text for text in texts if text)

    @cached_property
    def _rendered_ends(self) -> tuple[str, ...]:
        """What a text that was rendered already may end with, whatever the template of this renderer is."""
        if self.kind == "chat" or not self.tokenizer.chat_template:
            return self._stop_texts
        return tuple(dict.fromkeys([*self._stop_texts, *causal_renderer(self.tokenizer, "chat")._stop_texts]))

    def text_ids(self, text: str) -> list[int]:
        """A text as it stands, with its special tokens; begun with BOS where the tokenizer does so, once."""
        ids = self.tokenizer.encode(text, special=True)
        return ids[1:] if self.bos is not None and ids[:2] == [self.bos, self.bos] else ids

    def _text(self, text: str) -> Tokens:
        ids = self.text_ids(text)
        if not text.rstrip().endswith(self._rendered_ends) and ids[-1:] != [self.stops[0]]:
            ids = [*ids, self.stops[0]]
        return ids, [number > 0 for number in range(len(ids))]

    def _begin(self, ids: list[int], trained: list[bool]) -> Tokens:
        if self.kind == "plain" and self.bos is not None:  # a chat template writes its own
            ids, trained = [self.bos, *ids], [False, *trained]
        return ids, [False, *trained[1:]]

    # Text -> tokens

    def _encode(self, traced: Traced) -> tuple[list[int], list[Span]]:
        """Ids and their places in the text, cut where an answer starts, so that its prompt has the same ids alone."""
        for content in traced.untraced:
            self._refuse_special(content)
        cuts = {turn[0] for turn in traced.turns if turn} if self.joins else set()
        while True:
            ids, offsets = self._encode_parts(traced.text, cuts)
            forged = self._forged(ids, offsets, traced)
            if not forged:
                return ids, offsets
            traced.forged = True
            if not self.joins or not forged.isdisjoint(cuts):
                self._refuse_special(traced.text[min(forged) - 1 :])
            cuts |= forged

    def _encode_parts(self, text: str, cuts: Iterable[int]) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in pairwise(sorted({0, *cuts, len(text)})):
            part, places = self.tokenizer.of_templates.encode_with_offsets(text[start:end], special=False)
            ids += part
            offsets += [(start + first, start + last) for first, last in places]
        return ids, offsets

    def _forged(self, ids: list[int], offsets: list[Span], traced: Traced) -> set[int]:
        """Where to cut the text so that special tokens which people wrote fall apart."""
        literals = {token: literal for token in set(ids) if (literal := self._special(token))}
        cuts = set()
        for token, (start, end) in zip(ids, offsets, strict=True):
            if token not in literals:
                continue
            literal = literals[token]
            place = traced.text.find(literal, start, end)  # it may have swallowed spaces beside it
            if place >= 0 and any(place < last and first < place + len(literal) for first, last in traced.contents):
                cuts.add(place + 1)
        return cuts

    def _refuse_special(self, text: str) -> None:
        for token in self.tokenizer.of_templates.encode(text, special=False):
            if literal := self._special(token):
                raise DataError(f"the text {literal!r} is a special token of the model; expected text without it")

    def _special(self, token: int) -> str:
        """The text of a special token, else an empty string."""
        if token not in self._literals:
            whole, without = (self.tokenizer.decode([token], skip_special=skip) for skip in (False, True))
            special = whole != without or token in self.tokenizer.eos_ids
            self._literals[token] = whole.strip() if special else ""
        return self._literals[token]

    # Places -> mask

    def _mask(self, ids: list[int], offsets: list[Span], traced: Traced) -> tuple[list[bool], bool]:
        """Which tokens are trained, and whether the last answer ends with a stop token."""
        trained = [False] * len(ids)
        starts = [start for start, _ in offsets]
        stopped = False
        for start, end in traced.answers:
            first, last = bisect_left(starts, start), bisect_left(starts, end)
            if first and offsets[first - 1][1] > start and not traced.text[offsets[first - 1][0] : start].strip():
                first -= 1  # the token begins with the white space before the answer
            stop = self._behind(ids, starts, last, traced)
            if stop is None and last and ids[last - 1] in self.stops:  # of a call of tools, with its own end
                stop = last - 1
            stopped = stop is not None
            if stop is not None:
                last = stop + 1
            elif (start, end) == traced.answers[-1]:
                last = len(ids)
            trained[first:last] = [True] * (last - first)
        return trained, stopped

    def _behind(self, ids: list[int], starts: list[int], last: int, traced: Traced) -> int | None:
        """The stop token behind an answer, with only what the template writes in between."""
        place = starts[last] if last < len(ids) else len(traced.text)
        content = min((first for first, _ in traced.contents if first >= place), default=len(traced.text))
        found = next((token for token in range(last, bisect_left(starts, content)) if self._special(ids[token])), None)
        return found if found is not None and ids[found] in self.stops else None

    def _probe(self) -> list[int]:
        """The special token that follows an answer in a conversation of two messages."""
        messages: Sequence[Message] = [Message("user", "a"), Message("assistant", "b")]
        if self.system is not None:
            messages = [Message("system", self.system), *messages]
        try:
            traced = self.template.trace(messages)
        except DataError:  # it may ask for more than this; rows will tell
            return []
        ids, offsets = self._encode(traced)
        end = next((turn[1] for turn in traced.turns if turn), len(traced.text))
        behind = [token for token, (place, _) in zip(ids, offsets, strict=True) if place >= end]
        return next(([token] for token in behind if self._special(token)), [])
