"""Adapters for llama.cpp: its rule, alpha / rank alone, applied to what was written gives what was trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from microplane.errors import AdapterError, ConfigError, MicroplaneError
from microplane.exports.export import export
from microplane.exports.formats import FORMATS
from microplane.exports.gguf_lora import ALPHA, with_pairs, write_pairs
from microplane.exports.source import opened
from microplane.inference.pipeline import load
from microplane.models.files.gguf_format import read_header
from microplane.nn.rows import Rows
from tests.exports.kit import adapter_of, folder_of

IDS = [5, 9, 77, 31, 8, 120, 60]


def logits(model):
    with torch.no_grad():
        return model.logits(model(Rows.of([IDS])))


@pytest.mark.parametrize(
    ("family", "method", "knobs", "exact"),
    [
        ("llama-tied", "lora", {"rank": 4, "alpha": 20.0}, True),
        ("qwen3", "rslora", {"rank": 4, "alpha": 12.0}, True),
        ("smollm3", "nb-lora", {}, True),
        ("gemma2", "vera", {"rank": 8}, True),
        ("llama-untied", "lora", {"targets": ["head", "q", "down"]}, True),
        ("llama-tied", "dora", {"rank": 4}, False),
        ("llama-tied", "full", {}, False),
    ],
)
def test_a_base_and_what_was_written_compute_what_was_trained(family, method, knobs, exact, tmp_path):
    base = folder_of(tmp_path / "base", family)
    run = adapter_of(base, tmp_path / "adapter", method, **knobs)
    done = export(run, tmp_path / "lora.gguf", "gguf-lora")
    export(base, tmp_path / "base.gguf", "gguf")
    adapter = read_header(tmp_path / "lora.gguf")
    assert adapter.metadata["general.type"] == "adapter"
    assert adapter.metadata["adapter.type"] == "lora"
    ranks = {entry.shape[0] for name, entry in adapter.tensors.items() if name.endswith("lora_a")}
    assert ranks == {int(adapter.metadata[ALPHA])}  # so that alpha / rank is 1
    ours, alone = load(run, dtype="float32").model, load(base, dtype="float32").model
    found = logits(with_pairs(tmp_path / "base.gguf", tmp_path / "lora.gguf"))
    assert (logits(ours) - logits(alone)).abs().max() > 0.1
    if exact:
        torch.testing.assert_close(found, logits(ours), atol=1e-4, rtol=1e-4)
    else:
        assert any("relative error" in line for line in done.lines)
    none = with_pairs(tmp_path / "base.gguf", tmp_path / "lora.gguf", 0.0)
    torch.testing.assert_close(logits(none), logits(alone), atol=1e-5, rtol=1e-4)
    [back] = [
        one
        for one in json.loads((tmp_path / "lora.export.json").read_text())["checked"]
        if one["engine"] == "read back"
    ]
    assert (back["difference"] < 1e-4) is exact


def test_patterns_of_ranks_and_alphas_are_padded_and_folded_in(tmp_path):
    base = folder_of(tmp_path / "base")
    run = adapter_of(base, tmp_path / "adapter", "lora", rank=4, alpha=8.0, targets=["q", "v"])
    (run / "method.json").unlink()
    config = json.loads((run / "adapter_config.json").read_text())
    config |= {"rank_pattern": {"model.layers.0.self_attn.q_proj": 6}, "init_lora_weights": "eva"}
    config |= {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 30.0}}
    from safetensors.torch import load_file

    state = load_file(run / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    state[key.format("A")], state[key.format("B")] = torch.randn(6, 32) * 0.1, torch.randn(32, 6) * 0.1
    save_file(state, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps(config))
    export(run, tmp_path / "lora.gguf", "gguf-lora")
    export(base, tmp_path / "base.gguf", "gguf")
    found = logits(with_pairs(tmp_path / "base.gguf", tmp_path / "lora.gguf"))
    torch.testing.assert_close(found, logits(load(run, dtype="float32").model), atol=1e-4, rtol=1e-4)
    assert read_header(tmp_path / "lora.gguf").metadata[ALPHA] == 6


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3", "bitfit"])
def test_what_no_lora_can_stand_for_is_refused_and_nothing_stays(method, tmp_path):
    base = folder_of(tmp_path / "base", "qwen2")
    run = adapter_of(base, tmp_path / "adapter", method)
    with pytest.raises(AdapterError, match="a LoRA cannot stand for this adapter"):
        export(run, tmp_path / "out", "gguf-lora")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_base_has_no_adapter_and_a_tied_head_takes_none(tmp_path):
    base = folder_of(tmp_path / "base")
    with pytest.raises(AdapterError, match="has none"):
        export(base, tmp_path / "out", "gguf-lora")
    run = adapter_of(base, tmp_path / "adapter", "lora", rank=2)
    source = opened(run, FORMATS["gguf-lora"])
    pairs = {"lm_head.weight": (torch.zeros(2, 32), torch.zeros(97, 2))}
    with pytest.raises(AdapterError, match=r"lm_head\.weight, which is no matrix of its own .* merge it"):
        write_pairs(source, tmp_path / "x.gguf", pairs, "llama", "F32", {"token_embd.weight"})
    with pytest.raises(ConfigError, match="possible are float32, float16"):
        export(run, tmp_path / "out", "gguf-lora", "q8_0")


def test_a_peft_adapter_with_a_pair_on_the_embedding_or_whole_weights_is_refused(tmp_path):
    base = folder_of(tmp_path / "base")
    run = adapter_of(base, tmp_path / "adapter", "lora", rank=2)
    (run / "method.json").unlink()
    from safetensors.torch import load_file

    state = load_file(run / "adapter_model.safetensors")
    rows = load(base).model.config.vocab_size
    whole = {"base_model.model.model.embed_tokens.weight": torch.randn(rows, 32)}
    save_file(state | whole, run / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"embed_tokens\.weight: merge it instead"):
        export(run, tmp_path / "out", "gguf-lora")
    pair = {f"base_model.model.model.embed_tokens.lora_embedding_{x}": torch.randn(2, 2) for x in "AB"}
    save_file(state | pair, run / "adapter_model.safetensors")
    with pytest.raises(MicroplaneError, match="LoRA of an embedding .* merge it"):
        export(run, tmp_path / "out", "gguf-lora")
    assert not (tmp_path / "out").exists()
