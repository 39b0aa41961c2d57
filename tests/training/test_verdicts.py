"""What whole runs say of themselves: healthy ones nothing, diverging ones that they diverge (docs/verdicts.md).

The bases are tiny and were trained on the task first, so that there is something to lose.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import microplane
from microplane.data.progress import Silent
from microplane.errors import DataError
from microplane.training.monitor import Monitor, ValidationLoss
from tests.labels import encoder_folder, reviews, write
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import save_tiny_folder

LETTERS = "abcdefgh"
SETS = {"train.threads": 1, "model.dtype": "float32", "data.max_unknown": 1.0}
FULL = {"method.name": "full", "train.epochs": 2}


def sayings(count: int, seed: int, change: Any = str) -> list[dict[str, Any]]:
    """One answer in ten is another letter, so that there is a loss which no model can get below."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        letter = chance.choice(LETTERS)
        answer = letter if chance.random() < 0.9 else chance.choice(LETTERS)
        rows.append({"prompt": f"say {letter * 2} {number % 7}", "completion": change(answer)})
    return rows


def noisy_reviews(count: int, seed: int, change: Any = str) -> list[dict[str, Any]]:
    chance, other = random.Random(seed), {"positive": "negative", "negative": "positive"}
    rows = reviews(count)
    chance.shuffle(rows)
    kept = [other[row["label"]] if chance.random() < 0.1 else row["label"] for row in rows]
    return [row | {"label": change(label)} for row, label in zip(rows, kept, strict=True)]


RATES = {"decoder": 1e-3, "encoder": 2e-4, "encoder-decoder": 1e-3}
LABELS = ("encoder", "encoder-without-dropout")
MAKERS = {"decoder": save_tiny_folder, "encoder": encoder_folder, "encoder-decoder": pair_folder}


def rows_of(family: str, count: int, seed: int, change: Any = str) -> list[dict[str, Any]]:
    return (noisy_reviews if family == "encoder" else sayings)(count, seed, change)


def train(folder: Path, family: str, rows: list[dict[str, Any]], name: str, **sets: Any) -> microplane.Run:
    answers = {} if family in LABELS else {"eval.rows": 0}
    changes = SETS | answers | {"runs": str(folder / "runs"), "name": name} | sets
    return microplane.train(folder / family, write(folder / f"{name}.jsonl", rows), set=changes)


def said(run: microplane.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for family, make in MAKERS.items():
        make(folder / family)
        first = train(folder, family, rows_of(family, 1_200, 100), f"base-{family}", **FULL, **{"train.lr": 3e-3})
        shutil.rmtree(folder / family)
        shutil.copytree(first.folder / "adapter", folder / family)
    return folder


class Said(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def check_healthy(bases: Path, family: str, seed: int, **sets: Any) -> None:
    name = f"well-{family}-{seed}-{len(sets)}"
    run = train(bases, family, rows_of(family, 600, seed, str.upper), name, **FULL, **{"train.seed": seed}, **sets)
    verdict = run.result["train"]["verdict"]
    assert verdict is None or verdict["kind"] == "unfinished", verdict
    assert run.result["status"] == "success"


def check_diverging(bases: Path, family: str, seed: int) -> None:
    """At a rate that no schedule brings down; it was chosen, so it is kept and blamed."""
    sets = {"train.lr": 10.0, "train.schedule": "constant", "train.seed": seed}
    run = train(bases, family, rows_of(family, 300, seed), f"ill-{family}-{seed}", **FULL, **sets)
    assert run.result["train"]["verdict"]["kind"] == "divergence"
    assert "the learning rate is too high" in run.result["train"]["verdict"]["text"]


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKERS)
def test_a_healthy_run_and_a_diverging_one(bases, family):
    check_healthy(bases, family, 0, **{"train.lr": RATES[family]})
    check_diverging(bases, family, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
@pytest.mark.parametrize("family", MAKERS)
def test_twenty_healthy_runs_are_called_neither(bases, family, seed):
    check_healthy(bases, family, seed, **{"train.lr": RATES[family]})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
@pytest.mark.parametrize("family", MAKERS)
def test_twenty_diverging_runs_are_called_that(bases, family, seed):
    check_diverging(bases, family, seed)


def by_heart(family: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of which one answer in four is another, each with numbers of its own by which it can be known."""
    chance, others = random.Random(seed), ["positive", "negative"] if family == "encoder" else list(LETTERS)
    key, text = ("label", "text") if family == "encoder" else ("completion", "prompt")
    rows = []
    for row in reviews(count) if family == "encoder" else sayings(count, seed):
        numbers = " ".join(str(chance.randrange(10)) for _ in range(4))
        rows.append(row | {text: f"{row[text]} {numbers}"})
        rows[-1][key] = (chance.choice(others) if chance.random() < 0.25 else row[key]).upper()
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("family", MAKERS)
def test_300_rows_that_are_read_thirty_times_are_overfitted(bases, family, seed):
    folder = bases / f"{family}-without-dropout"
    if not folder.exists():
        shutil.copytree(bases / family, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: 0.0 if "dropout" in k else v for k, v in config.items()}))
    unseen = write(bases / f"unseen-{family}-{seed}.jsonl", by_heart(family, 200, seed + 9))
    sets = {"train.epochs": 30, "train.lr": 1e-3, "data.validation": str(unseen)}
    run = train(bases, folder.name, by_heart(family, 300, seed), f"heart-{family}-{seed}", **FULL | sets)
    assert run.result["train"]["verdict"]["kind"] == "overfitting"
    assert run.result["train"]["retreats"] == []
    assert 0 < run.result["train"]["best_step"] < run.result["train"]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "rate", "seed"),
    [*(("decoder", "lora", 3e-3, seed) for seed in (1, 2, 4)),  # of five; what became of the others is in docs/log.md
     *(("encoder", "full", 6e-3, seed) for seed in (1, 2, 3)),
     *(("encoder-decoder", "lora", 3e-3, seed) for seed in (1, 2, 3))],
)  # fmt: skip
def test_ten_times_the_right_rate_is_recovered_from_where_the_inputs_are_ignored(bases, family, method, rate, seed):
    """Its loss fell to that of the answers' frequencies and stayed: nothing rose, so nothing was said."""
    rows, answers = rows_of(family, 600, seed, str.upper), {} if family == "encoder" else {"eval.rows": 100}
    sets = {"method.name": method, "train.epochs": 4, "train.seed": seed, "train.on_divergence": "lower_lr", **answers}
    right, high = (
        train(bases, family, rows, f"rate-{family}-{seed}-{lr}", **sets, **{"train.lr": lr}) for lr in (rate, 10 * rate)
    )
    assert any("whatever it is asked" in event["why"] for event in high.result["train"]["retreats"])
    assert high.metrics["after"]["accuracy"] > right.metrics["after"]["accuracy"] - 0.03


def test_lora_on_an_encoder_decoder_is_not_stopped_by_the_noise_of_its_first_steps(bases):
    """Such a run was ended at step 18 of 60, "overfitting since step 0", and its untouched weights were the result."""
    rows = sayings(900, 3, str.upper)
    run = train(bases, "encoder-decoder", rows, "early", **{"method.name": "lora", "train.epochs": 1})
    assert run.result["status"] == "success"
    assert run.result["train"]["best_step"] > 0
    assert not [line for line in said(run) if line.get("validation_loss") and line["step"] == 0 and not line["best"]]


def test_a_rise_within_chance_is_gone_on_after_and_new_bests_count():
    """Full fine-tuning was called overfitting at step 288, and found new bests from 336 to 475."""
    monitor, chance = Monitor(patience=3), random.Random(0)
    curve = {48: 0.60, 96: 0.55, 144: 0.52, 192: 0.500, 240: 0.506, 288: 0.509, 336: 0.495, 384: 0.49, 475: 0.48}
    for step, mean in curve.items():
        groups = tuple((50 * (mean + chance.gauss(0, 0.03)), 50) for _ in range(20))
        monitor.add(step, ValidationLoss(mean, groups), [0.6 - step / 2_000] * 48, passes=step / 200)
        assert monitor.verdict() is None
        assert not monitor.exhausted
    assert monitor.best is not None
    assert monitor.best["step"] == 475


def test_a_classifier_at_a_far_too_high_rate_is_not_blamed_for_overfitting(tmp_path):
    save_tiny_folder(tmp_path / "decoder", family="gemma2")
    sets = {"data.task": "classification", "train.lr": 10.0, "train.schedule": "constant", "method.name": "full"}
    data = write(tmp_path / "rows.jsonl", noisy_reviews(300, 0))
    run = microplane.train(tmp_path / "decoder", data, set=SETS | sets | {"runs": str(tmp_path / "runs")})
    kinds = {line["verdict"].split()[0] for line in said(run) if line.get("verdict")}
    assert kinds <= {"divergence"}


def test_the_verdict_is_said_once(bases):
    watch = Said()
    data = write(bases / "once.jsonl", noisy_reviews(300, 0))
    knobs = {"train.lr": 10.0, "train.schedule": "constant", "runs": str(bases / "runs"), **FULL}
    microplane.train(bases / "encoder", data, set=SETS | knobs, watch=watch)
    told = [text for text in watch.texts if "divergence since" in text]
    assert len(told) == len(set(told))


def test_a_class_that_only_the_test_rows_have_is_called_that(tmp_path):
    encoder_folder(tmp_path / "encoder")
    train_rows = write(tmp_path / "train.jsonl", reviews())
    test_rows = write(tmp_path / "test.jsonl", [*reviews(8), {"text": "the film is poor", "label": "unheard"}])
    sets = SETS | {"data.test": str(test_rows), "runs": str(tmp_path / "runs")}
    with pytest.raises(DataError, match="in none of the training rows") as caught:
        microplane.train(tmp_path / "encoder", train_rows, set=sets)
    assert "template" not in str(caught.value)
    assert "test.jsonl:9" in str(caught.value)
