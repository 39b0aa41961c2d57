"""Encoders that have no implementation here, through the whole job: rows, heads, adapters, merged folders."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

import microplane
from microplane.adapters.merge import merge
from microplane.errors import ConfigError, ModelError
from microplane.methods import make_method
from microplane.models.external.encoder import TransformersEncoder
from microplane.models.external.reached import not_reached
from microplane.models.external.together import Together
from microplane.models.files.load import load_model, new_model, save_model
from microplane.models.heads import add_head, embed, meta_copy, task_scores
from microplane.nn.number_format import NumberFormat
from microplane.nn.rows import Rows
from tests import labels
from tests.foreign.encoder_folders import ENCODERS, save_encoder
from tests.resuming import assert_resumes_to_the_bit

REFUSED = {  # family -> why
    "mra": "pays no attention on this machine",
    "nystromformer": "computes nothing of a row of tokens alone: RuntimeError: shape",
}
OPENED = [name for name in ENCODERS if name not in REFUSED]
EVEN = {"convbert", "fnet", "funnel", "yoso"}  # for which padding is not nothing
WITHOUT_LINEARS = {"squeezebert", "ibert"}  # whose blocks are convolutions, and quantised layers of its own
IDS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 30, 31, 32, 33, 34, 3]]
SETS = {
    "train.steps": 24,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "train.eval_every": 12,
    "model.dtype": "float32",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for name in ENCODERS:
        save_encoder(folder / name, name)
    labels.write(folder / "reviews.jsonl", labels.reviews(40))
    labels.write(folder / "pairs.jsonl", labels.pairs(40))
    labels.write(folder / "tags.jsonl", labels.tags(40))
    labels.write(folder / "scores.jsonl", labels.scores(40))
    labels.write(folder / "multilabel.jsonl", labels.multilabel(40))
    return folder


def train(place, name, rows="reviews", method="lora", **sets):
    sets = SETS | {"runs": str(place / "runs"), "name": f"{name}-{len(list(place.glob('runs/*')))}"} | sets
    done = microplane.train(str(place / name), str(place / f"{rows}.jsonl"), method=method, set=sets)
    sound = [found for found in done.result["checks"] if found["name"] != "validation improved"]  # of random weights
    assert all(found["passed"] in (True, None) for found in sound), sound
    return done


def theirs(folder, model_class=AutoModel):
    return model_class.from_pretrained(folder).eval()


def one_by_one(net, get) -> list[Tensor]:
    with torch.no_grad():
        return [get(net(input_ids=torch.tensor([row]))) for row in IDS]


QUICK = ("albert", "deberta", "camembert")
QUICK_AND_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPENED]


@pytest.mark.parametrize("name", OPENED)
def test_states_of_rows_of_unequal_length_are_those_of_each_row_alone(place, name):
    model = load_model(place / name)
    assert isinstance(model, TransformersEncoder)
    assert model.KIND == "encoder"
    assert model.together is (Together.EVEN if name in EVEN else Together.PADDED)
    assert ("of equal length" in model.load_notice) == (name in EVEN)
    wanted = one_by_one(theirs(place / name), lambda found: found.last_hidden_state[0])
    torch.testing.assert_close(model(Rows.of(IDS)), torch.cat(wanted), atol=1e-5, rtol=1e-5)
    means = torch.nn.functional.normalize(torch.stack([states.mean(0) for states in wanted]), dim=-1)
    torch.testing.assert_close(embed(model, Rows.of(IDS)), means, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_does_not_compute_here_is_refused_with_the_reason(place, name):
    with pytest.raises(ModelError, match=REFUSED[name]):
        load_model(place / name)


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_it_learns_labels_and_the_merged_folder_says_the_same_in_transformers(place, name, tmp_path):
    method = "full" if name in WITHOUT_LINEARS else "lora"
    done = train(place, name, method=method)
    if name not in (
        "layoutlm",
        "mobilebert",
    ):  # which learn nothing in so few steps, or one answer
        assert done.metrics["after"]["loss"] < done.metrics["before"]["loss"]
    opened = microplane.load(done.folder, "float32")
    texts = ["the red film is good 3", "bad", "the two plot was a poor poor one"]
    found = opened.classify(texts)
    if method == "lora":
        folder = merge(done.folder, tmp_path / "merged").folder
    else:
        folder = done.folder / "adapter"
    told = json.loads((folder / "config.json").read_text())
    assert told["architectures"] == [opened.model.task_head.config.form]
    tokenizer = AutoTokenizer.from_pretrained(place / name)
    classify = pipeline(
        "text-classification", model=theirs(folder, AutoModelForSequenceClassification), tokenizer=tokenizer, top_k=None
    )
    for text, ours in zip(texts, found, strict=True):
        scores = {one["label"]: one["score"] for one in classify([text])[0]}
        assert scores == pytest.approx(ours.probabilities, abs=1e-5)
    again = microplane.load(folder, "float32").classify(texts)
    for ours, before in zip(again, found, strict=True):
        assert ours.probabilities == pytest.approx(before.probabilities, abs=1e-5)


@pytest.mark.parametrize(("name", "told"), [("fnet", True), ("camembert", False), ("funnel", False)])
def test_a_class_for_which_padding_is_not_nothing_is_said_to_be_asked_row_by_row(place, name, told, tmp_path):
    """In a batch of transformers' pipeline, which pads, it says something else. Funnel's takes a row's first state, and
    padding does not change that."""
    done = train(place, name, **{"train.steps": 4, "train.eval_every": 2})
    merged = merge(done.folder, tmp_path / "merged")
    assert any("give this model one row at a time" in line for line in merged.notices) is told
    texts = ["the red film is good 3", "bad", "the two plot was a poor poor one"]
    wanted, same = [said.probabilities for said in microplane.load(done.folder, "float32").classify(texts)], []
    for size in (1, 3):
        classify = pipeline("text-classification", str(merged.folder), top_k=None, batch_size=size)
        found = [{one["label"]: one["score"] for one in scores} for scores in classify(texts)]
        same.append(all(one == pytest.approx(other, abs=1e-4) for one, other in zip(found, wanted, strict=True)))
    assert same == [True, not told]


@pytest.mark.parametrize(
    "name", ["deberta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("xlnet", "camembert", "funnel"))]
)
@pytest.mark.parametrize("rows", ["tags", "pairs", "scores", "multilabel"])
def test_every_kind_of_labels(place, name, rows, tmp_path):
    done = train(place, name, rows, **{"train.steps": 4, "train.eval_every": 2})
    opened = microplane.load(done.folder, "float32")
    folder = merge(done.folder, tmp_path / "merged").folder
    kind = AutoModelForTokenClassification if rows == "tags" else AutoModelForSequenceClassification
    ours = task_scores(opened.model, Rows.of(IDS))
    wanted = one_by_one(theirs(folder, kind), lambda found: found.logits[0])
    wanted = torch.cat(wanted) if rows == "tags" else torch.stack(wanted)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_the_second_text_of_a_pair_has_its_own_segment(place):
    model = load_model(place / "albert")
    types = [[0, 0, 1, 1, 1]]
    found = model(Rows.of(IDS[:1], types=types))
    wanted = theirs(place / "albert")(torch.tensor(IDS[:1]), token_type_ids=torch.tensor(types)).last_hidden_state[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, model(Rows.of(IDS[:1])), atol=1e-3)
    one_kind = load_model(place / "esm")  # which knows no segments
    torch.testing.assert_close(one_kind(Rows.of(IDS[:1], types=types)), one_kind(Rows.of(IDS[:1])))


@pytest.mark.parametrize("name", ["deberta", "albert"])
def test_peft_opens_the_adapter_of_the_familys_own_class_and_ours_opens_that_of_peft(place, name, tmp_path):
    done = train(place, name, **{"train.steps": 4, "train.eval_every": 2})
    wanted = task_scores(microplane.load(done.folder, "float32").model, Rows.of(IDS))
    told = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())
    assert told["task_type"] == "SEQ_CLS"
    assert "classifier" in told["modules_to_save"]
    base = AutoModelForSequenceClassification.from_pretrained(place / name, num_labels=2)
    opened = peft.PeftModel.from_pretrained(base, done.folder / "adapter").eval()
    found = torch.stack(one_by_one(opened, lambda made: made.logits[0]))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    opened.save_pretrained(tmp_path / "theirs")
    again = microplane.load(tmp_path / "theirs", "float32")
    torch.testing.assert_close(task_scores(again.model, Rows.of(IDS)), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "dora", "rank": 4},
        {"name": "vera", "rank": 8},
        {"name": "bitfit"},
        {"name": "norms"},
        {"name": "full"},
        {"name": "adalora", "rank": 1, "initial_rank": 2, "interval": 2},
        {"name": "paca", "rank": 2},
        {"name": "lora", "targets": ["q", "v"]},
        {"name": "qlora", "rank": 4},
    ],
    ids=lambda method: method["name"],
)
def test_methods(place, method):
    sets = {f"method.{name}": value for name, value in method.items()}
    sets |= {"model.dtype": "auto"} if method["name"] == "qlora" else {}
    done = train(place, "camembert", method=None, **sets, **{"train.steps": 6, "train.eval_every": 3})
    assert len(done.load().classify(["it is good"])[0].probabilities) == 2


@pytest.mark.parametrize("pooling", ["auto", "cls"])
def test_a_head_alone_is_trained_on_states_that_are_computed_once(place, pooling, tmp_path):
    done = train(place, "roformer", method="head-only", **{"model.pooling": pooling})
    model = microplane.load(done.folder, "float32").model
    assert (model.task_head.config.form is None) == (pooling == "auto")
    assert (done.result["train"]["feature_cache"] is not None) == (pooling == "auto")
    merged = merge(done.folder, tmp_path / "merged")
    assert any("transformers has no class for this head" in told for told in merged.notices) == (pooling == "auto")
    again = microplane.load(merged.folder, "float32").model
    torch.testing.assert_close(task_scores(again, Rows.of(IDS)), task_scores(model, Rows.of(IDS)), atol=1e-5, rtol=1e-4)


def test_resumed_it_goes_on_to_the_bit(place):
    assert_resumes_to_the_bit(train(place, "mobilebert", **{"train.steps": 8, "train.eval_every": 4}))


@pytest.mark.parametrize("name", ["albert", "convbert"])
def test_segments_stay_with_their_rows_whatever_is_computed_together(place, name):
    model = load_model(place / name)
    types = [[0, 0, 1, 1, 1], [0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    alone = [model(Rows.of([ids], types=[own])) for ids, own in zip(IDS, types, strict=True)]
    torch.testing.assert_close(model(Rows.of(IDS, types=types)), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_what_is_frozen_computes_as_in_evaluation(place):
    model = load_model(place / "albert")
    for frozen in (0, 2):
        model.frozen = frozen
        model.train()
        assert model.net.training is (not frozen)


def test_a_new_head_follows_the_seed(place):
    one, same, other = (
        add_head(load_model(place / "camembert"), "classification", ("a", "b"), "cls", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.classifier.dense.weight, same.classifier.dense.weight)
    assert not torch.equal(one.classifier.dense.weight, other.classifier.dense.weight)


def test_a_familys_own_class_pools_as_its_config_says(place):
    found = {name: load_model(place / name).own_head("classification") for name in ("xlnet", "camembert")}
    assert {name: own[1] for name, own in found.items()} == {"xlnet": "last", "camembert": "cls"}


def test_trying_a_model_leaves_what_trains_as_it_was():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[0].requires_grad_(False)
    assert not_reached(net, lambda: net[1](torch.ones(2, 3))) == {"0.weight", "0.bias"}
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


def test_of_a_model_with_the_head_of_its_pre_training_the_rest_is_read(tmp_path):
    folder = save_encoder(tmp_path / "masked", "rembert", masked=True)
    model = load_model(folder)
    assert model.config.architecture == "RemBertModel"
    wanted = one_by_one(theirs(folder), lambda found: found.last_hidden_state[0])
    torch.testing.assert_close(model(Rows.of(IDS)), torch.cat(wanted), atol=1e-5, rtol=1e-5)
    save_model(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["RemBertModel"]


def test_the_pooler_begins_the_head_and_is_kept_where_there_is_none(place, tmp_path):
    model = load_model(place / "albert")
    pooler = theirs(place / "albert").pooler.weight
    assert torch.equal(model.extra_weights["pooler.weight"], pooler)
    save_model(model, tmp_path / "out")
    assert torch.equal(theirs(tmp_path / "out").pooler.weight, pooler)
    head = add_head(model, "classification", ("a", "b"), "cls")
    assert torch.equal(head.albert_pooler.weight, pooler)
    for parameter in head.parameters():
        assert parameter.dtype == torch.float32


def test_what_the_folder_lacks_is_new_and_the_same_each_time(tmp_path):
    folder = save_encoder(tmp_path / "masked", "squeezebert", masked=True)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(load_model(folder).net.pooler.dense.weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_new_weights_follow_the_seed(place):
    one, same, other = (new_model(place / "roformer", seed, NumberFormat(torch.float32)) for seed in (1, 1, 2))
    assert torch.equal(one(Rows.of(IDS)), same(Rows.of(IDS)))
    assert not torch.equal(one(Rows.of(IDS)), other(Rows.of(IDS)))


def test_labels_again_with_others_and_from_the_familys_own_class_to_a_head_of_ours(place, tmp_path):
    model = load_model(place / "camembert")
    add_head(model, "classification", ("a", "b"), "cls", seed=1)
    hidden = model.task_head.classifier.dense.weight.clone()
    save_model(model, tmp_path / "two")
    again = load_model(tmp_path / "two")
    assert again.task_head.config.labels == ("a", "b")
    torch.testing.assert_close(task_scores(again, Rows.of(IDS)), task_scores(model, Rows.of(IDS)))
    add_head(again, "tokens", ("x", "y", "z"))
    assert task_scores(again, Rows.of(IDS)).shape == (15, 3)
    add_head(again, "classification", ("a", "b", "c"), "cls")
    assert task_scores(again, Rows.of(IDS)).shape == (3, 3)
    add_head(model, "classification", ("a", "b", "c"), "cls", seed=2)
    assert torch.equal(model.task_head.classifier.dense.weight, hidden)
    head = add_head(model, "regression", ("value",), "last")
    assert head.config.form is None
    assert model.config.head is None
    assert task_scores(model, Rows.of(IDS)).shape == (3, 1)


def test_weights_in_bfloat16(place, tmp_path):
    model = load_model(place / "albert", torch.bfloat16)
    assert model.net.dtype == torch.bfloat16
    assert model.together is Together.PADDED
    head = add_head(model, "classification", ("a", "b"), "cls")
    assert model.net.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in head.parameters())
    assert task_scores(model, Rows.of(IDS)).dtype == torch.float32
    save_model(model, tmp_path / "labels")
    again = load_model(tmp_path / "labels", torch.bfloat16)
    assert again.net.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in again.task_head.parameters())
    mixed = load_model(place / "albert", NumberFormat(torch.bfloat16, weights=torch.float32))
    states = load_model(place / "albert")(Rows.of(IDS))
    torch.testing.assert_close(mixed(Rows.of(IDS)).float(), states, atol=0.2, rtol=0.1)
    assert not torch.equal(mixed(Rows.of(IDS)).float(), states)


@pytest.mark.parametrize("name", ["deberta", "xlnet"])
def test_what_mixes_formats_in_transformers_is_kept_in_float32(place, name):
    wide = load_model(place / name, torch.bfloat16)
    assert {parameter.dtype for parameter in wide.net.parameters()} == {torch.float32}
    assert "kept in float32" in wide.load_notice
    states = load_model(place / name)(Rows.of(IDS))  # whose weights were never rounded
    torch.testing.assert_close(wide(Rows.of(IDS)), states, atol=0.05, rtol=0.05)


def test_contexts(place):
    assert load_model(place / "camembert").max_row_tokens == 62  # positions count from behind the pad
    assert load_model(place / "albert").max_row_tokens == 64
    sparse = dict(ENCODERS["big_bird"], attention_type="block_sparse", block_size=4, num_random_blocks=1)
    fields = {"model_type": "big_bird", "vocab_size": 97, **sparse}
    assert TransformersEncoder.from_hf(fields).max_row_tokens == 28


POST_NORM = ("deberta", "camembert", "albert", "xlnet", "funnel")


@pytest.mark.parametrize("name", [*POST_NORM, "esm", "megatron-bert", "roberta-prelayernorm"])
def test_where_norms_stand_behind_the_sums_rates_are_halved(place, name):
    model, post = load_model(place / name), name in POST_NORM
    assert model.post_norm == meta_copy(model).post_norm == post
    for method in (make_method({"name": name}) for name in ("lora", "full")):
        assert method.rate(model) == method.default_lr * (0.5 if post else 1)
    assert make_method({"name": "head-only"}).rate(model) == make_method({"name": "head-only"}).default_lr


def test_what_cannot_be_is_refused(place, tmp_path):
    for knob in ({"train.layer_decay": 0.9}, {"train.unfreeze_every": 2}):
        with pytest.raises(ConfigError, match="which blocks a model has and in which order"):
            train(place, "camembert", method="full", **knob)
    for method in ("prompt", "prefix", "bottleneck"):
        with pytest.raises(ConfigError, match="Microplane's own models keep open"):
            train(place, "camembert", method=method)
    with pytest.raises(ConfigError, match="has no linear layers that could be adapted"):
        train(place, "squeezebert")
    with pytest.raises(ConfigError, match="is an encoder|cannot"):
        train(place, "camembert", **{"data.task": "answers"})
    folder = tmp_path / "more"
    folder.mkdir()
    for file in (place / "camembert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"do not fit the CamembertModel(.|\n)*missing: encoder.layer.2"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"do not fit the CamembertModel(.|\n)*unexpected: .*layer.1"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": ["Odd"], "auto_map": {"AutoModel": "x"}}))
    with pytest.raises(ModelError, match="Odd is not supported: .* Code from the model's own repository is never run"):
        load_model(folder)
