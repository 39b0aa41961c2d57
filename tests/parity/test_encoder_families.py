"""The encoder families beside BERT's own kind against transformers, on twelve shapes each: hidden states, scores,
losses and gradients, in float32, of rows side by side without padding."""

from __future__ import annotations

import pytest
import torch
import transformers

from microplane.models.encoder import Encoder
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import task_scores
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES
from tests.parity.encoder_shapes import ALL, ONE_EACH
from tests.parity.test_encoder import FAMILIES, Case, assert_gradients_agree, off, padded, texts

LABELS = 3


@pytest.mark.parametrize("case", ALL, ids=str)
def test_hidden_states_and_gradients(case: Case, tmp_path):
    theirs = case.build()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    poolers = [name for name in dict(theirs.named_parameters()) if name.startswith("pooler.")]
    rows = texts((23, 3, 11, 1, 36), theirs.config.vocab_size)
    batch, real = padded([[max(t, 6) for t in row] for row in rows], "right", case.pad)
    expected = theirs(**batch).last_hidden_state[real]
    hidden = ours(Rows.from_padded(batch["input_ids"], batch["attention_mask"]))
    assert off(hidden, expected) < 1e-5
    weights = torch.randn_like(hidden)
    for value in (hidden, expected):
        (value * weights).sum().backward()
    assert_gradients_agree(ours, theirs, (), poolers)


@pytest.mark.parametrize(
    ("case", "tokens"), [*((case, False) for case in ALL), *((case, True) for case in ONE_EACH)], ids=str
)
def test_scores_losses_and_gradients_of_heads(case: Case, tokens: bool, tmp_path):
    auto = transformers.AutoModelForTokenClassification if tokens else transformers.AutoModelForSequenceClassification
    theirs = case.build(auto, num_labels=LABELS)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").requires_grad_(True)
    rows = [[max(t, 6) for t in row] for row in texts((23, 3, 11, 1, 36), theirs.config.vocab_size)]
    batch, real = padded(rows, "right", case.pad)
    labels = torch.arange(real.numel()).view(real.shape) % LABELS if tokens else torch.tensor([2, 0, 1, 1, 0])
    expected = theirs(**batch, labels=labels.masked_fill(~real, -100) if tokens else labels)
    scores = task_scores(ours, Rows.of(rows))
    assert off(scores, expected.logits[real] if tokens else expected.logits) < 1e-5
    task, told = ("tokens", labels[real]) if tokens else ("classification", labels)
    loss = HEAD_OBJECTIVES[task].loss_of_scores(scores, told) / len(told)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    loss.backward()
    expected.loss.backward()
    assert_gradients_agree(ours, theirs, ())
    save_model(ours, tmp_path / "ours")
    again, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert off(again(**batch).logits[real] if tokens else again(**batch).logits, scores) < 1e-5
    assert load_model(tmp_path / "ours").task_head.config == ours.task_head.config


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_heads_of_pre_training_are_left_out(case: Case, tmp_path):
    theirs = case.build(transformers.AutoModelForMaskedLM)
    theirs.save_pretrained(tmp_path)
    rows = texts((9,), 50)
    expected = theirs.base_model(torch.tensor(rows)).last_hidden_state[0]
    assert off(load_model(tmp_path)(Rows.of(rows)), expected) < 1e-5


def test_electras_discriminator_is_left_out(tmp_path):
    theirs = next(case for case in ONE_EACH if case.name.startswith("electra")).build(
        transformers.AutoModelForPreTraining
    )
    theirs.save_pretrained(tmp_path)
    expected = theirs.base_model(torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    assert off(load_model(tmp_path)(Rows.of([[5, 6, 7]])), expected) < 1e-5


OTHER_TASKS = {
    "marks": transformers.AutoModelForQuestionAnswering,
    "chooses": transformers.AutoModelForMultipleChoice,
    "next": transformers.AutoModelForNextSentencePrediction,
}


@pytest.mark.parametrize("task", OTHER_TASKS)
@pytest.mark.parametrize("case", [*FAMILIES, *ONE_EACH], ids=str)
def test_heads_of_other_tasks_are_left_out_with_a_word(case: Case, task: str, tmp_path):
    auto = OTHER_TASKS[task]
    if case.config not in auto._model_mapping:
        return  # transformers has no such class
    theirs = case.build(auto)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert isinstance(ours, Encoder)
    rows = texts((9,), 50)
    assert off(ours(Rows.of(rows)), theirs.base_model(torch.tensor(rows)).last_hidden_state[0]) < 1e-5
    told = f"the head of {type(theirs).__name__} is left out: what it does is no task here"
    assert ours.load_notice == (None if task == "next" else told)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_what_is_saved_without_a_head_opens_there(case: Case, tmp_path):
    theirs = case.build()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    ours.source_config = None
    save_model(ours, tmp_path / "ours")
    again, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    ids = torch.tensor([[7, 8, 9, 10]])
    assert off(again(ids).last_hidden_state, theirs(ids).last_hidden_state) < 1e-5
    assert load_model(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_bfloat16_is_finite_and_close(case: Case, tmp_path):
    case.build().save_pretrained(tmp_path)
    rows = Rows.of(texts((20, 3, 11), 50))
    wide, narrow = load_model(tmp_path)(rows), load_model(tmp_path, torch.bfloat16)(rows)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).norm() < 0.05 * wide.norm()
