"""A merged folder gives in transformers the ids that were trained, or says that it does not."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

import microplane
from microplane.adapters.merge import merge
from tests.labels import encoder_folder, reviews, write
from tests.runs.test_unicode import SETS, spiece_t5
from tests.runs.test_unicode import pairs as vietnamese
from tests.vietnamese import apart

pytestmark = pytest.mark.filterwarnings("ignore::microplane.errors.MicroplaneWarning")


def trained(folder, rows, **sets):
    data = write(folder / "rows.jsonl", rows)
    changes = {name.replace("__", "."): value for name, value in sets.items()}
    return microplane.train(folder / "model", data, set=SETS | {"runs": str(folder / "runs")} | changes)


def same_ids(run, merged, texts) -> bool:
    ours, theirs = run.load().tokenizer, AutoTokenizer.from_pretrained(merged)
    return all(ours.encode(text) == theirs(text).input_ids for text in texts)


def test_a_class_that_would_change_the_ids_is_replaced(tmp_path):
    model = encoder_folder(tmp_path / "model")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("good", "bad")])
    backend.save(str(model / "tokenizer.json"))
    run = trained(tmp_path, reviews())
    merged = merge(run.folder, tmp_path / "merged")
    assert "BertTokenizerFast transformers cuts" in merged.notices[0]
    told = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert same_ids(run, tmp_path / "merged", [row["text"] for row in reviews()])


def test_what_no_class_gives_is_said(tmp_path):
    """A table of rules that the `tokenizers` library reads otherwise than the package."""
    (tmp_path / "model").mkdir()
    spiece_t5(tmp_path / "model")
    run = trained(tmp_path, vietnamese(apart), data__unicode="as-is")
    (notice,) = merge(run.folder, tmp_path / "merged").notices
    assert "into other tokens than were trained" in notice
    assert "microplane.load(FOLDER).tokenizer" in notice
    kinds = [json.loads((at / "tokenizer_config.json").read_text()).get("tokenizer_class") for at in (
        tmp_path / "model", tmp_path / "merged")]  # fmt: skip
    assert kinds[0] == kinds[1]  # another would gain nothing


def test_the_unicode_form_is_said_where_the_other_side_does_not_bring_texts_into_it(tmp_path):
    (tmp_path / "model").mkdir()
    spiece_t5(tmp_path / "model")
    run = trained(tmp_path, vietnamese(str))
    (notice,) = merge(run.folder, tmp_path / "merged").notices
    assert "unicodedata.normalize('NFC', text)" in notice
    assert same_ids(run, tmp_path / "merged", [row["prompt"] for row in vietnamese(str)])


def test_without_transformers_it_is_said_that_nothing_was_tried(tmp_path, monkeypatch):
    encoder_folder(tmp_path / "model")
    run = trained(tmp_path, reviews())
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert "not tried" in merge(run.folder, tmp_path / "merged").notices[-1]
