"""Forgetting: the loss on general text before and after training, of the package's own text or a file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn import functional as F

import microplane
from microplane.config.knobs import DataKnobs, EvalKnobs, RunKnobs
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ConfigError, DataError
from microplane.nn.rows import Rows
from microplane.runs import general as module
from microplane.runs.general import General, open_general
from tests.comparison.kit import own_cache, rows, write
from tests.labels import encoder_folder, reviews
from tests.runs.test_seq2seq import pair_folder, shout
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {"train.steps": 2, "train.threads": 1, "eval.rows": 0, "model.dtype": "float32"}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("general")
    save_tiny_folder(folder / "model", **SHALLOW)
    write(folder, "rows.jsonl", rows(24))
    return folder


def trained(there, name, text, **more):
    sets = {**SETS, "name": name, "runs": str(there / "runs"), "eval.general": text, **more}
    return microplane.train(there / "model", there / "rows.jsonl", set=sets)


def by_hand(pipeline, texts):
    """The mean of -log p of every token but the first, of texts that end with the stop token; one text at a time."""
    total, count = 0.0, 0
    for text in texts:
        ids = pipeline.tokenizer.encode(text, special=True)
        ids = [*ids, pipeline.tokenizer.eos_ids[0]]
        with torch.no_grad():
            logits = pipeline.model.logits(pipeline.model(Rows.of([ids])))
        total += float(F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return total / count, count


@pytest.mark.parametrize("name", ["own.jsonl", "own.txt", "lines.txt"])
def test_the_loss_is_that_of_every_token_of_the_text(there, name):
    texts = ["the cat sat on a mat", "a fog came in\nat noon", "we went home"]
    if name == "lines.txt":
        texts = [text.replace("\n", " ") for text in texts]
    (there / name).write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
        if name.endswith("jsonl")
        else ("\n" if name == "lines.txt" else "\n\n").join(texts) + "\n"
    )
    run = trained(there, f"loss-{name}", str(there / name), **{"train.lr": 0.05, "method.name": "full"})
    found = run.result["general"]
    for side, model in (("before", there / "model"), ("after", run.folder)):
        loss, tokens = by_hand(microplane.load(model, "float32"), texts)
        assert found[side] == pytest.approx(loss, rel=1e-5)
        assert found["tokens"] == tokens
    assert found["difference"] == pytest.approx(found["after"] - found["before"])
    assert abs(found["difference"]) > 1e-3
    assert found["text"] == str(there / name)
    scores = microplane.evaluate(run.folder, there / "rows.jsonl", set={"eval.general": str(there / name)})["scores"]
    assert scores["general_loss"] == pytest.approx(found["after"])


def test_the_text_of_the_package_is_fifty_texts_and_the_report_tells_what_came_of_it(there):
    run = trained(there, "default", "default", **{"train.lr": 1e-9})
    found = run.result["general"]
    assert (found["text"], found["objective"]) == ("default", "next_token")
    assert found["difference"] == pytest.approx(0, abs=1e-5)  # at no rate nothing is forgotten
    page = (run.folder / "report.html").read_text()
    for name in ("before", "after", "difference"):
        assert f'data-key="general.{name}" data-value="{json.dumps(found[name])}"' in page
    text = (module.resources.files("microplane.runs") / "general.txt").read_text()
    paragraphs = text.splitlines()
    assert len(paragraphs) == len(set(paragraphs)) == 50
    assert all(60 < len(paragraph) < 300 for paragraph in paragraphs)


def test_the_untouched_model_is_measured_once_for_all_runs(there, tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path)
    (there / "once.txt").write_text("a cat\n\na dog\n\na hen\n")
    calls, loss = [], General.loss

    def counted(self, *how):
        calls.append(self.text)
        return loss(self, *how)

    monkeypatch.setattr(General, "loss", counted)
    first = trained(there, "first", str(there / "once.txt"))
    assert len(calls) == 2
    second = trained(there, "second", str(there / "once.txt"), **{"method.name": "ia3", "data.validation_share": 0.4})
    assert len(calls) == 3  # of the second run the tuned model alone
    assert second.result["general"]["before"] == first.result["general"]["before"]
    (there / "once.txt").write_text("a cat\n\na dog\n\na hen\n\na cow\n")
    trained(there, "third", str(there / "once.txt"))
    assert len(calls) == 5  # another text is another figure


def test_without_the_knob_nothing_is_measured(there):
    run = trained(there, "without", None)
    assert "general" not in run.result
    assert "Forgetting" not in (run.folder / "report.html").read_text()


def test_an_encoder_decoder_fills_in_the_text(tmp_path):
    pair_folder(tmp_path / "model")
    shout(tmp_path, 24)
    sets = {**SETS, "runs": str(tmp_path / "runs"), "eval.general": "default", "train.lr": 0.01}
    found = microplane.train(tmp_path / "model", tmp_path / "data.jsonl", set=sets).result["general"]
    assert found["objective"] == "span_corruption"
    assert found["tokens"] > 100
    assert all(math.isfinite(found[name]) for name in ("before", "after", "difference"))
    assert found["difference"] != 0


def test_a_vocabulary_without_signs_for_spans_goes_on_with_the_text(tmp_path):
    folder = pair_folder(tmp_path / "model")
    opened = microplane.load(folder, "float32")
    assert opened.tokenizer.id_of("<extra_id_0>") is not None
    backend = json.loads((folder / "tokenizer.json").read_text().replace("<extra_id_", "<other_id_"))
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    plain = load_tokenizer(folder)
    assert plain.id_of("<extra_id_0>") is None
    knobs = RunKnobs(data=DataKnobs(train="rows.jsonl"), eval=EvalKnobs(general="default"))
    found = [open_general(knobs, opened.model, tokenizer).objective.name for tokenizer in (opened.tokenizer, plain)]
    assert found == ["span_corruption", "prefix_lm"]


def test_where_a_task_head_answers_it_is_refused(tmp_path):
    encoder_folder(tmp_path / "model")
    data = write(tmp_path, "reviews.jsonl", reviews(24))
    with pytest.raises(ConfigError, match=r"eval\.general = 'default': the rows have labels.* it writes no text"):
        microplane.train(tmp_path / "model", data, set={**SETS, "eval.general": "default", "runs": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "there is no file"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n \n", "holds no text"),
        ("latin.txt", b"caf\xe9", "byte 3 is no UTF-8 text"),
        ("pairs.jsonl", b'{"prompt": "a", "completion": "b"}\n', "text"),
    ],
)
def test_a_file_that_is_no_text_is_refused_before_anything_is_computed(there, name, content, message):
    if content is not None:
        (there / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        trained(there, f"bad-{name}", str(there / name))


def test_rows_leave_room_for_what_the_method_puts_before_them(there, tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path)
    pipeline = microplane.load(there / "model", "float32")
    text = tmp_path / "long.txt"
    text.write_text("one two three four five " * 40)
    context = pipeline.model.config.context
    for taken in (0, context - 20):
        knobs = RunKnobs(eval=EvalKnobs(general=str(text)))
        found = open_general(knobs, pipeline.model, pipeline.tokenizer, taken)
        assert context - taken - 8 < int(found.rows.lengths.max()) <= context - taken


def test_rows_in_the_cache_that_are_others_are_written_again(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("one\ntwo")
    place = module._rows_of(str(text))
    rows = place.read_bytes()
    place.write_bytes(rows[:-9])
    assert module._rows_of(str(text)) == place
    assert place.read_bytes() == rows
