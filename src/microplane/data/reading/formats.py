"""Rows -> examples. The formats of the field, recognised by the keys of the first rows, all read as one of two things:
a conversation (system, user, assistant), or plain text of which every token is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from microplane.data.reading.bad_rows import RowError, show
from microplane.errors import DataError, nearest

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Example:
    """One row, whatever its format was. Exactly one of `messages` and `text` is there."""

    messages: tuple[Message, ...] | None
    text: str | None
    where: str  # "file.jsonl:17"
    labels: tuple[str | float | None, ...] = ()  # for a task head: classes, a number, or a class or None for each word
    words: tuple[str, ...] = ()  # of a text whose words have labels
    second_text: str = ""  # one that belongs to the first

    @property
    def characters(self) -> int:
        return (
            len(self.text or "") + len(self.second_text) + sum(len(message.content) for message in self.messages or ())
        )

    def hash(self) -> int:
        """64 bits of the content, whatever file, line or format it comes from."""
        labels = [("pair", self.second_text), *(("label", str(label)) for label in self.labels)] if self.labels else []
        parts = (
            [("text", self.text or ""), *labels]
            if self.messages is None
            else [(m.role, m.content) for m in self.messages]
        )
        joined = "\x01".join(f"{role}\x00{len(content)}\x00{content}" for role, content in parts)
        return int.from_bytes(blake2b(joined.encode(), digest_size=8).digest(), "little")


# What the columns are called in the field. Each line of a tier is one layout: format name, column names by their part.
# The first tier that fits decides; two layouts of one tier that both fit are ambiguous.
_ANSWERS = ("output", "response", "answer", "completion", "target")
_PAIRS = {
    "prompt": ("completion", "response", "answer", "output", "target"),
    "question": ("answer", "response"),
    "query": ("response", "answer"),
    "inputs": ("targets", "outputs"),
    "input": ("output", "target", "response", "completion"),
    "source": ("target",),
    "src": ("tgt",),
    "document": ("summary",),
    "article": ("highlights", "summary"),
    "text": ("summary",),
}
_CHATS = ("messages", "conversations", "conversation", "dialogue", "chat")
_CLASSES = ("label", "labels", "category", "class", "sentiment")

_ColumnLayout = tuple[str, dict[str, str]]  # the format's name; part -> column
_TIERS: tuple[list[_ColumnLayout], ...] = (
    [("conversations" if name.startswith("conv") else "messages", {"messages": name}) for name in _CHATS],
    [("instruction/input/output", {"instruction": "instruction", "answer": answer}) for answer in _ANSWERS],
    [
        (f"{'prompt/completion' if prompt in ('prompt', 'question', 'query') else 'inputs/targets'}",
         {"prompt": prompt, "answer": answer})
        for prompt, answers in _PAIRS.items() for answer in answers
    ],
    [("text/label", {"prompt": text, "label": label}) for text in ("text", "sentence") for label in _CLASSES],
    [("text", {"text": "text"})],
)  # fmt: skip
_OPTIONAL = {"input": ("input", "context"), "system": ("system", "system_prompt")}
FORMATS = {
    "prompt/completion": "prompt -> completion, question -> answer, query -> response",
    "instruction/input/output": "instruction (+ input or context) -> output, response, answer",
    "inputs/targets": "inputs -> targets, input -> output, source -> target, document -> summary",
    "messages": "a list of {role, content}",
    "conversations": "a list of {from, value}",
    "text/label": "text or sentence -> label, category, class, sentiment",
    "text": "text, all of it trained",
}


@dataclass(frozen=True)
class Format:
    """How the rows of one file are read."""

    name: str
    columns: Mapping[str, str]  # part -> column as the file spells it
    unused: tuple[str, ...] = ()  # other columns

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(self.columns.values())

    @property
    def classes(self) -> tuple[str, ...]:
        """None: these rows have no labels."""
        return ()

    def __str__(self) -> str:
        """`instruction/input/output (instruction + input -> output; not used: id)`"""
        sources = [self.columns[part] for part in ("system", "instruction", "prompt", "input") if part in self.columns]
        target = self.columns.get("answer") or self.columns.get("label")
        reading = f"{' + '.join(sources)} -> {target}" if target else ", ".join(self.columns.values())
        rest = f"; not used: {', '.join(self.unused[:8])}" if self.unused else ""
        return f"{self.name} ({reading}{rest})"

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """The example in a row.

        Raises:
            RowError: with the key, the offending value and what was expected.
        """
        columns = self.columns
        if self.name == "text":
            return Example(None, _filled(values, columns["text"], "text"), where)
        messages = _conversation(values, columns["messages"]) if "messages" in columns else self._pair(values)
        if "system" in columns and (system := _optional(values, columns["system"])):
            if messages[0].role == "system":
                where_both = f"key {columns['system']!r} and the first message"
                raise RowError("wrong role order", f"{where_both} both hold a system prompt, expected one")
            messages.insert(0, Message("system", system))
        return Example(tuple(messages), None, where)

    def _pair(self, values: Mapping[str, Any]) -> list[Message]:
        columns = self.columns
        prompt = _filled(values, columns.get("instruction") or columns["prompt"], "prompt")
        if "input" in columns and (given := _optional(values, columns["input"])):
            prompt = join_input(prompt, given)
        answer = (
            _label(values, columns["label"]) if "label" in columns else _filled(values, columns["answer"], "answer")
        )
        return [Message("user", prompt), Message("assistant", answer)]


def join_input(instruction: str, given: str) -> str:
    """The one way an instruction and its input become a prompt."""
    return f"{instruction}\n\n{given}"


# Recognising


def recognise(rows: Iterable[Mapping[str, Any]], name: str, wanted: str = "auto") -> Format:
    """The format of a file by the keys that at least half of its first rows have.

    Args:
        rows: the first rows.
        name: of the file, for errors.
        wanted: a format that the user chose, or "auto".

    Raises:
        DataError: if no format fits, or several do.
    """
    counts: dict[str, int] = {}
    total = 0
    for row in rows:
        total += 1
        for key in row:
            counts[key] = counts.get(key, 0) + 1
    seen = [key for key, count in counts.items() if 2 * count >= total]
    spelled = {key.strip().lower(): key for key in reversed(seen)}
    for tier in _TIERS:
        fitting = [layout for layout in tier if _fits(layout, spelled, wanted)]
        if len(fitting) > 1:
            raise _ambiguous(name, seen, fitting)
        if fitting:
            return _format(fitting[0], spelled, seen)
    raise _unknown(name, seen, wanted)


def _fits(layout: _ColumnLayout, spelled: Mapping[str, str], wanted: str) -> bool:
    name, columns = layout
    named_so = wanted in ("auto", name) or {wanted, name} == {"messages", "conversations"}
    return named_so and all(column in spelled for column in columns.values())


def _format(layout: _ColumnLayout, spelled: Mapping[str, str], seen: list[str]) -> Format:
    name, columns = layout
    found = {part: spelled[column] for part, column in columns.items()}
    for part, aliases in _OPTIONAL.items():
        if name in ("text", "text/label") or (part == "input" and name != "instruction/input/output"):
            continue
        column = next((spelled[alias] for alias in aliases if alias in spelled), None)
        if column:
            found[part] = column
    return Format(name, found, tuple(key for key in seen if key not in found.values()))


def _ambiguous(name: str, seen: list[str], fitting: list[_ColumnLayout]) -> DataError:
    readings = ", or ".join(str(Format(layout, columns)) for layout, columns in fitting)
    choose = ", or choose with --set data.format=..." if len({layout for layout, _ in fitting}) > 1 else ""
    return DataError(
        f"{name}: the keys {_listed(seen)} can be read in more than one way: {readings}. "
        f"Remove or rename the columns that are not meant{choose}"
    )


def _unknown(name: str, seen: list[str], wanted: str) -> DataError:
    known = sorted({column for tier in _TIERS for _, columns in tier for column in columns.values()})
    hints = [f" {key!r}:{hint}" for key in seen if key.lower() not in known and (hint := nearest(key.lower(), known))]
    formats = {wanted: FORMATS[wanted]} if wanted in FORMATS else FORMATS
    lines = [f"  {format_name}: {columns}" for format_name, columns in formats.items()]
    asked = f" as {wanted}" if wanted != "auto" else ""
    header = " The first line of a CSV file must name its columns." if ".csv" in name or ".tsv" in name else ""
    head = f"{name}: the keys {_listed(seen)} are not understood{asked}.{''.join(hints)}{header}"
    return DataError("\n".join([f"{head} Possible:", *lines]))


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(key[:40]) for key in keys[:12])
    return f"[{shown}{f' and {len(keys) - 12} more' if len(keys) > 12 else ''}]"


# Reading one row


def _get(values: Mapping[str, Any], key: str, expected: str) -> Any:
    if key not in values:
        raise RowError(
            "missing key", f"key {key!r} is missing, expected {expected}; the row has {_listed(list(values))}"
        )
    return values[key]


def _text(value: Any, place: str) -> str:
    if value is None:
        raise RowError("null", f"{place} is null, expected text")
    if not isinstance(value, str):
        raise RowError("not text", f"{place} is {show(value)}, expected text")
    return whole_text(value, place)


def whole_text(text: str, place: str) -> str:
    """The text itself.

    Raises:
        RowError: if half of a character stands in it (a lone surrogate), which no file can hold.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise RowError("broken text", f"{place} holds half a character ({half}), expected whole ones") from None
    return text


def _filled(values: Mapping[str, Any], key: str, part: str) -> str:
    text = _text(_get(values, key, "text"), f"key {key!r}")
    if not text.strip():
        raise RowError(f"empty {part}", f"key {key!r} is {show(text)}, expected the {part}")
    return text


def _optional(values: Mapping[str, Any], key: str) -> str:
    """An optional part: absent, null and blank all mean that there is none."""
    value = values.get(key)
    if value is None or value == "":
        return ""
    text = _text(value, f"key {key!r}")
    return text if text.strip() else ""


def _label(values: Mapping[str, Any], key: str) -> str:
    """A class name. Whole numbers are names too."""
    value = _get(values, key, "a label")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else _filled(values, key, "answer")


# Conversations

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}


def _conversation(values: Mapping[str, Any], key: str) -> list[Message]:
    items = _get(values, key, "a list of messages")
    if not isinstance(items, list):
        kind = "null" if items is None else "not a list"
        raise RowError(kind, f"key {key!r} is {show(items)}, expected a list of {{role, content}}")
    messages = [_message(item, f"{key}[{number}]") for number, item in enumerate(items)]
    _check_order(messages, key)
    return messages


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise RowError("not a message", f"{place} is {show(item)}, expected {{role, content}}")
    name = "role" if "role" in item else "from"
    spelled = _get(item, name, f"the role of {place}")
    role = _ROLES.get(spelled.lower()) if isinstance(spelled, str) else None
    if role is None:
        raise RowError("unknown role", f"{place}.{name} is {show(spelled)}, expected {', '.join(_ROLES)}")
    key = "content" if "content" in item else "value"
    content = _get(item, key, f"the text of {place}")
    text = _joined(content, f"{place}.{key}") if isinstance(content, list) else _text(content, f"{place}.{key}")
    if not text.strip() and role != "system":
        part = "answer" if role == "assistant" else "prompt"
        raise RowError(f"empty {part}", f"{place}.{key} is {show(text)}, expected the {part}")
    return Message(role, text)


def _joined(parts: list[Any], place: str) -> str:
    """The text of a content that is a list of `{"type": "text", "text": ...}`."""
    texts = []
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type", "text") != "text" or "text" not in part:
            raise RowError("not text", f'{place}[{number}] is {show(part)}, expected {{"type": "text", "text": ...}}')
        texts.append(_text(part["text"], f"{place}[{number}].text"))
    return "".join(texts)


def _check_order(messages: list[Message], key: str) -> None:
    """Refuse what is not: perhaps one system message, then user and assistant in turn, the assistant last."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        has = ", ".join(roles) or "no message"
        raise RowError("no assistant message", f"key {key!r} holds {has}, expected at least one assistant message")
    start = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[start:], start):
        expected = ("user", "assistant")[(number - start) % 2]
        if role != expected:
            raise RowError("wrong role order", f"{key}[{number}] is from the {role}, expected the {expected}")
    if roles[-1] != "assistant":
        raise RowError("wrong role order", f"{key} ends with the {roles[-1]}, expected the assistant's answer")
