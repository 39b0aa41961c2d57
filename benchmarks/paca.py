"""PaCA beside LoRA at equal rank: time and memory of a training step, in turn, each in a process of its own.

    python benchmarks/paca.py [--steps 20] [--pairs 5] [--rank 8] [--targets q v] [--dtype bfloat16]

SmolLM2 on rows of random tokens, 8 x 256 in a step: what is measured does not depend on what the rows say. Writes
results/paca_<date>.json with both sides' figures and the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import environment, spread
from microplane.data.tokenizers.load import load_tokenizer
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model, save_model

HERE = Path(__file__).parent
ROWS, LENGTH = 8, 256  # of a step
METHODS = ("lora", "paca")


def prepare(folder: Path, steps: int) -> None:
    """A Hugging Face folder of SmolLM2, and rows that both sides read."""
    path = resolve("smollm2")
    model = load_model(path)
    save_model(model, folder / "model")
    load_tokenizer(path).save(folder / "model")
    random = np.random.default_rng(0)
    for name, count in (("train", steps * ROWS), ("validation", ROWS)):
        ids = random.integers(0, model.config.vocab_size, (count, LENGTH)).tolist()
        rows = [json.dumps({"ids": row, "trained": [1] * LENGTH}) for row in ids]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


def run(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training in a process of its own."""
    out = folder / "out.json"
    files = ["--model-folder", folder / "model", "--train", folder / "train.jsonl"]
    files += ["--validation", folder / "validation.jsonl", "--out", out]
    knobs = ["--method", method, "--targets", *options.targets, "--rank", options.rank, "--alpha", 4 * options.rank]
    knobs += ["--dtype", options.dtype, "--steps", options.steps, "--batch-size", ROWS, "--lr", 1e-4]
    command = [sys.executable, HERE / "ours.py", *files, *knobs]
    subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL)
    return json.loads(out.read_text())


def seconds(run: dict[str, Any]) -> float:
    """The median of a step's seconds."""
    return float(run["step_seconds"]["median"])


def training_memory(run: dict[str, Any]) -> float:
    """Bytes that training took beyond the loaded model."""
    return float(run["memory_bytes"]["after_training"] - run["memory_bytes"]["after_load"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=["q", "v"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "nf4"), default="bfloat16", help="of the base")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    about = environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.steps)
        for pair in range(options.pairs):
            for method in METHODS if pair % 2 == 0 else reversed(METHODS):
                runs[method].append(run(method, folder, options))
            told = ", ".join(f"{method} {seconds(done[-1]):.3f} s a step" for method, done in runs.items())
            print(f"pair {pair + 1}: {told}", flush=True)
    pairs = list(zip(runs["paca"], runs["lora"], strict=True))
    result = {
        "what": "PaCA beside LoRA: seconds and memory of a step, ratios PaCA / LoRA",
        **about,
        "options": vars(options) | {"rows": ROWS, "length": LENGTH},
        "step_seconds": {method: spread([seconds(one) for one in done]) for method, done in runs.items()},
        "training_memory_bytes": {
            method: spread([training_memory(one) for one in done]) for method, done in runs.items()
        },
        "time_ratio": spread([seconds(paca) / seconds(lora) for paca, lora in pairs]),
        "memory_ratio": spread([training_memory(paca) / training_memory(lora) for paca, lora in pairs]),
        "peak_memory_ratio": spread([paca["peak_memory_bytes"] / lora["peak_memory_bytes"] for paca, lora in pairs]),
        "runs": runs,
    }
    path = HERE / "results" / f"paca_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("runs", "hardware")}, indent=1))


if __name__ == "__main__":
    main()
