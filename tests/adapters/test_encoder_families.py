"""Runs of encoder families beside BERT: what they leave opens in transformers and in peft, and goes on to the bit."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

import microplane
from microplane.adapters.merge import merge
from microplane.errors import ModelError
from microplane.models.encoder import Encoder
from microplane.models.files.load import load_model
from microplane.models.heads import task_scores
from microplane.nn.rows import Rows
from tests import labels
from tests.adapters.both_ways import FEW_STEPS
from tests.resuming import assert_resumes_to_the_bit

FAMILIES = [
    "deberta",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("distilbert", "electra", "albert", "mpnet", "nomic", "eurobert")
    ),
]
IDS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 30, 31, 32, 33, 34, 3]]
TEXTS = ["the red film is good 3", "bad", "the two plot was a poor poor one"]


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    labels.write(tmp_path / "reviews.jsonl", labels.reviews(40))
    labels.write(tmp_path / "tags.jsonl", labels.tags(40))
    folder = labels.encoder_folder(tmp_path / request.param, request.param)
    if request.param == "eurobert":  # an adapter does not say how a row is pooled, and the usual way is none of ours
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {"classifier_pooling": "mean"}))
    return folder


def train(base, rows="reviews", method="lora"):
    sets = FEW_STEPS | {"runs": str(base.parent / "runs"), "name": f"{rows}-{method}"}
    return microplane.train(str(base), str(base.parent / f"{rows}.jsonl"), method=method, set=sets)


def theirs(net):
    with torch.no_grad():
        return torch.stack([net.eval()(input_ids=torch.tensor([row])).logits[0] for row in IDS])


@pytest.mark.slow
def test_euroberts_usual_pooling_of_scores_is_refused(tmp_path):
    base = labels.encoder_folder(tmp_path / "eurobert", "eurobert")
    net = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    net.save_pretrained(tmp_path / "late")
    with pytest.raises(ModelError, match="classifier_pooling = 'late' in config.json: expected bos or mean"):
        load_model(tmp_path / "late")
    adapted = peft.get_peft_model(net, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="classifier_pooling = 'late'"):
        microplane.load(tmp_path / "adapter", "float32")


def test_merged_folders_and_adapters_open_there_with_equal_scores(base, tmp_path):
    done = train(base)
    opened = microplane.load(done.folder, "float32")
    assert isinstance(opened.model, Encoder)
    wanted = task_scores(opened.model, Rows.of(IDS))
    folder = merge(done.folder, tmp_path / "merged").folder
    net = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(theirs(net), wanted, atol=1e-5, rtol=1e-4)
    classify = pipeline("text-classification", net, tokenizer=AutoTokenizer.from_pretrained(base), top_k=None)
    for text, found in zip(TEXTS, opened.classify(TEXTS), strict=True):
        scores = {one["label"]: one["score"] for one in classify([text])[0]}
        assert scores == pytest.approx(found.probabilities, abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    adapted = peft.PeftModel.from_pretrained(plain, done.folder / "adapter")
    torch.testing.assert_close(theirs(adapted), wanted, atol=1e-5, rtol=1e-4)
    adapted.save_pretrained(tmp_path / "theirs")
    again = microplane.load(tmp_path / "theirs", "float32")
    torch.testing.assert_close(task_scores(again.model, Rows.of(IDS)), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_tags_and_the_whole_model(base):
    done = train(base, "tags", "full")
    folder = done.folder / "adapter"
    told = json.loads((folder / "config.json").read_text())["architectures"][0]
    assert told.endswith("ForTokenClassification")
    net = AutoModelForTokenClassification.from_pretrained(folder).eval()
    wanted = task_scores(microplane.load(done.folder, "float32").model, Rows.of(IDS[:1]))
    torch.testing.assert_close(net(torch.tensor(IDS[:1])).logits[0], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_resumed_it_goes_on_to_the_bit(base):
    assert_resumes_to_the_bit(train(base))
