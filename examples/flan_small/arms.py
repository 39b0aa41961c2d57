"""The two arms: the same fine-tuning on the held-out task, from two starting points, and how fast each learns."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from choose import OptionRows, counting_baseline, rank, read_choices, write_freely
from stages import StoppedError

from microplane.checkpoints.adapter import save_adapter
from microplane.checkpoints.attach_saved import fingerprint
from microplane.config.knobs import DataKnobs, TrainKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.data.tokenizers.load import load_tokenizer
from microplane.files import write_aside
from microplane.methods import make_method
from microplane.methods.method import attach_method
from microplane.models.files.load import load_model
from microplane.nn.number_format import NumberFormat
from microplane.objectives.select import candidates
from microplane.training.loop import fit

Curve = list[tuple[int, float]]  # (step, validation accuracy)


@dataclass(frozen=True)
class Plan:
    """What all fine-tuning runs have in common."""

    data: Path  # a folder with train, validation and test
    steps: int
    batch_size: int
    every: int  # steps between two measurements
    validation_rows: int
    test_rows: int
    longest: int  # tokens of an input
    dropout: float
    threads: int
    form: NumberFormat  # of weights and products


def start_from(adapter: Path, folder: Path, dropout: float) -> Path:
    """A model's folder as a starting point: the same weights, another dropout."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(adapter / name, folder / name)
        config = json.loads((adapter / "config.json").read_text()) | {"dropout_rate": dropout}
        write_aside(folder / "config.json", json.dumps(config, indent=1).encode())
    return folder


def zero_shot(start: Path, plan: Plan, written: int) -> dict[str, Any]:
    """Before any fine-tuning: the test rows ranked, some of them answered freely."""
    tokenizer = load_tokenizer(start)
    model = load_model(start, plan.form)
    rows = read_choices(plan.data / "test.jsonl", plan.test_rows)
    ranked = rank(model, rows, OptionRows(rows, tokenizer, plan.longest))
    return {"ranked": ranked, "written": write_freely(model, tokenizer, rows[:written]), "rows": len(rows)}


def baselines(plan: Plan) -> dict[str, float]:
    train = read_choices(plan.data / "train.jsonl", plan.steps * plan.batch_size)
    return counting_baseline(train, read_choices(plan.data / "test.jsonl", plan.test_rows))


def fine_tune(
    start: Path, plan: Plan, lr: float, seed: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """One fine-tuning: its curve, and the test accuracy of the weights with the lowest validation loss.

    Raises:
        StoppedError: if it was interrupted; called again, it goes on.
    """
    torch.set_num_threads(plan.threads)
    tokenizer = load_tokenizer(start)
    model = load_model(start, plan.form)
    data = DataKnobs(train=str(plan.data), max_length=plan.longest, template="plain")
    splits = load_splits(data, tokenizer, candidates(model))
    rows = {
        name: read_choices(plan.data / f"{name}.jsonl", most)
        for name, most in (("validation", plan.validation_rows), ("test", plan.test_rows))
    }
    options = {name: OptionRows(own, tokenizer, plan.longest) for name, own in rows.items()}
    method = make_method({"name": "full"})
    knobs = TrainKnobs(
        steps=plan.steps, batch_size=plan.batch_size, lr=lr, schedule="linear", warmup=0.06, seed=seed, patience=0,
        eval_every=plan.every, save_every=plan.every, threads=plan.threads,
    )  # fmt: skip
    attach_method(method, model)
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "accuracy.json"
    curve: dict[str, float] = json.loads(notes.read_text()) if notes.exists() else {}
    measured: dict[str, float] = {}

    def validate(model: torch.nn.Module) -> float:
        measured.update(rank(model, rows["validation"], options["validation"]))
        return measured["loss"]

    def note(record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            curve[str(record["step"])] = measured["accuracy"]
            write_aside(notes, json.dumps(curve).encode())
            say(f"  step {record['step']}: validation accuracy {measured['accuracy']:.3f}, loss {measured['loss']:.3f}")

    identity = {
        "model": fingerprint(start),
        "train rows": splits.train.fingerprint,
        "train": knobs.model_dump(mode="json"),
        "rows": [plan.validation_rows, plan.test_rows],
        "dtype": plan.form.name,
    }
    outcome = fit(
        model, method, splits.train, knobs, folder, objective=splits.objective,
        validate=validate, identity=identity, resume=(folder / "resume").is_dir(), on_record=note,
        save_best=lambda step, loss: save_adapter(folder / "adapter", model, method, {"step": step}) and None,
    )  # fmt: skip
    if outcome.interrupted:
        raise StoppedError(f"stopped in {folder}; the same command goes on from there")
    best = load_model(folder / "adapter", plan.form)
    test = rank(best, rows["test"], options["test"])
    for heavy in ("adapter", "resume"):
        shutil.rmtree(folder / heavy, ignore_errors=True)
    points = sorted((int(step), value) for step, value in curve.items())
    return {
        "lr": lr, "seed": seed, "curve": points, "best_step": outcome.best_step,
        "validation_loss": outcome.validation_loss, "test": test,
    }  # fmt: skip


# ---------------------------------------------------------------- arithmetic of the results


def steps_to(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    """The first measured step with at least this quality, None if it is never reached."""
    return next((step for step, value in curve if value >= level), None)


def choose_lr(runs: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate of the run with the lowest validation loss."""
    return min(runs, key=lambda run: run["validation_loss"])["lr"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, and standard deviation over the seeds."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def mean_curve(curves: Sequence[Curve]) -> list[dict[str, float]]:
    """Mean, lowest and highest of curves that were measured at the same steps."""
    steps = [step for step, _ in curves[0]]
    if any([step for step, _ in curve] != steps for curve in curves):
        raise ValueError("curves that were measured at different steps cannot be averaged")
    columns = list(zip(*[[value for _, value in curve] for curve in curves], strict=True))
    return [
        {"step": step, "mean": statistics.fmean(own), "low": min(own), "high": max(own)}
        for step, own in zip(steps, columns, strict=True)
    ]


def summary(runs: Sequence[Mapping[str, Any]], levels: Sequence[float]) -> dict[str, Any]:
    """An arm's figures over its seeds. A level counts as reached by the arm when its mean curve reaches it."""
    curve = mean_curve([run["curve"] for run in runs])
    means = [(int(point["step"]), point["mean"]) for point in curve]
    return {
        "test_accuracy": spread([run["test"]["accuracy"] for run in runs]),
        "best_validation_accuracy": spread([max(value for _, value in run["curve"]) for run in runs]),
        "area": math.fsum(value for _, value in means) / len(means),
        "curve": curve,
        "steps_to": {f"{level:.3f}": reached(means, runs, level) for level in levels},
    }


def reached(means: Curve, runs: Sequence[Mapping[str, Any]], level: float) -> dict[str, Any]:
    """Steps to a level: of the mean curve, and of each seed's own."""
    return {"mean_curve": steps_to(means, level), "seeds": [steps_to(run["curve"], level) for run in runs]}


def levels_of(curves: Sequence[Curve], count: int = 5) -> list[float]:
    """Levels between the best start and the best mean end, evenly spaced, in whole hundredths."""
    low = max(curve[0][1] for curve in curves)
    high = max(max(value for _, value in curve) for curve in curves)
    spaced = [low + (high - low) * (number + 1) / (count + 1) for number in range(count)]
    return sorted({round(level, 2) for level in spaced})
