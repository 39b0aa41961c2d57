"""Examples -> rows with labels, for models with a task head: one class, several, a number, or a class for each word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from microplane.data.reading.bad_rows import RowError, show
from microplane.data.reading.formats import Example
from microplane.data.rendering.causal import Row
from microplane.data.row_kind import Task
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError

IGNORED = -100.0  # the label of a token that has none: special tokens, and all of a word but its first

TEXTS = ("text", "sentence", "sentence1", "premise", "question", "content", "review")
SECONDS = ("sentence2", "hypothesis", "text_pair", "text2", "answer")
LABELS = ("label", "labels", "category", "class", "sentiment", "score", "rating")
WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")


class LabelFormat:
    """How rows become labelled examples. Stands in for `formats.Format` where a task head is trained."""

    name = "labels"

    def __init__(self, rows: Sequence[Mapping[str, Any]], file: str, task: Task | None = None):
        """Look at the first rows of a file.

        Args:
            task: what the user asked for; otherwise the kind of the labels decides.

        Raises:
            DataError: if there is no text, or no label.
        """
        keys = Counter(key for row in rows for key in row)
        seen = [key for key, count in keys.items() if 2 * count >= len(rows)]
        words = _first(WORDS, seen)
        self.per_word = task == "tokens" or (task is None and words is not None)
        texts = words if self.per_word else _first(TEXTS, seen)
        label = _first(TAGS if self.per_word else LABELS, seen)
        if texts is None or label is None:
            wanted = (WORDS, TAGS) if self.per_word else (TEXTS, LABELS)
            raise DataError(
                f"{file}: the keys {seen[:12]} are not understood as rows with labels: expected a text "
                f"({', '.join(wanted[0])}) and a label ({', '.join(wanted[1])}). "
                "A model without a task head takes other formats: see microplane knobs data.format"
            )
        self.text_key, self.label_key = texts, label
        self.pair_key = None if self.per_word else _first(SECONDS, [key for key in seen if key not in (texts, label)])
        self.task: Task = task or self._look(row.get(label) for row in rows)

    def _look(self, values: Iterable[Any]) -> Task:
        if self.per_word:
            return "tokens"
        some = [value for value in values if value is not None]
        if any(isinstance(value, list) for value in some):
            return "multilabel"
        return "regression" if any(isinstance(value, float) for value in some) else "classification"

    def __str__(self) -> str:
        text = f"{self.text_key} + {self.pair_key}" if self.pair_key else self.text_key
        return f"{self.task} ({text} -> {self.label_key})"

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """Raises: RowError, with the key, the offending value and what was expected."""
        if self.per_word:
            words = self._words(values, self.text_key, "a list of words")
            tags = self._words(values, self.label_key, "a list of tags")
            if len(words) != len(tags):
                counts = f"{len(words)} words and {len(tags)} tags"
                raise RowError("words without tags", f"the row has {counts}, expected one tag for each word")
            return Example(None, " ".join(words), where, labels=tuple(tags), words=tuple(words))
        text = self._text(values, self.text_key)
        pair = self._text(values, self.pair_key) if self.pair_key else ""
        return Example(None, text, where, labels=self._labels(values), pair=pair)

    def _text(self, values: Mapping[str, Any], key: str) -> str:
        text = values.get(key)
        if not isinstance(text, str) or not text.strip():
            raise RowError("no text", f"key {key!r} is {show(text)}, expected text")
        return text

    def _words(self, values: Mapping[str, Any], key: str, expected: str) -> list[str]:
        found = values.get(key)
        if not isinstance(found, list) or not found or not all(type(x) in (str, int) and str(x).strip() for x in found):
            raise RowError("no list", f"key {key!r} is {show(found)}, expected {expected}")
        return [str(x) for x in found]

    def _labels(self, values: Mapping[str, Any]) -> tuple[str | float, ...]:
        value = values.get(self.label_key)
        place = f"key {self.label_key!r} is {show(value)}, expected"
        if self.task == "multilabel":
            if not isinstance(value, list) or not all(type(item) in (str, int) for item in value):
                raise RowError("wrong label", f"{place} a list of labels")
            return tuple(dict.fromkeys(str(item) for item in value))
        if self.task == "regression":
            if type(value) not in (int, float):
                raise RowError("wrong label", f"{place} a number")
            return (float(value or 0),)
        if isinstance(value, bool):
            return (str(value).lower(),)
        if type(value) not in (str, int) or not str(value).strip():
            raise RowError("wrong label", f"{place} a label")
        return (str(value),)


def _first(wanted: Iterable[str], keys: Sequence[str]) -> str | None:
    spelled = {key.strip().lower(): key for key in reversed(keys)}
    return next((spelled[name] for name in wanted if name in spelled), None)


def label_names(counts: Iterable[str]) -> list[str]:
    """Class names in an order that does not depend on the rows': by number if all are numbers, else by text."""
    names = list(counts)
    return sorted(names, key=int) if all(name.lstrip("-").isdigit() for name in names) else sorted(names)


def label_words(labels: np.ndarray, task: Task | str, names: Sequence[str]) -> Any:
    """A row's stored labels in words: a class, some classes, values; of tokens a list, None where there is none."""
    if task == "classification":
        return names[int(labels[0])]
    if task == "multilabel":
        return [name for name, yes in zip(names, labels, strict=True) if yes]
    if task == "regression":
        return labels.tolist()
    return [None if label == IGNORED else names[int(label)] for label in labels]


class LabelLayout:
    """How labelled examples become rows."""

    kind = "none"
    continues = True
    stops: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer, task: Task, names: Sequence[str]):
        self.tokenizer, self.task, self.names = tokenizer, task, list(names)
        self.numbers = {name: number for number, name in enumerate(names)}

    def row(self, example: Example, max_length: int, max_target: int) -> Row:
        """Ids with the model's special tokens, and numbers of classes, values, or a number for each token.

        A text longer than `max_length` loses its end. In the place of what is trained stands which tokens belong to a
        second text, where the tokenizer tells the two apart.

        Raises:
            DataError: for a class that the training rows do not have.
        """
        ids, offsets, types, cut = self.tokenizer.encode_pair(example.text or "", example.pair, max_length)
        labels = self._of_tokens(example, offsets) if self.task == "tokens" else self._of_row(example)
        labelled = sum(label != IGNORED for label in labels) if self.task == "tokens" else 1
        return Row(ids, [kind == 1 for kind in types], "prompt" if cut else "", labels, labelled)

    def _of_row(self, example: Example) -> list[float]:
        if self.task == "regression":
            return [float(label) for label in example.labels]
        chosen = [self._number(str(label)) for label in example.labels]
        if self.task == "classification":
            return [float(number) for number in chosen]
        return [float(number in chosen) for number in range(len(self.names))]

    def _of_tokens(self, example: Example, offsets: Sequence[tuple[int, int]]) -> list[float]:
        """The label of a word stands at the first token that reaches into it."""
        labels = [IGNORED] * len(offsets)
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
                labels[token] = float(self._number(str(example.labels[place[0]])))
                place = next(places, None)
        return labels

    def _number(self, name: str) -> int:
        if name not in self.numbers:
            raise DataError(
                f"the label {name!r} is in none of the training rows, which have {', '.join(self.names[:20])}"
            )
        return self.numbers[name]
