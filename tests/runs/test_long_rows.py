"""Texts with labels that are longer than a row, read in windows: `data.long_rows=windows`."""

from __future__ import annotations

import pytest
import torch

import microplane
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ConfigError
from microplane.inference.predict import encode_all
from microplane.models.heads import task_scores
from microplane.nn.rows import Rows
from tests.labels import WORDS, encoder_folder, write

LENGTH = 12  # tokens of a row, of which ten are the text's
SET = {
    "data.max_length": LENGTH,
    "data.long_rows": "windows",
    "train.steps": 60,
    "train.lr": 1e-2,
    "train.threads": 1,
    "model.dtype": "float32",
    "eval.rows": 4,
}


def rows(count=60, words=40):
    """The word that decides stands behind the first window, in all rows but a few."""
    made = []
    for n in range(count):
        text = [WORDS[(n + k) % 7] for k in range(words if n % 5 else 4)]
        text[-2] = "good" if n % 2 else "bad"
        made.append({"text": " ".join(text), "label": "positive" if n % 2 else "negative"})
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    data = write(folder / "data.jsonl", rows())
    base = encoder_folder(folder / "model", pad_token_id=0)
    return microplane.train(base, data, method="full", set=SET | {"runs": str(folder / "runs"), "train.lr": 3e-3})


@pytest.mark.parametrize(("second", "keep", "step"), [("", 13, 10), ("red green blue", 9, 7)])
def test_windows_overlap_and_hold_all_of_the_text(second, keep, step, tmp_path):
    tokenizer = load_tokenizer(encoder_folder(tmp_path))
    text = " ".join(WORDS[k % 20] for k in range(33))
    whole = tokenizer.encode(text, special=False)
    found = tokenizer.encode_windows(text, second, 15)
    separator = tokenizer.id_of("[SEP]")
    cuts = [one.ids.index(separator) for one in found]
    assert [one.ids[1:cut] for one, cut in zip(found, cuts, strict=True)] == [
        whole[place : place + keep] for place in range(0, len(whole) - keep + step, step)
    ]
    behind = tokenizer.encode_pair("red", second, placed=False).ids[2:]
    assert all(one.ids[cut:] == behind for one, cut in zip(found, cuts, strict=True))
    assert tokenizer.encode_windows("red", second, 15) == [tokenizer.encode_pair("red", second, 15, placed=False)]


def test_what_counts_is_the_mean_over_a_texts_windows(run):
    loaded = run.load()
    texts = [row["text"] for row in rows(10)]
    said = loaded.classify(texts)
    for text, prediction in zip(texts, said, strict=True):
        windows = loaded.tokenizer.encode_windows(text, "", LENGTH)
        scores = torch.cat([task_scores(loaded.model, Rows.of([one.ids], types=[one.types])) for one in windows])
        expected = scores.softmax(-1).mean(0)
        assert list(prediction.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    first = encode_all(loaded.model, loaded.tokenizer, texts, longest=LENGTH)
    alone = [task_scores(loaded.model, Rows.of([one.ids], types=[one.types]))[0] for one in first]
    firsts = [next(iter(one.probabilities.values())) for one in said]
    assert any(abs(one - float(scores.softmax(-1)[0])) > 1e-3 for one, scores in zip(firsts, alone, strict=True))


def test_metrics_count_texts_and_are_those_of_classify(run, tmp_path):
    held_out = rows(30)[::-1]
    measured = microplane.evaluate(run.folder, write(tmp_path / "test.jsonl", held_out))
    said = [one.label for one in run.load().classify([row["text"] for row in held_out])]
    right = sum(label == row["label"] for label, row in zip(said, held_out, strict=True))
    assert measured["scores"]["accuracy"] == pytest.approx(right / 30)
    assert sum(map(sum, measured["by_class"]["confusion"])) == 30


def test_merged_it_is_said_what_other_tools_read(run, tmp_path):
    assert any("windows of 12 tokens" in line for line in microplane.merge(run.folder, tmp_path / "merged").notices)


def test_it_is_refused_where_rows_are_compared(tmp_path):
    data = write(tmp_path / "data.jsonl", rows())
    with pytest.raises(ConfigError, match="long_rows cannot be set for a comparison"):
        microplane.compare(
            encoder_folder(tmp_path / "model"), data, methods=["full"], set={"data.long_rows": "windows"}
        )
