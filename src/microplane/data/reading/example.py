"""What a row says, whatever its format was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)
