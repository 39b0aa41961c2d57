"""Conversations -> text for models without a chat template, and what has no place in such a text."""

from __future__ import annotations

from collections.abc import Sequence

from microplane.data.reading.example import Message
from microplane.data.rendering.chat_template import Tools, Traced
from microplane.errors import DataError


class PlainTemplate:
    """For models without a chat template: prompt, a line end, answer, the end token; a system prompt comes first.

    Args:
        end: the text of the model's end token.
    """

    def __init__(self, end: str):
        self.end = end

    def rows(self, messages: Sequence[Message], tools: Tools = ()) -> list[Traced]:
        """The conversation up to its last answer that is trained, if there is one.

        Raises:
            DataError: for tools, names and thoughts, which have no place here.
        """
        refuse_beside(messages, tools, "data.template=plain")
        last = max((n for n, m in enumerate(messages) if m.role == "assistant" and m.trained), default=-1)
        if last < 0:
            return []
        messages = messages[: last + 1]
        traced = self.trace(messages)
        said = [message for message in messages if message.role == "assistant" and message.content]
        traced.answers = [turn for turn, m in zip(traced.turns, said, strict=True) if turn and m.trained]
        return [traced]

    def trace(self, messages: Sequence[Message], generation_prompt: bool = False, tools: Tools = ()) -> Traced:
        """Messages stand on lines of their own; an answer is followed by the end token."""
        traced = Traced("")
        spoken = [message for message in messages if message.content]
        for number, message in enumerate(spoken):
            start = len(traced.text)
            span = (start, start + len(message.content))
            traced.contents.append(span)
            traced.text += message.content
            if message.role == "assistant":
                traced.turns.append(span)
                traced.text += self.end
            if number + 1 < len(spoken) or message.role != "assistant":
                traced.text += "\n"
        return traced


def refuse_beside(messages: Sequence[Message], tools: Tools, where: str) -> None:
    """Raises: DataError, for what only a chat template can render: tools, names, and thoughts apart from the text."""
    beside = ["tools"] if tools else []
    for message in messages:
        beside += ["thoughts (reasoning_content and the like)"] if message.thoughts else []
        beside += list(message.extra)
    if beside:
        raise DataError(
            f"{where} has no place for {beside[0]} beside the text of messages; write it into their text, leave it "
            "out, or choose a model whose chat template renders it"
        )
