"""Model cards: read back by huggingface_hub, with the run's own figures; a README.md of the user's stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import microplane
from microplane.adapters.card import NAME, OURS, card_of, form_of, licence_of, write_card
from microplane.adapters.merge import merge
from microplane.exports.export import export
from tests.adapters.test_leaving import adapter as labelled
from tests.exports.kit import adapter_of, folder_of
from tests.labels import encoder_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("card")
    base = folder_of(at / "base")
    rows = [{"prompt": f"say {n}", "completion": f"{n % 7}"} for n in range(40)]
    (at / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = {"train.steps": 4, "model.dtype": "float32", "eval.rows": 4, "runs": str(at / "runs")}
    return microplane.train(str(base), str(at / "rows.jsonl"), method="lora", set=knobs).folder


def test_a_runs_card_has_its_base_method_data_and_figures(run):
    card, result = ModelCard.load(run / "adapter" / NAME), json.loads((run / "result.json").read_text())
    assert card.data.library_name == "peft"
    assert card.data.base_model is None  # a folder on this machine is nobody's business
    assert card.data.tags == ["microplane", "lora"]
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    wanted = {name: value for name, value in result["metrics"]["after"].items() if value is not None}
    assert found == pytest.approx(wanted)
    assert all(type(value) is float for value in found.values())
    assert {one.dataset_name for one in card.data.eval_results} == {"rows.jsonl"}
    for part in (result["data"]["fingerprint"], "| loss |", "`rank`: 16", "Unicode form of the rows: NFC", "PeftModel"):
        assert part in card.text, part
    assert str(run.parents[1]) not in card.content  # nor where the rows lay
    assert f"rows: {result['data']['rows']['train']:,} train" in card.text
    assert "| | before | after |" in card.text
    loss = [result["metrics"][when]["loss"] for when in ("before", "after")]
    assert f"| loss | {loss[0]:.4g} | {loss[1]:.4g} |" in card.text
    assert loss[0] != loss[1]


def test_what_leaves_has_a_card_that_names_how_it_is_opened(run, tmp_path):
    merge(run, tmp_path / "merged")
    card = ModelCard.load(tmp_path / "merged" / NAME)
    assert card.data.library_name == "transformers"
    assert len(card.data.eval_results) > 0
    for to, library, how in (
        ("gguf", "gguf", "llama-cli"),
        ("peft", "peft", "PeftModel"),
        ("hf", "transformers", "Auto"),
    ):
        export(run, tmp_path / to, to)
        card = ModelCard.load(tmp_path / to / NAME)
        assert card.data.library_name == library
        assert how in card.text
    export(run.parents[1] / "base", tmp_path / "base", "gguf")
    plain = ModelCard.load(tmp_path / "base" / NAME)
    assert plain.data.eval_results is None
    assert "as it is" in plain.text


def test_a_readme_of_the_users_stays_and_ours_is_renewed(run, tmp_path):
    assert write_card(tmp_path, "---\n---\n" + OURS + "\nold")
    assert write_card(tmp_path, "---\n---\n" + OURS + "\nnew")
    assert (tmp_path / NAME).read_text().endswith("new")
    (tmp_path / NAME).write_text("# mine\n")
    assert not write_card(tmp_path, "theirs")
    assert (tmp_path / NAME).read_text() == "# mine\n"


def test_a_users_own_card_beside_an_adapter_goes_with_it(tmp_path):
    adapter = adapter_of(folder_of(tmp_path / "base"), tmp_path / "adapter", rank=2)
    (adapter / NAME).write_text("# mine\n")
    export(adapter, tmp_path / "out", "peft")
    assert (tmp_path / "out" / NAME).read_text() == "# mine\n"


def test_base_and_licence_are_named_where_they_are_known(tmp_path):
    card = ModelCard(card_of(tmp_path / "x", "peft", {"base": "smollm2"}, "lora"))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    base = folder_of(tmp_path / "base")
    assert licence_of(str(base)) is None
    assert "look it up" in card_of(base, "hf")
    (base / NAME).write_text("---\nlicense: mit\n---\n# theirs\n")
    assert licence_of(str(base)) == "mit"
    assert "licence is mit" in card_of(base, "hf")


def test_a_folder_that_is_called_as_a_model_of_the_hub_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "me" / "base")
    assert ModelCard(card_of("me/base", "hf")).data.base_model is None
    assert ModelCard(card_of("me/other", "hf")).data.base_model == "me/other"
    assert ModelCard(card_of("me/models/other", "hf")).data.base_model is None  # a folder that is gone


def test_an_adapter_that_no_other_tool_opens_is_not_called_pefts(tmp_path):
    assert (form_of(tmp_path, False), form_of(tmp_path, True)) == ("adapter", "hf")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert form_of(tmp_path, False) == "peft"


def test_a_form_that_is_not_nfc_is_said(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"data": {"files": ["a/b.csv"], "rows": {"train": 3}}}))
    assert "Unicode form of the rows: NFD" in card_of(tmp_path, "peft", {"unicode": "nfd"}, "lora")
    assert "Unicode form of the rows: as they were typed" in card_of(tmp_path, "peft", {}, "lora")


def test_a_card_says_how_peft_opens_the_base_of_a_head(tmp_path):
    opened = {"class": "ModernBertForSequenceClassification", "num_labels": 2, "classifier_pooling": "mean"}
    text = card_of(tmp_path, "peft", {"base": "org/base", "opened_by": opened}, "lora")
    call = "transformers.ModernBertForSequenceClassification.from_pretrained(BASE, num_labels=2, "
    assert f"where `base = {call}classifier_pooling='mean')`" in text
    assert "where `base" not in card_of(tmp_path, "peft", {"base": "org/base"}, "lora")
    assert "where `base" not in card_of(tmp_path, "hf", {"opened_by": opened}, "full")


@pytest.mark.parametrize(
    ("task", "pooling", "what"),
    [("classification", "mean", "the mean of its tokens that are no pad"), ("regression", "last", "its last token")],
)
def test_a_head_that_peft_leaves_out_is_said_with_how_it_is_computed(task, pooling, what, tmp_path):
    base = encoder_folder(tmp_path / "base")
    path = labelled(base, tmp_path / "adapter", "lora", task, pooling)
    told = f"peft leaves this head out. There: of the last states {what}, times task_head.out.weight plus"
    about = json.loads((path / "method.json").read_text())["about"]
    assert told in card_of(path, "peft", about, "lora")
    assert told not in card_of(path, "hf", about, "lora")
    assert any(told in line for line in export(path, tmp_path / "out", "peft").lines)
    of_a_class = labelled(base, tmp_path / "with a class", "lora", "classification", "cls")
    done = export(of_a_class, tmp_path / "out of a class", "peft")
    assert not any("leaves this head out" in line for line in done.lines)
