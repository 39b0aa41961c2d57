"""A run is asked, and measured, in the form in which it was trained."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

import microplane
from microplane.cli.chat import texts_of
from microplane.config.build import assemble
from microplane.data.reading.example import Message
from microplane.data.rendering.causal import causal_renderer
from microplane.errors import ConfigError, DataError
from microplane.objectives.next_token import NextToken
from microplane.runs.asked import shared_prefix, text_frame
from microplane.runs.evaluate import measure_file
from tests.labels import encoder_folder
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {"train.steps": 2, "train.threads": 1, "eval.rows": 0, "model.dtype": "float32", "train.patience": 0}


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(folder: Path, rows, model: Path | None = None, **sets):
    data = write(folder / "rows.jsonl", rows)
    model = model or save_tiny_folder(folder / "model", **SHALLOW)
    changes = {name.replace("__", "."): value for name, value in sets.items()}
    return microplane.train(str(model), str(data), set=SETS | {"runs": str(folder / "runs")} | changes)


def shown(run, asked) -> str:
    return run.tokenizer.decode(run.prompt(asked), skip_special=False)


def chat(number: int, system: str | None) -> dict:
    first = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": "user", "content": f"{'xyz'[number % 3]} {number}"}, {"role": "assistant", "content": "a"}]
    return {"messages": [*first, *turns]}


def test_a_system_message_of_all_rows_is_used_once_where_it_stood(tmp_path):
    run = train(tmp_path, [chat(n, "Be brief.") for n in range(30)]).load()
    assert run.system == "Be brief."
    own = [Message("system", "Be brief."), Message("user", "q")]
    assert run.prompt("q") == run.prompt(own)
    assert shown(run, "q").count("Be brief.") == 1
    assert "Be brief" not in shown(run, [Message("system", "Be long."), Message("user", "q")])


@pytest.mark.parametrize("others", [None, "Be long."])
def test_a_system_message_of_some_rows_is_not(tmp_path, others):
    run = train(tmp_path, [chat(n, "Be brief." if n % 3 else others) for n in range(30)]).load()
    assert run.system is None


def test_a_system_prompt_of_the_configuration_stays(tmp_path):
    run = train(tmp_path, [chat(n, None) for n in range(30)], data__system="Be kind.").load()
    assert run.system == "Be kind."


@pytest.mark.parametrize("line", ["Convert to JSON.\n", "Translate: ", "Task: x\nText: "])
def test_what_all_prompts_begin_with_is_used_once(tmp_path, line):
    rows = [{"prompt": f"{line}{'abc'[n % 3]} {n}", "completion": "a"} for n in range(30)]
    rows = [row | {"system": "Be brief."} for row in rows]
    run = train(tmp_path, rows).load()
    assert run.prefix == line
    assert run.prompt("q") == run.prompt(f"{line}q")
    assert shown(run, "q").count(line) == 1
    assert shown(run, "q").count("Be brief.") == 1


def test_words_that_all_prompts_happen_to_begin_with_are_no_beginning(smol):
    def prompt(text: str) -> str:
        return smol.decode(causal_renderer(smol).prompt([Message("user", text)]), skip_special=False)

    given = [prompt(f"Turn on the {what}") for what in ("light", "oven", "radio")]
    assert shared_prefix(NextToken(), given, smol, "auto", None) == ""


@pytest.mark.parametrize(
    ("shared", "is_whole"),
    [
        ("Reverse the following text. ", True),
        ("Is this a review? ", True),
        ("Translate:", True),
        ("reverse:\t", True),
        ("翻译：", True),
        ("请翻译。", True),
        ("[TASK] ", True),
        ("Reverse -> ", True),
        ("https://www.", False),
        ("10:", False),
        ("Dr. ", False),
        ("What is the capital of ", False),
        ("v1.", False),
    ],
)
def test_a_beginning_is_whole_where_something_in_it_ends(shared, is_whole, smol):
    renderer = causal_renderer(smol)
    given = [smol.decode(renderer.prompt([Message("user", shared + q)]), False) for q in ("red", "7", "An")]
    assert shared_prefix(NextToken(), given, smol, "auto", None) == (shared if is_whole else "")


@pytest.mark.parametrize("count", [1, 2])
def test_of_rows_that_all_ask_one_question_nothing_is_its_beginning(count, smol):
    given = [smol.decode(causal_renderer(smol).prompt([Message("user", "Tell me a joke.")]), False)]
    assert shared_prefix(NextToken(), count * given, smol, "auto", None) == ""
    rendered = "<|im_start|>user\nTell me a joke.<|im_end|>\n<|im_start|>assistant\n"
    before, behind = text_frame([f"{rendered}{answer}<|im_end|>\n" for answer in "abc"], smol)
    assert f"{before}Tell me a joke.{behind}" == rendered


# Plain text


def test_a_run_of_plain_text_continues_it(tmp_path):
    run = train(tmp_path, [{"text": f"There were {n} cats."} for n in range(40)]).load()
    for text in ("There were", "a <|im_end|> b", "line\n"):
        assert run.prompt(text) == run.tokenizer.encode(text)
    assert run.prompt([Message("user", "a"), Message("assistant", "b"), Message("user", "c")]) == run.prompt("abc")


def test_rendered_rows_are_asked_as_they_were_rendered(tmp_path):
    rendered = "<|im_start|>user\nSay {0}.<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"text": rendered.format(n) + f"{n}<|im_end|>\n"} for n in range(40)]
    run = train(tmp_path, rows).load()
    expected = run.tokenizer.encode(rendered.format("q"))
    assert run.prompt(rendered.format("q")) == expected
    assert run.prompt("Say q.") == expected
    assert run.tokenizer.id_of("<|im_end|>") in run.stop_ids


@pytest.mark.parametrize(
    ("before", "texts"),
    [
        ("<|im_start|>user\n", ["<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\na"] * 3),
        (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nDo it.\n",
            ["<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nDo it.\n{0}<|im_end|>\n<|im_start|>assistant\na"] * 3,
        ),
        ("", ["<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\na", "{0}", "story"]),
        ("", ["<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\na"] * 2 + ["<|im_start|>user\n{0}<|im_end|>"]),
        ("", ["Question: {0}\nAnswer: a"] * 3),
    ],
)
def test_the_frame_of_rendered_rows(smol, before, texts):
    filled = [text.format(f"{'xyz'[number]} what") for number, text in enumerate(texts)]
    behind = "<|im_end|>\n<|im_start|>assistant\n" if before else ""
    assert text_frame(filled, smol) == [before, behind]


# Labels


def test_a_tab_parts_two_texts_only_where_the_rows_had_two(tmp_path):
    model = encoder_folder(tmp_path / "model", "bert", **SHALLOW)
    single = [{"text": f"the film is {'good' if n % 2 else 'bad'}", "label": n % 2} for n in range(30)]
    assert not train(tmp_path, single, model).load().pairs
    pairs = [row | {"text_pair": "no" if n % 5 == 0 else None} for n, row in enumerate(single)]
    assert train(tmp_path, pairs, model, name="pairs").load().pairs
    assert texts_of("a\tb", True) == ("a", "b")
    assert texts_of("a\tb", False) == "a\tb"
    assert texts_of("a", True) == "a"


# Measuring


def test_a_run_is_measured_with_its_own_columns_and_what_is_no_label(tmp_path):
    model = encoder_folder(tmp_path / "model", "bert", **SHALLOW)
    rows = [
        {"said": f"the film is {'good' if n % 2 else 'bad'}", "mark": "?" if n % 7 == 0 else "np"[n % 2]}
        for n in range(42)
    ]
    fields = {"text": "said", "label": "mark"}
    data = write(tmp_path / "test.jsonl", rows[:14])
    run = train(tmp_path, rows, model, data__fields=fields, data__no_label=["?"], data__validation=str(data))
    knobs = assemble(None, {"model.name": str(run.folder), "data.train": str(data)}, ["model.dtype=float32"])
    assert measure_file(knobs)["scores"]["loss"] == pytest.approx(run.metrics["after"]["loss"], abs=1e-6)
    other = write(tmp_path / "other.jsonl", [{"text": row["said"], "label": row["mark"]} for row in rows[1:6]])
    knobs = assemble(None, {"model.name": str(run.folder), "data.train": str(other)}, ["model.dtype=float32"])
    with pytest.raises(DataError, match="data.fields reads text from 'said', and there is no such column"):
        measure_file(knobs)
    knobs = assemble(None, {"model.name": str(run.folder), "data.train": str(other)}, ["data.fields={}"])
    assert measure_file(knobs)["scores"]


def test_a_run_is_measured_with_its_own_system_message(tmp_path):
    data = write(tmp_path / "test.jsonl", [chat(n, "Be brief.") for n in range(100, 110)])
    run = train(tmp_path, [chat(n, "Be brief.") for n in range(30)], data__validation=str(data))
    without = write(tmp_path / "without.jsonl", [chat(n, None) for n in range(100, 110)])
    for file in (data, without):
        knobs = assemble(
            None, {"model.name": str(run.folder), "data.train": str(file)}, ["eval.rows=0", "model.dtype=float32"]
        )
        assert measure_file(knobs)["scores"]["loss"] == pytest.approx(run.metrics["after"]["loss"], abs=1e-6)


def test_a_template_that_tells_the_date_is_asked_with_the_runs(tmp_path, monkeypatch):
    model = save_tiny_folder(tmp_path / "model", **SHALLOW)
    told = json.loads((model / "tokenizer_config.json").read_text())
    told["chat_template"] = "{{ strftime_now('%d %b %Y') }}" + told["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    rows = [chat(n, None) for n in range(30)]
    dated = train(tmp_path, rows, model, data__date="2001-02-03")
    assert "03 Feb 2001" in shown(dated.load(), "q")
    today = train(tmp_path, rows, model)  # the rows of another day are not found in the cache
    assert today.result["run"]["data"]["date"] == datetime.now().date().isoformat()
    assert today.result["data"]["fingerprint"] != dated.result["data"]["fingerprint"]
    assert datetime.now().strftime("%d %b %Y") in shown(today.load(), "q")
    with pytest.raises(ConfigError, match=r"data\.date"):
        train(tmp_path, rows, data__date="yesterday")
