"""One side of the speed comparison: Microplane's own loop on rows that are tokenised and batched already.

Takes the same arguments and rows as peer.py and writes the same fields.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import environment, figures, named, parse, peak_rss, read_rows
from microplane.config import TrainKnobs
from microplane.data import batches
from microplane.data.shape import TEXT
from microplane.loading import number_format
from microplane.methods import make_method, trainable
from microplane.models.load import load_model
from microplane.training import loop
from microplane.training.evaluate import evaluate_loss
from microplane.training.loop import fit, read_lines


class Rows:
    """Tokenised rows with the interface of TokenDataset."""

    shape = TEXT

    def __init__(self, rows: list[dict[str, list[int]]]):
        self.rows = [(np.array(row["ids"], np.int32), np.array(row["trained"], bool)) for row in rows]
        self.lengths = np.array([len(ids) for ids, _ in self.rows], np.int32)
        self.trained_counts = np.array([int(mask.sum()) for _, mask in self.rows], np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]

    def at(self, epoch: int) -> Rows:
        """The same rows in each epoch."""
        return self

    def where(self, index: int) -> str:
        return f"row {index}"


class InOrder(batches.BatchPlan):
    """Row i belongs to step i // batch_size, as for the peer."""

    def at(self, step: int) -> tuple[int, np.ndarray]:
        return 0, np.arange(step * self.batch_size, (step + 1) * self.batch_size)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    result = {"what": "LoRA with Microplane", **environment()}
    if options.threads:
        torch.set_num_threads(options.threads)
    loop.BatchPlan = InOrder  # type: ignore[misc]
    form = number_format(options.dtype, "bfloat16" if options.dtype == "nf4" else "auto")
    model = load_model(options.model_folder, form)
    memory = {"after_load": peak_rss()}
    torch.manual_seed(options.seed)
    method = make_method({"name": "lora", "rank": options.rank, "alpha": options.alpha})
    method.attach(model)
    train, held_out = Rows(read_rows(options.train)), Rows(read_rows(options.validation))
    knobs = TrainKnobs(
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        warmup=max(1, options.warmup),
        seed=options.seed,
        patience=0,
        recompute=options.recompute,
        micro_tokens=options.micro_tokens,
        eval_every=options.steps,
    )
    losses = iter([float("inf"), None])  # the loop's first validation, before any step, is not measured

    def validate(tuned: Any) -> float:
        memory.setdefault("after_training", peak_rss())
        return next(losses) or evaluate_loss(tuned, held_out, 8192)

    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(
            model, method, train, knobs, Path(folder), validate=validate, save_best=lambda *_: None, identity={}
        )
        clock = read_lines(Path(folder) / "speed.jsonl")
        steps = [line for line in read_lines(Path(folder) / "metrics.jsonl") if "loss" in line]
    return result | {
        "options": named(options),
        "threads": torch.get_num_threads(),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable(model).values()),
        "adapter_dtype": "float32",
        **figures(
            [line["seconds"] for line in clock],
            [line["loss"] for line in steps],
            [line["tokens"] for line in steps],
            [line["trained_tokens"] for line in steps],
        ),
        "validation_loss": outcome.validation_loss,
        "memory_bytes": memory,
        "peak_memory_bytes": peak_rss(),
    }


if __name__ == "__main__":
    asked = parse()
    asked.out.write_text(json.dumps(measure(asked), indent=1) + "\n", encoding="utf-8")
