"""Rows -> examples. The formats of the field, recognised by the keys of the first rows, all read as one of two things:
a conversation (system, user, assistant, perhaps tools), or plain text of which every token is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from microplane.data.reading.bad_rows import NoLabel, RowError, show
from microplane.data.reading.columns import ANSWERS, CHATS, CLASSES, PAIRS, Columns, Fields, told
from microplane.data.reading.conversations import (
    conversation,
    is_conversation,
    prompt_and_completion,
    tools_of,
    turns_before,
)
from microplane.data.reading.example import Example, Message
from microplane.data.reading.label_values import AUTO, is_none, means_none, plain_names
from microplane.data.reading.options import refuse_unseen_options
from microplane.data.reading.values import filled_text, get, is_filled, listed, optional_text, truth
from microplane.errors import DataError, nearest

# Each line of a tier is one layout: format name, column names by their part. The first tier that fits decides; two
# layouts of one tier that both fit are ambiguous.
_ColumnLayout = tuple[str, dict[str, str]]  # the format's name; part -> column
_TIERS: tuple[list[_ColumnLayout], ...] = (
    [("conversations" if name.startswith("conv") else "messages", {"messages": name}) for name in CHATS],
    [("instruction/input/output", {"instruction": "instruction", "answer": answer}) for answer in ANSWERS],
    [
        (f"{'prompt/completion' if prompt in ('prompt', 'question', 'query') else 'inputs/targets'}",
         {"prompt": prompt, "answer": answer})
        for prompt, answers in PAIRS.items() for answer in answers
    ],
    [("text/label", {"prompt": text, "label": label}) for text in ("text", "sentence") for label in CLASSES],
    [("text", {"text": "text"})],
)  # fmt: skip
TEXT = "text"  # the format of rows that are no conversations
_ASKED = ("system", "history", "instruction", "prompt", "input")  # parts that stand before an answer
_SIDES = ("instruction", "prompt", "answer")  # parts that may be lists of messages
OPTIONAL = ("system", "input", "history", "tools")  # parts that not every row has
_WITH_MORE = ("instruction/input/output", "prompt/completion")  # formats of rows that may have an input and a history
FORMATS = {
    "prompt/completion": "prompt -> completion (texts or messages), question (+ context) -> answer, query -> response",
    "instruction/input/output": "instruction (+ input or context) -> output, response, answer",
    "inputs/targets": "inputs -> targets, input -> output, source -> target, document or dialogue -> summary",
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
    watched: tuple[str, ...] = ()  # those of them that would be used if anything stood in them
    no_label: frozenset[str] = frozenset()  # of text/label: what means that a row has none
    passed_over: dict[str, None] = field(default_factory=dict, compare=False)  # keys of messages, as they are met

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that are read; also those in which nothing stands so far, and which a later row may fill."""
        return (*self.columns.values(), *self.watched)

    @property
    def classes(self) -> tuple[str, ...]:
        """None: these rows have no labels."""
        return ()

    def __str__(self) -> str:
        """`instruction/input/output (instruction + input -> output; not used: id)`"""
        sources = [self.columns[part] for part in _ASKED if part in self.columns]
        target, judged = self.columns.get("answer") or self.columns.get("label"), self.columns.get("judged")
        others = ", ".join(column for part, column in self.columns.items() if part != "judged")
        reading = (f"{' + '.join(sources)} -> {target}" if target else others) + (f", if {judged}" if judged else "")
        return f"{self.name} ({told(reading, [*self.unused, *self.passed_over])})"

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """The example in a row.

        Raises:
            RowError: with the key, the offending value and what was expected.
            NoLabel: if the label says that the row has none.
        """
        columns = self.columns
        if "label" in columns and is_none(values.get(columns["label"]), self.no_label):
            raise NoLabel
        if "judged" in columns and truth(values.get(columns["judged"])) is False:
            raise RowError(
                "unwanted answer",
                f"key {columns['judged']!r} is {show(values[columns['judged']])}: the answer is one that is not "
                "wanted, as in rows of KTO, and all are trained here. --skip-bad-rows leaves such rows out; if it "
                "means something else: --set 'data.fields={label: null}'",
            )
        if self.name == "text":
            return Example(None, filled_text(values, columns["text"], "text"), where)
        if "messages" in columns:
            messages = conversation(values, columns["messages"], self.passed_over)
        else:
            messages = self._of_messages(values) or self._pair(values)
        if "system" in columns and (system := optional_text(values, columns["system"])):
            if messages[0].role == "system":
                where_both = f"key {columns['system']!r} and the first message"
                raise RowError("wrong role order", f"{where_both} both hold a system prompt, expected one")
            messages.insert(0, Message("system", system))
        tools = tools_of(values, columns["tools"]) if "tools" in columns else ()
        return Example(tuple(messages), None, where, tools=tools)

    def _of_messages(self, values: Mapping[str, Any]) -> list[Message]:
        """The messages of a row whose prompt or answer is a list of them; none where both are texts."""
        prompt, answer = (self.columns.get(part, "") for part in ("prompt", "answer"))
        prompt = prompt or self.columns.get("instruction", "")
        if not answer or not any(is_conversation(values.get(key)) for key in (prompt, answer)):
            return []
        for part in ("input", "history"):
            if (beside := self.columns.get(part)) and is_filled(values.get(beside)):
                has = f"key {beside!r} is {show(values[beside])} beside a list of messages"
                raise RowError("said twice", f"{has}, expected it to stand in a message")
        return prompt_and_completion(values, prompt, answer, self.passed_over)

    def _pair(self, values: Mapping[str, Any]) -> list[Message]:
        columns = self.columns
        prompt = filled_text(values, columns.get("instruction") or columns["prompt"], "prompt")
        if "input" in columns and (given := optional_text(values, columns["input"])):
            prompt = join_input(prompt, given)
        answer = (
            _label(values, columns["label"]) if "label" in columns else filled_text(values, columns["answer"], "answer")
        )
        before = turns_before(values, columns["history"]) if "history" in columns else []
        return [*before, Message("user", prompt), Message("assistant", answer)]


def join_input(instruction: str, given: str) -> str:
    """The one way an instruction and its input become a prompt."""
    return f"{instruction}\n\n{given}"


# Recognising


def recognise(
    rows: Iterable[Mapping[str, Any]],
    name: str,
    wanted: str = "auto",
    fields: Fields | None = None,
    no_label: Sequence[str] = AUTO,
) -> Format:
    """The format of a file by the columns of some of its rows: those that at least half of them have decide, and what
    is optional in it is taken where any row has it.

    Args:
        rows: the first rows, and each later one that has a column which no row before it has.
        name: of the file, for errors.
        wanted: a format that the user chose, or "auto".
        fields: as the knob `data.fields`.
        no_label: as the knob `data.no_label`.

    Raises:
        DataError: if no format fits, or several do.
    """
    rows = list(rows)
    columns = Columns(rows, name, fields)
    for strictly in (True, False):  # what nothing stands in is looked at only if nothing fits without
        spelled = columns.usual(strictly)
        for tier in _TIERS:
            fits = [layout for layout in tier if _fits(layout, spelled, wanted, columns)]
            fitting = list({str(_columns_of(layout, spelled)): layout for layout in reversed(fits)}.values())[::-1]
            if len(fitting) > 1:
                raise _ambiguous(name, list(spelled.values()), fitting)
            if fitting:
                found = _format(fitting[0], spelled, columns)
                _refuse_unseen(found, rows, columns, wanted)
                return replace(found, no_label=_no_label(found, rows, no_label))
    raise _unknown(name, columns, wanted)


def _fits(layout: _ColumnLayout, spelled: Mapping[str, str], wanted: str, columns: Columns) -> bool:
    name, parts = layout
    named_so = wanted in ("auto", name) or {wanted, name} == {"messages", "conversations"}
    there = all(column in spelled for column in parts.values())
    if there and (chat := parts.get("messages")) in PAIRS and columns.holds_texts(spelled[chat]):
        return False  # the text of a talk, as what is to be summarised
    return named_so and there and columns.mapped <= set(_columns_of(layout, spelled).values())


def _columns_of(layout: _ColumnLayout, spelled: Mapping[str, str]) -> dict[str, str]:
    """Part -> column as the file spells it."""
    return {part: spelled[column] for part, column in layout[1].items()}


def _format(layout: _ColumnLayout, spelled: Mapping[str, str], columns: Columns) -> Format:
    name, parts = layout
    found = _columns_of(layout, spelled)
    optional = ["system"] if name not in ("text", "text/label") else []
    if "messages" in parts or any(columns.holds_messages(found.get(part, "")) for part in _SIDES):
        optional += ["tools"]
    elif name in _WITH_MORE:
        optional += ["input", "history"]
    for part in optional:
        column = columns.optional(part, found.values())
        if column and (part != "history" or part in columns.fields or columns.holds_turns(column)):
            found[part] = column
    if name not in ("text", "text/label") and (judged := columns.judged(found.values(), found.get("answer"))):
        found["judged"] = judged
    if name == "text/label":
        first, second = columns.texts([found["label"]])
        if first and second:
            found |= {"prompt": first, "input": second}
    unused = columns.unused(found.values())
    return Format(name, found, unused, tuple(c for part in optional for c in columns.maybe(part) if c in unused))


def _refuse_unseen(form: Format, rows: Sequence[Mapping[str, Any]], columns: Columns, wanted: str) -> None:
    """Raises: DataError, for rows that hold more than would be learnt of them: options that the question does not show,
    or an answer beside a text."""
    asked = [form.columns[part] for part in _ASKED[2:] if part in form.columns]
    answer = form.columns.get("answer") or form.columns.get("label")
    if answer and "label" not in columns.fields:
        refuse_unseen_options(rows, columns.file, asked, answer, form.unused, "label" in form.columns)
    beside = [name for name in form.unused if name.strip().lower() in ANSWERS and columns.is_text(name)]
    if form.name == TEXT and wanted == "auto" and "text" not in columns.fields and beside:
        text = form.columns["text"]
        raise DataError(
            f"{columns.file}: {text!r} may be all that is to be learnt, or the question that {beside[0]!r} answers. "
            f"Choose with --set data.format=text, or --set 'data.fields={{prompt: {text}, completion: {beside[0]}}}'"
        )


def _no_label(form: Format, rows: Iterable[Mapping[str, Any]], asked: Sequence[str]) -> frozenset[str]:
    """What means that a row has no label, of rows that have one in their answer's place."""
    if (key := form.columns.get("label")) is None:
        return frozenset()
    return means_none(plain_names(row.get(key) for row in rows)) if tuple(asked) == AUTO else frozenset(asked)


def _ambiguous(name: str, seen: list[str], fitting: list[_ColumnLayout]) -> DataError:
    readings = ", or ".join(str(Format(layout, columns)) for layout, columns in fitting)
    choose = ", or choose with --set data.format=..." if len({layout for layout, _ in fitting}) > 1 else ""
    return DataError(
        f"{name}: the keys {listed(seen)} can be read in more than one way: {readings}. "
        f"Remove or rename the columns that are not meant, say which are with --set data.fields={{...}}{choose}"
    )


def _unknown(name: str, columns: Columns, wanted: str) -> DataError:
    seen = list(columns.usual(strictly=False).values())
    known = sorted({column for tier in _TIERS for _, columns in tier for column in columns.values()})
    hints = [f" {key!r}:{hint}" for key in seen if key.lower() not in known and (hint := nearest(key.lower(), known))]
    formats = {wanted: FORMATS[wanted]} if wanted in FORMATS else FORMATS
    lines = [f"  {format_name}: {columns}" for format_name, columns in formats.items()]
    asked = f" as {wanted}" if wanted != "auto" else ""
    header = " The first line of a CSV file must name its columns." if ".csv" in name or ".tsv" in name else ""
    head = f"{name}: the keys {listed(seen)} are not understood{asked}.{''.join(hints)}{header}"
    name_them = "  any other names, with --set 'data.fields={prompt: A, completion: B}'"
    return DataError("\n".join([f"{head} Possible:", *_preferred(columns), *lines, name_them]))


def _preferred(columns: Columns) -> Iterator[str]:
    """How to train on the better answers of rows that hold two."""
    by_name = {column.strip().lower(): column for column in columns.names}
    if (better := by_name.get("chosen")) is None or "rejected" not in by_name:
        return
    prompt = next((by_name[asked] for asked in ("instruction", *PAIRS) if asked in by_name), None)
    part = f"messages: {better}" if columns.holds_messages(better) else f"text: {better}"
    fields = f"prompt: {prompt}, completion: {better}" if prompt and not columns.holds_messages(better) else part
    yield f"  of rows with a better and a worse answer the better one, with --set 'data.fields={{{fields}}}'"


# Reading one row


def _label(values: Mapping[str, Any], key: str) -> str:
    """A class name. Whole numbers are names too."""
    value = get(values, key, "a label")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else filled_text(values, key, "answer")
