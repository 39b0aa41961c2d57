"""What the two sides of a speed comparison share: arguments, rows, and how figures are written."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

WARM_STEPS = 2  # left out of the medians: first touches of memory, kernels chosen


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="training on rows that are tokenised and batched already")
    parser.add_argument("--model-folder", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--pairs", action="store_true", help="the whole of an encoder-decoder trains, without LoRA")
    parser.add_argument("--method", default="lora", help="ours: any method with a rank and an alpha")
    parser.add_argument("--targets", nargs="+", default=["all"], help="ours: what it adapts")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=0, help="steps of linear warm-up")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "nf4"), default="bfloat16", help="of the base")
    parser.add_argument(
        "--compute", choices=("bfloat16", "int8"), default="bfloat16", help="ours, of nf4: model.compute"
    )
    parser.add_argument("--autocast", action="store_true", help="all is multiplied in bfloat16 (torch.autocast)")
    parser.add_argument("--trl", action="store_true", help="peer: the steps are TRL's trainer's")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="the peer's way")
    parser.add_argument("--recompute", default="none", help="ours: train.recompute")
    parser.add_argument("--micro-tokens", type=int, default=4096, help="ours: tokens computed at once")
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def steps_of(rows: Sequence[dict[str, Any]], batch_size: int) -> list[list[int]]:
    """The row numbers of each step: as the rows say it themselves, else `batch_size` after the other."""
    steps: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        steps.setdefault(row.get("step", number // batch_size), []).append(number)
    return list(steps.values())


def peak_rss() -> int:
    """The most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with what the process that started this one held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def empty_process() -> int:
    """The same of one that has imported torch and nothing else."""
    code = "import torch; torch.ones(1); from common import peak_rss; print(peak_rss())"
    return int(subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parent))


def settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Knobs by dotted name, of `--set NAME=VALUE ...`."""
    from microplane.config.build import parse_value  # peer.py measures itself, and does without it

    return {name: parse_value(text) for name, _, text in (item.partition("=") for item in assignments)}


def spread(values: Sequence[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "quartile_low": quartiles[0],
        "quartile_high": quartiles[2],
        "least": min(values),
        "most": max(values),
    }


def speed(counts: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    """Tokens per second: spread over the steps after the warm ones, and all tokens by all seconds."""
    rates = [count / second for count, second in zip(counts, seconds, strict=True)]
    return spread(rates[WARM_STEPS:] or rates) | {"overall": sum(counts) / sum(seconds)}


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def environment() -> dict[str, Any]:
    return {
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_before": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("transformers", "peft", "bitsandbytes", "microplane")},
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def figures(
    seconds: Sequence[float], losses: Sequence[float], tokens: Sequence[int], trained: Sequence[int]
) -> dict[str, Any]:
    """What both sides say of their steps."""
    return {
        "seconds": sum(seconds),
        "step_seconds": spread(seconds[WARM_STEPS:] or seconds),
        "trained_tokens_per_second": speed(trained, seconds),
        "tokens_per_second": speed(tokens, seconds),
        "tokens": sum(tokens),
        "trained_tokens": sum(trained),
        "steps": [
            {"seconds": s, "loss": loss, "tokens": n, "trained_tokens": k}
            for s, loss, n, k in zip(seconds, losses, tokens, trained, strict=True)
        ],
    }


def named(options: argparse.Namespace) -> dict[str, Any]:
    """The options without the paths of this machine."""
    return {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
