"""Examples -> rows with labels, for models with a task head: one class, several, a number, or a class for each word.

What is different for each task is a small renderer of its own; the rest is shared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from microplane.data.reading.bad_rows import RowError, show
from microplane.data.reading.columns import CLASSES, NUMBERS, TAGS, TEXTS, WORDS, Columns, Fields, told
from microplane.data.reading.example import Example
from microplane.data.reading.label_values import AUTO, label_names, look, same_class, unpacked
from microplane.data.reading.options import refuse_unseen_options
from microplane.data.reading.values import get, is_filled, optional_text, whole_text
from microplane.data.rendering.interface import RowTraits
from microplane.data.store import Lost, TokenRow
from microplane.data.tokenizers.tokenizer import Encoded, Tokenizer
from microplane.errors import DataError
from microplane.models.configs.head import IGNORED, PER_TOKEN, Task


class UnknownClassError(DataError):
    """A row has a class that the training rows do not have."""


class LabelFormat:
    """How rows become labelled examples: the `RowFormat` where a task head is trained."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        file: str,
        task: Task | None = None,
        known: Sequence[str] = (),
        no_label: Sequence[str] = AUTO,
        fields: Fields | None = None,
    ):
        """Look at the first rows of a file, and at each later one that has a column which no row before it has.

        Args:
            task: what the user asked for; otherwise the kind of the labels decides.
            known: class names of the model's head.
            no_label: as the knob `data.no_label`.
            fields: as the knob `data.fields`.

        Raises:
            DataError: if there is no text, or no label, or several columns could be the text.
        """
        columns = Columns(rows, file, fields)
        usual = columns.usual(strictly=True) | columns.usual(strictly=False)
        words, tags = _first(WORDS, usual), _first(TAGS, usual)
        lists = words is not None and tags is not None and columns.holds_lists(words)
        self.per_word = lists if task is None else task == PER_TOKEN
        label = tags if self.per_word else _first((*CLASSES, *NUMBERS), usual)
        first, second = (words, None) if self.per_word else columns.texts([label] if label else ())
        if first is None or label is None:
            wanted = (WORDS, TAGS) if self.per_word else (TEXTS, (*CLASSES, *NUMBERS))
            shown = [", ".join(name for name in known if name.isalpha()) for known in wanted]
            parts = "tokens: A, tags: B" if self.per_word else "text: A, label: B"
            raise DataError(
                f"{file}: the keys {list(usual.values())[:12]} are not understood as rows with labels: expected a text "
                f"({shown[0]}) and a label ({shown[1]}). Say which columns they are with --set "
                f"'data.fields={{{parts}}}'. A model without a task head takes other formats: see microplane knobs "
                "data.format"
            )
        self.text_key, self.label_key, self.pair_key = first, label, second
        used = self._used()
        self._maybe = [] if self.per_word else columns.maybe_texts(used)
        self.unused = columns.unused(used)
        if not self.per_word and "label" not in columns.fields:
            texts = [key for key in (first, second) if key]
            refuse_unseen_options(rows, file, texts, label, self.unused, is_class=True)
        values = (row.get(label) for row in rows)
        is_number = label.strip().lower() in NUMBERS
        self.values = look(values, PER_TOKEN if self.per_word else task, known, no_label, is_number)

    def _used(self) -> tuple[str, ...]:
        return tuple(key for key in (self.text_key, self.pair_key, self.label_key) if key is not None)

    @property
    def columns_of_text(self) -> dict[str, str | None]:
        """Of rows with a text or two: which column is which part, as the knob `data.fields`."""
        if self.per_word:
            return {}
        return {"text": self.text_key, "text_pair": self.pair_key, "label": self.label_key}

    @property
    def task(self) -> Task:
        """What is learnt from the labels."""
        return self.values.task

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that are read; also texts in which nothing stands so far, which a later row may have."""
        return (*self._used(), *self._maybe)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of multi-hot rows; other rows name their own."""
        return self.values.classes

    @property
    def name(self) -> str:
        """The task, which the labels decide where the user does not."""
        return self.task

    def __str__(self) -> str:
        text = f"{self.text_key} + {self.pair_key}" if self.pair_key else self.text_key
        return f"{self.task} ({told(f'{text} -> {self.label_key}', self.unused)})"

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """Raises: RowError, with the key, the offending value and what was expected; NoLabel, for a row without one."""
        labels = self.values.read(get(values, self.label_key, "a label"), self.label_key)
        if self.per_word:
            words = self._words(values, self.text_key)
            if len(words) != len(labels):
                counts = f"{len(words)} words and {len(labels)} tags"
                raise RowError("words without tags", f"the row has {counts}, expected one tag for each word")
            return Example(None, " ".join(words), where, labels=labels, words=tuple(words))
        if self.pair_key and not is_filled(values.get(self.text_key)) and is_filled(values.get(self.pair_key)):
            return Example(None, self._text(values, self.pair_key), where, labels=labels)  # the text that is there
        text = self._text(values, self.text_key)
        pair = optional_text(values, self.pair_key) if self.pair_key else ""
        return Example(None, text, where, labels=labels, second_text=pair)

    def _text(self, values: Mapping[str, Any], key: str) -> str:
        text = get(values, key, "text")
        if not isinstance(text, str) or not text.strip():
            raise RowError("no text", f"key {key!r} is {show(text)}, expected text")
        return whole_text(text, f"key {key!r}")

    def _words(self, values: Mapping[str, Any], key: str) -> list[str]:
        found = unpacked(get(values, key, "a list of words"))
        if not isinstance(found, list) or not found or not all(type(x) in (str, int) and str(x).strip() for x in found):
            raise RowError("no list", f"key {key!r} is {show(found)}, expected a list of words")
        return [whole_text(str(word), f"key {key!r}") for word in found]


def _first(wanted: Sequence[str], spelled: Mapping[str, str]) -> str | None:
    return next((spelled[name] for name in wanted if name in spelled), None)


def class_names(found: Collection[str], known: Sequence[str], strictly: bool) -> tuple[str, ...]:
    """Of the classes: those that the model knows, where the rows have no others, or none may be added."""
    return tuple(known) if known and (strictly or set(found) <= set(known)) else tuple(label_names(found))


class LabelRenderer(ABC):
    """How labelled examples become rows.

    Args:
        classes: their names, by number.
    """

    counted: Literal["rows", "words"] = "rows"
    labels_per_token = False
    in_windows = False  # whether a long text becomes several rows, as the knob `data.long_rows` says

    def __init__(self, tokenizer: Tokenizer, classes: Sequence[str]):
        self.tokenizer, self.classes = tokenizer, tuple(classes)
        self.numbers = {name: number for number, name in enumerate(classes)}

    @property
    def traits(self) -> RowTraits:
        return RowTraits(
            "none",
            classes=self.classes,
            counted=self.counted,
            labels_per_token=self.labels_per_token,
        )

    def rows(self, example: Example, max_length: int, max_target: int) -> list[TokenRow]:
        """Ids with the model's special tokens, and numbers of classes, values, or a number for each token.

        A text longer than `max_length` loses its end, or becomes several rows with its label. The segments are of use
        where the tokenizer tells the two texts apart.

        Raises:
            UnknownClassError: for a class that the training rows do not have.
        """
        texts = example.text or "", example.second_text
        if self.in_windows:
            return [self._row(example, window) for window in self.tokenizer.encode_windows(*texts, max_length)]
        return [self._row(example, self.tokenizer.encode_pair(*texts, max_length, placed=self.labels_per_token))]

    def _row(self, example: Example, encoded: Encoded) -> TokenRow:
        labels = self.labels(example, encoded.offsets)
        segments = [kind == 1 for kind in encoded.types]
        lost: Lost = "end" if encoded.cut else ""
        return TokenRow(encoded.ids, lost=lost, segments=segments, labels=labels, labelled=self.labelled(labels))

    @abstractmethod
    def labels(self, example: Example, offsets: Sequence[tuple[int, int]]) -> list[float]:
        """As they are stored; `offsets` are the places of the tokens in the text, empty of special tokens."""

    def labelled(self, labels: Sequence[float]) -> int:
        """What the loss of the row is a sum over."""
        return 1

    def number(self, name: str) -> int:
        """Raises: UnknownClassError, for a class that the training rows do not have."""
        if name not in self.numbers and (same := same_class(name, self.classes)) != name:
            self.numbers[name] = self.numbers[same]
        if name not in self.numbers:
            hint = "; if it means that there is none, add it to data.no_label" if name == "-1" else ""
            raise UnknownClassError(
                f"the label {name!r} is in none of the training rows, which have {', '.join(self.classes[:20])}{hint}"
            )
        return self.numbers[name]


class OneClassRenderer(LabelRenderer):
    """The number of the class."""

    def labels(self, example: Example, offsets: Sequence[tuple[int, int]]) -> list[float]:
        return [float(self.number(str(label))) for label in example.labels]


class SomeClassesRenderer(LabelRenderer):
    """0 or 1 for each class."""

    def labels(self, example: Example, offsets: Sequence[tuple[int, int]]) -> list[float]:
        chosen = [self.number(str(label)) for label in example.labels]
        return [float(number in chosen) for number in range(len(self.classes))]


class NumberRenderer(LabelRenderer):
    """The values themselves; there are no classes."""

    def __init__(self, tokenizer: Tokenizer, classes: Sequence[str] = ()):
        super().__init__(tokenizer, ())

    def labels(self, example: Example, offsets: Sequence[tuple[int, int]]) -> list[float]:
        return [float(label) for label in example.labels if label is not None]


class WordClassRenderer(LabelRenderer):
    """The number of a word's class at the first token that reaches into it, and `IGNORED` at all others, and of a word
    without a class."""

    counted = "words"
    labels_per_token = True

    def labels(self, example: Example, offsets: Sequence[tuple[int, int]]) -> list[float]:
        labels = [float(IGNORED)] * len(offsets)
        starts = [0]
        for word in example.words:
            starts.append(starts[-1] + len(word) + 1)
        places = iter(enumerate(pairwise(starts)))
        place = next(places, None)
        for token, (start, end) in enumerate(offsets):
            if start == end:  # a special token
                continue
            while place is not None and place[1][1] - 1 <= start:  # a word that no token of its own stands for
                place = next(places, None)
            if place is not None and end > place[1][0]:
                name = example.labels[place[0]]
                labels[token] = float(IGNORED if name is None else self.number(str(name)))
                place = next(places, None)
        return labels

    def labelled(self, labels: Sequence[float]) -> int:
        """The words that have a class and a token."""
        return sum(label != IGNORED for label in labels)
