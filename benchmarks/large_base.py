"""Opening a base that is larger than the memory it may take: a Llama of 7B shape, bfloat16 files, held in nf4.

    python benchmarks/large_base.py           writes results/large_base_<date>.json

The files are sparse (13.5 GB of zeros that take no place on the disk) but for some random numbers at the start of each
tensor. What is told is the most that the process ever held in memory (VmHWM), mapped pages of files included, and the
most that was its own (RssAnon).
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from common import environment
from microplane.config.knobs import ModelKnobs
from microplane.methods import make_method
from microplane.methods.base_format import base_format
from microplane.models.files.load import load_model

HERE = Path(__file__).parent
WIDTH, INNER, LAYERS, VOCABULARY, SHARDS = 4096, 11008, 32, 32000, 3
RANDOM = 4096  # numbers at the start of each tensor
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
    "torch_dtype": "bfloat16",
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by Hugging Face's names."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        found |= {f"{block}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{block}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found |= {f"{block}.mlp.down_proj.weight": (WIDTH, INNER)}
        found |= {f"{block}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def write(folder: Path, layers: int) -> int:
    """A folder of sparse shards; returns the bytes that they seem to have."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    every, places, total = shapes(layers), {}, 0
    numbers = (np.random.default_rng(0).normal(0, 0.02, RANDOM).astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        names, header, end = list(every)[shard::SHARDS], {}, 0
        for name in names:
            start, end = end, end + 2 * int(np.prod(every[name]))
            header[name] = {"dtype": "BF16", "shape": every[name], "data_offsets": [start, end]}
            places[name] = file
        told = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(told)) + told)
            for name in names:
                out.seek(8 + len(told) + header[name]["data_offsets"][0])
                out.write(numbers.tobytes())
            out.truncate(8 + len(told) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--out", type=Path, help="the JSON's file")
    asked = parser.parse_args()
    own, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            own[0] = max(own[0], held("RssAnon"))

    with tempfile.TemporaryDirectory() as place:
        files = write(Path(place), asked.layers)
        before = held("VmHWM")
        threading.Thread(target=watch, daemon=True).start()
        started = time.perf_counter()
        model = load_model(Path(place), base_format(ModelKnobs(dtype="nf4", device="cpu"), make_method("qlora")))
        seconds = time.perf_counter() - started
        over.set()
        kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        about = environment()
        found = {"environment": about, "layers": asked.layers, "file_bytes": files, "model_bytes": kept}
        found |= {"before_bytes": before, "peak_bytes": held("VmHWM"), "peak_own_bytes": own[0], "seconds": seconds}
    out = asked.out or HERE / "results" / f"large_base_{about['date'][:10]}.json"
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print({name: value for name, value in found.items() if name != "environment"})


if __name__ == "__main__":
    main()
