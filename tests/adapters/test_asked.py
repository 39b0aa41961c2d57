"""How a run is asked stands in no file of other tools', and is told wherever it leaves."""

from __future__ import annotations

import pytest

from microplane.adapters.asked import asked_as
from microplane.adapters.merge import merge
from microplane.exports.export import export
from microplane.inference.pipeline import load
from tests.exports.kit import adapter_of, folder_of
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import CHATML

DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ 'You are small.\n' }}{% endif %}" + CHATML
SAID = ("had the system message", "an empty system message", "prompts began with", "without the chat template",
        "continue text")  # fmt: skip


@pytest.mark.parametrize(
    ("about", "said", "card"),
    [
        ({"system": "Be short.", "prefix": "As JSON: "}, {0, 2}, "`Be short.`\n- each prompt begins with `As JSON:`"),
        ({"system": ""}, {1}, "- with an empty system message"),
        ({"template": "plain"}, {3}, None),
        ({"template": "plain", "frame": ["", ""]}, {3, 4}, "- text, continued as it stands"),
        ({"template": "chat", "frame": ["<|im_start|>user\n", "<|im_end|>\n"]}, set(), None),
        ({}, set(), None),
    ],
    ids=["system and prefix", "empty system", "plain", "text", "text in turns", "nothing"],
)  # fmt: skip
def test_what_belongs_around_a_question_is_told_and_stands_in_the_card(about, said, card, tmp_path):
    run = adapter_of(folder_of(tmp_path / "base", template=DEFAULT), tmp_path / "adapter", about=about)
    lines = [*merge(run, tmp_path / "merged").notices]
    assert {n for n, part in enumerate(SAID) if any(part in line for line in lines)} == said
    text = (tmp_path / "merged" / "README.md").read_text()
    assert ("## How it is asked" in text) is (card is not None)
    assert card is None or card in text


def test_an_empty_system_message_that_changes_nothing_is_not_told(tmp_path):
    run = adapter_of(
        folder_of(tmp_path / "base", template=CHATML), tmp_path / "a", about={"system": "", "template": "plain"}
    )
    assert not any("empty system" in line for line in merge(run, tmp_path / "merged").notices)


def test_the_beginning_of_an_encoder_decoders_prompts_is_told(tmp_path):
    run = adapter_of(pair_folder(tmp_path / "base"), tmp_path / "adapter", about={"prefix": "Translate: "})
    assert list(asked_as(load(run))) == ["all its prompts began with 'Translate: ': put it before each question"]


def test_an_adapter_for_peft_is_told_of_too(tmp_path, monkeypatch):
    monkeypatch.setattr("microplane.exports.peft.usable", lambda package: False)
    run = adapter_of(folder_of(tmp_path / "base"), tmp_path / "adapter", about={"prefix": "As JSON: "})
    assert any("prompts began with" in line for line in export(run, tmp_path / "out", "peft").lines)
