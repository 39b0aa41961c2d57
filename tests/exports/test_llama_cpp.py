"""llama.cpp itself on what is exported: tiny families, and SmolLM2 with real rows' worth of texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import AdapterError
from microplane.exports.export import export
from microplane.exports.llama_cpp import llama_cpp as opened_there
from tests.data.tokenizers.test_gguf import byte_level as byte_level_tokens
from tests.data.tokenizers.test_gguf import spm
from tests.exports.kit import FAMILIES, adapter_of, byte_level, folder_of, sentencepiece
from tests.gguf_files import write_gguf
from tests.tiny import CONFIGS

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install 'microplane[export-gguf]'")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def checked(record: Path) -> list[dict]:
    return json.loads(record.read_text())["checked"]


def same(engine: dict) -> bool:
    """To rounding, by which one of ten answers of a random model may turn at a tie. Gemma's GELU is read out of a table
    of float16."""
    return (
        engine["difference"] < 5e-3 and len(engine["continuations"]) == 10 and engine["continuations"].count(None) >= 9
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same(family, tmp_path):
    run = adapter_of(folder_of(tmp_path / "base", family), tmp_path / "adapter", rank=4, alpha=2.0)
    export(run, tmp_path / "out.gguf", "gguf")
    [_, engine] = checked(tmp_path / "out.export.json")
    assert engine["other_ids"] == []
    assert same(engine)
    export(run, tmp_path / "lora.gguf", "gguf-lora")
    [_, put_on, off] = checked(tmp_path / "lora.export.json")
    assert same(put_on)
    assert same(off)


def test_a_pair_that_the_base_has_no_matrix_for_is_refused_as_it_is_opened(tmp_path):
    """As one of a tied head is: the package opens it without a word, and the first token ends the process."""
    export(folder_of(tmp_path / "tied"), tmp_path / "tied.gguf", "gguf")
    run = adapter_of(folder_of(tmp_path / "apart", "llama-untied"), tmp_path / "adapter", targets=["head"], rank=2)
    export(run, tmp_path / "lora.gguf", "gguf-lora")
    with (
        pytest.raises(AdapterError, match="does not put what was written on its base"),
        opened_there(tmp_path / "tied.gguf", tmp_path / "lora.gguf"),
    ):
        pass


@pytest.mark.parametrize("cut", ["smollm", "llama-bpe", "smaug-bpe", "qwen2"])
def test_every_cut_gives_the_same_ids(cut, tmp_path):
    export(folder_of(tmp_path / "base", backend=byte_level(cut, cut == "llama-bpe")), tmp_path / "out.gguf", "gguf")
    assert checked(tmp_path / "out.export.json")[1]["other_ids"] == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_the_same_ids(prefix, tmp_path):
    base = folder_of(tmp_path / "base", backend=sentencepiece(prefix), template=None)
    export(base, tmp_path / "out.gguf", "gguf")
    assert checked(tmp_path / "out.export.json")[1]["other_ids"] == []


def texts() -> list[str]:
    """200 paragraphs of this repository's own texts and code."""
    files = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")])
    parts = [part for file in files for part in file.read_text().split("\n\n")]
    return parts[:: len(parts) // 200][:200]


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-2), ("q8_0", 3.0)])
def test_smollm2_has_the_same_ids_logits_and_answers(dtype, most, smollm2, tmp_path, monkeypatch):
    from microplane.exports import source

    monkeypatch.setattr(source, "SENTENCES", tuple(texts()))
    monkeypatch.setattr(source, "PROMPTS", 20)
    questions = (
        *source.QUESTIONS,
        *(f"Explain in one sentence: {word}" for word in "rain snow bread iron moss tea sun law map ink".split()),
    )
    monkeypatch.setattr(source, "QUESTIONS", questions)
    export(smollm2, tmp_path / "out.gguf", "gguf", dtype)
    [_, engine] = checked(tmp_path / "out.export.json")
    print(engine, file=sys.stderr)
    assert engine["texts"] == 200
    assert engine["other_ids"] == []
    assert engine["difference"] < most
    assert len(engine["continuations"]) == 20
    if dtype == "float32":
        assert engine["continuations"] == [None] * 20


@pytest.mark.parametrize(("method", "knobs"), [("lora", {}), ("rslora", {}), ("dora", {}), ("nb-lora", {})])
def test_adapters_of_smollm2(method, knobs, smollm2, tmp_path):
    run = adapter_of(smollm2, tmp_path / "adapter", method, rank=4, **knobs, spread=0.005)
    export(run, tmp_path / "out.gguf", "gguf")
    [_, engine] = checked(tmp_path / "out.export.json")
    assert engine["continuations"] == [None] * 10
    export(run, tmp_path / "lora.gguf", "gguf-lora")
    [_, put_on, off] = checked(tmp_path / "lora.export.json")
    assert off["continuations"] == [None] * 10
    if method != "dora":  # which is converted, with its error
        assert put_on["continuations"] == [None] * 10


READ = {
    **{
        f"cut {cut}": byte_level_tokens(**({"pre": cut} if cut else {})) for cut in ("default", None, "smollm", "gpt-2")
    },
    "a control token that the file calls normal": byte_level_tokens([("<|im_end|>", 1)], pre="gpt-2"),
    "an unknown token": byte_level_tokens([("<unk>", 2)], pre="gpt-2"),
    "special tokens without a name": spm(),
    "runs of spaces": spm([("  ", 4), ("   ", 4)]),
}


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("form", READ)
def test_a_vocabulary_is_read_as_llama_cpp_reads_it(form, gemma, tmp_path):
    tokens = READ[form]
    config = CONFIGS["gemma2" if gemma else "llama-tied"]
    size = len(tokens["ggml.tokens"]), config["hidden_size"]
    tensors = {"token_embd.weight": np.zeros(size, np.float32), "output_norm.weight": np.ones(size[1], np.float32)}
    file = write_gguf(tmp_path / "model.gguf", config, tensors, tokens=tokens)
    engine = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ours = load_tokenizer(file)
    for text in (
        "n't 1234 (½%) (3   1",
        "a<|im_end|> b<unk>c<s> d",
        "hello  hello     a",
        " a\n\nb",
        "été 言語 7,000!?",
    ):
        assert ours.encode(text) == engine.tokenize(text.encode(), add_bos=True, special=True), text
