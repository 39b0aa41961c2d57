"""LoRA on the demo's data (W2): Microplane against transformers + peft and TRL's trainer, each in a process of its own.

    pip install --no-deps --target trl trl datasets pyarrow pandas dill multiprocess xxhash python-dateutil six
    python benchmarks/speed.py [--steps 40] [--pairs 3] [--trl trl]

The same token ids in the same batches, the same adapters and schedule, the base in bfloat16; also with our base in nf4,
multiplied in 8 bits. From the process's start to the last validation, and a step by itself. The loop with peft runs as
it is or under autocast, whichever takes shorter steps. It is not compiled: for rows of all lengths that took four
minutes before the first step on two cores. Writes results/speed_<date>.json with all figures and the ratios pair by
pair.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import environment, spread
from microplane.cli.demo import recipe
from microplane.config.knobs import DataKnobs
from microplane.data.batch_plan import BatchPlan
from microplane.data.preparing.load_splits import load_splits
from microplane.data.store import Dataset
from microplane.data.tokenizers.load import load_tokenizer
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model, save_model
from microplane.objectives.select import NEXT_TOKEN

HERE = Path(__file__).parent
BATCH = 16


def prepare(folder: Path, steps: int) -> None:
    """A bfloat16 Hugging Face folder of SmolLM2, and the demo's rows as both sides read them."""
    path = resolve("smollm2")
    save_model(load_model(path, torch.bfloat16), folder / "model")
    tokenizer = load_tokenizer(path)
    tokenizer.save(folder / "model")
    recipe().build(folder / "data", train_rows=steps * BATCH + 800, test_rows=300)
    splits = load_splits(DataKnobs(train=str(folder / "data"), system=""), tokenizer, NEXT_TOKEN)
    plan = BatchPlan(splits.train.lengths, BATCH)
    whole = [step for step in plan.epoch(0) if len(step) == BATCH][:steps]
    write(folder / "train.jsonl", splits.train, [int(row) for step in whole for row in step])
    write(folder / "validation.jsonl", splits.validation, list(range(min(300, len(splits.validation)))))


def write(path: Path, dataset: Dataset, rows: list[int]) -> None:
    lines = []
    for row in rows:
        ids, trained = dataset[row]
        lines.append(json.dumps({"ids": ids.tolist(), "trained": trained.astype(int).tolist()}))
    path.write_text("\n".join(lines) + "\n")


def side(script: str, folder: Path, steps: int, *more: str, extra: Path | None = None) -> dict[str, Any]:
    """Its figures, and the seconds of the whole process. `extra`: a folder of packages that only this side needs."""
    out = folder / "out.json"
    files = ["--model-folder", folder / "model", "--train", folder / "train.jsonl"]
    files += ["--validation", folder / "validation.jsonl", "--out", out]
    knobs = ["--steps", steps, "--batch-size", BATCH, "--rank", 16, "--alpha", 32, "--lr", 1e-3, "--warmup", 5]
    command = [sys.executable, HERE / script, *files, *knobs, *more]
    paths = [str(extra.resolve())] if extra else []
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    began = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        raise SystemExit(f"{script}: {done.stderr[-2000:]}")
    return json.loads(out.read_text()) | {"process_seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trl", type=Path, metavar="FOLDER", help="where TRL and what it needs are installed")
    options = parser.parse_args()
    about = environment()
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.steps)
        way = faster_way(folder)
        sides: dict[str, tuple[str, list[str]]] = {
            "ours": ("ours.py", []),
            "ours 8 bits": ("ours.py", ["--dtype", "nf4", "--compute", "int8"]),
            "peer": ("peer.py", way),
        }
        if options.trl:
            sides["trl"] = ("peer.py", [*way, "--trl"])
        for pair in range(options.pairs):
            for who, (script, more) in sides.items():
                extra = options.trl if who == "trl" else None
                runs.setdefault(who, []).append(side(script, folder, options.steps, *more, extra=extra))
                print(f"pair {pair + 1}: {who}: {line(runs[who][-1])}", flush=True)
    result = {
        "what": "speed of LoRA on the demo's data",
        **about,
        "peer": "with autocast" if way else "as it comes",
        **compare(runs),
        "runs": runs,
    }
    path = HERE / "results" / f"speed_{about['date'][:10]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("runs", "hardware")}, indent=1))


def faster_way(folder: Path) -> list[str]:
    """Whether the peer's adapters shall multiply in bfloat16 too: what a few steps show to be faster."""
    ways: list[list[str]] = [[], ["--autocast"]]
    return max(ways, key=lambda way: side("peer.py", folder, 8, *way)["trained_tokens_per_second"]["median"])


def line(run: dict[str, Any]) -> str:
    rate, whole = run["trained_tokens_per_second"]["median"], run["process_seconds"]
    memory = run["peak_memory_bytes"] / 1e9
    return f"{whole:.1f} s, {rate:.0f} trained tokens/s, {memory:.2f} GB, loss {run['validation_loss']:.4f}"


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of each side the spread, and ours against each peer, pair by pair."""
    values = {
        "process_seconds": lambda run: run["process_seconds"],
        "trained_tokens_per_second": lambda run: run["trained_tokens_per_second"]["median"],
        "peak_memory_bytes": lambda run: run["peak_memory_bytes"],
        "validation_loss": lambda run: run["validation_loss"],
    }
    found: dict[str, Any] = {
        name: {who: spread([value(run) for run in some]) for who, some in runs.items()}
        for name, value in values.items()
    }
    for ours in ("ours", "ours 8 bits"):
        for peer in runs.keys() - {"ours", "ours 8 bits"}:
            pairs = list(zip(runs[ours], runs[peer], strict=True))
            found[f"{ours} against {peer}"] = {
                name: spread([value(one) / value(other) for one, other in pairs]) for name, value in values.items()
            }
    return found


if __name__ == "__main__":
    main()
