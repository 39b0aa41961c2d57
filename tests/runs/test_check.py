"""`microplane check`: prepared faults are found, each by its own words, and clean data raise nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.models.decoder import Decoder
from microplane.models.files.load import load_model, save_model
from microplane.runs import fit, prepare, room, trackers
from microplane.runs.rehearsal import MOST_TOKENS
from microplane.training import resume
from tests.cases import some
from tests.data.preparing.test_doubts import asked, reviews
from tests.labels import encoder_folder
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {"train.threads": 1, "model.dtype": "float32", "eval.rows": 4}
Rows = list[dict[str, Any]]


def write(folder: Path, rows: Rows, **others: Rows) -> Path:
    """A folder of data."""
    place = folder / "data"
    place.mkdir(exist_ok=True)
    for name, content in {"train": rows, **others}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return place


REHEARSED = ("weights that are no numbers", "a rate that explodes", "targets that do not exist", "no model")


def check(model: Path, data: Path, rehearsal: bool = True, **sets: Any) -> microplane.runs.check.Checked:
    changes = {name.replace("__", "."): value for name, value in sets.items()}
    return microplane.check(model, data, set=SETS | {"runs": str(data / "runs")} | changes, rehearsal=rehearsal)


def found(model: Path, data: Path, **sets: Any) -> dict[str, list[str]]:
    done = check(model, data, **sets)
    texts: dict[str, list[str]] = {"wrong": [], "doubtful": []}
    for finding in done.findings:
        texts[finding.level].append(finding.text)
    assert done.ok is not bool(texts["wrong"])
    return texts


def parquet(place: Path) -> tuple[Path, Path]:
    """With columns beside them that JSON has no word for."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    beside = {"seen": datetime(2026, 1, 2), "price": Decimal("1.50"), "raw": b"x"}
    (place / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([row | beside for row in reviews(60)]), place / "data" / "train.parquet")
    return encoder_folder(place / "model", **SHALLOW), place / "data"


CLEAN: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "answers": lambda place: (save_tiny_folder(place / "model", **SHALLOW), write(place, asked(90))),
    "two splits": lambda place: (
        save_tiny_folder(place / "model", **SHALLOW),
        write(place, asked(60), test=asked(30, 9)),
    ),
    "text": lambda place: (
        save_tiny_folder(place / "model", **SHALLOW),
        write(place, [{"text": r["prompt"]} for r in asked(60)]),
    ),
    "pairs": lambda place: (
        pair_folder(place / "model"),
        write(place, [{"inputs": r["prompt"], "targets": r["completion"]} for r in asked(60)]),
    ),
    "classes": lambda place: (encoder_folder(place / "model", **SHALLOW), write(place, reviews(90))),
    "numbers": lambda place: (
        encoder_folder(place / "model", **SHALLOW),
        write(place, [{"text": row["text"], "score": n / 7} for n, row in enumerate(reviews(90))]),
    ),
    "parquet": parquet,
    "tags": lambda place: (
        encoder_folder(place / "model", **SHALLOW),
        write(
            place,
            [{"tokens": (words := row["text"].split()), "tags": [w[0].upper() for w in words]} for row in reviews(60)],
        ),
    ),
}


@pytest.mark.parametrize("name", some(CLEAN, ("answers", "pairs", "classes", "parquet")))
def test_nothing_is_said_against_clean_data(tmp_path, name):
    model, data = CLEAN[name](tmp_path)
    done = check(model, data)
    assert done.findings == []
    assert done.ok
    assert done.rehearsed is not None
    assert done.rehearsed.peak_memory_bytes > 0
    assert len(done.samples) == 3
    assert any(part["trained"] for part in done.samples[0]["parts"])
    assert done.seconds is not None
    assert not (data / "runs").exists()  # nothing is kept


def decoder(place: Path, rows: Rows, **others: Rows) -> tuple[Path, Path]:
    return save_tiny_folder(place / "model", **SHALLOW), write(place, rows, **others)


def encoder(place: Path, rows: Rows, **others: Rows) -> tuple[Path, Path]:
    return encoder_folder(place / "model", **SHALLOW), write(place, rows, **others)


def broken_row(place: Path) -> tuple[Path, Path]:
    model, data = decoder(place, asked(40))
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text() + '{"prompt": "x", "completion": 3.5\n')
    return model, data


def nan_weights(place: Path) -> tuple[Path, Path]:
    model, data = decoder(place, asked(40))
    changed = load_model(model)
    next(changed.parameters()).data[3, 0] = torch.nan
    save_model(changed, model)
    return model, data


def tokenizer_without(place: Path, *settings: str, rows: Rows) -> tuple[Path, Path]:
    model, data = decoder(place, rows)
    told = json.loads((model / "tokenizer_config.json").read_text())
    for name in settings:
        del told[name]
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    return model, data


def runs_is_a_file(place: Path) -> tuple[Path, Path]:
    model, data = decoder(place, asked(40))
    (data / "runs").write_text("")
    return model, data


def name_taken(place: Path) -> tuple[Path, Path]:
    model, data = decoder(place, asked(40))
    (data / "runs" / "mine").mkdir(parents=True)
    (data / "runs" / "mine" / "run.yaml").write_text("")
    return model, data


def conversations(rows: Rows) -> Rows:
    turns = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in rows]
    return [{"messages": [{"role": who, "content": text} for who, text in row]} for row in turns]


def weightless(rows: Rows) -> Rows:
    turns = [[("user", row["prompt"], 1), ("assistant", row["completion"], 0)] for row in rows]
    return [{"messages": [{"role": who, "content": text, "weight": w} for who, text, w in row]} for row in turns]


def other_label(rows: Rows) -> Rows:
    return [*rows, {"text": "lamp door attic fine", "label": "neutral"}]


FAULTS: dict[str, tuple[Callable[[Path], tuple[Path, Path]], dict[str, Any], str, str]] = {
    "broken row": (broken_row, {}, "wrong", "train.jsonl:41"),
    "missing file": (lambda p: (save_tiny_folder(p / "model", **SHALLOW), p / "none.jsonl"), {}, "wrong", "none.jsonl"),
    "no model": (lambda p: (p / "none", write(p, asked(9))), {}, "wrong", "none"),
    "unknown knob value": (lambda p: decoder(p, asked(40)), {"method__rank": 0}, "wrong", "rank"),
    "knob without effect": (lambda p: decoder(p, asked(40)), {"model__pooling": "mean"}, "wrong", "model.pooling"),
    "all weights zero": (lambda p: decoder(p, weightless(asked(40))), {}, "wrong", "train"),
    "one row": (lambda p: decoder(p, asked(1)), {}, "wrong", "at least 2"),
    "equal rows": (lambda p: decoder(p, asked(1) * 30), {}, "wrong", "all equal"),
    "unknown letters": (
        lambda p: encoder(p, [row | {"text": "рыба и мясо " * 3} for row in reviews(40)]),
        {},
        "wrong",
        "data.max_unknown",
    ),
    "rows above the context": (
        lambda p: decoder(p, [row | {"prompt": row["prompt"] * 4} for row in asked(40)]),
        {},
        "doubtful",
        "lost the start of their prompt",
    ),
    "answers above the context": (
        lambda p: decoder(p, [row | {"completion": row["prompt"] * 4} for row in asked(40)]),
        {},
        "doubtful",
        "lost their end",
    ),
    "label of the test alone": (
        lambda p: encoder(p, reviews(40), test=other_label(reviews(20, 9))),
        {},
        "wrong",
        "neutral",
    ),
    "class without a validation row": (
        lambda p: encoder(p, other_label(reviews(40)), validation=reviews(20, 9)),
        {},
        "doubtful",
        "neutral",
    ),
    "test rows in train": (
        lambda p: decoder(p, asked(60), test=asked(60)[:10]),
        {},
        "doubtful",
        "10 of 10 test rows stand in the training rows too",
    ),
    "near-duplicates": (
        lambda p: decoder(p, asked(60), test=[r | {"prompt": r["prompt"].upper()} for r in asked(60)[:10]]),
        {},
        "doubtful",
        "10 of 10 test rows hardly differ",
    ),
    "contradictions": (
        lambda p: encoder(p, [row | {"label": "ab"[n // 30 % 2]} for n, row in enumerate(reviews(30) * 3)]),
        {},
        "doubtful",
        "ask the same and are answered otherwise",
    ),
    "spelled in two ways": (
        lambda p: encoder(
            p, [row | {"label": "Good" if n == 4 or n == 8 else row["label"]} for n, row in enumerate(reviews(60))]
        ),
        {},
        "doubtful",
        "differ in spelling alone",
    ),
    "one answer": (
        lambda p: decoder(p, [row | {"completion": "yes"} for row in asked(60)]),
        {},
        "doubtful",
        "it is all they teach",
    ),
    "label in the text": (
        lambda p: encoder(p, [row | {"text": f"{row['text']} {row['label']}"} for row in reviews(60)]),
        {},
        "doubtful",
        "left in the text",
    ),
    "test rows with another label": (
        lambda p: encoder(
            p, reviews(40), test=[r | {"label": "bad good".split()[r["label"] == "bad"]} for r in reviews(9)]
        ),
        {},
        "doubtful",
        "9 of 9 test rows ask what training rows ask",
    ),
    "test rows with another answer": (
        lambda p: decoder(
            p, asked(60), test=[r | {"completion": "nobody knows"} for r in asked(60)[:3]] + asked(30, 5)
        ),
        {},
        "doubtful",
        "3 of 33 test rows ask what training rows ask",
    ),
    "copies": (lambda p: decoder(p, asked(6) * 10), {}, "doubtful", "training rows are copies of others"),
    "copies of labelled rows": (lambda p: encoder(p, reviews(8) * 9), {}, "doubtful", "are copies of others"),
    "one number": (
        lambda p: encoder(p, [row | {"label": 3.5} for row in reviews(40)]),
        {"data__task": "regression"},
        "doubtful",
        "it is all they teach",
    ),
    "one set of labels": (
        lambda p: encoder(p, [row | {"label": ["good", "bad"]} for row in reviews(40)]),
        {},
        "doubtful",
        "it is all they teach",
    ),
    "names and numbers of classes": (
        lambda p: encoder(p, [row | {"label": "good bad 0 1".split()[n % 4]} for n, row in enumerate(reviews(40))]),
        {},
        "doubtful",
        "if they mean the same",
    ),
    "names and numbers from 1 on": (
        lambda p: encoder(p, [row | {"label": "a b c 1 2 3".split()[n % 6]} for n, row in enumerate(reviews(60))]),
        {},
        "doubtful",
        "if they mean the same",
    ),
    "one step": (lambda p: decoder(p, asked(40)), {"train__epochs": 0.01}, "doubtful", "training is 1 step of"),
    "two steps": (lambda p: encoder(p, reviews(60)), {"train__steps": 2}, "doubtful", "training is 2 steps of"),
    "no place for runs": (runs_is_a_file, {}, "wrong", "cannot be made"),
    "a name that is taken": (name_taken, {"name": "mine"}, "wrong", "mine"),
    "no chat template": (
        lambda p: tokenizer_without(p, "chat_template", rows=conversations(asked(40))),
        {},
        "doubtful",
        "the model has no chat template",
    ),
    "no token to stop at": (
        lambda p: tokenizer_without(p, "chat_template", "eos_token", rows=asked(40)),
        {},
        "wrong",
        "names no end token",
    ),
    "weights that are no numbers": (nan_weights, {}, "wrong", "NaN"),
    "a rate that explodes": (
        lambda p: decoder(p, asked(40)),
        {"train__lr": 5.0, "train__clip": 0.0},
        "wrong",
        "learning rate",
    ),
    "targets that do not exist": (
        lambda p: decoder(p, asked(40)),
        {"method__targets": ["kitchen"]},
        "wrong",
        "kitchen",
    ),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_prepared_fault_is_found(tmp_path, name):
    build, sets, level, words = FAULTS[name]
    model, data = build(tmp_path)
    texts = found(model, data, rehearsal=name in REHEARSED, **sets)
    assert any(words in text for text in texts[level]), texts


def test_rows_are_looked_at_though_some_are_broken(tmp_path):
    """One fault does not hide the next."""
    model, data = broken_row(tmp_path)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()[:-1]]
    lines = [json.dumps(row | {"completion": "yes"}) for row in rows]
    (data / "train.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    texts = found(model, data)
    assert any("train.jsonl:41" in text for text in texts["wrong"])
    assert any("it is all they teach" in text for text in texts["doubtful"])


def test_too_little_memory_is_told_and_nothing_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    done = check(*decoder(tmp_path, asked(40)))
    assert any("of memory are free" in finding.text for finding in done.findings)
    assert not done.ok
    assert done.rehearsed is None


def test_too_little_memory_by_forecast_is_a_doubt(tmp_path, monkeypatch):
    model, data = decoder(tmp_path, asked(40))
    needs = check(model, data, rehearsal=False).memory_bytes
    own = room.psutil.Process().memory_info().rss
    monkeypatch.setattr(room, "free_memory", lambda: max(0, needs - own) // 2)
    done = check(model, data, rehearsal=False)
    assert [finding.level for finding in done.findings] == ["doubtful"]
    assert "of memory by forecast" in done.findings[0].text


LONG_TEXT = " ".join(row["prompt"] for row in asked(400))
LONG: dict[str, Callable[[], Rows]] = {
    "short rows": lambda: asked(60),
    "long prompts": lambda: [{"prompt": f"{n} {LONG_TEXT[:9000]}", "completion": "yes it is"} for n in range(30)],
    "long answers": lambda: [{"prompt": f"say {n}", "completion": LONG_TEXT[n:9000]} for n in range(30)],
    "plain text": lambda: [{"text": f"{n} {LONG_TEXT}"} for n in range(30)],
    "two books": lambda: [{"text": LONG_TEXT}, {"text": LONG_TEXT[::-1]}],
}


@pytest.mark.parametrize("name", LONG)
def test_little_is_computed_in_a_rehearsal(tmp_path, monkeypatch, name):
    """Few tokens are read for two steps and two validations, however long the rows are."""
    read = []
    forward = Decoder.forward

    def counted(self, rows, *more, **named):
        read.append(len(rows.ids))
        return forward(self, rows, *more, **named)

    monkeypatch.setattr(Decoder, "forward", counted)
    model, data = (
        save_tiny_folder(tmp_path / "model", max_position_embeddings=4096, **SHALLOW),
        write(tmp_path, LONG[name]()),
    )
    done = check(model, data, data__max_length=2048)
    assert [finding for finding in done.findings if finding.level == "wrong"] == []
    assert done.rehearsed is not None
    assert sum(read) < (5.2 if name == "short rows" else 9) * MOST_TOKENS, sum(read)
    if name == "short rows":  # two steps and two validations, each at once
        assert sum(length > MOST_TOKENS / 2 for length in read) == 4


def test_nothing_is_kept_to_go_on_from_in_a_rehearsal(tmp_path, monkeypatch):
    """No checkpoint, and no weights as they were at the start: of a large model these are most of the work."""
    saved: list[str] = []
    monkeypatch.setattr(resume, "save_checkpoint", lambda *_, **__: saved.append("checkpoint"))
    save_adapter = fit.save_adapter

    def told(folder, model, method, about, tokens):
        saved.append(f"step {about['step']}")
        return save_adapter(folder, model, method, about, tokens)

    monkeypatch.setattr(fit, "save_adapter", told)
    done = check(*decoder(tmp_path, asked(40)))
    assert done.findings == []
    assert saved == ["step 2"]


@pytest.mark.parametrize(("lr", "level"), [("auto", "doubtful"), (5.0, "wrong")])
def test_two_steps_that_do_harm(tmp_path, monkeypatch, lr, level):
    """A rate that nobody chose is lowered by the run itself; and what was trained is saved though it is worse."""
    monkeypatch.setattr(prepare, "peak_lr", lambda method, model, knobs: knobs.lr or 5.0)
    sets = {} if lr == "auto" else {"train__lr": lr}
    done = check(*decoder(tmp_path, asked(40)), train__clip=0.0, **sets)
    assert [finding.level for finding in done.findings] == [level], done.findings
    assert "learning rate is likely too high" in done.findings[0].text
    assert ("smaller rate" in done.findings[0].text) is (level == "doubtful")


def test_a_rehearsal_is_told_to_no_tracker(tmp_path, monkeypatch):
    begun: list[Any] = []
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", (begun.append, ()))
    done = check(*decoder(tmp_path, asked(40)), track=["tensorboard"])
    assert done.rehearsed is not None
    assert begun == []


def test_too_little_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_disk", lambda folder: 10)
    texts = found(*decoder(tmp_path, asked(40)))
    assert any("are free where" in text for text in texts["wrong"])


def test_an_adapter_of_another_model(tmp_path):
    model, data = decoder(tmp_path, asked(40))
    run = microplane.train(model, data, set=SETS | {"runs": str(tmp_path / "runs"), "train.steps": 1, "eval.rows": 0})
    other = save_tiny_folder(tmp_path / "other", "qwen2", **SHALLOW)
    texts = found(other, data, rehearsal=False, model__adapter=str(run.folder))
    assert any("was trained on other files" in text for text in texts["wrong"])


@pytest.mark.parametrize("method", ["head-only", "bitfit", "prefix"])
def test_room_is_looked_at_for_every_kind_of_method(tmp_path, monkeypatch, method):
    """Also of those that train the head that labels bring, or nothing of which a model has."""
    monkeypatch.setattr(room, "free_disk", lambda folder: 10)
    model, data = encoder(tmp_path, reviews(40))
    done = microplane.check(model, data, method=method, set=SETS, rehearsal=False)
    assert any("are free where" in finding.text for finding in done.findings)


def test_train_tells_what_there_is_no_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_disk", lambda folder: 10)
    model, data = decoder(tmp_path, asked(40))
    run = microplane.train(model, data, set=SETS | {"runs": str(tmp_path / "runs"), "train.steps": 1, "eval.rows": 0})
    assert any("are free where" in line for line in run.result["advice"])


def test_the_command_shows_rows_and_findings(tmp_path):
    model, data = decoder(tmp_path, [row | {"completion": "yes"} for row in asked(40)])
    arguments = ["check", str(model), str(data), "--set", "train.threads=1", "--set", "model.dtype=float32"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "[[yes<|im_end|>]]" in done.output
    assert "doubtful  36 of 36 training rows have the same answer" in done.output
    done = CliRunner().invoke(app, [*arguments, "--set", "data.max_length=16", "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert done.exit_code == (0 if told["ok"] else 1)
    assert told["findings"]


def test_rehearsed_rows_are_the_longest_and_one_of_each_class(tmp_path):
    from microplane.config.build import assemble
    from microplane.data.progress import Silent
    from microplane.runs.prepare import check_config, prepare
    from microplane.runs.rehearsal import ROWS, _places

    rows = reviews(40)
    rows[7] = {"text": rows[7]["text"] * 3, "label": rows[7]["label"]}
    rows.append({"text": "fine", "label": "neutral"})
    rows.append({"text": "poor", "label": "neutral"})
    model, data = encoder(tmp_path, rows)
    config = assemble(given={"model.name": str(model), "data.train": str(data)} | SETS)
    prepared = prepare(config, check_config(config, Silent()), Silent())
    places = _places(prepared)
    assert len(places) == ROWS
    assert places[0] == "train.jsonl:8"
    neutral = {f"train.jsonl:{n}" for n in (41, 42)}
    assert neutral & set(places[:3])
