"""Of a text that is longer than what a model reads, it is said that its end is lost."""

from __future__ import annotations

import pytest

import microplane
from microplane.errors import notices_to
from tests import labels

LONG = "so long a text of few words " * 20


def trained(folder, rows, **knobs):
    model, data = labels.encoder_folder(folder / "model"), labels.write(folder / "data.jsonl", rows)
    quick = {"train.steps": 1, "train.threads": 1, "model.dtype": "float32", "runs": str(folder / "runs")}
    return microplane.train(model, data, set=quick | knobs).load()


def told(ask, texts):
    said: list[str] = []
    with notices_to(said.append):
        ask(texts)
    return said


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([LONG], ["the text is longer than the 64 tokens that are read of one: the end is lost"]),
        (
            ["a", (LONG, "b")],
            ["1 of 2 texts is longer than the 64 tokens that are read of one: the end is lost (text 2 first)"],
        ),
        (
            [LONG, "a", LONG],
            ["2 of 3 texts are longer than the 64 tokens that are read of one: the end is lost (text 1 first)"],
        ),
        (["a", ("b", "c")], []),
    ],
)
def test_labels_and_vectors_of_what_was_not_read_to_its_end(texts, said, tmp_path):
    loaded = trained(tmp_path, labels.pairs())
    assert told(loaded.classify, texts) == said
    assert told(loaded.embed, texts) == said


def test_words_behind_the_end_get_no_tag(tmp_path):
    loaded = trained(tmp_path, labels.tags())
    [line] = told(loaded.classify, [LONG])
    assert line.endswith("the end is lost, and the words there get no label")
    assert len(loaded.classify(["few words"])[0].words) == 2


def test_windows_lose_nothing_but_of_two_texts_that_leave_each_other_no_room(tmp_path):
    loaded = trained(tmp_path, labels.pairs(), **{"data.long_rows": "windows", "data.max_length": 32})
    assert told(loaded.classify, [LONG, (LONG, "a")]) == []
    [line] = told(loaded.classify, [(LONG, LONG)])
    assert line == "the text is longer than the 32 tokens that are read of one: the end is lost"
