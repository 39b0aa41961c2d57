"""Conversations -> text, with the place of every message in it: by a model's chat template, or plainly.

Chat templates are Jinja programs that come with a model, so they run in a sandbox. Where a message's content ends up is
found by rendering once more with marks around each content: private-use characters that occur nowhere else. The marks
say nothing about tokens; `template.py` does that from the places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from microplane.data.reading.example import Message
from microplane.data.rendering.answers import THINK, THOUGHT_MARKS, UNTHINK, lacks, opened_by
from microplane.data.rendering.bounded_jinja import compiled
from microplane.errors import DataError

Span = tuple[int, int]  # characters, end excluded
Tools = Sequence[Mapping[str, Any]]
MARK = "\N{PILCROW SIGN}\N{SECTION SIGN}\N{PILCROW SIGN}"  # what a rendering is probed with
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")


@dataclass
class Traced:
    """A rendered conversation and what stands where in it."""

    text: str
    contents: list[Span] = field(default_factory=list)  # what people wrote, of any role
    turns: list[Span | None] = field(
        default_factory=list
    )  # of the assistant: where generation starts, where the content ends; None where that cannot be told
    answers: list[Span] = field(default_factory=list)  # those of them that are trained
    untraced: list[str] = field(default_factory=list)  # contents that the template altered, so their place is unknown
    forged: bool = False  # whether special tokens stand in what people wrote, which are tokenised as other text is
    continues: bool = True  # whether the last answer stands behind its generation prompt, which may open a thought


NO_PROMPT: tuple[Sequence[Message], Tools, str] = ((), (), "")  # messages, tools, and what they are asked with


class ChatTemplate:
    """A model's own chat template.

    Args:
        template: its Jinja source.
        variables: `bos_token`, `eos_token` and the like.
        date: what it is told as today, as 2026-11-28; None: the day it is.
    """

    def __init__(self, template: str, variables: dict[str, str], date: str | None = None):
        self.source = template
        self.template = compiled(template)
        self.variables: dict[str, Any] = dict(variables)
        if date is not None:
            self.variables["strftime_now"] = datetime.fromisoformat(date).strftime
        self._last_prompt = NO_PROMPT

    def text(self, messages: Sequence[Message], generation_prompt: bool = False, tools: Tools = ()) -> str:
        """The rendered conversation.

        Raises:
            DataError: with the template's own message.
        """
        dictionaries = [_dictionary(message) for message in messages]
        values = {"messages": dictionaries, "tools": list(tools) or None, "documents": None, **self.variables}
        try:
            return self.template.render(add_generation_prompt=generation_prompt, **values)
        except Exception as error:  # the template is a program of others; whatever it raises is its message
            roles = ", ".join(message.role for message in messages)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"the model's chat template refuses a conversation of {roles}: {reason}; possible: other roles, or "
                "--set data.template=plain"
            ) from None

    def trace(self, messages: Sequence[Message], generation_prompt: bool = False, tools: Tools = ()) -> Traced:
        """The rendered conversation and the places in it, of the answers as far as they can be told.

        Raises:
            DataError: if the template refuses the conversation, or leaves out what the system or a tool says.
        """
        traced = Traced(self.text(messages, generation_prompt, tools))
        places = self._places(messages, traced.text, generation_prompt, tools)
        for number, message in enumerate(messages):
            span = places.get(number)
            if span is None and message.content:
                span = self._replaced(messages, number, traced.text, generation_prompt, tools)
            if message.role == "assistant":
                traced.turns.append(self._turn(messages, number, traced.text, span, tools))
            if span is not None:
                own = message.role == "assistant"
                traced.contents += self._between_marks(traced.text, span) if own else [span]
            elif message.content:
                traced.untraced.append(message.content)
        return traced

    def rows(self, messages: Sequence[Message], tools: Tools = ()) -> list[Traced]:
        """The rows in which the answers are trained, each as generation has to write it behind its prompt.

        That is one row for all of them, unless the template renders an answer in another form once it is history, as
        without its thoughts: then the conversation up to that answer is a row of its own.

        Raises:
            DataError: if the template refuses the conversation, or leaves out or alters what cannot be told then.
        """
        self._last_prompt = NO_PROMPT  # the template may look at the clock
        self._check_rendered(messages, tools)
        wanted = [number for number, message in enumerate(messages) if message.role == "assistant" and message.trained]
        found = []
        while wanted:
            traced = self._row(messages[: wanted[-1] + 1], tools)
            alike = [number for number in wanted[:-1] if self._alike(messages, number, traced, tools)]
            chosen = (traced.turns[_turns_before(messages, number)] for number in [*alike, wanted[-1]])
            traced.answers = [turn for turn in chosen if turn is not None]
            found.append(traced)
            wanted = [number for number in wanted[:-1] if number not in alike]
        return found[::-1]

    def _alike(self, messages: Sequence[Message], number: int, traced: Traced, tools: Tools) -> bool:
        """Whether an earlier answer stands in a row as it has to be generated."""
        turn = traced.turns[_turns_before(messages, number)]
        alone = self.text(messages[: number + 1], tools=tools)
        if turn is None or not traced.text.startswith(alone.rstrip()):
            return False
        if self._asked_otherwise(self.prompt(messages[:number], tools), traced.text, turn):
            return False
        return not lacks(messages[number], opened_by(alone[: turn[0]], messages[number]) + alone[turn[0] :])

    def _row(self, messages: Sequence[Message], tools: Tools) -> Traced:
        """A conversation with the place of its last answer, the last of its turns."""
        traced, prompt, last = self.trace(messages, tools=tools), self.prompt(messages[:-1], tools), messages[-1]
        turn, traced.continues = traced.turns[-1], traced.text.startswith(prompt)
        if turn is None:
            raise self._drops(messages)
        incomplete = lacks(last, opened_by(prompt, last) + traced.text[turn[0] :])
        if not incomplete and not self._asked_otherwise(prompt, traced.text, turn):
            return traced
        return self._as_written(messages, traced, turn, prompt, tools, incomplete)

    def _asked_otherwise(self, prompt: str, text: str, turn: Span) -> bool:
        """Whether an answer stands behind something else than it is asked for with, and could stand behind that: where
        the prompt closes a thought that is not there, or writes the earlier messages in another way. A prompt that
        opens a thought is no place for an answer without one."""
        if not prompt or text.startswith(prompt):
            return False
        closed = prompt.rstrip().endswith(UNTHINK) and not text[turn[0] :].lstrip().startswith(THINK)
        return closed or bool(self._opening and text[: turn[0]].endswith(self._opening))

    def _drops(self, messages: Sequence[Message]) -> DataError:
        return DataError(
            f"the model's chat template drops or rewrites message {len(messages)}, an answer, so that its tokens "
            "cannot be told; possible: --set data.template=plain"
        )

    def _as_written(
        self, messages: Sequence[Message], traced: Traced, turn: Span, prompt: str, tools: Tools, incomplete: bool
    ) -> Traced:
        """A conversation whose last answer stands there as it is written in the data, where the template leaves a part
        of it out (`incomplete`) or has it elsewhere: behind the prompt by which it is asked for, and without what that
        opens."""
        last, common = messages[-1], _common(prompt, traced.text)
        opened, parts = prompt[common:], [last.content]
        if last.thoughts:
            if not prompt.rstrip().endswith(THINK):
                raise DataError(
                    f"the model's chat template has no place for the thoughts of message {len(messages)}; possible: "
                    "write them into its text as this model does, or leave their key out"
                )
            head, parts = prompt, [last.thoughts, f"\n{UNTHINK}\n\n", last.content]
        elif opened.strip():
            said = last.content.lstrip()
            if said.startswith(opened.strip()):
                said = said[len(opened.strip()) :].removeprefix(opened[len(opened.rstrip()) :])
            elif incomplete:
                raise self._drops(messages)
            head, parts = prompt, [said]
        else:
            head = traced.text[: max(turn[0], len(prompt))]
        known = traced if traced.text.startswith(head) else self.trace(messages[:-1], True, tools)
        whole = Traced(head, [span for span in known.contents if span[1] <= len(head)], untraced=known.untraced)
        whole.turns = known.turns[: _turns_before(messages, len(messages) - 1)]
        for number, part in enumerate(parts):
            span = (len(whole.text), len(whole.text) + len(part))
            whole.text += part
            whole.contents += self._between_marks(whole.text, span) if number != 1 else []
        whole.turns.append((len(head), len(whole.text)))
        whole.continues = whole.text.startswith(prompt)
        return whole

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """What an answer is asked for with; empty where the template refuses that. The last one is kept, for each is
        needed twice."""
        if not messages:
            return ""
        known, offered, prompt = self._last_prompt
        if messages != known or tools != offered:
            try:
                prompt = self.text(messages, True, tools)
            except DataError:
                prompt = ""
            self._last_prompt = messages, tools, prompt
        return prompt

    def _turn(
        self, messages: Sequence[Message], number: int, text: str, content: Span | None, tools: Tools
    ) -> Span | None:
        """Span of one answer, given that of its content.

        It starts where the generation prompt ends, since the model has to write whatever follows that; where the
        generation prompt is no part of this rendering, it starts with the content. Calls of tools end where the
        template closes the turn.
        """
        prompt = self.prompt(messages[:number], tools)
        if "tool_calls" in messages[number].extra:
            alone = self.text(messages[: number + 1], tools=tools)
            if not alone.startswith(prompt) or not text.startswith(alone.rstrip()):
                return None
            content = (len(prompt), len(alone.removesuffix(self._closing).rstrip()))
        if content is None:
            return None
        starts_there = prompt and len(prompt) <= content[1] and text.startswith(prompt)
        return (len(prompt), content[1]) if starts_there else content

    @cached_property
    def _opening(self) -> str:
        """What the template writes between a question and its answer."""
        return self.prompt([Message("user", MARK)]).partition(MARK)[2]

    @cached_property
    def _closing(self) -> str:
        """What the template writes behind an answer."""
        try:
            return self.text([Message("user", "a"), Message("assistant", MARK)]).partition(MARK)[2]
        except DataError:
            return ""

    def _between_marks(self, text: str, span: Span) -> list[Span]:
        """What stands in an answer between the marks of thoughts, which are the model's own and no one's text."""
        if THINK not in self.source or UNTHINK not in self.source:
            return [span]
        marks = [(span[0] + m.start(), span[0] + m.end()) for m in THOUGHT_MARKS.finditer(text[slice(*span)])]
        edges = [span[0], *(edge for mark in marks for edge in mark), span[1]]
        return [part for part in zip(edges[::2], edges[1::2], strict=True) if part[0] < part[1]]

    def _check_rendered(self, messages: Sequence[Message], tools: Tools) -> None:
        """Raises: DataError, if the template leaves out tools, calls, names, or what the system or a tool says."""
        if tools and MARK not in self.text(messages, tools=[_renamed(tools[0]), *tools[1:]]):
            raise DataError("the model's chat template has no place for tools; leave them out, or choose another model")
        for number, message in enumerate(messages):
            altered: list[tuple[str, Message]] = []
            if message.role in ("system", "tool") and message.content.strip():
                altered.append(("text", replace(message, content=MARK)))
            if "name" in message.extra and message.role != "tool":
                altered.append(("name", replace(message, extra={**message.extra, "name": MARK})))
            calls = message.extra.get("tool_calls", [])
            for at, call in enumerate(calls):
                other = [*calls[:at], _renamed({**call, "function": {**call["function"]}}), *calls[at + 1 :]]
                altered.append(("tool_calls", replace(message, extra={**message.extra, "tool_calls": other})))
            for what, instead in altered:
                if not self._shows([*messages[:number], instead, *messages[number + 1 :]], tools):
                    raise DataError(
                        f"the model's chat template leaves out the {what} of message {number + 1}, of the "
                        f"{message.role}; possible: write it into a text that is rendered, or leave it out"
                    )

    def _shows(self, messages: Sequence[Message], tools: Tools) -> bool:
        try:
            return MARK in self.text(messages, tools=tools)
        except DataError:  # it looks at what it was given, and so renders it
            return True

    def _places(self, messages: Sequence[Message], text: str, generation_prompt: bool, tools: Tools) -> dict[int, Span]:
        """Start and end in `text` of the contents whose marks the template leaves in place."""
        base = _free_marks(messages, text)
        anywhere = re.compile(f"[{chr(base)}-{chr(base + 2 * len(messages))}]")
        marked = [replace(m, content=_marked(m.content, base + 2 * number)) for number, m in enumerate(messages)]
        try:
            rendered = self.text(marked, generation_prompt, tools)
        except DataError:
            return {}
        return _found(rendered, anywhere, base) if anywhere.sub("", rendered) == text else {}

    def _replaced(
        self, messages: Sequence[Message], number: int, text: str, generation_prompt: bool, tools: Tools
    ) -> Span | None:
        """The place of a content that the template trims or rewrites: what changes when a mark stands in its stead."""
        mark = chr(_free_marks(messages, text))
        instead = [*messages[:number], replace(messages[number], content=mark), *messages[number + 1 :]]
        try:
            before, found, behind = self.text(instead, generation_prompt, tools).partition(mark)
        except DataError:
            return None
        start = _common(before, text)
        end = len(text) - _common(behind[::-1], text[start:][::-1])
        return (start, end) if found and start < end else None


def _dictionary(message: Message) -> dict[str, Any]:
    """A message as templates expect it. What was thought has three names in the field; each template reads one."""
    thoughts = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.thoughts)
    return {"role": message.role, "content": message.content, **(thoughts if message.thoughts else {}), **message.extra}


def _renamed(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool, or a call of one, under a name that occurs nowhere else."""
    function = tool.get("function")
    return {**tool, "function": {**function, "name": MARK}} if isinstance(function, dict) else {**tool, "name": MARK}


def _turns_before(messages: Sequence[Message], number: int) -> int:
    """How many of the messages before one are the assistant's."""
    return sum(message.role == "assistant" for message in messages[:number])


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
