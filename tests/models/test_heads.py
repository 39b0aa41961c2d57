"""Task heads by themselves: pooling, losses, new heads, what is saved, and MiniLM as it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers

from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ModelError
from microplane.models import task_head
from microplane.models.contract import linears
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, embed, ensure_head, head_metadata, task_scores, usual_pooling
from microplane.models.task_head import pooled
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES
from tests.tiny import ENCODER_CONFIGS, tiny, tiny_encoder

ROWS = Rows.of([[5, 6, 7, 8, 9], [10], [11, 12, 13]])
MEANT = ["no", "yes", "perhaps"]


@pytest.fixture(params=[*ENCODER_CONFIGS, "llama-untied", "t5"])
def family(request):
    return request.param


def model_of(family):
    if family == "t5":
        from microplane.models.t5 import T5

        sizes = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        return T5.from_hf({"architectures": ["T5ForConditionalGeneration"], **sizes}).init_weights().eval()
    return tiny(family) if family == "llama-untied" else tiny_encoder(family)


@pytest.mark.parametrize("lengths", [(5, 1, 3), (4, 4), (6,)])
def test_pooling(lengths):
    rows = Rows.of([[0] * n for n in lengths])
    hidden = torch.randn(sum(lengths), 8, requires_grad=True)
    parts = hidden.split(lengths)
    expected = {
        "cls": torch.stack([part[0] for part in parts]),
        "last": torch.stack([part[-1] for part in parts]),
        "mean": torch.stack([part.mean(0) for part in parts]),
    }
    for name, wanted in expected.items():
        torch.testing.assert_close(pooled(hidden, rows, name), wanted)
        weights = torch.randn_like(wanted)
        mine, reference = (
            torch.autograd.grad((x * weights).sum(), hidden, retain_graph=True)[0]
            for x in (pooled(hidden, rows, name), wanted)
        )
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "tokens"])
def test_a_new_head_trains_and_comes_back(family, task, tmp_path):
    model = model_of(family)
    head = add_head(model, task, MEANT, dropout=0.0)
    count = len(ROWS.ids) if task == "tokens" else 3
    scores = task_scores(model, ROWS)
    assert scores.shape == (count, 3)
    many = task in ("multilabel", "regression")
    labels = torch.randint(0, 2, (count, 3)) if many else torch.randint(0, 3, (count,))
    loss = HEAD_OBJECTIVES[task].loss_of_scores(scores, labels)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.task_head.config == head.config
    torch.testing.assert_close(task_scores(again, ROWS), scores)
    save_model(again, tmp_path / "again")
    torch.testing.assert_close(task_scores(load_model(tmp_path / "again"), ROWS), scores)


FORMS = {
    ("bert", "classification", None): None,
    ("bert", "classification", "cls"): "BertForSequenceClassification",
    ("bert", "tokens", None): "BertForTokenClassification",
    ("roberta", "multilabel", "cls"): "RobertaForSequenceClassification",
    ("modernbert", "regression", None): "ModernBertForSequenceClassification",
    ("modernbert", "classification", "last"): None,
    ("llama-untied", "classification", None): "LlamaForSequenceClassification",
    ("llama-untied", "classification", "mean"): None,
    ("t5", "classification", None): "T5ForSequenceClassification",
    ("t5", "classification", "mean"): None,
    ("t5", "tokens", None): None,
}


@pytest.mark.parametrize(
    ("architecture", "told", "pooling"),
    [
        ("ModernBertModel", "cls", "cls"),
        ("ModernBertModel", "mean", "mean"),
        ("ModernBertModel", None, "mean"),
        ("EuroBertModel", "bos", "cls"),
        ("EuroBertModel", "mean", "mean"),
        ("EuroBertModel", "late", "mean"),  # which is not done here
        ("BertModel", "mean", "cls"),  # whose class pools in one way
    ],
)
def test_a_new_head_pools_as_the_bases_config_has_transformers_pool(architecture, told, pooling):
    model = tiny_encoder("bert" if architecture == "BertModel" else "modernbert")
    model.config = replace(model.config, architecture=architecture)
    model.source_config = {"classifier_pooling": told} if told else {}
    assert usual_pooling(model, "classification", frozen=False) == pooling
    assert usual_pooling(model, "classification", frozen=True) == "mean"  # of blocks that stay as they are


def test_what_transformers_has_to_be_told_of_a_head_is_noted():
    model = tiny_encoder("modernbert")
    add_head(model, "classification", MEANT, "cls")
    opened = {"class": "ModernBertForSequenceClassification", "num_labels": 3, "classifier_pooling": "cls"}
    assert head_metadata(model)["opened_by"] == opened
    add_head(model, "classification", MEANT, "last")  # which is a head of ours
    assert head_metadata(model).keys() == {"head"}
    bert = tiny_encoder("bert")
    add_head(bert, "tokens", MEANT)
    assert head_metadata(bert)["opened_by"] == {"class": "BertForTokenClassification", "num_labels": 3}


@pytest.mark.parametrize(("family", "task", "pooling"), FORMS)
def test_which_form_a_new_head_takes(family, task, pooling, tmp_path):
    model, form = model_of(family), FORMS[family, task, pooling]
    head = add_head(model, task, MEANT, pooling)
    assert head.config.form == form
    if pooling:
        assert head.config.pooling == pooling
    save_model(model, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["architectures"] == [form or model.config.architecture]
    assert ("task_head" in told) == (form is None)
    assert told["id2label"] == {"0": "no", "1": "yes", "2": "perhaps"}
    if form:
        auto = "TokenClassification" if task == "tokens" else "SequenceClassification"
        reopened, report = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        assert type(reopened).__name__ == form


def test_a_head_of_ours_is_never_taken_for_another(tmp_path):
    """transformers opens the model beneath, and says what it leaves out."""
    model = tiny_encoder("bert")
    add_head(model, "classification", MEANT)
    save_model(model, tmp_path)
    _, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["unexpected_keys"] == {"task_head.out.weight", "task_head.out.bias"}


def test_a_head_takes_the_place_of_the_one_for_words():
    model = tiny("llama-untied")
    assert "head" in linears(model)
    add_head(model, "classification", MEANT)
    assert model.head is None
    assert "head" not in linears(model)
    assert not any("task_head" in name for name in linears(model))


def test_a_new_head_begins_with_what_pre_training_left(tmp_path):
    config = transformers.BertConfig(**{k: v for k, v in ENCODER_CONFIGS["bert"].items() if k != "architectures"})
    theirs = transformers.BertModel(config)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    head = add_head(model, "classification", MEANT, "cls")
    assert torch.equal(head.dense.weight, theirs.pooler.dense.weight)
    assert torch.equal(head.dense.bias, theirs.pooler.dense.bias)

    fields = {k: v for k, v in ENCODER_CONFIGS["modernbert"].items() if k != "architectures"}
    special = dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 1)
    theirs = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**fields, **special))
    theirs.save_pretrained(tmp_path / "modern")
    head = add_head(load_model(tmp_path / "modern"), "classification", MEANT)
    assert torch.equal(head.dense.weight, theirs.head.dense.weight)
    assert torch.equal(head.norm.weight, theirs.head.norm.weight)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "t5"])
def test_a_head_for_other_labels_begins_with_the_hidden_layer_of_the_one_before(family):
    model = model_of(family)
    pooling = "last" if family == "t5" else "cls"
    old = add_head(model, "classification", MEANT, pooling)
    new = add_head(model, "multilabel", ["a", "b"], pooling, seed=1)
    assert model.task_head is new
    assert torch.equal(new.dense.weight, old.dense.weight)
    assert new.dense.weight is not old.dense.weight
    assert new.out.weight.shape == (2, 32)


def test_new_heads_are_the_same_for_the_same_seed():
    first, second, other = (add_head(tiny_encoder(), "classification", MEANT, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, other.out.weight)


def test_a_head_of_a_run_is_drawn_by_its_seed_and_is_of_its_labels_in_their_order():
    def weights(labels, seed):
        ensure_head(model := tiny_encoder(), "classification", labels, "auto", seed)
        return model

    first, other = weights(MEANT, 3), weights(MEANT, 4)
    assert not torch.equal(first.task_head.out.weight, other.task_head.out.weight)
    assert torch.equal(first.task_head.out.weight, weights(MEANT, 3).task_head.out.weight)
    own = first.task_head
    assert "the model's own" in ensure_head(first, "classification", MEANT, "auto", 9)
    assert first.task_head is own
    ensure_head(first, "classification", MEANT[::-1], "auto", 9)
    assert first.task_head.config.labels == tuple(MEANT[::-1])


def test_sentence_embeddings_have_the_length_one():
    for pooling in ("mean", "cls", "last"):
        torch.testing.assert_close(embed(tiny_encoder(), ROWS, pooling).norm(dim=-1), torch.ones(len(ROWS.lengths)))


def test_dropout_of_a_head_while_training_only():
    model = tiny_encoder("bert")
    head = add_head(model, "classification", MEANT)
    assert head.config.dropout == 0.1
    hidden = model(ROWS)
    assert torch.equal(head.scores(hidden, ROWS), head.scores(hidden, ROWS))
    head.train()
    assert not torch.equal(head.scores(hidden, ROWS), head.scores(hidden, ROWS))


@pytest.mark.parametrize(("family", "falls"), [("roberta", 2), ("distilbert", 1), ("bert", 1)])
def test_how_often_dropout_falls_in_a_head_is_as_its_family_has_it(monkeypatch, family, falls):
    seen, real = [], task_head.dropout
    monkeypatch.setattr(task_head, "dropout", lambda x, p, on: seen.append((p, on)) or real(x, p, on))
    head = add_head(tiny_encoder(family), "classification", MEANT, pooling="cls").train()
    head.predict(torch.randn(2, 32))
    assert [on for _, on in seen] == [True] * falls
    assert len({p for p, _ in seen}) == 1


def test_scores_are_float32_on_a_bfloat16_model():
    model = tiny_encoder("bert").bfloat16()
    for pooling in ("mean", "cls"):
        add_head(model, "regression", ["value"], pooling)
        scores = task_scores(model, ROWS)
        assert scores.dtype == torch.float32
        HEAD_OBJECTIVES["regression"].loss_of_scores(scores, torch.randn(3)).backward()


def test_tokens_without_a_label_do_not_count():
    scores = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([1.0, -100.0, 2.0, -100.0])
    loss = HEAD_OBJECTIVES["tokens"].loss_of_scores(scores, labels)
    expected = torch.nn.functional.cross_entropy(scores[[0, 2]], torch.tensor([1, 2]), reduction="sum")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert scores.grad[[1, 3]].abs().sum() == 0


def test_predictions_in_words():
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 0.5]])
    assert HEAD_OBJECTIVES["classification"].words(scores, MEANT) == ["yes", "no"]
    assert HEAD_OBJECTIVES["multilabel"].words(scores, MEANT) == [["yes", "perhaps"], ["no", "perhaps"]]
    assert HEAD_OBJECTIVES["regression"].words(scores, ["a", "b", "c"]) == scores.tolist()


def test_labels_of_which_no_head_can_be_made():
    with pytest.raises(ModelError, match="the labels a, b, a of the task head are not all different"):
        add_head(tiny_encoder(), "classification", ["a", "b", "a"])
    with pytest.raises(ModelError, match="a head for tokens needs at least 2 labels, and was given 1"):
        add_head(tiny_encoder(), "tokens", ["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, r"id2label = .* expected the number of each class from 0 on"),
        ({"id2label": ["a"]}, r"id2label = \['a'\] in config.json"),
        ({"id2label": None, "num_labels": 0}, "num_labels = 0 in config.json: expected a whole number above 0"),
        ({"problem_type": "ranking"}, "problem_type = 'ranking' in config.json: expected one of single_label"),
        ({"classifier_pooling": "max"}, "classifier_pooling = 'max' in config.json: expected cls or mean"),
        ({"classifier_activation": "mish"}, "classifier_activation = 'mish' in config.json is not supported"),
        ({"classifier_dropout": 2}, "classifier_dropout = 2: expected a number from 0 to below 1"),
    ],
)
def test_settings_of_a_head_that_do_not_work_are_refused(changes, message, tmp_path):
    model = tiny_encoder("modernbert")
    add_head(model, "classification", MEANT)
    save_model(model, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | changes))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"task": "ranking", "pooling": "mean"}, "task_head in config.json has task = 'ranking' .* expected one of"),
        (3, "task_head in config.json has task = None and pooling = None"),
        (
            {"task": "tokens", "pooling": "mean", "dropout": 1},
            "task_head.dropout = 1 in config.json: expected a number",
        ),
    ],
)
def test_settings_of_our_own_head_that_do_not_work_are_refused(told, message, tmp_path):
    model = tiny_encoder("bert")
    add_head(model, "classification", MEANT)
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"task_head": told}))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


def test_minilm_is_that_of_transformers(minilm):
    model, tokenizer = load_model(minilm), load_tokenizer(minilm)
    assert model.config.architecture == "BertModel"
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216 - 384 * 385  # but the pooler
    theirs = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager")
    texts = ["A man is eating food.", "Someone is having a meal.", "Nothing"]
    ids = [tokenizer.encode(text) for text in texts]
    assert ids == transformers.AutoTokenizer.from_pretrained(minilm)(texts)["input_ids"]
    hidden = model(Rows.of(ids)).split([len(row) for row in ids])
    for row, ours in zip(ids, hidden, strict=True):
        torch.testing.assert_close(ours, theirs(torch.tensor([row])).last_hidden_state[0], rtol=1e-4, atol=1e-4)


def test_minilm_knows_what_is_alike(minilm):
    model, tokenizer = load_model(minilm), load_tokenizer(minilm)
    texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell."]
    vectors = embed(model, Rows.of([tokenizer.encode(text) for text in texts]))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert (vectors[0] @ vectors[1]).item() == pytest.approx(0.689, abs=5e-4)
    assert (vectors[0] @ vectors[2]).item() < 0.2


def test_nothing_is_drawn_for_a_head_on_the_meta_device(monkeypatch):
    """torch imports its compiler to draw there."""
    model = tiny_encoder(next(iter(ENCODER_CONFIGS))).to("meta")
    monkeypatch.setattr(torch.Tensor, "normal_", None)
    with torch.device("meta"):
        assert add_head(model, "classification", MEANT).out.weight.is_meta
