"""Conversations -> text, with the place of every message in it: by a model's chat template, or plainly.

Chat templates are Jinja programs that come with a model, so they run in a sandbox. Where a message's content ends up is
found by rendering once more with marks around each content: private-use characters that occur nowhere else. The marks
say nothing about tokens; `template.py` does that from the places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from microplane.data.reading.formats import Message
from microplane.data.rendering.bounded_jinja import BoundedEnvironment
from microplane.errors import DataError

Span = tuple[int, int]  # characters, end excluded
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")


@dataclass
class Traced:
    """A rendered conversation and what stands where in it."""

    text: str
    contents: list[Span] = field(default_factory=list)  # what people wrote, of any role
    answers: list[Span] = field(
        default_factory=list
    )  # per assistant turn: where generation starts, where its content ends
    closed: list[bool] = field(
        default_factory=list
    )  # per answer: whether the end counts what the template writes after it
    untraced: list[str] = field(default_factory=list)  # contents that the template altered, so their place is unknown


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, with which some templates mark answers: the body as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(style: str) -> str:
    return datetime.now().strftime(style)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    """With the blocks, filters and functions that the chat templates of Hugging Face models are written for."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise DataError(f"the model's chat template is broken: {error}; possible: --set data.template=plain") from None


class ChatTemplate:
    """A model's own chat template.

    Args:
        template: its Jinja source.
        variables: `bos_token`, `eos_token` and the like.
    """

    def __init__(self, template: str, variables: dict[str, str]):
        self.template = _compile(template)
        self.variables = variables

    def text(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The rendered conversation.

        Raises:
            DataError: with the template's own message.
        """
        dictionaries = [{"role": message.role, "content": message.content} for message in messages]
        values = {"messages": dictionaries, "tools": None, "documents": None, **self.variables}
        try:
            return self.template.render(add_generation_prompt=generation_prompt, **values)
        except Exception as error:  # the template is a program of others; whatever it raises is its message
            roles = ", ".join(message.role for message in messages)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"the model's chat template refuses a conversation of {roles}: {reason}; possible: other roles, or "
                "--set data.template=plain"
            ) from None

    def trace(self, messages: Sequence[Message], generation_prompt: bool = False) -> Traced:
        """The rendered conversation and the places in it.

        Raises:
            DataError: if the template refuses the conversation, drops an answer, or alters it beyond recognition.
        """
        traced = Traced(self.text(messages, generation_prompt))
        places = self._places(messages, traced.text, generation_prompt)
        for number, message in enumerate(messages):
            span = places.get(number)
            if span is None and message.content:
                span = self._replaced(messages, number, traced.text, generation_prompt)
            if message.role == "assistant":
                traced.answers.append(self._answer(messages, number, traced.text, span))
            if span is not None:
                traced.contents.append(span)
            elif message.content:
                traced.untraced.append(message.content)
        return traced

    def _answer(self, messages: Sequence[Message], number: int, text: str, span: Span | None) -> Span:
        """Span of one answer, given that of its content.

        It starts where the generation prompt ends, since the model has to write whatever follows that; where the
        generation prompt is no part of this rendering, it starts with the content.
        """
        if span is None:
            raise DataError(
                f"the model's chat template drops or rewrites message {number + 1}, an answer, so that its tokens "
                "cannot be told; possible: --set data.template=plain"
            )
        try:
            prompt = self.text(messages[:number], generation_prompt=True) if number else ""
        except DataError:
            return span
        starts_there = prompt and len(prompt) <= span[1] and text.startswith(prompt)
        return (len(prompt), span[1]) if starts_there else span

    def _places(self, messages: Sequence[Message], text: str, generation_prompt: bool) -> dict[int, Span]:
        """Start and end in `text` of the contents whose marks the template leaves in place."""
        base = _free_marks(messages, text)
        anywhere = re.compile(f"[{chr(base)}-{chr(base + 2 * len(messages))}]")
        marked = [Message(m.role, _marked(m.content, base + 2 * number)) for number, m in enumerate(messages)]
        try:
            rendered = self.text(marked, generation_prompt)
        except DataError:
            return {}
        return _found(rendered, anywhere, base) if anywhere.sub("", rendered) == text else {}

    def _replaced(self, messages: Sequence[Message], number: int, text: str, generation_prompt: bool) -> Span | None:
        """The place of a content that the template trims or rewrites: what changes when a mark stands in its stead."""
        mark = chr(_free_marks(messages, text))
        instead = [*messages[:number], Message(messages[number].role, mark), *messages[number + 1 :]]
        try:
            before, found, behind = self.text(instead, generation_prompt).partition(mark)
        except DataError:
            return None
        start = _common(before, text)
        end = len(text) - _common(behind[::-1], text[start:][::-1])
        return (start, end) if found and start < end else None


def _marked(content: str, mark: int) -> str:
    return f"{chr(mark)}{content}{chr(mark + 1)}" if content else ""


def _free_marks(messages: Sequence[Message], text: str) -> int:
    """The first of two private-use characters per message, none of which occurs in the texts."""
    sources = (text, *(message.content for message in messages))
    used = {ord(char) for source in sources if not source.isascii() for char in _PRIVATE.findall(source)}
    size = 2 * len(messages) + 1
    for base in range(0xF0000, 0x10FFFE - size, size):
        if used.isdisjoint(range(base, base + size)):
            return base
    raise DataError("a conversation uses up all private-use characters of Unicode, which are needed to follow it")


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    if other.startswith(one):
        return len(one)
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _found(rendered: str, anywhere: re.Pattern[str], base: int) -> dict[int, Span]:
    positions: dict[int, list[int]] = {}
    for count, match in enumerate(anywhere.finditer(rendered)):
        positions.setdefault(ord(match[0]) - base, []).append(match.start() - count)
    once = {mark: places[0] for mark, places in positions.items() if len(places) == 1}
    return {mark // 2: (once[mark], once[mark + 1]) for mark in once if mark % 2 == 0 and mark + 1 in once}


class PlainTemplate:
    """For models without a chat template: prompt, a line end, answer, the end token; a system prompt comes first.

    Args:
        end: the text of the model's end token.
    """

    def __init__(self, end: str):
        self.end = end

    def trace(self, messages: Sequence[Message], generation_prompt: bool = False) -> Traced:
        """Messages stand on lines of their own; an answer is followed by the end token."""
        traced = Traced("")
        spoken = [message for message in messages if message.content]
        for number, message in enumerate(spoken):
            start = len(traced.text)
            span = (start, start + len(message.content))
            traced.contents.append(span)
            traced.text += message.content
            if message.role == "assistant":
                traced.answers.append(span)
                traced.text += self.end
            if number + 1 < len(spoken) or message.role != "assistant":
                traced.text += "\n"
        return traced
