"""A hundred label files as people have them: what is trained is what a reference written here makes of them.

Mixed columns, multi-hot rows, gaps, -100 and -1, white space, numbers as text, half characters, labels as lists in CSV.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_rows, load_splits
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import DataError
from microplane.models.configs.head import IGNORED
from microplane.objectives.select import LabelCandidates
from tests.labels import save_wordpiece

FILES = 100
LEFT_OUT, REFUSED = "left out", "refused"
SPACES = ["{}", " {}", "{} ", "\t{} ", "{}\u00a0"]


@dataclass
class LabelFile:
    """Rows, and of each what has to become of it: its labels, `LEFT_OUT` or `REFUSED`."""

    task: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    wanted: list[Any] = field(default_factory=list)
    suffix: str = "jsonl"

    def write(self, folder: Path) -> Path:
        path = folder / f"rows.{self.suffix}"
        if self.suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            return path
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys, delimiter="\t" if self.suffix == "tsv" else ",", restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        return path


def spaced(rng: random.Random, name: str) -> str:
    return rng.choice(SPACES).format(name)


def of_names(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    name = rng.choice(["good", "bad", "very good"])
    return (spaced(rng, name) if file.suffix != "tsv" else name), [name]


def of_numbers(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    """Numbers of four classes, -1 and -100 among them; as text in half of the rows."""
    if number < 4:
        return number, [str(number)]
    value = rng.choice([0, 1, 2, 3, 3, -1, -100])
    return (value if rng.random() < 0.5 else str(value)), (LEFT_OUT if value < 0 else [str(value)])


def of_opinions(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    value = rng.choice([-1, 0, 1])
    return value, [str(value)]


def of_several(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    chosen = rng.sample(["red", "green", "blue"], rng.randrange(4))
    value = [spaced(rng, name) for name in chosen]
    return (repr(value) if file.suffix == "csv" else value), sorted(chosen)


def of_hot(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    hot = [rng.random() < 0.4 for _ in range(4)] + [False]  # a class that no row has
    kind = rng.choice([int, float, bool])
    value: Any = [kind(one) for one in hot]
    return (json.dumps(value) if file.suffix == "csv" else value), [str(at) for at, one in enumerate(hot) if one]


def of_scores(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    value = round(rng.uniform(-9, 9), 6)
    return (str(value) if rng.random() < 0.5 else value), [value]


def of_tags(rng: random.Random, file: LabelFile, number: int) -> tuple[Any, Any]:
    tags = [rng.choice([0, 1, 2, -100, -1]) if number else place % 3 for place in range(rng.randrange(3, 7))]
    return tags, [None if tag < 0 else str(tag) for tag in tags]


BAD = {
    "classification": [None, "", [], 0.5, {}, "a\ud800"],
    "multilabel": [None, 1, {}, [None], [[1]], [0.5, 1]],
    "regression": [None, "", "four", float("nan"), float("inf"), 1e39, 10**400, True, "1_0", [1.0]],
    "tokens": [None, [], "O", [None] * 5],
}
KINDS = {
    "names": ("classification", of_names, ("jsonl", "csv", "tsv")),
    "numbers": ("classification", of_numbers, ("jsonl", "csv", "tsv")),
    "opinions": ("classification", of_opinions, ("jsonl", "csv")),
    "several": ("multilabel", of_several, ("jsonl", "csv")),
    "hot": ("multilabel", of_hot, ("jsonl", "csv")),
    "scores": ("regression", of_scores, ("jsonl", "csv", "tsv")),
    "tags": ("tokens", of_tags, ("jsonl",)),
}


def label_file(seed: int) -> LabelFile:
    rng = random.Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    task, make, suffixes = KINDS[kind]
    file = LabelFile(task, suffix=rng.choice(suffixes))
    gaps, extra = rng.choice([0, 0, 0.1]), rng.random() < 0.5
    for number in range(rng.randrange(40, 130)):
        value, wanted = make(rng, file, number)
        text = f"the {number} film"
        row: dict[str, Any] = {"text": text, "label": value}
        if task == "tokens":
            row = {"tokens": ["film", *map(str, range(len(value) - 2)), f"{number}"], "tags": value}
        elif number > 3 and rng.random() < gaps:
            row["label"], wanted = rng.choice(BAD[task] if file.suffix == "jsonl" else ["", "  "]), REFUSED
        elif number > 3 and wanted != LEFT_OUT and file.suffix == "jsonl" and rng.random() < 0.03:
            row["text"], wanted = rng.choice([None, "", "half \udc80", 7]), REFUSED
        if extra and file.suffix == "jsonl" and rng.random() < 0.4:
            row["note"] = rng.choice([None, 1, "x", [1, "a"]])
        elif extra:
            row["note"] = "x"
        file.rows.append(dict(rng.sample(list(row.items()), len(row))) if file.suffix == "jsonl" else row)
        file.wanted.append(wanted)
    return file


def test_a_label_that_turns_out_late_to_mean_none_is_asked_about(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_wordpiece(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    data = tmp_path / "sorted.jsonl"
    data.write_text("".join(json.dumps({"text": f"film {n}", "label": n // 60 - 1}) + "\n" for n in range(240)))
    with pytest.raises(DataError, match=r"sorted\.jsonl: the label -1 stands beside .* data\.no_label=\[-100, -1\]"):
        load_splits(DataKnobs(train=str(data)), tokenizer, LabelCandidates(None))
    for given, classes in ((("-1",), ["0", "1", "2"]), (("-100",), ["-1", "0", "1", "2"])):
        knobs = DataKnobs(train=str(data), no_label=given)
        summary = load_splits(knobs, tokenizer, LabelCandidates(None, no_label=given)).summary
        assert summary.labels == classes
        assert sum(sum(counts.values()) for counts in summary.label_counts.values()) == 60 * len(classes)
        assert sum(summary.unlabelled.values()) == (60 if given == ("-1",) else 0)
        assert any("-1 is a class like the others" in line for line in summary.warnings) == (given == ("-100",))


def test_a_file_without_any_label_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_wordpiece(tmp_path)
    (data := tmp_path / "a.jsonl").write_text('{"text": "film", "label": -100}\n' * 3)
    with pytest.raises(DataError, match=r"a\.jsonl: each of its 3 rows says that it has no label\. Leave the file out"):
        load_splits(DataKnobs(train=str(data)), load_tokenizer(tmp_path), LabelCandidates(None))


def trained(splits: Any) -> dict[int, Any]:
    """The labels of each row, by its line."""
    found = {}
    for rows in (splits.train, splits.validation):
        for row in range(len(rows)):
            line, labels = int(rows.where(row).rsplit(":", 1)[1]), rows.labels(row).tolist()
            names = splits.summary.labels
            if splits.summary.task == "classification":
                found[line] = [names[int(labels[0])]]
            elif splits.summary.task == "multilabel":
                found[line] = sorted(name for name, one in zip(names, labels, strict=True) if one)
            elif splits.summary.task == "regression":
                found[line] = labels
            else:
                found[line] = [names[int(label)] for label in labels if label != IGNORED]
    return found


@pytest.mark.parametrize("part", range(10))
def test_what_is_trained_is_what_the_file_says(part, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_wordpiece(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for seed in range(part * FILES // 10, (part + 1) * FILES // 10):
        (folder := tmp_path / str(seed)).mkdir()
        file = label_file(seed)
        knobs = DataKnobs(train=str(file.write(folder)), skip_bad_rows=True, max_unknown=1)
        splits = load_splits(knobs, tokenizer, LabelCandidates(None))
        assert splits.summary.task == file.task, seed
        first = 1 if file.suffix == "jsonl" else 2
        wanted = {line: labels for line, labels in enumerate(file.wanted, first) if labels not in (LEFT_OUT, REFUSED)}
        if file.task == "tokens":
            wanted = {line: kept for line, tags in wanted.items() if (kept := [tag for tag in tags if tag is not None])}
        found = trained(splits)
        assert found.keys() == wanted.keys(), seed
        for line, labels in found.items():
            expected = np.float32(wanted[line]).tolist() if file.task == "regression" else wanted[line]
            assert labels == expected, (seed, line)
        assert sum(splits.summary.bad.values()) == file.wanted.count(REFUSED), seed
        assert sum(splits.summary.unlabelled.values()) == file.wanted.count(LEFT_OUT), seed


HOT = [[n % 2, 1, n // 7 % 2] for n in range(20)]
OTHERS: list[tuple[list[Any], list[Any], str]] = [  # labels of training rows, of test rows, and what is said of those
    (HOT, [[0, 1], [1, 1]], "the labels are lists of 2 times 0 or 1, expected lists of 3 times 0 or 1 as in train"),
    (HOT, [["0"], ["1"]], "the labels are lists of names, expected lists of 3 times 0 or 1 as in train"),
    ([["0", "2"], ["1"]] * 10, [[0, 1]], "the labels are lists of 2 times 0 or 1, expected lists of names as in train"),
    (["a", "b"] * 10, [["a", "b"]], r"key 'label' is a list \['a', 'b'\], expected a label"),
    (["a", "b"] * 10, [0.5, 1.5], "expected a label"),
    ([n / 8 for n in range(20)], ["good"], "key 'label' is the text 'good', expected a number"),
]


@pytest.mark.parametrize(("train", "test", "said"), OTHERS, ids=str)
def test_labels_of_test_rows_are_read_as_those_of_the_training_rows(train, test, said, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_wordpiece(tmp_path)
    for name, labels in {"train": train, "test": test, "again": train[:3]}.items():
        rows = (json.dumps({"text": f"film {n}", "label": label}) + "\n" for n, label in enumerate(labels))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    knobs = DataKnobs(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"), max_unknown=1)
    with pytest.raises(DataError, match=f"test.jsonl.*{said}" if "key" not in said else said):
        load_splits(knobs, load_tokenizer(tmp_path), LabelCandidates(None))
    again = load_splits(
        knobs.model_copy(update={"test": str(tmp_path / "again.jsonl")}),
        load_tokenizer(tmp_path),
        LabelCandidates(None),
    )
    assert len(again.test) == 3


def test_multi_hot_rows_of_another_length_than_a_models_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_wordpiece(tmp_path)
    (data := tmp_path / "a.jsonl").write_text('{"text": "film", "label": [0, 1]}\n' * 3)
    known = LabelCandidates("multilabel", ("0", "1", "2"))
    with pytest.raises(DataError, match="lists of 2 times 0 or 1, expected the names or 3 numbers for the classes of"):
        load_rows(DataKnobs(train=str(data), max_unknown=1), load_tokenizer(tmp_path), known)


def test_rows_of_empty_lists_are_told_to_have_no_label(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_wordpiece(tmp_path)
    rows = "".join(json.dumps({"text": f"film {number}", "labels": []}) + "\n" for number in range(12))
    (data := tmp_path / "a.jsonl").write_text(rows)
    with pytest.raises(DataError, match="none of the 12 train rows has a label to train on; expected labels"):
        load_rows(DataKnobs(train=str(data), max_unknown=1), load_tokenizer(tmp_path), LabelCandidates("multilabel"))
