"""The columns of a file, and what the formats call them.

A format needs some columns, which most rows have; others it takes where a row has them, however few do. What a column
is for follows from its name, or from the knob `data.fields`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from microplane.data.reading.conversations import is_conversation
from microplane.data.reading.values import is_filled, listed, read_json, truth
from microplane.errors import DataError, nearest

Fields = Mapping[str, str | None]
"""The knob `data.fields`: part of a row -> its column, or None where the rows have no such part."""

CHATS = ("messages", "conversations", "conversation", "dialogue", "chat")
ANSWERS = ("output", "response", "answer", "completion", "target")
PAIRS = {
    "prompt": ("completion", "response", "answer", "output", "target"),
    "question": ("answer", "response"),
    "query": ("response", "answer"),
    "inputs": ("targets", "outputs"),
    "input": ("output", "target", "response", "completion"),
    "source": ("target",),
    "src": ("tgt",),
    "document": ("summary",),
    "article": ("highlights", "summary"),
    "dialogue": ("summary",),
    "conversation": ("summary",),
    "text": ("summary",),
}
CLASSES = ("label", "labels", "category", "class", "sentiment")
NUMBERS = ("score", "rating")  # labels too, where a task head learns them
WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")
INPUTS = ("input", "context", "passage", "paragraph", "document", "article", "background")
SYSTEMS = ("system", "system_prompt", "system_message")
HISTORY = ("history",)  # turns before: pairs of what was asked and what was answered
TOOLS = ("tools", "functions")
JUDGED = (
    *("label", "labels", "kto_tag", "desirable", "is_desirable", "preferred", "is_preferred", "accepted"),
    *("is_accepted", "correct", "is_correct", "good", "is_good"),
)  # beside an answer: whether it is wanted, where true or false stands there


def _numbered() -> Iterator[tuple[str, str]]:
    for first, second in (("1", "2"), ("_1", "_2"), ("a", "b"), ("_a", "_b")):
        for name in ("sentence", "text", "question", "sent", "s"):
            yield name + first, name + second


# Columns of a text to be labelled; of two texts, the one that stands further up is the first.
TEXTS = (
    *(first for first, _ in _numbered()),
    *("premise", "claim", "question", "query", "title", "headline", "subject"),
    *("text", "sentence", "review", "content", "document", "article", "context", "passage", "paragraph", "body"),
    *(
        "message",
        "comment",
        "abstract",
        "description",
        "summary",
        "evidence",
        "hypothesis",
        "text_pair",
        "sentence_pair",
    ),
    *(second for _, second in _numbered()),
    *("answer", "response"),
)

_NAMES: dict[str, tuple[str, ...]] = {
    "messages": CHATS,
    "tools": TOOLS,
    "system": SYSTEMS,
    "instruction": ("instruction",),
    "input": INPUTS,
    "history": HISTORY,
    "prompt": tuple(name for name in PAIRS if name != "text"),
    "completion": tuple(dict.fromkeys([*ANSWERS, *(name for names in PAIRS.values() for name in names)])),
    "text": TEXTS,
    "text_pair": (),  # any but the text
    "label": (*CLASSES, *NUMBERS),
    "tokens": WORDS,
    "tags": TAGS,
    "split": (),  # of which no format knows: `reading.marked`
}  # as `config.knobs.PARTS`
_OPTIONAL = ("tools", "system", "input", "history", "text_pair", "split")


class Columns:
    """The columns that some rows of a file have.

    Attributes:
        names: of all, as the file spells them, in the order in which they first occur.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], file: str, fields: Fields | None = None):
        """Look at rows.

        Args:
            file: for errors.
            fields: as the knob `data.fields`.

        Raises:
            DataError: if it names a column that these rows do not have and a format needs.
        """
        self.file, self.fields, self._rows = file, dict(fields or {}), rows
        self._there = Counter(key for row in rows for key in row)
        self._filled = Counter(key for row in rows for key, value in row.items() if is_filled(value))
        self.names = list(self._there)
        for part, column in self.fields.items():
            if column is not None and column not in self._there and part not in _OPTIONAL:
                raise DataError(no_column(file, part, column, self.names))

    def usual(self, strictly: bool) -> dict[str, str]:
        """By their lower-case names, or the part that `data.fields` makes them: columns that at least half of the rows
        have; strictly, that something stands in there."""
        counts = self._filled if strictly else self._there
        mapped = {column for column in self.fields.values() if column}
        return self._spelled(name for name in self.names if name in mapped or 2 * counts[name] >= len(self._rows))

    @property
    def mapped(self) -> set[str]:
        """Columns that a format must take, for `data.fields` names them."""
        return {column for part, column in self.fields.items() if column and part not in _OPTIONAL}

    def _spelled(self, names: Iterable[str]) -> dict[str, str]:
        mapped = {column for column in self.fields.values() if column}
        found: dict[str, str] = {}
        for name in names:
            if name not in mapped:
                found.setdefault(name.strip().lower(), name)
        for part, column in self.fields.items():
            for name in _NAMES[part]:
                found.pop(name, None)
            if column in self._there:
                found |= dict.fromkeys([part, *(_NAMES[part] if part == "completion" else ())], str(column))
        return found

    def optional(self, part: str, taken: Iterable[str] = ()) -> str | None:
        """The column of a part that not every row has; None if no row does.

        Args:
            taken: columns that are another part.

        Raises:
            DataError: if several could be it.
        """
        if part in self.fields:
            return self.fields[part]
        spelled = self._spelled(name for name in self.names if name not in taken)
        found = [spelled[name] for name in _NAMES[part] if name in spelled and spelled[name] not in taken]
        filled = [name for name in found if self._filled[name]]
        if len(filled) > 1:
            raise self._choose(part, filled)
        return next(iter(filled or found), None)

    def judged(self, taken: Iterable[str], answer: str | None = None) -> str | None:
        """The column that says of each answer whether it is wanted: only true and false stand there, or 1 and 0.

        Args:
            taken: columns that are a part of the row.
            answer: the column of the answers. Where these are a few that come again, each with one value, that is its
                number, and judges nothing.
        """
        if "label" in self.fields:
            return None
        could = [name for name in self.names if name.strip().lower() in JUDGED and name not in set(taken)]
        found = (name for name in could if self._filled[name] and self._holds_truths(name))
        return next((name for name in found if answer is None or not self._numbers(name, answer)), None)

    def _numbers(self, name: str, answer: str) -> bool:
        pairs = {(str(row.get(answer)), truth(row.get(name))) for row in self._rows}
        answers = {text for text, _ in pairs}
        return len(pairs) == len(answers) and 2 * len(answers) <= len(self._rows)

    def _holds_truths(self, name: str) -> bool:
        return all(truth(row[name]) is not None for row in self._rows if is_filled(row.get(name)))

    def maybe(self, part: str) -> list[str]:
        """Columns that would be this part if anything stood in them."""
        return [name for name in self.names if name.strip().lower() in _NAMES[part] and not self._filled[name]]

    def _choose(self, part: str, columns: Sequence[str]) -> DataError:
        return DataError(
            f"{self.file}: the columns {listed(columns)} could all be the {part} of a row. Choose with --set "
            f"'data.fields={{{part}: {columns[0]}}}', or leave them out with --set 'data.fields={{{part}: null}}'"
        )

    def texts(self, taken: Iterable[str]) -> tuple[str | None, str | None]:
        """The column of the text to be labelled, and that of a second one which belongs to it.

        Args:
            taken: columns that are something else, as the label.

        Raises:
            DataError: for more than two columns of text.
        """
        known = [name for name in self._texts(taken) if self.is_text(name)]
        first, second = self.fields.get("text"), self.fields.get("text_pair")
        rest = [name for name in known if name not in (first, second)]
        if first is None:
            first = rest.pop(0) if rest else next(iter(self._texts(taken)), None)
        if "text_pair" in self.fields or not rest:
            return first, second
        if len(rest) > 1:
            raise DataError(
                f"{self.file}: the columns {listed([str(first), *rest])} could all be the text. Choose one with --set "
                f"'data.fields={{text: {first}, text_pair: null}}', or two that belong together with --set "
                f"'data.fields={{text: {first}, text_pair: {rest[0]}}}'"
            )
        return first, rest[0]

    def _texts(self, taken: Iterable[str]) -> list[str]:
        """Columns that are called as texts are, in their order."""
        spelled = {name.strip().lower(): name for name in reversed(self.names) if name not in set(taken)}
        return [spelled[name] for name in TEXTS if name in spelled]

    def is_text(self, name: str) -> bool:
        """Whether anything stands in it, and most of that is text."""
        texts = sum(isinstance(row.get(name), str) and is_filled(row[name]) for row in self._rows)
        return 2 * texts > self._filled[name]

    def maybe_texts(self, taken: Iterable[str]) -> list[str]:
        """Columns that would be texts if anything stood in them."""
        return [name for name in self._texts(taken) if not self._filled[name]]

    def holds_lists(self, name: str) -> bool:
        """Whether most of what stands in a column is a list, or may be one written as text."""
        lists = sum(isinstance(row.get(name), list | str) and is_filled(row[name]) for row in self._rows)
        return 2 * lists > self._filled[name]

    def holds_turns(self, name: str) -> bool:
        """Whether all that stands in a column, or most of it, is a list, perhaps one written as JSON."""
        lists = sum(isinstance(read_json(row.get(name)), list) and is_filled(row[name]) for row in self._rows)
        return 2 * lists >= self._filled[name]

    def holds_texts(self, name: str) -> bool:
        """Whether most of what stands in a column is text, and no list written as such."""
        return self.is_text(name) and not self.holds_turns(name)

    def holds_messages(self, name: str) -> bool:
        """Whether a column holds conversations."""
        return any(is_conversation(row.get(name)) for row in self._rows)

    def unused(self, used: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in set(used))


def told(reading: str, unused: Sequence[str]) -> str:
    """A format's reading, and the columns that it does not use."""
    more = f" and {len(unused) - 8} more" if len(unused) > 8 else ""
    return reading + (f"; not used: {', '.join(unused[:8])}{more}" if unused else "")


def no_column(file: str, part: str, column: str, names: Sequence[str]) -> str:
    """What is said of a column of `data.fields` that there is not."""
    has = f"there is no such column.{nearest(column, names)} Columns: {listed(names)}"
    return f"{file}: data.fields reads {part} from {column!r}, and {has}"
