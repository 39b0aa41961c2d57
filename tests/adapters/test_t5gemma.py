"""T5Gemma and T5Gemma 2 through runs: their files open in transformers and peft with equal outputs; labels."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import microplane
from microplane.adapters.merge import merge
from microplane.errors import AdapterError, MicroplaneWarning, ModelError
from microplane.exports import ctranslate2
from microplane.models.families import family_of
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, embed, task_scores
from microplane.models.t5gemma import T5Gemma
from microplane.nn.rows import Rows
from tests import labels
from tests.adapters.both_ways import (
    FEW_ANSWERS,
    FEW_STEPS,
    KINDS,
    assert_a_run_opens_there,
    assert_peft_opens_here,
    config_of,
    pairs,
    saved_by_peft,
)
from tests.parity.peft_kit import assert_equal
from tests.resuming import assert_resumes_to_the_bit
from tests.runs.test_seq2seq import pair_folder, shout
from tests.tiny import T5GEMMA2, tiny_pairs

FAMILIES = ["t5gemma", pytest.param("t5gemma2", marks=pytest.mark.slow)]
TOWER = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SOURCES = [[5, 9, 66, 31], [7], [10, 11, 12, 13, 14, 15], [9] * 3]
TARGETS = [[2, 40, 41], [2], [2, 8, 8, 8, 9], [2, 70]]
PEER = pairs(SOURCES, TARGETS)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def base(family, tmp_path):
    shout(tmp_path)
    return pair_folder(tmp_path / "base", family)


def train(base, **sets):
    sets = FEW_ANSWERS | {"runs": str(base.parent / "runs"), "name": "it"} | sets
    return microplane.train(str(base), str(base.parent / "data.jsonl"), method="lora", set=sets)


def test_merged_folders_and_adapters_open_there_with_equal_logits(base):
    done = train(base)
    assert isinstance(microplane.load(done.folder).model, T5Gemma)
    merged = assert_a_run_opens_there(PEER, base, done)
    kept, stored = PEER.open(base).state_dict(), PEER.open(merged).state_dict()
    assert all(torch.equal(stored[name], x) for name, x in kept.items() if name.startswith(TOWER))


@pytest.mark.slow
def test_resumed_it_goes_on_to_the_bit(base):
    assert_resumes_to_the_bit(train(base))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_we_open_what_peft_trained_on_it(base, tmp_path, kind):
    def named_so(*leaves):  # of T5Gemma 2 not those of the tower
        return [name for name in linears if name.endswith(leaves) and "vision" not in name]

    linears = [name for name, module in PEER.open(base).named_modules() if isinstance(module, torch.nn.Linear)]
    parts = {"fed": named_so("down_proj"), "scaled": named_so("k_proj", "v_proj"), "alike": named_so("q_proj")}
    config = config_of(kind, PEER.task, named_so(*LINEARS), **parts)
    assert_peft_opens_here(PEER, base, config, tmp_path / "adapter")


@pytest.mark.slow
def test_adapters_of_the_tower_are_left_out_with_a_word(tmp_path):
    base = pair_folder(tmp_path / "base", "t5gemma2")
    config = peft.LoraConfig(task_type=PEER.task, target_modules=["q_proj", "down_proj"], r=3)
    wanted = saved_by_peft(PEER, base, config, tmp_path / "adapter")
    with pytest.warns(MicroplaneWarning, match="2 tensors of the adapter belong to layers that see images"):
        found = microplane.load(tmp_path / "adapter", "float32")
    assert_equal(PEER.ours(found.model), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_head_for_labels_is_that_of_its_own_class(base, tmp_path, task):
    """It takes the state behind the last token but one of the answer's side, as that class does of a row alone."""
    model = load_model(base)
    add_head(model, task, ["a", "b", "c"])
    save_model(model.eval(), tmp_path / "labels")
    peer, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "labels", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = task_scores(model, Rows.of(SOURCES))
    wanted = [peer.eval()(torch.tensor([row])).logits[0] for row in SOURCES]
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)
    again = load_model(tmp_path / "labels")
    assert torch.equal(task_scores(again, Rows.of(SOURCES)), found)


@pytest.mark.parametrize(("task", "pooling"), [("tokens", None), ("classification", "mean"), ("regression", "cls")])
def test_other_heads_read_the_encoder_alone_and_are_ours(base, tmp_path, task, pooling):
    model = load_model(base)
    head = add_head(model, task, ["a", "b", "c"], pooling)
    assert head.config.form is None
    assert head.out.in_features == model.config.source_size
    save_model(model.eval(), tmp_path / "labels")
    again = load_model(tmp_path / "labels")
    assert torch.equal(task_scores(again, Rows.of(SOURCES)), task_scores(model, Rows.of(SOURCES)))
    assert embed(model, Rows.of(SOURCES)).shape == (4, model.config.source_size)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_it_learns_labels(base, pooling):
    rows = [{"text": f"{'ab'[n % 2] * 3} {n}", "label": "xy"[n % 2]} for n in range(60)]
    labels.write(base.parent / "rows.jsonl", rows)
    sets = {"train.steps": 20, "model.pooling": pooling, "data.task": "classification"}
    sets = FEW_STEPS | sets | {"runs": str(base.parent / "runs")}
    done = microplane.train(str(base), str(base.parent / "rows.jsonl"), method="lora", set=sets)
    assert done.metrics["after"]["loss"] < done.metrics["before"]["loss"]
    again = microplane.load(done.folder, "float32")
    merged = microplane.load(merge(done.folder, base.parent / "merged").folder, "float32")
    for found, wanted in zip(merged.classify(["aaa 1", "bbb"]), again.classify(["aaa 1", "bbb"]), strict=True):
        assert found.label == wanted.label


@pytest.mark.slow
def test_full_fine_tuning_keeps_the_tower_and_goes_on(tmp_path):
    shout(tmp_path)
    base = pair_folder(tmp_path / "base", "t5gemma2")
    sets = FEW_ANSWERS | {"runs": str(tmp_path / "runs")}
    done = microplane.train(str(base), str(tmp_path / "data.jsonl"), method="full", set=sets)
    assert all(check["passed"] in (True, None) for check in done.result["checks"]), done.result["checks"]
    wanted = PEER.ours(microplane.load(done.folder, "float32").model)
    peer = PEER.open(done.folder / "adapter")
    assert_equal(PEER.theirs(peer), wanted)
    kept, stored = PEER.open(base).state_dict(), peer.state_dict()
    towers = [name for name in kept if name.startswith(TOWER)]
    assert len(towers) > 10
    assert all(torch.equal(stored[name], kept[name]) for name in towers)
    assert not torch.equal(kept["lm_head.out_proj.weight"], stored["lm_head.out_proj.weight"])


WRONG_2 = {
    "three tables": ({"tie_word_embeddings": False}, "tie_word_embeddings = false .* one table of words"),
    "two widths": ({"decoder": {"hidden_size": 40}}, "hidden_size in config.json is 32 of the encoder and 40"),
    "caps": ({"decoder": {"attn_logit_softcapping": 50.0}}, "decoder of config.json: attn_logit_softcapping = 50.0"),
    "no text": ({"encoder": {"text_config": None}}, "text_config = None: expected an object"),
}


@pytest.mark.parametrize("case", WRONG_2)
def test_what_t5gemma_2_has_not_is_refused_by_name(case):
    changes, message = WRONG_2[case]
    changes = {name: T5GEMMA2[name] | x if isinstance(x, dict) else x for name, x in changes.items()}
    with pytest.raises(ModelError, match=message):
        family_of(T5GEMMA2).from_hf(T5GEMMA2 | changes)


def test_its_classes_of_the_encoder_alone_are_refused(base):
    with pytest.raises(ModelError, match="T5GemmaForTokenClassification.*not supported"):
        broken(base, architectures=["T5GemmaForTokenClassification"])


def broken(base, **changes):
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return load_model(base)


def test_ctranslate2_is_refused_with_a_reason(family):
    with pytest.raises(AdapterError, match="Gemma's blocks on two sides, which have not been compared"):
        ctranslate2.refuse(tiny_pairs(family), "it")
