"""A run's folder as training leaves it, with every field of the schema."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

STEPS = 150


def losses(steps: int) -> list[float]:
    noise = random.Random(0)
    return [2.9 * math.exp(-step / 14) + 0.06 + 0.09 * noise.random() for step in range(1, steps + 1)]


def metric_lines(steps: int = STEPS, validate_every: int = 15) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step, loss in enumerate(losses(steps), start=1):
        lr = 1e-3 * min(step / 8, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        sizes = {"tokens": 1040 + step, "trained_tokens": 512}  # of this step
        lines.append({"step": step, "epoch": step / steps, "loss": loss, "lr": lr, "grad_norm": 0.8, **sizes})
        if step % validate_every == 0:
            validation = 2.4 * math.exp(-step / 20) + 0.118 + 4e-5 * max(0, step - 120)
            lines.append({"step": step, "validation_loss": validation, "best": step <= 120})
    return lines


def speed_lines(steps: int = STEPS) -> list[dict[str, Any]]:
    noise = random.Random(1)
    return [
        {
            "step": step,
            "steps": STEPS,
            "seconds": 2.88,
            "tokens_per_second": 361.0 + 40 * noise.random(),
            "trained_tokens_per_second": 177.0 + 20 * noise.random(),
            "memory_bytes": 1_240_000_000 + 1_000_000 * step,
        }
        for step in range(1, steps + 1)
    ]


def sample_rows() -> list[dict[str, str]]:
    def call(intent: str, /, **slots: Any) -> str:
        return json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)

    chat = "Sure! I can help you with that. Here is what you can do to turn on the light in the kitchen: "
    pairs = [
        ("turn on the kitchen light", call("HassTurnOn", area="kitchen", domain="light"), chat * 3),
        ("set the bedroom to 21 degrees", call("HassClimateSetTemperature", area="bedroom", temperature=21), ""),
        (
            "close all the blinds in the office",
            call("HassTurnOff", area="office", domain="cover"),
            '{"action": "close"}',
        ),
        (
            "bật đèn phòng khách giúp tôi với nhé",
            call("HassTurnOn", area="phòng khách", domain="light"),
            "Tôi là trợ lý.",
        ),
        ("שים מוזיקה בסלון", call("HassMediaPlay", area="סלון"), "שלום! איך אפשר לעזור?"),
        ("🔥 make it warmer 🥶 in here", call("HassClimateSetTemperature", temperature="+1"), "🔥🔥🔥"),
        (
            "<script>window.hacked = 1</script> & \"quotes\" 'too'",
            "</script><script>window.hacked = 2</script>",
            "<b>no</b>",
        ),
        ("a" * 300, call("HassNevermind", text="a" * 120), "Lorem ipsum " * 60),
        ("is the garage door open?", call("HassGetState", name="garage door", state="open"), "I cannot check doors."),
        ("two\nlines\tand a tab", call("HassBroadcast", message="two\nlines"), "two\n\nlines"),
    ]
    rows = [
        {"prompt": prompt, "target": target, "before": before, "after": target, "where": f"commands-test.jsonl:{i}"}
        for i, (prompt, target, before) in enumerate(pairs, start=1)
    ]
    rows[2]["after"] = call("HassTurnOff", area="kitchen", domain="cover")
    rows[8]["after"] = call("HassGetState", name="garage", state="open")
    return rows


def full_result(name: str = "smollm2-lora-commands") -> dict[str, Any]:
    validation = 2.4 * math.exp(-6) + 0.118
    return {
        "schema": 1,
        "status": "success",
        "error": None,
        "name": name,
        "run": knobs(name),
        "method": {
            "name": "lora",
            "facts": {
                "quantize": None,
                "optimizers": None,
                "mergeable": True,
                "starts_at_base": True,
                "trains_base": False,
                "whole_model": False,
            },
            "trainable_parameters": 4_884_480,
            "total_parameters": 139_399_488,
            "adapter_bytes": 19_566_712,
        },
        "model": {
            "name": "smollm2",
            "path": "models/smollm2-135m-instruct.gguf",
            "architecture": "LlamaForCausalLM",
            "parameters": 134_515_008,
            "stored": "Q4_1",
            "dtype": "bfloat16",
            "fingerprint": "7d3c5be0c5f4f7d2b3ab8f1a5e2d1c0f9e8d7c6b5a49382716051423324150aa",
        },
        "data": {
            "format": "prompt/completion (prompt -> completion)",
            "template": "chat",
            "system": None,
            "bad": {},
            "bad_examples": [],
            "rows": {"train": 2400, "validation": 200, "test": 300},
            "lengths": {
                "train": {"min": 51, "median": 64.0, "mean": 65.1, "p95": 77.0, "max": 102},
                "validation": {"min": 52, "median": 64.0, "mean": 64.9, "p95": 76.0, "max": 97},
                "test": {"min": 51, "median": 65.0, "mean": 65.4, "p95": 78.0, "max": 99},
            },
            "duplicates": {"train": 0, "validation": 0, "test": 0},
            "unk_rate": 0.0,
            "warnings": [],
            "train_rows": 2400,
            "validation_rows": 200,
            "test_rows": 300,
            "train_tokens": 156_240,
            "trained_tokens": 76_801,
            "truncated": 0,
            "overlap": 0,
            "fingerprint": "0f9e8d7c6b5a4938271605142332415007d3c5be0c5f4f7d2b3ab8f1a5e2d1ca",
            "files": ["commands-train.jsonl", "commands-validation.jsonl", "commands-test.jsonl"],
        },
        "train": {
            "steps": STEPS,
            "best_step": 120,
            "epochs": 1.0,
            "stopped_early": False,
            "overfitting": "validation loss has risen for 2 checks while training loss fell: "
            "overfitting since step 120; the adapter of step 120 is kept",
            "seconds": 432.1873,
            "tokens": 156_240,
            "trained_tokens": 76_801,
            "tokens_per_second": 361.5128,
            "trained_tokens_per_second": 177.7053,
            "peak_memory_bytes": 1_390_231_552,
            "train_loss": losses(STEPS)[-1],
            "validation_loss": validation,
            "validation_perplexity": math.exp(validation),
        },
        "metrics": {
            "rows": 300,
            "split": "test",
            "before": {
                "loss": 3.018273645,
                "exact_match": 1 / 300,
                "json_valid": 0.02,
                "json_equal": 1 / 300,
                "chrf": 8.2913,
            },
            "after": {
                "loss": 0.12091827,
                "exact_match": 254 / 300,
                "json_valid": 1.0,
                "json_equal": 257 / 300,
                "chrf": 97.3,
            },
        },
        "samples": sample_rows(),
        "checks": [
            {"name": "every trainable tensor moved", "passed": True, "value": "420 of 420", "detail": "after 3 steps"},
            {
                "name": "saved = trained",
                "passed": True,
                "value": 0.0,
                "detail": "largest logit difference on 4 stored rows",
            },
            {
                "name": "merged = unmerged",
                "passed": True,
                "value": 3.5762786865234375e-06,
                "detail": "largest logit difference on 4 stored rows",
            },
        ],
        "environment": {
            "microplane": "0.1.0",
            "torch": "2.13.0+cpu",
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Some Processor @ 2.80GHz",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8_318_365_696,
            "commit": None,
            "date": "2026-11-23T19:07:41+00:00",
        },
    }


def knobs(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "runs": "runs",
        "model": {"name": "smollm2", "revision": None, "dtype": "auto"},
        "method": {"name": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": ["all"]},
        "data": {"train": "commands-train.jsonl", "test": "commands-test.jsonl", "max_length": 1024},
        "train": {"epochs": 1.0, "lr": 0.001, "schedule": "cosine", "seed": 0},
        "eval": {"metrics": ["auto"], "rows": 300},
    }


def make_run(
    folder: Path,
    result: dict[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    speed: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a run's folder; a part that is None is left out, run.yaml is always there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(knobs(folder.name), sort_keys=False), encoding="utf-8")
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    for name, lines in (("metrics.jsonl", metrics), ("speed.jsonl", speed)):
        if lines is not None:
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def make_full_run(folder: Path) -> Path:
    return make_run(folder, full_result(folder.name), metric_lines(), speed_lines())
