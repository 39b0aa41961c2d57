"""Whether an answer stands in what a chat template makes of it as it was written, thoughts and all."""

from __future__ import annotations

import json
import re

from microplane.data.reading.example import Message

THINK, UNTHINK = "<think>", "</think>"  # how reasoning models begin and end a thought
THOUGHT_MARKS = re.compile(f"{THINK}|{UNTHINK}")
LONGEST_MARK = 32  # characters


def lacks(message: Message, rendered: str) -> bool:
    """Whether something that was said or thought is missing in what a template makes of it, or stands there otherwise.
    White space at its ends does not count, nor beside the marks of a thought, for templates put these in order. A
    template that writes texts as JSON leaves nothing out: its answers stand in quotes, whatever is in them."""
    place = 0
    for part in (message.thoughts, *THOUGHT_MARKS.split(message.content)):
        ends = (start + len(said) for said in _spellings(part.strip()) if (start := rendered.find(said, place)) >= 0)
        if (end := next(ends, None)) is None:
            return True
        place = end
    return False


def _spellings(text: str) -> tuple[str, str]:
    """A text as it stands, and as it stands between the quotes of JSON."""
    return text, json.dumps(text, ensure_ascii=False)[1:-1]


def opened_by(prompt: str, message: Message) -> str:
    """The mark that an answer begins with and its prompt ends with, as `<think>`."""
    prompt, said = prompt.rstrip(), message.content.lstrip()
    for size in range(min(len(said), LONGEST_MARK), 1, -1):
        mark = said[:size]
        if prompt.endswith(mark) and not mark[0].isalnum() and not mark[-1].isalnum():
            return mark
    return ""
