"""LoRA on the demo's data: Microplane against transformers + peft, in turn, each in a process of its own.

    python benchmarks/speed.py [--steps 40] [--pairs 3]

The same token ids in the same batches, the same adapters, schedule and number format (bfloat16). Writes
results/speed_<date>.json with both sides' figures and the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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


def side(script: str, folder: Path, steps: int, *more: str) -> dict[str, Any]:
    out = folder / "out.json"
    files = ["--model-folder", folder / "model", "--train", folder / "train.jsonl"]
    files += ["--validation", folder / "validation.jsonl", "--out", out]
    knobs = ["--steps", steps, "--batch-size", BATCH, "--rank", 16, "--alpha", 32, "--lr", 1e-3, "--warmup", 5]
    command = [sys.executable, HERE / script, *files, *knobs, *more]
    subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    about = environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.steps)
        way = faster_way(folder)
        for pair in range(options.pairs):
            sides["ours"].append(side("ours.py", folder, options.steps))
            sides["peer"].append(side("peer.py", folder, options.steps, *way))
            told = "; ".join(f"{who}: {line(runs[-1])}" for who, runs in sides.items())
            print(f"pair {pair + 1}: {told}", flush=True)
    how = "with autocast" if way else "as it comes"
    result = {"what": "speed of LoRA on the demo's data", **about, "peer": how, **compare(sides), "runs": sides}
    path = HERE / "results" / f"speed_{about['date'][:10]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("runs", "hardware")}, indent=1))


def faster_way(folder: Path) -> list[str]:
    """Whether the peer's adapters shall multiply in bfloat16 too: what a few steps show to be faster."""
    ways: list[list[str]] = [[], ["--autocast"]]
    return max(ways, key=lambda way: side("peer.py", folder, 8, *way)["trained_tokens_per_second"]["median"])


def line(run: dict[str, Any]) -> str:
    rate = run["trained_tokens_per_second"]["median"]
    return f"{rate:.0f} trained tokens/s, {run['peak_memory_bytes'] / 1e9:.2f} GB, loss {run['validation_loss']:.4f}"


def compare(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios ours / peer, pair by pair."""
    rate = {who: [run["trained_tokens_per_second"]["median"] for run in runs] for who, runs in sides.items()}

    def ratios(key: Any) -> list[float]:
        return [key(ours) / key(theirs) for ours, theirs in zip(sides["ours"], sides["peer"], strict=True)]

    return {
        "trained_tokens_per_second": {who: spread(values) for who, values in rate.items()},
        "speed_ratio": spread(ratios(lambda run: run["trained_tokens_per_second"]["median"])),
        "memory_ratio": spread(ratios(lambda run: run["peak_memory_bytes"])),
        "validation_loss_ratio": spread(ratios(lambda run: run["validation_loss"])),
    }


if __name__ == "__main__":
    main()
