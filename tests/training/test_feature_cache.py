"""What lies below a frozen boundary is computed once: equal to computing anew, found again, never trusted blindly."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import microplane
from microplane.cache.eviction import prune
from microplane.data.progress import Silent
from microplane.files import cache_dir
from microplane.models.families import family_of
from microplane.models.files.load import save_model
from tests.tiny import CONFIGS, ENCODER_CONFIGS, save_byte_tokenizer


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))


def folder_of(folder: Path, fields: dict) -> str:
    folder.mkdir(parents=True)
    size = save_byte_tokenizer(folder, ends=True)
    fields = fields | {"vocab_size": size, "eos_token_id": 1, "pad_token_id": 0}
    save_model(family_of(fields).from_hf(fields).init_weights(0), folder)
    return str(folder)


def reviews(folder: Path) -> str:
    lines = [{"text": f"a {('fine', 'poor')[n % 2]} film {n}", "label": ("good", "bad")[n % 2]} for n in range(60)]
    file = folder / "reviews.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def train(folder: Path, model: str, method: str, name: str, **changes) -> microplane.runs.train.Run:
    knobs = {"train.epochs": 4, "train.lr": 1e-2, "model.dtype": "float32", "runs": str(folder / "runs"), "name": name}
    return microplane.train(model, reviews(folder), method=method, set=knobs | changes)


MODELS = {"bert": ENCODER_CONFIGS["bert"], "modernbert": ENCODER_CONFIGS["modernbert"], "llama": CONFIGS["llama-tied"]}


@pytest.mark.parametrize("method", ["head-only", "last-n"])
@pytest.mark.parametrize("family", MODELS)
def test_cached_and_uncached_are_the_same_run(family, method, tmp_path):
    model = folder_of(tmp_path / "model", MODELS[family])
    knobs = {"data.task": "classification", **({"method.n": 1} if method == "last-n" else {})}
    kept = train(tmp_path, model, method, "kept", **knobs)
    anew = train(tmp_path, model, method, "anew", **knobs, **{"train.feature_cache": "off"})
    assert kept.result["train"]["feature_cache"]["bytes"] > 0
    assert anew.result["train"]["feature_cache"] is None
    losses = [
        [line["validation_loss"] for line in map(json.loads, log) if "validation_loss" in line]
        for log in ((run.folder / "metrics.jsonl").read_text().splitlines() for run in (kept, anew))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert kept.metrics["after"]["accuracy"] == anew.metrics["after"]["accuracy"]
    assert [sample["after"] for sample in kept.result["samples"]] == [s["after"] for s in anew.result["samples"]]
    assert all(check["passed"] in (True, None) for check in kept.result["checks"]), kept.result["checks"]


def test_features_are_found_again_and_damage_is_seen(tmp_path):
    model = folder_of(tmp_path / "model", MODELS["bert"])
    first = train(tmp_path, model, "head-only", "first").result["train"]["feature_cache"]
    assert (first["found"], first["pooled"]) == (False, True)
    again = train(tmp_path, model, "head-only", "again").result["train"]["feature_cache"]
    assert again["found"]
    numbers = sorted((cache_dir() / "features").glob("*/numbers"))
    assert len(numbers) == 2  # of the training and of the validation rows
    numbers[0].write_bytes(b"\1" + numbers[0].read_bytes()[1:])
    damaged = train(tmp_path, model, "head-only", "damaged")
    assert not damaged.result["train"]["feature_cache"]["found"]
    assert damaged.metrics == train(tmp_path, model, "head-only", "last").metrics


def test_another_boundary_another_model_and_other_rows_have_features_of_their_own(tmp_path):
    model = folder_of(tmp_path / "model", MODELS["bert"])
    train(tmp_path, model, "head-only", "a")
    train(tmp_path, model, "last-n", "b", **{"method.n": 1})
    other = folder_of(tmp_path / "other", MODELS["bert"] | {"initializer_range": 0.3})
    found = train(tmp_path, other, "head-only", "c").result["train"]["feature_cache"]
    assert not found["found"]
    assert len(list((cache_dir() / "features").iterdir())) == 6


def test_a_killed_run_with_features_goes_on_to_the_same_bytes(tmp_path):
    model = folder_of(tmp_path / "model", MODELS["bert"])
    run = train(tmp_path, model, "last-n", "whole", **{"method.n": 1, "train.eval_every": 4})
    log = (run.folder / "metrics.jsonl").read_bytes()
    last = sorted((run.folder / "resume").glob("step-*"))[-1]
    shutil.rmtree(last)
    microplane.runs.train.resume(run.folder)
    assert (run.folder / "metrics.jsonl").read_bytes() == log


def test_layer_wise_rates_and_gradual_unfreezing_are_bitwise_on_resume(tmp_path):
    model = folder_of(tmp_path / "model", MODELS["bert"])
    knobs = {"train.layer_decay": 0.5, "train.unfreeze_every": 4, "train.lr": 1e-3, "train.eval_every": 4}
    run = train(tmp_path, model, "full", "slow", **knobs)
    assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]
    log = (run.folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(sorted((run.folder / "resume").glob("step-*"))[-1])
    microplane.runs.train.resume(run.folder)
    assert (run.folder / "metrics.jsonl").read_bytes() == log


def test_what_a_live_run_reads_stays_in_the_cache(tmp_path):
    """Rows and features are in use in every step; after the run they may go."""
    model = folder_of(tmp_path / "model", MODELS["bert"])
    told = []

    class Watch(Silent):
        def record(self, record: dict[str, Any]) -> None:
            told.extend((kind, prune(kind)) for kind in ("data", "features"))

    knobs = {"train.epochs": 4, "model.dtype": "float32", "runs": str(tmp_path / "runs")}
    run = microplane.train(model, reviews(tmp_path), method="head-only", set=knobs, watch=Watch())
    assert run.result["train"]["feature_cache"]
    assert {(kind, len(pruned.in_use), len(pruned.deleted)) for kind, pruned in told} == {
        ("data", 1, 0),
        ("features", 2, 0),
    }
    gc.collect()
    assert len(prune("features").deleted) == 2
    assert len(prune("data").deleted) == 1


def test_features_that_the_disk_has_no_room_for_are_computed_anew(tmp_path, monkeypatch):
    """Written to a file that the disk cannot hold they would end the process."""

    def full(handle, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    model = folder_of(tmp_path / "model", MODELS["bert"])
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    run = train(tmp_path, model, "head-only", "full", **{"train.epochs": 2})
    assert run.result["status"] == "success"
    assert run.result["train"]["feature_cache"] is None
    assert not list((cache_dir() / "features").glob("*"))
