"""Opening, checking and saving model folders; what is said when one is not right."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from microplane.errors import ModelError
from microplane.models.contract import ROLES, Model, linears
from microplane.models.decoder import Decoder, DecoderConfig
from microplane.models.files import load
from microplane.models.files.load import load_model, open_checkpoint, save_model
from microplane.nn.rows import Rows

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
ROWS = Rows.of([[3, 4, 5], [6]])


def fresh(**fields) -> Decoder:
    return Decoder(DecoderConfig.from_hf(CONFIG | fields)).init_weights(3)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(fresh(), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the stored tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def shard(folder: Path) -> dict[str, str]:
    """Split the one file of weights in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return weight_map


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(ROWS))


def complaint(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- what works


def test_saved_and_loaded_is_the_same(folder):
    model, loaded = fresh(), load_model(folder)
    assert torch.equal(logits(model), logits(loaded))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert isinstance(loaded, Model)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_shards_are_the_same(folder):
    expected = logits(load_model(folder))
    shard(folder)
    assert torch.equal(logits(load_model(folder)), expected)
    assert len(open_checkpoint(folder).tensors) == len(fresh().hf_names())


def test_number_formats(folder):
    assert open_checkpoint(folder).stored == "float32"
    narrow = load_model(folder, torch.bfloat16)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    save_model(narrow, folder.with_name("narrow"))
    assert open_checkpoint(folder.with_name("narrow")).stored == "bfloat16"
    assert json.loads((folder.with_name("narrow") / "config.json").read_text())["dtype"] == "bfloat16"
    save_model(load_model(folder), folder.with_name("asked"), torch.bfloat16)
    asked = load_file(folder.with_name("asked") / "model.safetensors")
    assert {tensor.dtype for tensor in asked.values()} == {torch.bfloat16}


def test_one_tensor_at_a_time(folder, monkeypatch):
    """Nothing of the file is held while the next tensor is read, also where the format stays the same."""

    handed = []

    class Watched(load.Shards):
        def __getitem__(self, name):
            assert not any(tensor() is not None for tensor in handed), "still held"
            tensor = super().__getitem__(name)
            handed.append(weakref.ref(tensor))
            return tensor

    monkeypatch.setattr(load, "Shards", Watched)
    load_model(folder)
    load_model(folder, torch.bfloat16)
    assert len(handed) == 2 * len(fresh().hf_names())


def test_old_rotary_buffers_are_no_complaint(folder):
    extra = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(2), "model.rotary_emb.inv_freq": torch.ones(2)}
    rewrite(folder, lambda tensors: tensors.update(extra))
    assert torch.equal(logits(load_model(folder)), logits(fresh()))


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path):
    model = fresh(tie_word_embeddings=True)
    save_model(model, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    loaded = load_model(tmp_path)
    assert loaded.head is None
    assert loaded.head_weight is loaded.embed.weight
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("noted", [True, False])
def test_a_tied_model_that_is_stored_under_the_heads_name_alone(noted, tmp_path):
    model = fresh(tie_word_embeddings=True)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    told = {"model.embed_tokens.weight": "lm_head.weight"} if noted else {}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"} | told)
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_other_shared_tensors_are_found_by_what_safetensors_notes(folder):
    expected = load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    one, other = (f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1))
    assert torch.equal(tensors[one], tensors.pop(other))
    save_file(tensors, folder / "model.safetensors", {"format": "pt", other: one})
    assert torch.equal(logits(load_model(folder)), logits(expected))


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM"])
def test_a_model_that_embeds_is_stored_without_prefix_and_head(architecture, tmp_path):
    model = fresh(tie_word_embeddings=True)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    configure(tmp_path, architectures=[architecture], tie_word_embeddings=architecture != "LlamaModel")
    opened = load_model(tmp_path)
    assert torch.equal(opened(ROWS), model(ROWS))
    assert (opened.load_notice is not None) == (architecture == "LlamaModel")


@pytest.mark.parametrize(
    ("told", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 16}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        (None, None),
    ],
    ids=str,
)
def test_how_a_folder_says_that_sentences_are_embedded(told, pooling, folder):
    if told is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    assert load_model(folder).sentence_pooling == pooling


def test_a_head_of_its_own_is_kept_though_the_config_says_tied(folder):
    configure(folder, tie_word_embeddings=True)
    loaded = load_model(folder)
    assert loaded.head_weight is loaded.head.weight
    assert torch.equal(logits(loaded), logits(fresh()))
    save_model(loaded, folder.with_name("again"))
    assert json.loads((folder.with_name("again") / "config.json").read_text())["tie_word_embeddings"] is False


def test_fields_that_we_have_no_use_for_survive(folder):
    configure(folder, eos_token_id=[2, 7], my_note="kept", auto_map={"AutoModel": "code.Model"})
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6}')
    save_model(load_model(folder), folder.with_name("again"))
    config = json.loads((folder.with_name("again") / "config.json").read_text())
    assert (config["eos_token_id"], config["my_note"]) == ([2, 7], "kept")
    assert "auto_map" not in config
    generation = json.loads((folder.with_name("again") / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 7], "temperature": 0.6}


def test_saving_over_a_folder_leaves_what_was_read_from_it_alone(folder):
    """A file is replaced, not rewritten: tensors that are mapped from it must not change under their reader."""
    stored = open_checkpoint(folder).tensors["model.embed_tokens.weight"]
    before = stored.clone()
    save_model(fresh().init_weights(9), folder)
    assert torch.equal(stored, before)
    assert not torch.equal(open_checkpoint(folder).tensors["model.embed_tokens.weight"], before)


def test_a_save_that_fails_leaves_the_old_files(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def fail(tensors: Mapping, path: Path, metadata: Mapping) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_model(fresh(), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_init_weights_is_seeded_and_scaled():
    a, b, c = fresh(), fresh(), fresh().init_weights(4)
    assert torch.equal(logits(a), logits(b))
    assert not torch.equal(logits(a), logits(c))
    assert a.layers[0].mlp.down.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert a.norm.weight.eq(1).all()
    assert fresh(model_type="gemma3_text", architectures=None, head_dim=4).norm.weight.eq(0).all()


def test_linears_are_found_by_role_and_layer():
    model = fresh()
    sites = linears(model)
    assert sorted(sites) == sorted(
        ["head"]
        + [f"layers.{i}.attention.{role}" for i in (0, 1) for role in "qkvo"]
        + [f"layers.{i}.mlp.{role}" for i in (0, 1) for role in ("gate", "up", "down")]
    )
    assert {site.role for site in sites.values()} == set(ROLES) - {"qkv", "gate_up"}  # of families that fuse them
    site = sites["layers.1.mlp.gate"]
    assert (site.parent, site.attribute, site.role, site.layer) == (model.layers[1].mlp, "gate", "gate", 1)
    assert sites["head"].layer is None
    assert "head" not in linears(fresh(tie_word_embeddings=True))


def test_swapped_linears_and_sockets_are_called():
    model = fresh()
    expected = logits(model)
    calls = []
    for site in linears(model).values():
        site.module.register_forward_hook(lambda *_: calls.append("linear"))
    for name in ("prompt_socket", "layers.1.attention_socket", "layers.0.mlp_socket"):
        model.get_submodule(name).register_forward_hook(lambda *_: calls.append("socket"))
    assert torch.equal(logits(model), expected)
    assert (calls.count("linear"), calls.count("socket")) == (15, 3)


# ------------------------------------------------------------------------------------------------- what does not


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_with_the_way_out(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04.")
    for path in (folder, folder / name):
        text = complaint(path)
        assert name in text
        assert "can run any code" in text
        assert "save_pretrained(folder, safe_serialization=True)" in text


def test_nothing_there(tmp_path):
    assert f"there is no model at {tmp_path / 'none'}" in complaint(tmp_path / "none")
    assert "has no config.json" in complaint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt is not a model: give a folder" in complaint(tmp_path / "notes.txt")


def test_weights_without_their_folder(folder):
    assert "give the folder that has its config.json" in complaint(folder / "model.safetensors")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights: expected model.safetensors, or shards" in complaint(folder)


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert "holds an adapter, not a model: give the model that it was trained on, org/base," in complaint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\udc80"], ids=["cut", "list", "bytes"])
def test_config_that_is_not_json(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    expected = "must hold a JSON object, but holds a list" if text == "[1]" else "config.json is not valid JSON"
    assert expected in complaint(folder)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_weights_that_are_cut_off(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    text = complaint(folder)
    assert "model.safetensors (" in text
    assert "bytes) is truncated or is not safetensors" in text


def test_a_pointer_instead_of_weights(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is truncated or is not safetensors" in complaint(folder)


def test_an_empty_file_of_weights(folder):
    save_file({}, folder / "model.safetensors")
    assert "model.safetensors holds no tensors" in complaint(folder)


def test_a_missing_shard(folder):
    shard(folder)
    (folder / "model-2.safetensors").unlink()
    assert "lacks 1 of 2 files of weights: model-2.safetensors" in complaint(folder)


def test_an_index_that_does_not_fit_its_shards(folder):
    weight_map = shard(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {"weight_map": weight_map | {"model.norm.weight": "model-1.safetensors", "gone": "model-2.safetensors"}}
        )
    )
    assert "names tensors that are not in the file it says: gone" in complaint(folder).replace(
        "model.norm.weight, ", ""
    )
    index.write_text("{}")
    assert "has no weight_map" in complaint(folder)
    for path in ("/elsewhere/model-1.safetensors", "../model-1.safetensors"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, path)}))
        assert "names files outside of the folder" in complaint(folder)


def test_all_misfits_are_listed_at_once(folder):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)
        tensors["lm_head.weight"] = torch.ones(21, 16)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(24, 16, dtype=torch.int8)

    rewrite(folder, change)
    text = complaint(folder)
    assert "do not fit the LlamaForCausalLM" in text
    assert "2 missing: model.norm.weight, model.layers.1.mlp.up_proj.weight" in text.replace(
        "model.layers.1.mlp.up_proj.weight, model.norm.weight", "model.norm.weight, model.layers.1.mlp.up_proj.weight"
    )
    assert "1 unexpected: model.layers.0.self_attn.q_norm.weight" in text
    assert "lm_head.weight is (21, 16), expected (20, 16)" in text
    assert "model.layers.0.mlp.up_proj.weight holds int8, expected floating point" in text


def test_long_lists_are_cut(folder):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers" in name])
    assert "18 missing: " in complaint(folder)
    assert complaint(folder).endswith(" and 10 more")


def test_quantised_weights_are_refused(folder):
    configure(folder, quantization_config={"quant_method": "gptq"})
    assert "are quantised (gptq, by quantization_config" in complaint(folder)


def test_a_config_that_is_not_supported_is_told_with_its_folder(folder):
    configure(folder, architectures=["OddLM"])
    assert complaint(folder).startswith(f"{folder}: the architecture OddLM is not supported: it has no implementation")
    assert "Supported without it are llama, " in complaint(folder)
