"""The translation benchmark's pure parts: pairs from Debian's lists, and that both sides see the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

pytest.importorskip("transformers")
pytest.importorskip("peft")
import debian_pairs
import peer
from common import steps_of
from microplane.objectives.seq2seq import Seq2Seq
from ours import Rows
from seq2seq import END, padding, row_of, shuffled, similar

INDEX = """Package: apples
Source: fruit (1.0)
Architecture: all

Package: pears
Source: fruit

Package: stone
"""
ENGLISH = """Package: apples
Description-md5: 11
Description-en: sweet apples
 They are red,
 and round.
 .
 There are:
  * many
 .
 Eat them.

Package: pears
Description-md5: 22
Description-en: pears
 Never translated.

Package: stone
Description-md5: 33
Description-en: a stone
 It is hard.
"""
FRENCH = """Package: apples
Description-md5: 11
Description-fr: pommes douces
 Elles sont rouges et rondes.
 .
 Il y en a\N{NO-BREAK SPACE}:
 .
 Mangez-les.

Package: stone
Description-md5: 33
Description-fr: une pierre
 Elle est dure.
 .
 Oui.
"""


def test_pairs_are_short_descriptions_and_paragraphs():
    found = list(debian_pairs.pairs(*(text.splitlines(keepends=True) for text in (INDEX, ENGLISH, FRENCH))))
    assert found == [
        ("fruit", "sweet apples", "pommes douces"),
        ("fruit", "They are red, and round.", "Elles sont rouges et rondes."),
        ("fruit", "There are:", "Il y en a\N{NO-BREAK SPACE}:"),
        ("fruit", "Eat them.", "Mangez-les."),
        ("stone", "a stone", "une pierre"),  # whose paragraphs do not answer to each other
    ]


def test_the_split_follows_the_source_package():
    names = [f"package{number}" for number in range(2000)]
    held = [debian_pairs.held_out(name, 0.1) for name in names]
    assert held == [debian_pairs.held_out(name, 0.1) for name in names]
    assert 0.08 < sum(held) / len(held) < 0.12


def rows(count: int = 12) -> list[dict[str, list[int]]]:
    made = []
    for number in range(count):
        source, target = [*range(5, 6 + number % 4), END], [*range(20, 21 + number % 3), END]
        made.append({"ids": source + target, "trained": [0] * len(source) + [1] * len(target)})
    return made


def test_both_sides_see_the_same_tokens():
    pairs, start = rows(), 0
    ours = Seq2Seq(start).collate(Rows(pairs), range(len(pairs)))
    theirs = peer.collate_pairs(pairs, pad=0)
    mask, labels = theirs.inputs["attention_mask"].bool(), theirs.inputs["labels"]
    assert theirs.inputs["input_ids"][mask].tolist() == ours.rows.source.ids.tolist()
    assert labels[labels != -100].tolist() == ours.targets.tolist()
    assert theirs.trained == ours.count
    assert theirs.tokens == sum(len(pair["ids"]) for pair in pairs)
    shifted = np.roll(labels.numpy(), 1, axis=1)  # what the models of transformers make of the labels
    shifted[:, 0] = start
    lengths = (labels != -100).sum(1).tolist()
    assert [
        token for row, n in zip(shifted, lengths, strict=True) for token in row[:n]
    ] == ours.rows.target.ids.tolist()


def test_the_peers_rows_of_a_decoder():
    batch = peer.collate([{"ids": [7, 8, 9], "trained": [1, 0, 1]}, {"ids": [5], "trained": [1]}], pad=0)
    assert batch.inputs["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.inputs["labels"].tolist() == [[-100, -100, 9], [-100, -100, -100]]
    assert (batch.tokens, batch.trained) == (4, 1)


def test_steps_are_as_the_rows_say_or_of_one_size():
    assert steps_of([{}] * 5, 2) == [[0, 1], [2, 3], [4]]
    assert steps_of([{"step": 0}, {"step": 0}, {"step": 0}, {"step": 1}], 2) == [[0, 1, 2], [3]]


def test_the_plan_fills_steps_with_pairs_of_similar_length(monkeypatch):
    monkeypatch.setattr("seq2seq.STEP_TOKENS", 40)
    pairs = rows(600)
    steps = similar(pairs, 30)
    sizes = [sum(len(pairs[i]["ids"]) for i in step) for step in steps]
    assert len(steps) == 30
    assert min(sizes) > 20
    assert max(sizes) <= 40
    chosen = [[pairs[i] for i in step] for step in steps]
    assert padding(chosen) < padding([pairs[:10]])
    with pytest.raises(SystemExit, match="9999"):
        similar(pairs, 9999)


def test_shuffled_steps_take_the_rows_as_they_come_and_hold_no_more_than_a_step(monkeypatch):
    monkeypatch.setattr("seq2seq.STEP_TOKENS", 40)
    pairs = rows(600)
    steps = shuffled(pairs, 30)
    assert [i for step in steps for i in step] == list(range(sum(map(len, steps))))
    assert max(sum(len(pairs[i]["ids"]) for i in step) for step in steps) <= 40
    similar_padding = padding([[pairs[i] for i in step] for step in similar(pairs, 30)])
    assert padding([[pairs[i] for i in step] for step in steps]) > similar_padding


def test_padding():
    assert padding([[{"ids": [], "trained": [0, 0, 1]}, {"ids": [], "trained": [0, 1]}]]) == pytest.approx(1 / 6)


class Words:
    def encode(self, text):
        return type("Encoding", (), {"ids": [len(word) + 1 for word in text.split()]})


def test_a_row_is_source_and_target():
    pair = debian_pairs.Pair("fruit", "a red apple", "une pomme")
    assert row_of(pair, Words()) == {"ids": [2, 4, 6, END, 4, 6, END], "trained": [0, 0, 0, 0, 1, 1, 1]}
    assert row_of(pair._replace(french="x " * 200), Words()) is None
