"""`microplane models`: what is listed is what the code does."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from microplane.cli import model_list
from microplane.cli.app import app
from microplane.methods import METHODS
from microplane.models.configs.head import FORMS
from microplane.models.external.library import find_transformers_class
from microplane.models.families import ARCHITECTURES, family_of


@pytest.fixture(scope="module")
def listed():
    found = CliRunner().invoke(app, ["models", "--json"])
    assert found.exit_code == 0
    return json.loads(found.stdout)


def test_every_family_here_and_its_heads(listed):
    own = [family for family in listed["families"] if family["code"] == "microplane"]
    assert {name for family in own for name in family["architectures"]} == set(ARCHITECTURES)
    assert all(family["methods"] == list(METHODS) and family["labels"] for family in own)
    heads = {form for family in own for form in family["heads"].values() if form}
    assert heads == set(FORMS)
    by_name = {family["name"]: family for family in own}
    assert by_name["llama"]["gguf"]
    assert not by_name["bert"]["gguf"]
    assert "float16" not in by_name["t5"]["formats"]
    assert by_name["t5"]["writes"]
    assert not by_name["bert"]["writes"]


def test_what_runs_through_transformers_is_opened_as_the_kind_that_is_said(listed):
    others = [family for family in listed["families"] if family["code"] == "transformers"]
    assert len(others) > 100
    for family in others:
        for name in family["architectures"]:
            fields = {"model_type": family["name"], "architectures": [name]}
            assert find_transformers_class(fields) == (name, family["kind"]), name
    by_name = {family["name"]: family for family in others}
    deberta, gpt = by_name["deberta"], by_name["openai-gpt"]
    assert deberta["heads"] == {
        "rows": "DebertaForSequenceClassification",
        "tokens": "DebertaForTokenClassification",
    }
    assert "head-only" in deberta["methods"]
    assert deberta["labels"]
    assert "head-only" not in gpt["methods"]
    assert not gpt["labels"]
    assert {"prompt", "prefix", "bottleneck", "last-n"}.isdisjoint(deberta["methods"])
    assert set(gpt["in_peft"]) < set(gpt["methods"])


def test_a_class_that_is_set_to_write_is_no_encoder():
    fields = {"model_type": "rembert", "vocab_size": 97, "architectures": ["RemBertForCausalLM"]}
    assert find_transformers_class(fields) == ("RemBertModel", "encoder")
    assert find_transformers_class(fields | {"is_decoder": True}) == ("RemBertForCausalLM", "decoder")
    assert find_transformers_class({"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]})[1] == "encoder"
    assert family_of({"model_type": "convbert"}).__name__ == "TransformersEncoder"
    of_its_authors = {"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": 32}
    assert family_of(of_its_authors).__name__ == "TransformersEncoder"
    assert family_of({"model_type": "nomic_bert", "architectures": ["NomicBertModel"]}).__name__ == "Encoder"


def test_in_a_terminal_it_is_80_columns_wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["models"]).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("smollm2", "modernbert", "deberta-v2", "m2m_100", "recurrent_gemma"):
        assert word in shown


def test_without_transformers_it_says_what_would_be_there(monkeypatch):
    monkeypatch.setattr(model_list, "find_spec", lambda name: None)
    shown = " ".join(CliRunner().invoke(app, ["models"]).stdout.split())
    assert "pip install 'microplane[transformers]'" in shown
    assert "xlnet" not in shown
