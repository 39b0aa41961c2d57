"""What this machine's accelerator does: contract, parity with the CPU, speed and memory, in one command.

    python benchmarks/device.py                 writes results/device_<date>.json
    python benchmarks/device.py --device cpu --cases 2 --shapes tiny      tries the command itself

Contract and parity: the tests' cases (tests/devices/matrix.py: every family with every method) step on the device and
on the CPU, and must give the same losses. Speed and memory: LoRA, QLoRA and full fine-tuning on new weights of known
shapes, with steps of 8 rows of 512 tokens; the first two steps are not counted. Where torch sees no accelerator,
nothing is measured, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("MICROPLANE_NATIVE", "0")  # so that the CPU computes by the same operations
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from common import environment
from microplane.config.knobs import ModelKnobs, TrainKnobs
from microplane.device import PeakDeviceMemory, choose, name_of
from microplane.methods import make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.families import family_of
from microplane.models.files.load import quantise_linears
from microplane.objectives.next_token import NextToken
from microplane.objectives.seq2seq import Seq2Seq
from microplane.training.step import Totals, TrainState, train_step
from tests.devices.cases import cases
from tests.devices.families import CONTRACT
from tests.devices.matrix import run
from tests.tiny import CONFIGS, PAIR_CONFIGS, MemoryDataset

HERE = Path(__file__).parent
LLAMA = CONFIGS["llama-tied"]
FLAN = PAIR_CONFIGS["t5"]


def llama(**sizes: int) -> dict[str, Any]:
    return LLAMA | {"max_position_embeddings": 2048, "initializer_range": 0.02} | sizes


def flan(**sizes: int) -> dict[str, Any]:
    wide = {"d_kv": 64, "vocab_size": 32128, "relative_attention_num_buckets": 32}
    return FLAN | wide | {"relative_attention_max_distance": 128} | sizes


SHAPES = {
    "tiny": LLAMA | {"max_position_embeddings": 512},
    "smollm2-135m": llama(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "llama-1.1b": llama(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4,
    ),
    "flan-t5-base": flan(d_model=768, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12),
    "flan-t5-large": flan(d_model=1024, d_ff=2816, num_layers=24, num_decoder_layers=24, num_heads=16),
}  # fmt: skip
METHODS = ("lora", "qlora", "full")
ROWS, LENGTH, STEPS, UNCOUNTED = 8, 512, 10, 2


def contract(device: torch.device, count: int | None) -> list[dict[str, Any]]:
    """The tests' cases on the device and on the CPU."""
    found = []
    for case in islice((case for case in cases() if case.family in CONTRACT), count):
        told: dict[str, Any] = {"case": case.name}
        try:
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                here, there = run(case, torch.device("cpu"), Path(one)), run(case, device, Path(other))
            told["off"] = max(
                abs(a - b) / max(abs(a), 1e-6) for a, b in zip(here["losses"], there["losses"], strict=True)
            )
            told["passed"] = told["off"] < 1e-3 and here["moved"] == there["moved"]
        except Exception as error:  # what a device cannot do is a result
            told |= {"passed": False, "error": f"{type(error).__name__}: {error}"}
        found.append(told)
    return found


def speed(shape: str, name: str, device: torch.device) -> dict[str, Any]:
    """Tokens per second and the most memory of a method on a shape."""
    method, fields = make_method(name), SHAPES[shape]
    form = base_format(ModelKnobs(device=str(device)), method)
    memory = PeakDeviceMemory(device)
    model = family_of(fields).from_hf(fields).init_weights(0)
    model.compute = form.multiplied
    model = model.to(form.stored).requires_grad_(False).eval()
    quantise_linears(model, form)
    model = model.to(device)
    torch.manual_seed(0)
    attach_method(method, model)
    numbers = np.random.default_rng(0).integers(3, fields["vocab_size"], (ROWS, LENGTH)).tolist()
    half = [False] * (LENGTH // 2) + [True] * (LENGTH // 2)
    data = MemoryDataset([(ids, half) for ids in numbers])
    objective = Seq2Seq() if "d_model" in fields else NextToken()
    state, totals = TrainState.of(objective, model, method, data, TrainKnobs(steps=STEPS, lr=1e-5)), Totals()
    seconds, losses = [], []
    for _ in range(STEPS):
        model.train()
        started = time.perf_counter()
        losses.append(train_step(state, totals)["loss"])
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return {
        "shape": shape,
        "method": name,
        "format": form.name,
        "compute": form.compute,
        "tokens_per_second": ROWS * LENGTH / statistics.median(seconds[UNCOUNTED:]),
        "seconds": seconds,
        "losses": losses,
        "peak_device_memory_bytes": memory.bytes(),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="as the knob model.device")
    parser.add_argument("--cases", type=int, help="of contract and parity; all otherwise")
    parser.add_argument("--shapes", nargs="*", default=[name for name in SHAPES if name != "tiny"], choices=SHAPES)
    parser.add_argument("--out", type=Path, help="the JSON's file")
    asked = parser.parse_args(arguments)
    device = choose(asked.device)
    if device.type == "cpu" and asked.device == "auto":
        print("torch sees no accelerator on this machine: nothing was measured")
        return 0
    print(f"on {name_of(device)}")
    found = contract(device, asked.cases)
    failed = [told for told in found if not told["passed"]]
    print(f"contract and parity: {len(found) - len(failed)} of {len(found)} cases passed")
    for told in failed:
        print(f"  {told}")
    figures = []
    for shape in asked.shapes:
        for name in METHODS:
            figures.append(speed(shape, name, device))
            told = figures[-1]
            held = told["peak_device_memory_bytes"]
            shown = "memory not counted" if held is None else f"{held / 1e9:.2f} GB"
            print(f"{shape} {name}: {told['tokens_per_second']:,.0f} tokens/s, {shown}")
    about = environment()
    out = asked.out or HERE / "results" / f"device_{about['date'][:10]}.json"
    whole = {"device": name_of(device), "environment": about, "contract": found, "speed": figures}
    out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
