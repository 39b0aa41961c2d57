"""Memory of training with Adam: LoRA (rank 4 on q and v, as the paper has it for GPT-3) against full fine-tuning.

    python benchmarks/adam_memory.py

SmolLM2 (135M), one row of 64 tokens a step, so that next to nothing goes to activations: what weights, gradients and
Adam's two averages hold, counted, and the peak of a process of its own above one that has imported torch and nothing
else. The paper (arXiv 2106.09685, section 4.2) gives 1.2 TB against 350 GB for GPT-3, a factor of 3. Writes
results/adam_memory_<date>.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from common import empty_process, environment, peak_rss
from microplane.config.knobs import ModelKnobs, TrainKnobs
from microplane.hardware import give_back_memory
from microplane.methods import make_method, trainable
from microplane.methods.base_format import base_format
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows
from microplane.objectives.text import TokenBatch, token_loss
from microplane.training.optim import make_optimizer

HERE = Path(__file__).parent
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({"name": "full"}, "float32"),
    "lora, float32 base": ({"name": "lora", "rank": 4, "targets": ["q", "v"]}, "float32"),
    "lora, bfloat16 base": ({"name": "lora", "rank": 4, "targets": ["q", "v"]}, "bfloat16"),
}


def measure(way: str) -> dict[str, Any]:
    """In this process: three steps, and what is held then."""
    named, dtype = WAYS[way]
    method = make_method(named)
    model = load_model(resolve("smollm2"), base_format(ModelKnobs(dtype=dtype), method))
    give_back_memory()
    loaded = psutil.Process().memory_info().rss
    method.attach(model)
    optimizer = make_optimizer(method, model, TrainKnobs())
    ids = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(Rows.of([ids.tolist()]), torch.arange(63), ids[1:])
    for _ in range(3):
        token_loss(model, batch).backward()
        grads = sum(tensor.grad.nbytes for tensor in trainable(model).values() if tensor.grad is not None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    averages = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    weights = sum(tensor.nbytes for tensor in model.parameters())
    return {
        "trainable_parameters": sum(tensor.numel() for tensor in trainable(model).values()),
        "weights_bytes": weights,
        "gradients_bytes": grads,
        "adam_bytes": averages,
        "counted_bytes": weights + grads + averages,
        "resident_after_loading_bytes": loaded,
        "peak_rss_bytes": peak_rss(),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    empty = empty_process()
    ways = {way: json.loads(subprocess.check_output([sys.executable, __file__, way], cwd=HERE)) for way in WAYS}
    for told in ways.values():
        told["peak_above_empty_bytes"] = told["peak_rss_bytes"] - empty
        for name in ("counted_bytes", "peak_above_empty_bytes"):
            told[f"full_over_this_{name}"] = ways["full"][name] / told[name]
    about = environment()
    result = {"what": "memory of Adam: LoRA against full fine-tuning", **about, "empty_process_bytes": empty}
    path = HERE / "results" / f"adam_memory_{about['date'][:10]}.json"
    path.write_text(json.dumps(result | {"ways": ways}, indent=1) + "\n")
    print(json.dumps(ways, indent=1))


if __name__ == "__main__":
    main()
