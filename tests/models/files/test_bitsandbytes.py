"""Folders that transformers and bitsandbytes have written in nf4, and single weights both ways."""

from __future__ import annotations

import json
import shutil

import bitsandbytes.functional as bnb
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from microplane.errors import ModelError, notices_to
from microplane.models.decoder import Decoder, DecoderConfig
from microplane.models.files.bitsandbytes import STATE, bitsandbytes_tensors
from microplane.models.files.load import load_model, open_checkpoint, save_model
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops import nf4
from microplane.nn.quantised import NF4Linear
from microplane.nn.rows import Rows
from tests.tiny import CONFIGS


@pytest.fixture(scope="module", params=[True, False], ids=["double", "single"])
def theirs(request, tmp_path_factory):
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("nf4")
    # Rows of whole blocks: for others, bitsandbytes 0.50.2 takes wrong scales on processors with AVX-512.
    config = CONFIGS["llama-untied"] | {"hidden_size": 64, "intermediate_size": 128}
    save_model(Decoder(DecoderConfig.from_hf(config)).init_weights(0), plain)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=request.param
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(folder)
    return folder, model, request.param, plain


def test_their_folder_gives_their_weights_and_logits(theirs):
    folder, model, double, plain = theirs
    assert open_checkpoint(folder).stored == "nf4"
    ids = [5, 6, 7, 8, 9, 10]
    for form in (NumberFormat(torch.float32), NumberFormat(torch.float32, "nf4")):
        ours = load_model(folder, form)
        weight = model.model.layers[1].mlp.down_proj.weight
        expected = bnb.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(ours.layers[1].mlp.down.weight, expected)
        with torch.no_grad():
            logits = ours.logits(ours(Rows.of([ids])))
            torch.testing.assert_close(logits, model.train()(torch.tensor([ids])).logits[0], atol=1e-4, rtol=1e-4)
    assert (ours.layers[0].attention.q.absmax.dtype == torch.uint8) == double, "scales as the file has them"
    if double:
        same = load_model(plain, NumberFormat(torch.float32, "nf4")).state_dict()
        assert isinstance(ours.layers[0].attention.q, NF4Linear)
        assert all(torch.equal(same[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_weight_quantised_here_is_read_by_bitsandbytes():
    weight = torch.randn(96, 128)
    ours = nf4.quantise(weight)
    tensors = bitsandbytes_tensors("w", ours, (96, 128), "float32")
    state = bnb.QuantState.from_dict({n: t for n, t in tensors.items() if n != "w"}, device=torch.device("cpu"))
    assert torch.equal(bnb.dequantize_4bit(tensors["w"], state), nf4.dequantise(ours, (96, 128)))


@pytest.mark.parametrize("theirs", [False], indirect=True, ids=["single"])
@pytest.mark.parametrize("form", [NumberFormat(torch.float32), NumberFormat(torch.float32, "nf4")], ids=["wide", "nf4"])
def test_scales_that_an_evaluation_left_transposed_are_read_in_their_places(theirs, form, tmp_path):
    """As bitsandbytes lays weights out for AVX512-BF16, and undoes it before it saves."""
    folder, *_ = theirs
    tensors = load_file(folder / "model.safetensors")
    names = [name.removesuffix(f".{STATE}") for name in tensors if name.endswith(STATE)]
    for name in names:
        parts = {n: x.clone() for n, x in tensors.items() if n.startswith(f"{name}.")}
        state = bnb.QuantState.from_dict(parts, device=torch.device("cpu"))
        codes, state = bnb._convert_weight_packed_for_cpu(tensors[name], state)
        codes, state = bnb._convert_weight_packed_for_cpu_inverse(codes, state)
        assert torch.equal(codes, tensors[name]), "the codes are put back"
        tensors[f"{name}.absmax"] = state.absmax
    shutil.copytree(folder, tmp_path / "after")
    save_file(tensors, tmp_path / "after" / "model.safetensors", {"format": "pt"})
    told = []
    with notices_to(told.append):
        ours, right = load_model(tmp_path / "after", form), load_model(folder, form)
    assert len(told) == 1
    assert "left their scales transposed and in bfloat16" in told[0]
    for one, other in zip(ours.layers, right.layers, strict=True):
        assert (one.mlp.down.weight - other.mlp.down.weight).norm() < 0.01 * other.mlp.down.weight.norm()
    tensors[f"{names[0]}.absmax"] = tensors[f"{names[0]}.absmax"][:, 1:].contiguous()
    save_file(tensors, tmp_path / "after" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be read \(scales of shape"):
        load_model(tmp_path / "after", form)


def test_other_schemes_and_blocks_are_refused(theirs, tmp_path):
    folder, *_ = theirs
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(STATE))
    state = json.loads(bytes(tensors[name].tolist())) | {"blocksize": 128}
    tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"the nf4 weight model\.layers.* cannot be read \(blocks of 128"):
        load_model(tmp_path)
    config["quantization_config"]["bnb_4bit_quant_type"] = "fp4"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not supported, bitsandbytes' nf4 is"):
        load_model(tmp_path)


@pytest.mark.parametrize("seeing", [False, True])
def test_linears_that_the_folder_left_in_full_precision_stay_so(seeing, tmp_path):
    torch.manual_seed(0)
    stack = "model.language_model" if seeing else "model"
    skipped = {"llm_int8_skip_modules": ["lm_head", "up_proj", f"{stack}.layers.1.self_attn"]}
    form = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **skipped
    )
    if seeing:
        text = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 16, "sliding_window": 8}
        vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14}
        tokens = {"image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94, "mm_tokens_per_image": 4}
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, **tokens)
        transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "plain")
    else:
        config = CONFIGS["llama-untied"] | {"hidden_size": 64, "intermediate_size": 128}
        save_model(Decoder(DecoderConfig.from_hf(config)).init_weights(0), tmp_path / "plain")
    kind = transformers.Gemma3ForConditionalGeneration if seeing else transformers.AutoModelForCausalLM
    kind.from_pretrained(
        tmp_path / "plain", quantization_config=form, dtype=torch.float32, device_map="cpu"
    ).save_pretrained(tmp_path / "nf4")
    ours, plain = load_model(tmp_path / "nf4", NumberFormat(torch.float32, "nf4")), load_model(tmp_path / "plain")
    wide = {name for name, module in ours.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in wide if name.startswith("layers.")} == {
        *(f"layers.{layer}.mlp.up" for layer in (0, 1)),
        *(f"layers.1.attention.{role}" for role in ("q", "k", "v", "o")),
    }
    assert all(torch.equal(ours.get_submodule(n).weight, plain.get_submodule(n).weight) for n in wide)
    assert isinstance(ours.layers[0].attention.q, NF4Linear)
