"""The untouched model with examples: training rows before each question, in its own template, as many as fit."""

from __future__ import annotations

import json

import pytest

import microplane
from microplane.config.knobs import DataKnobs, EvalKnobs, GenerateKnobs
from microplane.data.reading.example import Message
from microplane.evaluation.few_shot import MOST_TOKENS, Asked, _question, room_of, template_frame, with_examples
from microplane.inference.generate import generate
from microplane.runs import baseline
from tests.comparison.kit import own_cache, rows, write
from tests.runs.test_seq2seq import pair_folder, shout
from tests.tiny import SHALLOW, save_tiny_folder, text_splits

SETS = {"train.steps": 1, "train.threads": 1, "eval.max_new_tokens": 3, "model.dtype": "float32", "eval.rows": 4}


class Listening:
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def progress(self, what):
        return lambda done, total: None

    def record(self, record):
        pass


def trained(folder, name, watch=None, data=None, **more):
    sets = {**SETS, "name": name, "runs": str(folder / "runs"), **more}
    return microplane.train(folder / "model", data or folder / "rows.jsonl", set=sets, watch=watch)


@pytest.fixture
def there(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path)
    save_tiny_folder(tmp_path / "model", max_position_embeddings=512, **SHALLOW)
    write(tmp_path, "rows.jsonl", rows(40))
    return tmp_path


def seen(monkeypatch):
    """The prompts that are answered with examples."""
    found, answers = [], baseline.few_shot_answers

    def noted(asked, model, shots, *more):
        found.append(shots)
        return answers(asked, model, shots, *more)

    monkeypatch.setattr(baseline, "few_shot_answers", noted)
    return found


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_examples_stand_before_the_question_as_a_conversation_would(there, monkeypatch, template):
    found = seen(monkeypatch)
    run = trained(there, template, **{"eval.shots": 3, "data.template": template})
    (shots,) = found
    assert shots.examples == 3
    lines = [json.loads(line) for line in (run.folder / "answers.jsonl").open()]
    loaded = microplane.load(there / "model", "float32")
    given = {row["prompt"]: row["completion"] for row in rows(40)}
    for ids, line in zip(shots.prompts, lines, strict=True):
        text = loaded.tokenizer.decode(ids)
        before = sorted((prompt for prompt in given if prompt in text), key=text.index)
        before = [prompt for prompt in before if prompt != line["prompt"] and not line["prompt"].startswith(prompt)]
        questions = [prompt for prompt in before if not any(p != prompt and p.startswith(prompt) for p in before)]
        messages = [m for q in questions for m in (Message("user", q), Message("assistant", given[q]))]
        asked = [*messages, Message("user", line["prompt"])]
        assert len(questions) == 3
        assert ids == loaded.objective.prompt(asked, loaded.tokenizer, template, None)
    name = "untouched model, 3-shot"
    stops = loaded.objective.stop_ids(loaded.tokenizer, template)
    texts = [
        a.text for a in generate(loaded.model, loaded.tokenizer, shots.prompts, GenerateKnobs(max_new_tokens=3), stops)
    ]
    assert [line["trivial"][name] for line in lines] == texts
    assert run.result["metrics"]["trivial"][name].keys() >= {"exact_match"}


def test_none_of_them_is_a_held_out_row(there, monkeypatch):
    found = seen(monkeypatch)
    run = trained(there, "apart", **{"eval.shots": 4})
    held = [json.loads(line)["prompt"] for line in (run.folder / "answers.jsonl").open()]
    tokenizer = microplane.load(there / "model").tokenizer
    for ids, own in zip(found[0].prompts, held, strict=True):
        text = tokenizer.decode(ids)
        assert not [prompt for prompt in held if prompt != own and f"{prompt}\n" in text.replace("<", "\n")]
        assert text.count(own) == 1


def test_as_many_as_fit_and_none_is_said(there, monkeypatch):
    found = seen(monkeypatch)
    save_tiny_folder(there / "model", max_position_embeddings=128, **SHALLOW)
    trained(there, "fits", **{"eval.shots": 40})
    assert 0 < found[0].examples < 40
    assert max(map(len, found[0].prompts)) + 3 <= 128
    save_tiny_folder(there / "model", max_position_embeddings=40, **SHALLOW)
    watch = Listening()
    run = trained(there, "none", watch, **{"eval.shots": 40})
    assert any(line.startswith("few-shot: not measured") for line in watch.said)
    assert not any("-shot" in name for name in run.result["metrics"]["trivial"])


def test_the_untouched_model_answers_once_for_all_runs(there, monkeypatch):
    found = seen(monkeypatch)
    first = trained(there, "first", **{"eval.shots": 2})
    second = trained(there, "second", **{"eval.shots": 2, "method.name": "ia3"})
    assert len(found) == 1
    assert first.result["metrics"]["trivial"] == second.result["metrics"]["trivial"]
    trained(there, "third", **{"eval.shots": 3})
    assert len(found) == 2


def test_an_encoder_decoder_reads_them_as_a_conversation(tmp_path):
    pair_folder(tmp_path / "model")
    shout(tmp_path, 24)
    run = trained(tmp_path, "pairs", data=tmp_path / "data.jsonl", **{"eval.shots": 2})
    assert "untouched model, 2-shot" in run.result["metrics"]["trivial"]


def test_rows_that_are_no_single_questions_get_none(there, monkeypatch):
    found = seen(monkeypatch)
    chat = [
        {"messages": [{"role": "system", "content": f"rule {n}"}, {"role": "user", "content": f"q {n}"},
                      {"role": "assistant", "content": "a"}]}
        for n in range(30)
    ]  # fmt: skip
    run = trained(there, "chats", data=write(there, "chat.jsonl", chat), **{"eval.shots": 2})
    assert found == []
    assert not any("-shot" in name for name in run.result["metrics"]["trivial"])


def asked_of(folder, data):
    """A model with the way it is asked, and the two sides of a file of rows."""
    run = microplane.load(folder / "model", "float32")
    splits = text_splits(DataKnobs(train=str(data), validation_share=0.4), run.tokenizer)
    return run, Asked(splits.objective, run.tokenizer, "chat", None), splits


def test_no_prompt_takes_more_room_than_there_is(there):
    mixed = [{"prompt": f"say {'a' * (n % 7)}b {n}", "completion": f"{n}"} for n in range(40)]
    _, asked, splits = asked_of(there, write(there, "mixed.jsonl", mixed))
    held_out = range(len(splits.validation))
    whole = with_examples(asked, splits.train, splits.validation, held_out, 3, 10**6)
    longest, shortest = max(map(len, whole.prompts)), min(map(len, whole.prompts))
    assert whole.examples == 3
    assert longest > shortest
    assert with_examples(asked, splits.train, splits.validation, held_out, 3, longest).examples == 3
    less = with_examples(asked, splits.train, splits.validation, held_out, 3, longest - 1)
    assert 0 < less.examples < 3
    assert max(map(len, less.prompts)) < longest


@pytest.mark.parametrize("limit", [7, 100])
def test_a_prompt_leaves_room_for_its_answer(there, limit):
    run, _, splits = asked_of(there, there / "rows.jsonl")
    room = room_of(run.model, splits.validation, [0, 1], EvalKnobs(max_new_tokens=limit))
    assert room == run.model.max_row_tokens - limit < MOST_TOKENS


def test_conversations_of_several_turns_are_no_examples(there):
    turn = lambda n: [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]  # noqa: E731
    chats = [{"messages": turn(n) if n % 2 else turn(n) + turn(n + 100)} for n in range(40)]
    _, asked, splits = asked_of(there, write(there, "chats.jsonl", chats))
    single = [n for n in range(len(splits.validation)) if len(splits.validation.prompt_and_target(n)[0]) < 40]
    shots = with_examples(asked, splits.train, splits.validation, single[:2], 9, 10**6)
    frame = template_frame(asked.objective, asked.tokenizer, asked.template, asked.system)
    assert any(_question(asked, splits.train, row, frame) is None for row in range(len(splits.train)))
    assert 0 < shots.examples < 9
    for ids in shots.prompts:
        text = asked.tokenizer.decode(ids)
        assert "None" not in text
        assert not any(f"q{n}\n" in text for n in range(100, 140))  # no second turn
    twice = next(n for n in range(len(splits.validation)) if n not in single)
    assert with_examples(asked, splits.train, splits.validation, [twice], 9, 10**6).examples == 0
