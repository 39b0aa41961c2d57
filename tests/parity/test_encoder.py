"""Every encoder family and task head against transformers: hidden states, scores, losses and gradients, in float32."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from microplane.models.configs.head import FORMS
from microplane.models.contract import hf_names
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.load import build_on_meta, load_model, save_model
from microplane.models.heads import task_scores
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES

SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "initializer_range": 0.15,  # large enough for attention to have something to choose from
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODERN = {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 6}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}


@dataclass
class Case:
    name: str
    config: type
    fields: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def pad(self) -> int:
        return self.fields.get("pad_token_id", 0)

    def build(self, auto: Any = transformers.AutoModel, **more: Any) -> transformers.PreTrainedModel:
        """A random model of transformers in float32; norms and biases too are random, so that they count."""
        torch.manual_seed(0)
        config = self.config(**SMALL | copy.deepcopy(self.fields) | more)
        return randomised(auto.from_config(config, attn_implementation="eager"))


def randomised(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


CASES = [
    Case("bert", transformers.BertConfig, {}),
    Case("bert tanh gelu, four types", transformers.BertConfig, {"hidden_act": "gelu_new", "type_vocab_size": 4}),
    Case("roberta", transformers.RobertaConfig, {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}),
    Case("xlm-roberta", transformers.XLMRobertaConfig, {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}),
    Case("modernbert", transformers.ModernBertConfig, MODERN),
    Case("modernbert odd window", transformers.ModernBertConfig, MODERN | {"local_attention": 5}),
    Case("modernbert wide window", transformers.ModernBertConfig, MODERN | {"local_attention": 128}),
    Case(
        "modernbert biases, ropes, layers",
        transformers.ModernBertConfig,
        MODERN
        | {
            **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True),
            "rope_parameters": ROPES,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "classifier_activation": "silu",
            "classifier_pooling": "mean",
        },
    ),
]
FAMILIES = [case for case in CASES if case.name in ("bert", "roberta", "xlm-roberta", "modernbert")]
LENGTHS = {"one row": (20,), "five rows": (20, 3, 11, 1, 16), "equal rows": (7, 7)}
LABELS = 3


def texts(lengths: tuple[int, ...], vocabulary: int = SMALL["vocab_size"]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def padded(rows: list[list[int]], side: str, pad: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """As transformers takes it, and which cells are tokens."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}, mask.bool()


def positioned(batch: dict[str, torch.Tensor], case: Case) -> dict[str, torch.Tensor]:
    """With positions that count tokens alone. RoBERTa makes them from the mask itself."""
    if case.config in (transformers.RobertaConfig, transformers.XLMRobertaConfig):
        return batch
    return batch | {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def assert_gradients_agree(ours, theirs, where, unused=()):
    """Relative to the largest of each tensor; a key's bias shifts all scores alike, so its gradient is noise."""
    names, parameters = hf_names(ours), dict(theirs.named_parameters())
    assert sorted([*names.values(), *unused]) == sorted(parameters)
    largest = max(parameter.grad.abs().max() for parameter in ours.parameters())
    for name, parameter in ours.named_parameters():
        grad = parameters[names[name]].grad
        scale = max(grad.abs().max(), 1e-3 * largest)
        assert (parameter.grad - grad).abs().max() < 1e-4 * scale, (name, *where)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hidden_states_and_gradients_are_those_of_transformers(case: Case, tmp_path):
    theirs = case.build()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    poolers = [name for name in dict(theirs.named_parameters()) if name.startswith("pooler.")]
    for lengths in LENGTHS.values():
        for side in ("left", "right"):
            batch, real = padded(texts(lengths), side, case.pad)
            expected = theirs(**positioned(batch, case)).last_hidden_state[real]
            hidden = ours(Rows.from_padded(batch["input_ids"], batch["attention_mask"]))
            assert off(hidden, expected) < 1e-4, (lengths, side)
            weights = torch.randn_like(hidden)
            for model, value in ((ours, hidden), (theirs, expected)):
                model.zero_grad()
                (value * weights).sum().backward()
            assert_gradients_agree(ours, theirs, (lengths, side), poolers)


@pytest.mark.parametrize("config", [transformers.RobertaConfig, transformers.MPNetConfig])
def test_a_token_for_padding_within_a_row_has_no_place(config, tmp_path):
    """A text may hold it, and a vocabulary have a word under its id."""
    theirs = Case("", config, {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}).build()
    theirs.save_pretrained(tmp_path)
    rows = [[5, 1, 6, 7, 1, 1, 8], [1, 9, 4], [3, 1]]
    given = [torch.tensor([row]) for row in rows]
    expected = [theirs(one, attention_mask=torch.ones_like(one)).last_hidden_state[0] for one in given]
    assert off(load_model(tmp_path)(Rows.of(rows)), torch.cat(expected)) < 1e-4


def test_segments_have_their_embedding(tmp_path):
    theirs = CASES[1].build()
    theirs.save_pretrained(tmp_path)
    rows, types = texts((9, 4)), [[0] * 4 + [1] * 5, [3, 2, 1, 0]]
    batch, real = padded(rows, "right", 0)
    kinds, _ = padded(types, "right", 0)
    expected = theirs(**batch, token_type_ids=kinds["input_ids"]).last_hidden_state[real]
    assert off(load_model(tmp_path)(Rows.of(rows, types=types)), expected) < 1e-4


def sequence_labels(problem: str, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if problem == "single_label_classification":
        return torch.randint(0, LABELS, (count,), generator=generator)
    if problem == "multi_label_classification":
        return torch.randint(0, 2, (count, LABELS), generator=generator).float()
    return torch.randn(count, generator=generator)


TASKS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}


@pytest.mark.parametrize("problem", TASKS)
@pytest.mark.parametrize("case", [*FAMILIES, CASES[-1]], ids=str)
def test_sequence_heads(case: Case, problem: str, tmp_path):
    """On the right only: on the left, transformers takes a pad for the first token of a row."""
    count = 1 if problem == "regression" else LABELS
    theirs = case.build(transformers.AutoModelForSequenceClassification, problem_type=problem, num_labels=count)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    assert ours.task_head.config.task == TASKS[problem]
    for lengths in LENGTHS.values():
        batch, _ = padded(texts(lengths), "right", case.pad)
        labels = sequence_labels(problem, len(lengths))
        expected = theirs(**batch, labels=labels)
        scores = task_scores(ours, Rows.from_padded(batch["input_ids"], batch["attention_mask"]))
        assert off(scores, expected.logits) < 1e-4, lengths
        loss = HEAD_OBJECTIVES[TASKS[problem]].loss_of_scores(scores, labels) / len(lengths)
        assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
        for model, value in ((ours, loss), (theirs, expected.loss)):
            model.zero_grad()
            value.backward()
        assert_gradients_agree(ours, theirs, lengths)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_token_heads(case: Case, tmp_path):
    theirs = case.build(transformers.AutoModelForTokenClassification, num_labels=LABELS)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    assert ours.task_head.config.task == "tokens"
    for side in ("left", "right"):
        batch, real = padded(texts(LENGTHS["five rows"]), side, case.pad)
        labels = torch.randint(0, LABELS, real.shape).masked_fill(~real, -100)
        labels[0, -5:-2] = -100
        expected = theirs(**positioned(batch, case), labels=labels)
        scores = task_scores(ours, Rows.from_padded(batch["input_ids"], batch["attention_mask"]))
        assert off(scores, expected.logits[real]) < 1e-4, side
        loss = HEAD_OBJECTIVES["tokens"].loss_of_scores(scores, labels[real]) / (labels != -100).sum()
        assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
        for model, value in ((ours, loss), (theirs, expected.loss)):
            model.zero_grad()
            value.backward()
        assert_gradients_agree(ours, theirs, (side,))


AUTOS = {
    "plain": transformers.AutoModel,
    "sequence": transformers.AutoModelForSequenceClassification,
    "tokens": transformers.AutoModelForTokenClassification,
}


@pytest.mark.parametrize("kind", AUTOS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transformers_opens_what_is_saved(case: Case, kind: str, tmp_path):
    names = {"num_labels": 3, "id2label": {0: "no", 1: "yes", 2: "perhaps"}}
    case.build(AUTOS[kind], **names if kind != "plain" else {}).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    batch, real = padded(texts(LENGTHS["five rows"]), "right", case.pad)
    rows = Rows.from_padded(batch["input_ids"], batch["attention_mask"])
    expected = ours(rows) if kind == "plain" else task_scores(ours, rows)
    save_model(ours, tmp_path / "from a file")
    ours.source_config = MODERN if case.config is transformers.ModernBertConfig else None
    save_model(ours, tmp_path / "from nothing")
    for name in ("from a file", "from nothing"):
        reopened, report = AUTOS[kind].from_pretrained(
            tmp_path / name, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        with torch.no_grad():
            output = reopened(**batch)
        seen = output.last_hidden_state[real] if kind == "plain" else output.logits
        assert off(seen[real] if kind == "tokens" else seen, expected) < 1e-4, name
        again = load_model(tmp_path / name)
        assert again.config == ours.config, name
        if kind != "plain":
            assert reopened.config.id2label == names["id2label"]
            assert again.task_head.config == ours.task_head.config
            assert again.task_head.config.labels == ("no", "yes", "perhaps")


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_heads_of_pre_training_are_left_out(case: Case, tmp_path):
    theirs = case.build(transformers.AutoModelForMaskedLM)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.architecture.endswith("Model")
    rows = texts((9,))
    expected = theirs.base_model(torch.tensor(rows)).last_hidden_state[0]
    assert off(ours(Rows.of(rows)), expected) < 1e-4


DECODERS = [
    Case("llama", transformers.LlamaConfig, {}),
    Case("qwen3", transformers.Qwen3Config, {"head_dim": 8, "tie_word_embeddings": True}),
    Case("gemma3", transformers.Gemma3TextConfig, {"head_dim": 16, "query_pre_attn_scalar": 16}),
    Case("t5", transformers.T5Config, {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
    Case("mt5", transformers.MT5Config, {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
]  # fmt: skip


@pytest.mark.parametrize("case", DECODERS, ids=str)
def test_sequence_heads_of_models_that_write(case: Case, tmp_path):
    t5 = "d_model" in case.fields
    more = {"decoder_start_token_id": 0, "eos_token_id": 2} if t5 else {"num_key_value_heads": 2}
    theirs = case.build(transformers.AutoModelForSequenceClassification, num_labels=LABELS, **more)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").requires_grad_(True)
    rows = [[*row, 2] for row in texts((9, 2, 6))] if t5 else texts((9, 2, 6))
    batch, _ = padded(rows, "right", 0)
    labels = torch.tensor([2, 0, 1])
    expected = theirs(**batch, labels=labels)
    scores = task_scores(ours, Rows.of(rows))
    assert off(scores, expected.logits) < 1e-4
    loss = HEAD_OBJECTIVES["classification"].loss_of_scores(scores, labels) / 3
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    loss.backward()
    expected.loss.backward()
    assert_gradients_agree(ours, theirs, ())
    save_model(ours, tmp_path / "ours")
    reopened, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert off(reopened(**batch).logits, scores) < 1e-4


def test_forms_are_classes_of_transformers():
    missing = [name for name in FORMS if not hasattr(transformers, name)]
    assert missing == []


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_bfloat16_is_finite_and_close(case: Case, tmp_path):
    case.build().save_pretrained(tmp_path)
    rows = Rows.of(texts(LENGTHS["five rows"]))
    wide, narrow = load_model(tmp_path)(rows), load_model(tmp_path, torch.bfloat16)(rows)
    assert narrow.dtype == torch.bfloat16
    assert narrow.isfinite().all()
    assert (narrow.float() - wide).norm() < 0.05 * wide.norm()


CLASSIC = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "position_embedding_type": "absolute",
}
AS_ROBERTA = CLASSIC | {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
PUBLISHED = {
    "bert-base-uncased": CLASSIC
    | {
        "architectures": ["BertForMaskedLM"],
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    },
    "roberta-base": AS_ROBERTA
    | {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "vocab_size": 50265},
    "xlm-roberta-base": AS_ROBERTA
    | {"architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta", "vocab_size": 250002},
    "ModernBERT-base": {
        "architectures": ["ModernBertForMaskedLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 50281,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_dropout": 0.0,
        "classifier_pooling": "mean",
        "cls_token_id": 50281,
        "decoder_bias": True,
        "deterministic_flash_attn": False,
        "embedding_dropout": 0.0,
        "eos_token_id": 50282,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "hidden_activation": "gelu",
        "hidden_size": 768,
        "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02,
        "intermediate_size": 1152,
        "layer_norm_eps": 1e-05,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "model_type": "modernbert",
        "norm_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 12,
        "num_hidden_layers": 22,
        "pad_token_id": 50283,
        "position_embedding_type": "absolute",
        "sep_token_id": 50282,
        "tie_word_embeddings": True,
        "vocab_size": 50368,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequence", "tokens"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name: str, kind: str):
    """Of random weights, which both sides share in memory; a row longer than ModernBERT's window."""
    fields = copy.deepcopy(PUBLISHED[name])
    config = transformers.AutoConfig.for_model(**fields)
    config.num_labels = LABELS
    torch.manual_seed(0)
    theirs = randomised(AUTOS[kind].from_config(config, attn_implementation="eager"))
    told = {**fields, "architectures": [type(theirs).__name__], "num_labels": LABELS}
    state = theirs.state_dict()
    ours = build_on_meta(Checkpoint(told, state, Path("memory"), "float32"))
    names = hf_names(ours)
    ours.load_state_dict({own: state[names[own]] for own in ours.state_dict()}, assign=True)
    ours.eval().requires_grad_(True)

    rows = texts((150, 9), 30000)
    side = "left" if kind == "tokens" else "right"
    batch, real = padded(rows, side, fields["pad_token_id"])
    if kind == "tokens":
        labels = torch.randint(0, LABELS, real.shape).masked_fill(~real, -100)
        if fields["model_type"] in ("bert", "modernbert"):
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    else:
        labels = torch.tensor([2, 0])
    expected = theirs(**batch, labels=labels)
    scores = task_scores(ours, Rows.of(rows))
    assert off(scores, expected.logits[real] if kind == "tokens" else expected.logits) < 1e-4
    task, flat = ("tokens", labels[real]) if kind == "tokens" else ("classification", labels)
    loss = HEAD_OBJECTIVES[task].loss_of_scores(scores, flat) / len(flat)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    loss.backward()
    expected.loss.backward()
    assert_gradients_agree(ours, theirs, (name, kind))
