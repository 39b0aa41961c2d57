"""What a row says, whatever its format was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        trained: of an answer, whether it is to be learnt; else it only stands before what follows.
        thoughts: of an answer, what comes before it and is no part of its text.
        extra: what else chat templates know of a message: `name`, `tool_calls`, `tool_call_id`.
    """

    role: str  # system, user, assistant or tool
    content: str
    trained: bool = True
    thoughts: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """What is hashed of it beside role and content; mostly nothing."""
        if self.trained and not self.thoughts and not self.extra:
            return ""
        return _json([self.trained, self.thoughts, self.extra])

    def rewritten(self, change: Callable[[str], str]) -> Message:
        """With every text changed."""
        extra = _rewritten(self.extra, change)
        return replace(self, content=change(self.content), thoughts=change(self.thoughts), extra=extra)


@dataclass(frozen=True)
class Example:
    """One row. Exactly one of `messages` and `text` is there."""

    messages: tuple[Message, ...] | None
    text: str | None
    where: str  # "file.jsonl:17"
    labels: tuple[str | float | None, ...] = ()  # for a task head: classes, a number, or a class or None for each word
    words: tuple[str, ...] = ()  # of a text whose words have labels
    second_text: str = ""  # one that belongs to the first
    tools: tuple[Mapping[str, Any], ...] = ()  # that the assistant may call, as JSON describes them

    @property
    def characters(self) -> int:
        return (
            len(self.text or "") + len(self.second_text) + sum(len(message.content) for message in self.messages or ())
        )

    @property
    def system(self) -> str | None:
        """The system message, if there is one."""
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None

    def texts(self) -> Iterator[str]:
        """Everything of the row that was written by somebody."""
        for message in self.messages or ():
            yield from (message.content, message.thoughts, *texts_in(message.extra))
        yield from (self.text or "", self.second_text, *self.words, *texts_in(self.tools))
        yield from (label for label in self.labels if isinstance(label, str))

    def rewritten(self, change: Callable[[str], str]) -> Example:
        """With every text changed; itself if none does change."""
        if all(change(text) == text for text in self.texts()):
            return self
        return replace(
            self,
            messages=None if self.messages is None else tuple(message.rewritten(change) for message in self.messages),
            text=None if self.text is None else change(self.text),
            labels=tuple(change(label) if isinstance(label, str) else label for label in self.labels),
            words=tuple(map(change, self.words)),
            second_text=change(self.second_text),
            tools=_rewritten(self.tools, change),
        )

    def hash(self) -> int:
        """64 bits of the content, whatever file, line or format it comes from."""
        labels = [("pair", self.second_text), *(("label", str(label)) for label in self.labels)] if self.labels else []
        parts = (
            [("text", self.text or ""), *labels]
            if self.messages is None
            else [(m.role, m.content) for m in self.messages]
        )
        parts += [("beside", m.written) for m in self.messages or () if m.written]
        parts += [("tools", _json(self.tools))] if self.tools else []
        joined = "\x01".join(f"{role}\x00{len(content)}\x00{content}" for role, content in parts)
        return int.from_bytes(blake2b(joined.encode(), digest_size=8).digest(), "little")


def texts_in(value: Any) -> Iterator[str]:
    """The texts in what JSON can describe, but for the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)


def _rewritten(value: Any, change: Callable[[str], str]) -> Any:
    """What JSON can describe with its texts changed, but for the keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _rewritten(item, change) for key, item in value.items()}
    return type(value)(_rewritten(item, change) for item in value) if isinstance(value, list | tuple) else value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)
