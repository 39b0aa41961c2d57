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

from common import environment, figures, named, parse, peak_rss, read_rows, steps_of
from microplane.config.knobs import ModelKnobs, TrainKnobs
from microplane.data import batch_plan as batches
from microplane.evaluation.evaluate import evaluate_loss
from microplane.methods import Method, make_method, trainable
from microplane.methods.base_format import base_format, number_format
from microplane.models.contract import Model
from microplane.models.files.load import load_model
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops import native
from microplane.objectives import AnyObjective
from microplane.objectives.select import objective_of
from microplane.training import loop
from microplane.training.log import read_lines
from microplane.training.loop import fit


class Rows:
    """Tokenised rows with the interface of TokenDataset."""

    features = None

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = [(np.array(row["ids"], np.int32), np.array(row["trained"], bool)) for row in rows]
        self.lengths = np.array([len(ids) for ids, _ in self.rows], np.int32)
        self.trained_counts = np.array([int(mask.sum()) for _, mask in self.rows], np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target: a pair is cut where its first target stands."""
        ids, targets = self.rows[index]
        return ids[: int(np.argmax(targets))], ids[int(np.argmax(targets)) :]

    def at(self, epoch: int) -> Rows:
        """The same rows in each epoch."""
        return self

    def where(self, index: int) -> str:
        return f"row {index}"


class InOrder(batches.BatchPlan):
    """Rows belong to the steps that the peer gives them too."""

    steps: list[list[int]]

    def at(self, step: int) -> tuple[int, np.ndarray]:
        return 0, np.array(self.steps[step])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    what = "an encoder-decoder" if options.pairs else "LoRA"
    result = {"what": f"{what} with Microplane", **environment()}
    if options.threads:
        torch.set_num_threads(options.threads)
    method = make_method({"name": "full"} if options.pairs else lora(options))
    model = load_model(options.model_folder, form_of(options, method))
    memory = {"after_load": peak_rss()}
    torch.manual_seed(options.seed)
    method.attach(model)
    objective = objective_of(model)
    rows, others = read_rows(options.train), read_rows(options.validation)
    train, held_out = Rows(rows), Rows(others)
    InOrder.steps = steps_of(rows, options.batch_size)
    loop.BatchPlan = InOrder  # type: ignore[misc]
    first = untrained_loss(objective, model, Rows([others[i] for i in steps_of(others, options.batch_size)[0]]))
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
        memory["after_training"] = peak_rss()  # the last validation's stays
        return next(losses) or evaluate_loss(objective, tuned, held_out, 8192)

    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(
            model,
            method,
            train,
            knobs,
            Path(folder),
            objective=objective,
            validate=validate,
            save_best=lambda *_: None,
            identity={},
        )
        clock = read_lines(Path(folder) / "speed.jsonl")
        steps = [line for line in read_lines(Path(folder) / "metrics.jsonl") if "loss" in line]
    return result | {
        "options": named(options),
        "threads": torch.get_num_threads(),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable(model).values()),
        "adapter_dtype": "float32",
        "compiled_operations": native.library() is not None,
        **figures(
            [line["seconds"] for line in clock],
            [line["loss"] for line in steps],
            [line["tokens"] for line in steps],
            [line["trained_tokens"] for line in steps],
        ),
        "untrained_loss": first,
        "validation_loss": outcome.validation_loss,
        "memory_bytes": memory,
        "peak_memory_bytes": peak_rss(),
    }


def lora(options: argparse.Namespace) -> dict[str, Any]:
    return {"name": options.method, "rank": options.rank, "alpha": options.alpha, "targets": options.targets}


def form_of(options: argparse.Namespace, method: Method) -> NumberFormat:
    """Of pairs, what model.dtype = auto chooses: weights in float32, multiplied as is fastest here."""
    if options.pairs:
        return base_format(ModelKnobs(), method)
    return number_format(options.dtype, options.compute if options.dtype == "nf4" else "auto")


def untrained_loss(objective: AnyObjective, model: Model, rows: Rows) -> float:
    """On some rows, with activations in float32 where the weights are: to see that both sides begin with the same."""
    compute, model.compute = model.compute, None
    loss = evaluate_loss(objective, model, rows, 1 << 20)
    model.compute = compute
    return loss


if __name__ == "__main__":
    asked = parse()
    asked.out.write_text(json.dumps(measure(asked), indent=1) + "\n", encoding="utf-8")
