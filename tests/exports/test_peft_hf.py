"""Plain folders and adapters, compared in transformers and peft as they are exported."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from microplane.errors import AdapterError
from microplane.exports.export import export
from tests.exports.kit import adapter_of, folder_of
from tests.runs.test_seq2seq import pair_folder


def checked(folder):
    [one] = json.loads((folder / "export.json").read_text())["checked"]
    return one


@pytest.mark.parametrize("family", ["llama-tied", "t5"])
@pytest.mark.parametrize("to", ["hf", "peft"])
def test_an_adapter_answers_the_same_there(family, to, tmp_path, capfd):
    base = (pair_folder if family == "t5" else folder_of)(tmp_path / "base", family)
    run = adapter_of(base, tmp_path / "adapter", rank=4, alpha=2.0)
    export(run, tmp_path / "out", to)
    assert "Loading weights" not in capfd.readouterr().err  # no word of what transformers does
    one = checked(tmp_path / "out")
    assert one["engine"].startswith("transformers" if to == "hf" else "peft")
    assert one["difference"] < 1e-4
    assert one["continuations"] == [None] * 10
    assert one["measure"] == ("log-probability" if family == "t5" else "logit")
    if to == "peft":
        names = {path.name for path in run.iterdir()}
        assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"export.json", "README.md"}


def test_a_difference_is_told_with_its_first_token(tmp_path):
    base = folder_of(tmp_path / "base")
    run = adapter_of(base, tmp_path / "adapter", rank=4)
    from microplane.exports.compare import compare
    from microplane.exports.formats import FORMATS
    from microplane.exports.source import opened
    from microplane.exports.transformers import Transformers

    found = compare(opened(run, FORMATS["hf"]), Transformers(base, opened(base, FORMATS["hf"])))
    assert found.difference > 0.1
    firsts = [first for first in found.continuations if first is not None]
    assert firsts
    assert any(f"at token {firsts[0] + 1}" in line for line in found.lines())


def test_a_base_is_written_in_the_format_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("microplane.exports.hf.check", lambda *given: None)
    export(folder_of(tmp_path / "base"), tmp_path / "out", "hf", "bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "match"), [("nb-lora", "microplane convert"), ("full", "--to hf writes it"), ("bitfit", "trains biases")]
)
def test_what_peft_has_no_format_for_is_refused(method, match, tmp_path):
    run = adapter_of(folder_of(tmp_path / "base", "qwen2"), tmp_path / "adapter", method)
    with pytest.raises(AdapterError, match=match):
        export(run, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()
