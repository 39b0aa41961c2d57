"""Decoder families with names and layouts of their own: what runs leave opens in transformers and in peft, heads for
labels, generation, and exports."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

import microplane
from microplane.config.knobs import GenerateKnobs
from microplane.errors import AdapterError
from microplane.exports.export import export
from microplane.inference.generate import generate
from microplane.models.decoder import Decoder
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, task_scores
from microplane.nn.rows import Rows
from tests.adapters.both_ways import (
    DECODERS,
    FEW_ANSWERS,
    KINDS,
    assert_a_run_opens_there,
    assert_peft_opens_here,
    config_of,
    write_letters,
)
from tests.cases import some
from tests.parity.decoder_shapes import SHAPES
from tests.resuming import assert_resumes_to_the_bit
from tests.tiny import save_tiny_folder, tiny

# A family's linear layers as transformers calls them, the last being that of which (IA)^3 scales the input.
FAMILIES = {
    "gpt2": ["c_attn", "c_fc", "c_proj", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "starcoder2": ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
}
ROWS = [[5, 9, 66, 31], [7], [10, 11, 12, 13, 14, 15], [9] * 3]
SETS = FEW_ANSWERS | {"data.template": "plain"}


@pytest.fixture(params=some(FAMILIES, ["gpt2"]))
def name(request):
    return request.param


@pytest.fixture
def base(name, tmp_path):
    write_letters(tmp_path / "rows.jsonl")
    return save_tiny_folder(tmp_path / "base", name)


def train(base, **sets):
    sets = SETS | {"runs": str(base.parent / "runs"), "name": "it"} | sets
    return microplane.train(str(base), str(base.parent / "rows.jsonl"), method="lora", set=sets)


def test_merged_folders_and_adapters_open_there_with_equal_logits(base):
    done = train(base)
    assert isinstance(microplane.load(done.folder).model, Decoder)
    assert_a_run_opens_there(DECODERS, base, done)


@pytest.mark.slow
def test_resumed_it_goes_on_to_the_bit(base):
    assert_resumes_to_the_bit(train(base))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "head"])
def test_we_open_what_peft_trained_on_it(base, name, tmp_path, kind):
    linears = FAMILIES[name]
    if kind == "head":
        base = save_tiny_folder(tmp_path / "untied", name, tie_word_embeddings=False)
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[linears[0], "lm_head"], r=3)
    else:
        config = config_of(kind, "CAUSAL_LM", linears, fed=linears[-1:], scaled=linears[:1], alike=linears[:1])
    assert_peft_opens_here(DECODERS, base, config, tmp_path / "adapter")


class Numbers:
    def decode(self, ids, skip_special=True):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
def test_it_writes_what_transformers_writes(name, tmp_path, inference):
    """Greedy and by beams, with a cache; inside `inference_mode` by fused operations, which want heads of 16."""
    config, size, _ = SHAPES[name]
    torch.manual_seed(3)
    told = config(
        **size | {"n_embd" if "n_embd" in size else "hidden_size": 64},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    peer = AutoModelForCausalLM.from_config(told, attn_implementation="eager").eval()
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    with torch.inference_mode(inference):
        answers = generate(model, Numbers(), ROWS, GenerateKnobs(max_new_tokens=12), [])
        beams = generate(model, Numbers(), ROWS, GenerateKnobs(max_new_tokens=7, beams=3), [])
    for row, answer, beam in zip(ROWS, answers, beams, strict=True):
        ids = torch.tensor([row])
        made = peer.generate(ids, max_new_tokens=12, do_sample=False)
        assert answer.ids == made[0, len(row) :].tolist()
        made = peer.generate(ids, max_new_tokens=7, num_beams=3, do_sample=False)
        assert beam.ids == made[0, len(row) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [False, True], ids=["rows", "tokens"])
def test_heads_for_labels_are_those_of_its_own_classes(base, tmp_path, tokens):
    model = load_model(base)
    add_head(model, "tokens" if tokens else "classification", ["a", "b", "c"])
    save_model(model.eval(), tmp_path / "labels")
    kind = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    peer, report = kind.from_pretrained(tmp_path / "labels", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = task_scores(model, Rows.of(ROWS))
    wanted = [peer.eval()(torch.tensor([row])).logits[0] for row in ROWS]
    torch.testing.assert_close(found, torch.cat(wanted) if tokens else torch.stack(wanted), atol=1e-5, rtol=1e-5)
    again = load_model(tmp_path / "labels")
    assert torch.equal(task_scores(again, Rows.of(ROWS)), found)


def test_a_model_without_a_head_for_words_opens(base, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(base)
    whole.base_model.save_pretrained(tmp_path / "bare")
    model = load_model(tmp_path / "bare")
    wanted = whole.base_model.eval()(torch.tensor(ROWS[:1])).last_hidden_state[0]
    torch.testing.assert_close(model(Rows.of(ROWS[:1])), wanted, atol=1e-5, rtol=1e-5)


def test_gguf_is_refused_with_what_is_written_there(base, tmp_path):
    done = train(base, **{"train.steps": 1})
    with pytest.raises(AdapterError, match="GGUF is written here of .*Llama"):
        export(done.folder, tmp_path / "it", "gguf")


def test_dropout_of_its_training_is_applied_in_training_alone(name):
    model = tiny(name)
    rows = Rows.of(ROWS)
    plain = model(rows)
    assert torch.equal(plain, model(rows))
    model.train()
    dropped = any(getattr(model.config, kind) for kind in ("embed_dropout", "hidden_dropout", "attention_dropout"))
    assert torch.equal(plain, model(rows)) != dropped
    model.frozen = model.config.num_layers
    assert torch.equal(plain, model.train()(rows))
