"""Rows within the context of the model, in training and in `eval`, and tokens that the model has."""

from __future__ import annotations

import json

import pytest

import microplane
from microplane.config.build import assemble
from microplane.config.knobs import DataKnobs
from microplane.data.progress import Silent
from microplane.errors import ConfigError, ModelError
from microplane.inference.check_ids import check_ids
from microplane.runs.evaluate import measure_file
from microplane.runs.max_length import within_context
from tests.labels import encoder_folder
from tests.tiny import SHALLOW, save_tiny_folder, tiny

QUICK = {"train.steps": 2, "train.threads": 1, "train.lr": 1e-3, "model.dtype": "float32", "eval.rows": 2}


class Ear(Silent):
    def __init__(self):
        self.told = []

    def say(self, text):
        self.told.append(text)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("family", "context"), [("bert", 64), ("roberta", 62), ("modernbert", 64)])
def test_an_encoder_reads_as_many_tokens_as_it_has_places_for(family, context, tmp_path):
    """RoBERTa's table has as many rows more as its pad token's number and one."""
    rows = [{"text": "so long a text of few words " * 9 + "ab"[n % 2], "label": "xy"[n % 2]} for n in range(24)]
    model, data, ear = encoder_folder(tmp_path / "model", family), written(tmp_path / "rows.jsonl", rows), Ear()
    run = microplane.train(str(model), data, set=QUICK | {"runs": str(tmp_path / "runs")}, watch=ear)
    lowered = f"data.max_length lowered from 1024 to {context}, the context of this model"
    assert lowered in ear.told
    assert run.result["data"]["max_length"] == context
    ear.told.clear()
    measured = measure_file(assemble(given={"model.name": str(run.folder), "data.train": data}), ear)
    assert f"warning   24 rows above {context} tokens (data.max_length) lost the end of their text" in ear.told
    assert 0 < measured["scores"]["loss"] < 100


def test_eval_cuts_what_is_longer_than_the_context_of_a_decoder(tmp_path):
    model = save_tiny_folder(tmp_path / "model", **SHALLOW)
    data = written(tmp_path / "rows.jsonl", [{"prompt": "say it " * 60, "completion": f"no {n}"} for n in range(3)])
    knobs = {"model.name": str(model), "data.train": data, "eval.max_new_tokens": 2}
    assert measure_file(assemble(given=knobs))["scores"]["loss"] > 0


def test_tokens_that_the_model_lacks_are_found_wherever_they_stand(tmp_path):
    """In `eval`, and in a row behind the first hundred of a training file."""
    model = save_tiny_folder(tmp_path / "model", vocab_size=227, **SHALLOW)  # the byte's letters above stand last
    rows = [{"text": f"plain {n} {n * n}"} for n in range(150)] + [{"text": "voilà"}] * 3
    data = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ModelError, match="the model has embeddings for 227 only. They do not belong together"):
        measure_file(assemble(given={"model.name": str(model), "data.train": data}))
    with pytest.raises(ModelError, match="the model has embeddings for 227 only"):
        microplane.train(str(model), data, set={"runs": str(tmp_path / "runs"), "train.steps": 1})


def test_the_first_number_without_an_embedding_is_refused(make_tiny):
    model, tokenizer = tiny(), make_tiny()
    check_ids(model, tokenizer, [5, model.config.vocab_size - 1])
    with pytest.raises(ModelError, match="number 97, but the model has embeddings for 97 only"):
        check_ids(model, tokenizer, [5, model.config.vocab_size])


def test_both_sides_of_pairs_are_bounded_and_vectors_take_their_place():
    told = []
    data = DataKnobs(max_length=100, max_target_length=90)
    assert within_context(data, None, 7, told.append) is data
    bounded = within_context(data, 80, 7, told.append)
    assert (bounded.max_length, bounded.max_target_length) == (73, 80)
    assert told == [
        "data.max_length lowered from 100 to 73, the context of this model beside the 7 vectors of the method",
        "data.max_target_length lowered from 90 to 80, the context of this model",
    ]
    assert within_context(DataKnobs(max_length=10), 80, 7, told.append) == DataKnobs(max_length=10)
    with pytest.raises(ConfigError, match="puts 80 vectors before each row, and the context of this model is 80"):
        within_context(data, 80, 80, told.append)


def eval_lines(model, data, **knobs):
    ear = Ear()
    measure_file(assemble(given={"model.name": str(model), "data.train": data, "eval.rows": 0} | knobs), ear)
    return [line for line in ear.told if "max_length" in line or "long_rows" in line]


def test_eval_says_where_rows_are_cut_otherwise_than_in_the_run(tmp_path):
    """And that a length that was asked for is lowered; one that nobody asked for is lowered in silence."""
    model = save_tiny_folder(tmp_path / "model", **SHALLOW)
    data = written(tmp_path / "rows.jsonl", [{"prompt": f"say {n}", "completion": f"no {n}"} for n in range(24)])
    run = microplane.train(model, data, set=QUICK | {"runs": str(tmp_path / "runs"), "data.max_length": 100})
    assert eval_lines(run.folder, data) == eval_lines(model, data) == []
    assert eval_lines(run.folder, data, **{"data.max_length": 100}) == []
    cut, *_ = eval_lines(run.folder, data, **{"data.max_length": 16})
    assert cut.startswith("warning   data.max_length is 16 here and was 100 in the run: rows that are longer")
    lowered, *other = eval_lines(run.folder, data, **{"data.max_length": 4000})
    assert lowered == "data.max_length lowered from 4000 to 128, the context of this model"
    assert other == [cut.replace("16 here", "128 here")]
    assert eval_lines(model, data, **{"data.max_length": 4000}) == [lowered]
