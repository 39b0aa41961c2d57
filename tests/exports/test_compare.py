"""What is told of an engine: its ids, the largest difference, and where each continuation parts from ours."""

from __future__ import annotations

import json

import pytest

from microplane.errors import ConfigError
from microplane.exports.compare import compare, continuations
from microplane.exports.export import export
from microplane.exports.formats import FORMATS
from microplane.exports.llama_cpp import DecoderEngine
from microplane.exports.source import QUESTIONS, _questions, opened, row_logits
from microplane.exports.ways import ways
from microplane.methods import make_method
from tests.exports.kit import adapter_of, folder_of
from tests.tiny import tiny


class Nearly(DecoderEngine):
    """Ours, but for the ids of one text, one score, and the ends of two answers."""

    name = "nearly"

    def __init__(self, source):
        self.source = source

    def ids(self, text):
        return self.source.tokenizer.encode(text) + ([1] if text == self.source.texts[2] else [])

    def logits(self, ids):
        (found,) = row_logits(self.source.pipeline, [ids])
        if list(ids) == self.source.rows[0]:
            found[1, 3] += 0.5
        return found

    def greedy(self, prompts, most):
        first, second, *others = continuations(self.source, prompts)
        return [first[:-1], [second[0] + 1, *second[1:]], *others]


def test_each_difference_is_told(tmp_path):
    source = opened(folder_of(tmp_path / "base"), FORMATS["gguf"])
    lengths = list(map(len, continuations(source, source.prompts())))
    found = compare(source, Nearly(source))
    assert found.other_ids == (source.texts[2],)
    assert found.difference == pytest.approx(0.5, abs=1e-4)
    assert found.continuations == (lengths[0] - 1, 0, *[None] * (len(lengths) - 2))
    told = "\n".join(found.lines())
    assert f"{len(lengths) - 2} of {len(lengths)} greedy continuations are the same" in told
    assert f"number 1 at token {lengths[0]}, 2 at token 1" in told


def test_no_more_is_compared_than_there_is_room_for(tmp_path):
    source = opened(folder_of(tmp_path / "base"), FORMATS["gguf"])
    for room in (12, 100):
        source.context(room)
        assert (source.room, max(map(len, source.rows))) == (12, 12)
    assert source.prompts() == []  # none leaves room for an answer


def test_the_runs_own_questions_are_asked_first(tmp_path):
    own = ["own\u2028first", "own 1", "own 2"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in own]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    assert _questions(tmp_path) == [*own, *QUESTIONS[:7]]
    assert _questions(tmp_path / "none") == list(QUESTIONS)


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_base_that_moved_is_found_when_it_is_exported(to, tmp_path):
    base = folder_of(tmp_path / "base")
    run = adapter_of(base, tmp_path / "adapter", rank=4)
    export(run, tmp_path / "out", to, base=base.rename(tmp_path / "elsewhere"))
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert all(one["difference"] < 1e-3 for one in record["checked"])
    if to != "hf":
        assert (record["method"], record["merged_against_unmerged"] is None) == ("lora", not FORMATS[to].whole)
    assert "trained by lora with Microplane" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "adapter"), [("lora", True), ("dora", True), ("ia3", False), ("full", False), ("prefix", False)]
)
def test_an_adapter_for_llama_cpp_is_offered_where_a_lora_can_stand_for_it(method, adapter):
    assert ("gguf-lora" in ways(tiny(), make_method({"name": method}))) is adapter


@pytest.mark.parametrize(("name", "to", "others"), [("m.gguf", "hf", "gguf or gguf-lora"), ("m.onnx", "gguf", "onnx")])
def test_a_folder_is_not_called_as_a_file_of_another_format(name, to, others, tmp_path):
    with pytest.raises(ConfigError, match=f"a file of --to {others}, and --to {to} writes a folder"):
        export(tmp_path / "nothing", tmp_path / name, to)
