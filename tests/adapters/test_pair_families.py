"""Encoder-decoders of BART's kind: what runs leave opens in transformers and in peft, heads for labels, exports."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

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
from tests.adapters.both_ways import (
    FEW_ANSWERS,
    FEW_STEPS,
    KINDS,
    assert_a_run_opens_there,
    assert_peft_opens_here,
    config_of,
    pairs,
    write_letters,
)
from tests.parity.test_pair_families import build
from tests.resuming import assert_resumes_to_the_bit
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import PAIR_CONFIGS

FAMILIES = ["bart", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mbart", "m2m_100", "pegasus"))]
SOURCE, TARGET = [[5, 9, 66, 31, 1], [7, 1], [10, 11, 12, 13, 14, 1]], [[1, 44, 45], [1, 7, 8, 9, 10], [1]]
PEER = pairs(SOURCE, TARGET)
LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def base(name, tmp_path):
    write_letters(tmp_path / "rows.jsonl")
    return pair_folder(tmp_path / "base", name)


def train(base, method="lora", **sets):
    sets = (FEW_STEPS if "data.task" in sets else FEW_ANSWERS) | sets
    sets |= {"runs": str(base.parent / "runs"), "name": "it"}
    return microplane.train(str(base), str(base.parent / "rows.jsonl"), method=method, set=sets)


def test_merged_folders_and_adapters_open_there_with_equal_logits(base):
    done = train(base)
    assert isinstance(microplane.load(done.folder).model, Transformer)
    merged = assert_a_run_opens_there(PEER, base, done)
    said = PEER.open(merged).generate(torch.tensor(SOURCE[:1]), max_new_tokens=5, do_sample=False, num_beams=1)
    assert microplane.load(merged).model.start_generation(SOURCE[:1])[1] == [[said[0, 0].item()]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_resumed_it_goes_on_to_the_bit(base, method):
    assert_resumes_to_the_bit(train(base, method))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_we_open_what_peft_trained_on_it(base, tmp_path, kind):
    scaled, alike = ["k_proj", "v_proj"], ["q_proj", "v_proj"]
    config = config_of(kind, PEER.task, LINEARS, fed=["fc1"], scaled=scaled, alike=alike)
    assert_peft_opens_here(PEER, base, config, tmp_path / "adapter")


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
