"""GGUF files: every architecture against transformers, every type of tensor against the gguf library, and damage."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microplane.errors import MicroplaneError, ModelError
from microplane.methods.base_format import number_format
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.files.gguf import read_gguf
from microplane.models.files.gguf_format import READABLE, GgufFile, read_header
from microplane.models.files.load import load_model, open_checkpoint, save_model
from microplane.nn.rows import Rows
from tests.gguf_files import converted, random_blocks, write_gguf

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 700.0,
    "initializer_range": 0.15,
    "tie_word_embeddings": True,
}
SPECIAL = {"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.padding_token_id": 0}
WINDOW = {"sliding_window": 4, "query_pre_attn_scalar": 16}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-untied": {"model_type": "llama", "tie_word_embeddings": False},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "num_key_value_heads": 4},
    "smollm3": {"model_type": "smollm3", "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "head_dim": 8},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False},
    "gemma2": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **WINDOW,
    },
    "gemma3": {"model_type": "gemma3_text", "num_hidden_layers": 6, "rope_local_base_freq": 10_000.0, **WINDOW},
}


def reference(name: str, **fields: Any) -> tuple[dict[str, Any], transformers.PreTrainedModel]:
    """A random model of transformers, norms and biases random too, and the fields of its config.json."""
    config = SMALL | MODELS[name] | fields
    torch.manual_seed(0)
    theirs = transformers.AutoConfig.for_model(**config, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return config, model


def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = load_model(path)
    with torch.no_grad():
        return model.logits(model(Rows.of(ids.tolist()))).view(*ids.shape, -1)


def ids(config: dict[str, Any], rows: int = 2, length: int = 11) -> torch.Tensor:
    return torch.randint(0, config["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))


def some_file(folder: Path, **options: Any) -> Path:
    config, model = reference("llama", num_hidden_layers=1)
    return write_gguf(folder / "m.gguf", config, converted(config, model.state_dict()), **options)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gives_the_logits_of_the_model_it_was_made_from(name, tmp_path):
    config, model = reference(name)
    path = write_gguf(tmp_path / "m.gguf", config, converted(config, model.state_dict()), tokens=SPECIAL)
    with torch.no_grad():
        expected = model(ids(config)).logits
    torch.testing.assert_close(logits(path, ids(config)), expected, rtol=1e-4, atol=1e-5)
    assert read_gguf(path).config["tie_word_embeddings"] == config["tie_word_embeddings"]
    saved = tmp_path / "saved"
    save_model(load_model(path), saved)
    again = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(again(ids(config)).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
def test_transformers_reads_the_same_weights_out_of_the_same_file(name, tmp_path):
    config, model = reference(name, **({"head_dim": 128} if name == "qwen3" else {}))  # which it takes for granted
    write_gguf(
        tmp_path / "m.gguf", config, converted(config, model.state_dict()), metadata={"general.name": name},
        tokens={"ggml.tokens": [str(i) for i in range(config["vocab_size"])]},
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="m.gguf",
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).state_dict()
    ours = read_gguf(tmp_path / "m.gguf").tensors
    assert ours.keys() == theirs.keys() - ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    for tensor in ours:
        assert torch.equal(ours[tensor], theirs[tensor]), tensor


def llama3_factors(theta: float, width: int, factor: float, high: float, original: int) -> np.ndarray:
    """What llama.cpp's conversion writes as rope_freqs.weight."""
    factors = []
    for frequency in theta ** -(np.arange(0, width, 2) / width):
        length = 2 * math.pi / frequency
        if length < original / high:
            factors.append(1.0)
        elif length > original:
            factors.append(factor)
        else:
            smooth = (original / length - 1) / (high - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize(
    ("theta", "width", "factor", "original"),
    [(500_000.0, 128, 8.0, 8192), (500_000.0, 64, 32.0, 8192), (700.0, 16, 4.0, 16), (10_000.0, 8, 8.0, 32)],
)
def test_llama3_scaling_is_recovered_from_the_factors(theta, width, factor, original, tmp_path):
    config, model = reference("llama", head_dim=width, rope_theta=theta, num_hidden_layers=1)
    factors = llama3_factors(theta, width, factor, 4.0, original)
    tensors = converted(config, model.state_dict()) | {"rope_freqs.weight": factors}
    checkpoint = read_gguf(write_gguf(tmp_path / "m.gguf", config, tensors))
    scaling = checkpoint.config["rope_scaling"]
    assert scaling["factor"] == factor
    if width > 8:  # in the smallest head no pair lies between the bounds, and several settings fit
        assert scaling["original_max_position_embeddings"] == original
        assert scaling["high_freq_factor"] == 4.0
    rope = DecoderConfig.from_hf(checkpoint.config).ropes[0]
    assert rope is not None
    plain = theta ** -(np.arange(0, width, 2) / width)
    np.testing.assert_allclose(rope.frequencies(width).numpy(), plain / factors, rtol=1e-4)
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_factors_that_scale_nothing_or_otherwise(tmp_path):
    config, model = reference("llama", num_hidden_layers=1)
    tensors = converted(config, model.state_dict())
    even = write_gguf(tmp_path / "even.gguf", config, tensors | {"rope_freqs.weight": np.ones(8, np.float32)})
    assert read_gguf(even).config["rope_scaling"] is None
    odd = np.linspace(8, 1, 8, dtype=np.float32)
    with pytest.raises(ModelError, match="not Llama 3's scaling; no other is supported"):
        read_gguf(write_gguf(tmp_path / "odd.gguf", config, tensors | {"rope_freqs.weight": odd}))


def test_rope_scaling_of_the_metadata(tmp_path):
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    rope = DecoderConfig.from_hf(read_gguf(some_file(tmp_path, metadata=linear)).config).ropes[0]
    assert (rope.kind, rope.factor) == ("linear", 4.0)
    with pytest.raises(ModelError, match="'yarn'"):
        load_model(some_file(tmp_path, metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}))


def test_gemma_27b_scales_its_scores_by_the_width_of_the_model(tmp_path):
    config, model = reference("gemma2", num_hidden_layers=46, head_dim=16, layer_types=None)
    path = write_gguf(tmp_path / "m.gguf", config, converted(config, model.state_dict()))
    assert read_gguf(path).config["query_pre_attn_scalar"] == 32 // 4


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_of_tensor_is_unpacked_as_the_gguf_library_does(kind, tmp_path):
    wide = kind.endswith("_K")
    config, model = reference("qwen2", num_hidden_layers=1, **({"hidden_size": 256, "head_dim": 64} if wide else {}))
    tensors = converted(config, model.state_dict())
    name = "blk.0.attn_q.weight"
    expected = tensors[name]
    if wide:
        tensors[name] = random_blocks(kind, *tensors[name].shape)
        expected = gguf.quants.dequantize(tensors[name], Kind[kind])
        assert 0 < np.abs(expected).max() < 10
    path = write_gguf(tmp_path / "m.gguf", config, tensors, kinds={name: kind})
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    theirs = gguf.quants.dequantize(reader[name].data, Kind[kind])
    ours = read_gguf(path).tensors["model.layers.0.self_attn.q_proj.weight"]
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.numpy(), theirs)
    steps = {"Q4_0": 10, "Q4_1": 10, "Q5_0": 20, "Q5_1": 20, "Q8_0": 150, "BF16": 200}.get(kind, 1e3)
    assert np.abs(ours.numpy() - expected).max() <= np.abs(expected).max() / steps


def test_rows_of_quantised_heads_are_put_back_in_order(tmp_path):
    config, model = reference("llama", num_hidden_layers=1)
    path = write_gguf(
        tmp_path / "m.gguf", config, converted(config, model.state_dict()), kinds={"blk.0.attn_k.weight": "Q8_0"}
    )
    name = "model.layers.0.self_attn.k_proj.weight"
    torch.testing.assert_close(read_gguf(path).tensors[name], model.state_dict()[name], rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F32"])
def test_a_model_in_its_files_own_blocks_is_the_same(kind, tmp_path):
    config, model = reference("llama", num_hidden_layers=1)
    tensors = converted(config, model.state_dict())
    kinds = {name: kind for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[1] % 32 == 0}
    assert len(kinds) > 5
    path = write_gguf(tmp_path / "m.gguf", config, tensors, kinds=kinds)
    wide, kept = load_model(path), load_model(path, number_format("gguf", "float32"))
    assert type(kept.layers[0].attention.q).__name__ == "GGUFLinear"
    rows, close = Rows.of([[1, 2, 3], [4, 5]]), 1e-4 if kind != "F32" else 0.1  # which is rounded to 8 bits
    with torch.inference_mode():
        torch.testing.assert_close(kept.logits(kept(rows)), wide.logits(wide(rows)), rtol=close, atol=close)


def test_stored_is_the_type_of_most_numbers_not_of_most_tensors(tmp_path):
    linears = [f"blk.0.{role}.weight" for role in ("attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down")]
    path = some_file(tmp_path, kinds=dict.fromkeys(linears, "Q4_1"))
    checkpoint = open_checkpoint(path)
    assert checkpoint.stored == "Q4_1"
    assert checkpoint.path == path


def test_tensors_are_unpacked_only_when_asked_for(tmp_path, monkeypatch):
    tensors = read_gguf(some_file(tmp_path)).tensors
    monkeypatch.setattr(GgufFile, "read", lambda self, name: pytest.fail(f"{name} was read"))
    assert "model.norm.weight" in tensors
    assert "lm_head.weight" not in tensors
    assert len(list(tensors)) == len(tensors) == 11


def test_the_header_says_what_ggufs_own_reader_says(tmp_path):
    told = {"general.tags": ["a", "bé", ""], "general.count": [1, 2], "general.flag": True, "general.eps": 1e-5}
    path = some_file(tmp_path, metadata=told)
    header, reader = read_header(path), gguf.GGUFReader(path)
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == theirs.keys()
    assert all(header.metadata[name] == pytest.approx(theirs[name]) for name in theirs if name != "general.tags")
    assert header.metadata["general.tags"] == told["general.tags"]
    assert header.metadata["general.eps"] == 1e-5  # not the 9.999999747378752e-06 that is nearest in float32
    assert {tensor.name: tuple(tensor.shape.tolist()[::-1]) for tensor in reader.tensors} == {
        name: stored.shape for name, stored in header.tensors.items()
    }


def test_a_header_is_parsed_once_until_the_file_changes(tmp_path):
    path = some_file(tmp_path, metadata={"general.name": "first"})
    assert read_header(path) is read_header(path)
    some_file(tmp_path, metadata={"general.name": "the second"})
    assert read_header(path).metadata["general.name"] == "the second"


def test_the_config_of_smollm2(smollm2):
    config = read_gguf(smollm2).config
    assert config["rms_norm_eps"] == 1e-5
    assert (config["vocab_size"], config["num_key_value_heads"], config["head_dim"]) == (49_152, 3, 64)
    assert (config["tie_word_embeddings"], config["rope_theta"], config["eos_token_id"]) == (True, 100_000.0, 2)
    assert read_gguf(smollm2).stored == "Q4_1"


# What cannot be read


def test_what_is_not_gguf(tmp_path):
    other = tmp_path / "page.gguf"
    other.write_text("<!DOCTYPE html><html>not here</html>")
    with pytest.raises(ModelError, match=r"is not a GGUF file: it starts with b'<!DO', expected b'GGUF'"):
        read_gguf(other)
    other.write_bytes(b"")
    with pytest.raises(ModelError, match="it starts with b''"):
        read_gguf(other)
    other.write_bytes(b"GGUF\3\0\0\0\0\0")
    with pytest.raises(ModelError, match="page.gguf is cut off or damaged: byte 8 of its header asks for 8 more bytes"):
        read_gguf(other)
    with pytest.raises(ModelError, match="cannot read .*absent.gguf: No such file"):
        read_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize(("version", "said"), [(1, "version 1;"), (3 << 24, "big-endian")])
def test_versions_that_cannot_be_read(version, said, tmp_path):
    path = some_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", version)
    path.write_bytes(data)
    with pytest.raises(ModelError, match=said):
        read_gguf(path)


def test_a_file_cut_off_anywhere_is_noticed(tmp_path):
    path = some_file(tmp_path, metadata={"general.tags": ["one", "two"], "general.count": [1, 2, 3]})
    data = path.read_bytes()
    first = min(stored.start for stored in read_header(path).tensors.values())
    for end in [*range(0, first, 7), first, len(data) // 2, len(data) - 33]:
        cut = tmp_path / f"cut{end}.gguf"
        cut.write_bytes(data[:end])
        with pytest.raises(ModelError, match="cut off|not a GGUF"):
            read_gguf(cut)
        cut.unlink()


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    tokens = {
        "ggml.model": "gpt2",
        "ggml.tokens": ["a", "b", "ab"],
        "ggml.merges": ["a b"],
        "ggml.token_type": [1, 1, 1],
        "ggml.eos_token_id": 2,
        "chat_template": "{{ messages }}",
    }
    return some_file(tmp_path_factory.mktemp("intact"), tokens=tokens)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_ends_in_one_clear_error_or_loads(intact, tmp_path, data):
    from microplane.data.tokenizers.load import load_tokenizer

    content = bytearray(intact.read_bytes())
    end = min(stored.start for stored in read_header(intact).tensors.values())
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[at] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    for reader in (load_model, load_tokenizer):
        try:
            reader(path)
        except MicroplaneError as error:
            assert str(path) in str(error) or "config.json" in str(error)


def test_architectures_that_are_not_supported_are_named_with_those_that_are(tmp_path):
    with pytest.raises(ModelError, match=r"architecture 'phi3'.* supported are llama, smollm3, qwen2, qwen3, gemma2"):
        read_gguf(some_file(tmp_path, metadata={"general.architecture": "phi3"}))


def test_types_of_tensors_that_are_not_supported_are_named_with_those_that_are(tmp_path):
    config, model = reference("llama", num_hidden_layers=1, hidden_size=256)
    tensors = converted(config, model.state_dict())
    path = write_gguf(tmp_path / "m.gguf", config, tensors, kinds={"blk.0.ffn_up.weight": "TQ1_0"})
    with pytest.raises(ModelError, match=r"stores blk.0.ffn_up.weight as TQ1_0, .* supported are F32, F16, BF16, Q4_0"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"llama.block_count": "two"}, r"have 'two' for llama.block_count: expected a whole number above 0"),
        ({"llama.attention.head_count": [4, 4]}, r"have \[4, 4\] for llama.attention.head_count: expected a whole"),
        ({"llama.rope.freq_base": -1.0}, r"have -1.0 for llama.rope.freq_base: expected a number above 0"),
        ({"llama.block_count": 7}, "promise 7 layers, and it holds 1"),
        ({"llama.expert_count": 8}, "a mixture of 8 experts, which is not supported"),
        ({"llama.rope.dimension_count": 8}, "heads of 16 for keys, 16 for values and 8 that turn with the position"),
        ({"split.count": 3}, "one of 3 parts of a model: join them with llama-gguf-split --merge"),
        ({"general.alignment": "x"}, "damaged: its general.alignment is 'x'"),
    ],
)
def test_metadata_that_cannot_be_used(metadata, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        load_model(some_file(tmp_path, metadata=metadata))


def test_metadata_that_are_missing(tmp_path):
    config, model = reference("llama", num_hidden_layers=1)
    path = write_gguf(tmp_path / "m.gguf", config, converted(config, model.state_dict()))
    data = path.read_bytes().replace(b"llama.feed_forward_length", b"llama.feed_forward_lengt_")
    path.write_bytes(data)
    with pytest.raises(ModelError, match="have nothing for llama.feed_forward_length"):
        read_gguf(path)


def test_tensors_that_the_model_does_not_have(tmp_path):
    config, model = reference("llama", num_hidden_layers=1)
    tensors = converted(config, model.state_dict()) | {"blk.0.ffn_gate_inp.weight": np.ones((4, 32), np.float32)}
    with pytest.raises(ModelError, match=r"tensors that a LlamaForCausalLM does not: blk.0.ffn_gate_inp.weight\. Mix"):
        read_gguf(write_gguf(tmp_path / "m.gguf", config, tensors))


def test_files_without_a_model_in_them(tmp_path):
    config, _ = reference("llama")
    with pytest.raises(ModelError, match=r"has no tensor token_embd.weight: it is a vocabulary or an adapter"):
        read_gguf(write_gguf(tmp_path / "m.gguf", config, {"output_norm.weight": np.ones(32, np.float32)}))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (struct.pack("<IQQI", 2, 32, 32, 0), struct.pack("<IQQI", 9, 32, 32, 0), "has 9 dimensions"),
        (
            struct.pack("<IQQI", 2, 32, 32, 0),
            struct.pack("<IQQI", 2, 31, 32, 2),
            "which Q4_0 in blocks of 32 cannot hold",
        ),
        (struct.pack("<IQQI", 2, 32, 32, 0), struct.pack("<IQQI", 2, 32, 32, 99), "as type 99, which is not supported"),
    ],
)
def test_damaged_descriptions_of_tensors(before, after, said, tmp_path):
    config, model = reference("llama", num_hidden_layers=1, head_dim=8)
    path = write_gguf(tmp_path / "m.gguf", config, converted(config, model.state_dict()))
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    with pytest.raises(ModelError, match=said):
        read_gguf(path)


def test_a_value_of_a_type_that_does_not_exist(tmp_path):
    path = some_file(tmp_path, metadata={"general.flag": True})
    flag = b"general.flag" + struct.pack("<I", 7)
    path.write_bytes(path.read_bytes().replace(flag, b"general.flag" + struct.pack("<I", 77)))
    with pytest.raises(ModelError, match="names a type 77 of value"):
        read_header(path)


def test_a_file_that_shrinks_after_it_was_opened_is_not_read_beyond_its_end(tmp_path):
    path = some_file(tmp_path)
    tensors = read_gguf(path).tensors
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ModelError, match="changed while it was read"):
        [tensors[name] for name in tensors]


def test_linear_scaling_as_older_files_write_it(tmp_path):
    config = read_gguf(some_file(tmp_path, metadata={"llama.rope.scale_linear": 4.0})).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_an_epsilon_that_a_file_does_not_tell_is_llamas(tmp_path):
    path, key = some_file(tmp_path), b"llama.attention.layer_norm_rms_epsilon"
    path.write_bytes(path.read_bytes().replace(key, key[:-1] + b"_"))
    assert read_gguf(path).config["rms_norm_eps"] == transformers.LlamaConfig().rms_norm_eps


@pytest.mark.parametrize("alignment", [8, 256])
def test_tensors_begin_where_the_files_own_alignment_says(alignment, tmp_path):
    path, values = tmp_path / "m.gguf", np.arange(6, dtype=np.float32).reshape(2, 3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for name in ("one", "two"):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_header(path)
    assert all(np.array_equal(file.read(name), values) for name in ("one", "two"))
    assert file.tensors["two"].start - file.tensors["one"].start == max(alignment, values.nbytes)


@pytest.mark.parametrize("value", [1e-5, 0.1, 10_000.0, 3.4e38])
def test_numbers_of_a_header_are_what_was_written_and_not_the_nearest_float32(value, tmp_path):
    path = some_file(tmp_path, metadata={"llama.rope.freq_base": value})
    assert read_header(path).metadata["llama.rope.freq_base"] == value
