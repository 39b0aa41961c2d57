"""Encoder-decoders of BART's kind: what runs leave opens in transformers and in peft, heads for labels, exports."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import microplane
from microplane.adapters.merge import merge
from microplane.errors import ModelError
from microplane.models.configs.head import FORMS
from microplane.models.families import family_of
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, task_scores
from microplane.models.transformer import Transformer
from microplane.nn.rows import Pairs, Rows
from tests import labels
from tests.parity.peft_kit import assert_equal, named
from tests.parity.test_pair_families import build
from tests.resuming import assert_resumes_to_the_bit
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import PAIR_CONFIGS

KINDS = ["bart", "mbart", "m2m_100", "pegasus"]
FAMILIES = [KINDS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS[1:])]
SOURCE, TARGET = [[5, 9, 66, 31, 1], [7, 1], [10, 11, 12, 13, 14, 1]], [[1, 44, 45], [1, 7, 8, 9, 10], [1]]
SETS = {
    "train.steps": 6,
    "train.threads": 1,
    "train.lr": 1e-2,
    "train.eval_every": 3,
    "model.dtype": "float32",
    "eval.rows": 1,
    "eval.max_new_tokens": 2,
}


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def base(name, tmp_path):
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(28)]
    labels.write(tmp_path / "rows.jsonl", rows)
    return pair_folder(tmp_path / "base", name)


def train(base, method="lora", **sets):
    sets = {name: x for name, x in SETS.items() if "data.task" not in sets or not name.startswith("eval.")} | sets
    sets |= {"runs": str(base.parent / "runs"), "name": "it"}
    return microplane.train(str(base), str(base.parent / "rows.jsonl"), method=method, set=sets)


def reference(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def ours(model):
    return [model.logits(model(Pairs(Rows.of([s]), Rows.of([t])))) for s, t in zip(SOURCE, TARGET, strict=True)]


def theirs(model):
    given = zip(SOURCE, TARGET, strict=True)
    return [model(input_ids=torch.tensor([s]), decoder_input_ids=torch.tensor([t])).logits[0] for s, t in given]


def test_merged_folders_and_adapters_open_there_with_equal_logits(base, tmp_path):
    done = train(base)
    opened = microplane.load(done.folder, "float32")
    assert isinstance(opened.model, Transformer)
    wanted = ours(opened.model)
    adapted = peft.PeftModel.from_pretrained(reference(base), done.folder / "adapter").eval()
    assert_equal(wanted, theirs(adapted))
    adapted.save_pretrained(tmp_path / "theirs")
    assert_equal(ours(microplane.load(tmp_path / "theirs", "float32").model), wanted)
    merged = merge(done.folder, tmp_path / "merged").folder
    assert_equal(theirs(reference(merged)), wanted)
    assert not torch.allclose(ours(load_model(base))[0], wanted[0], atol=1e-2)
    said = reference(merged).generate(torch.tensor(SOURCE[:1]), max_new_tokens=5, do_sample=False, num_beams=1)
    assert microplane.load(merged).model.start_generation(SOURCE[:1])[1] == [[said[0, 0].item()]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_resumed_it_goes_on_to_the_bit(base, method):
    assert_resumes_to_the_bit(train(base, method))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3", "vera"])
def test_we_open_what_peft_trained_on_it(base, tmp_path, kind):
    linears = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    knobs: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "target_modules": linears}
    if kind == "ia3":
        knobs |= {"target_modules": ["k_proj", "v_proj", "fc1"], "feedforward_modules": ["fc1"]}
        config: Any = peft.IA3Config(**knobs)
    elif kind == "vera":
        config = peft.VeraConfig(**knobs | {"target_modules": ["q_proj", "v_proj"]}, r=6)
    else:
        config = peft.LoraConfig(**knobs, r=3, use_rslora=kind == "rslora", use_dora=kind == "dora")
    model = peft.get_peft_model(reference(base), config).eval()
    for parameter in named(model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    found = microplane.load(tmp_path / "adapter", "float32")
    assert_equal(ours(found.model), theirs(model))
    assert not torch.allclose(ours(load_model(base))[0], ours(found.model)[0], atol=1e-2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_heads_for_labels_are_those_of_its_own_class(name, base, tmp_path, pooling):
    """Which takes the decoder's state where the row ends; any other head is ours."""
    model = load_model(base)
    head = add_head(model, "classification", ["a", "b", "c"], pooling)
    kind = next((form for form, layout in FORMS.items() if layout.plain == model.config.architecture), None)
    assert head.config.form == (kind if pooling == "last" else None)
    found = task_scores(model, Rows.of(SOURCE))
    save_model(model.eval(), tmp_path / "labels")
    again = load_model(tmp_path / "labels")
    assert torch.equal(task_scores(again, Rows.of(SOURCE)), found)
    if head.config.form is None:
        return
    peer, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "labels", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    peer.config.eos_token_id = 1
    wanted = [peer.eval()(torch.tensor([row])).logits[0] for row in SOURCE]
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_a_class_that_reads_another_state_is_refused():
    for name, match in {
        "MBartForSequenceClassification": "state before the source",
        "BartForQuestionAnswering": "marks",
    }.items():
        with pytest.raises(ModelError, match=f"a {name} is not opened: .*{match}"):
            family_of({"architectures": [name], "model_type": name.split("For")[0].lower()})


def test_two_tables_take_no_head(tmp_path):
    build("bart", tie_word_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads and writes with two tables of embeddings.* data.task=answers"):
        add_head(load_model(tmp_path), "classification", ["a", "b"])


@pytest.mark.slow
def test_labels_are_learnt_and_opened_again(name, base, tmp_path):
    rows = [{"text": f"{n} is {'abc'[n % 3] * 3}", "label": "abc"[n % 3]} for n in range(45)]
    labels.write(tmp_path / "rows.jsonl", rows)
    done = train(base, **{"train.steps": 60, "train.lr": 3e-3, "train.eval_every": 10, "data.task": "classification"})
    assert done.metrics["after"]["loss"] < done.metrics["before"]["loss"]
    merged = merge(done.folder, tmp_path / "merged").folder
    opened = [microplane.load(folder, "float32") for folder in (done.folder, merged)]
    scores = [task_scores(one.model, Rows.of(SOURCE)) for one in opened]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


def test_dropout_of_its_training_is_applied_in_training_alone(name):
    fields = PAIR_CONFIGS[name] | {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    pairs = Pairs(Rows.of(SOURCE), Rows.of(TARGET))
    for kind in (None, "dropout", "attention_dropout", "activation_dropout"):
        torch.manual_seed(0)
        model = Transformer.from_hf(fields | ({kind: 0.5} if kind else {})).init_weights(0).eval()
        plain = model(pairs)
        assert torch.equal(plain, model(pairs))
        assert torch.equal(plain, model.train()(pairs)) == (kind is None)
