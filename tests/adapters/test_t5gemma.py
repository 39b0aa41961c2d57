"""T5Gemma and T5Gemma 2 through runs: their files open in transformers and peft with equal outputs; labels."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import microplane
from microplane.adapters.merge import merge
from microplane.errors import AdapterError, MicroplaneWarning, ModelError
from microplane.exports import ctranslate2
from microplane.models.families import family_of
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, embed, task_scores
from microplane.models.t5gemma import T5Gemma
from microplane.nn.rows import Pairs, Rows
from tests import labels
from tests.parity.peft_kit import assert_equal, named
from tests.resuming import assert_resumes_to_the_bit
from tests.runs.test_seq2seq import pair_folder, shout
from tests.tiny import T5GEMMA2, tiny_pairs

FAMILIES = ["t5gemma", pytest.param("t5gemma2", marks=pytest.mark.slow)]
TOWER = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SOURCES = [[5, 9, 66, 31], [7], [10, 11, 12, 13, 14, 15], [9] * 3]
TARGETS = [[2, 40, 41], [2], [2, 8, 8, 8, 9], [2, 70]]
SETS = {
    "train.steps": 6,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "train.eval_every": 3,
    "model.dtype": "float32",
    "eval.rows": 1,
    "eval.max_new_tokens": 2,
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def base(family, tmp_path):
    shout(tmp_path)
    return pair_folder(tmp_path / "base", family)


def train(base, **sets):
    sets = SETS | {"runs": str(base.parent / "runs"), "name": "it"} | sets
    return microplane.train(str(base), str(base.parent / "data.jsonl"), method="lora", set=sets)


@torch.no_grad()
def ours(model) -> list[torch.Tensor]:
    made = model.logits(model(Pairs(Rows.of(SOURCES), Rows.of(TARGETS))))
    return list(made.split([len(target) for target in TARGETS]))


@torch.no_grad()
def theirs(model) -> list[torch.Tensor]:
    rows = zip(SOURCES, TARGETS, strict=True)
    return [model(torch.tensor([read]), decoder_input_ids=torch.tensor([begun])).logits[0] for read, begun in rows]


def reference(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_merged_folders_and_adapters_open_there_with_equal_logits(base, tmp_path):
    done = train(base)
    opened = microplane.load(done.folder, "float32")
    assert isinstance(opened.model, T5Gemma)
    wanted = ours(opened.model)
    adapted = peft.PeftModel.from_pretrained(reference(base), done.folder / "adapter").eval()
    assert_equal(wanted, theirs(adapted))
    adapted.save_pretrained(tmp_path / "theirs")
    assert_equal(ours(microplane.load(tmp_path / "theirs", "float32").model), wanted)
    merged = merge(done.folder, tmp_path / "merged").folder
    assert_equal(theirs(reference(merged)), wanted)
    kept, stored = reference(base).state_dict(), reference(merged).state_dict()
    assert all(torch.equal(stored[name], x) for name, x in kept.items() if name.startswith(TOWER))
    assert not torch.allclose(ours(load_model(base))[0], wanted[0], atol=1e-2)


@pytest.mark.slow
def test_resumed_it_goes_on_to_the_bit(base):
    assert_resumes_to_the_bit(train(base))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3", "vera"])
def test_we_open_what_peft_trained_on_it(base, tmp_path, kind):
    def named_so(*leaves):  # of T5Gemma 2 not those of the tower
        return [name for name in linears if name.endswith(leaves) and "vision" not in name]

    linears = [name for name, module in reference(base).named_modules() if isinstance(module, torch.nn.Linear)]
    knobs: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "target_modules": named_so(*LINEARS)}
    if kind == "ia3":
        config: Any = peft.IA3Config(
            **knobs | {"target_modules": named_so("k_proj", "v_proj", "down_proj")},
            feedforward_modules=named_so("down_proj"),
        )
    elif kind == "vera":
        config = peft.VeraConfig(**knobs | {"target_modules": named_so("q_proj")}, r=6)
    else:
        config = peft.LoraConfig(**knobs, r=3, use_rslora=kind == "rslora", use_dora=kind == "dora")
    torch.manual_seed(0)
    model = peft.get_peft_model(reference(base), config).eval()
    for parameter in named(model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    found = microplane.load(tmp_path / "adapter", "float32")
    assert_equal(ours(found.model), theirs(model))
    assert not torch.allclose(ours(load_model(base))[0], ours(found.model)[0], atol=1e-2)


@pytest.mark.slow
def test_adapters_of_the_tower_are_left_out_with_a_word(tmp_path):
    base = pair_folder(tmp_path / "base", "t5gemma2")
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "down_proj"], r=3)
    torch.manual_seed(0)
    model = peft.get_peft_model(reference(base), config).eval()
    for parameter in named(model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(MicroplaneWarning, match="2 tensors of the adapter belong to layers that see images"):
        found = microplane.load(tmp_path / "adapter", "float32")
    assert_equal(ours(found.model), theirs(model))


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
    kept = {name: value for name, value in SETS.items() if name != "eval.max_new_tokens"}
    sets = kept | sets | {"runs": str(base.parent / "runs")}
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
    sets = SETS | {"runs": str(tmp_path / "runs")}
    done = microplane.train(str(base), str(tmp_path / "data.jsonl"), method="full", set=sets)
    assert all(check["passed"] in (True, None) for check in done.result["checks"]), done.result["checks"]
    wanted = ours(microplane.load(done.folder, "float32").model)
    peer = reference(done.folder / "adapter")
    assert_equal(theirs(peer), wanted)
    kept, stored = reference(base).state_dict(), peer.state_dict()
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
