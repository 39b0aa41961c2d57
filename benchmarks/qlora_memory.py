"""Memory and time of a QLoRA step on the shape of a 1.1B Llama, against transformers + bitsandbytes + peft.

    python benchmarks/qlora_memory.py                     22 layers, three pairs
    python benchmarks/qlora_memory.py --layers 1 --pairs 1 --steps 4     whether it runs at all

Both sides open the same folder of random weights, made block by block, and quantise its linears to nf4 while loading;
then ours.py and peer.py train LoRA on the same 4 rows of 256 tokens a step. Memory is the peak of each process, loading
included, above one that has imported torch and nothing else.
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
from safetensors.torch import save_file

from common import empty_process, environment, spread

HERE = Path(__file__).parent
SHAPE: dict[str, Any] = {  # TinyLlama-1.1B
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def make_model(folder: Path, layers: int) -> None:
    """Random bfloat16 weights, a file for each block, so that never more than one is in memory."""
    generator = torch.Generator().manual_seed(0)
    D, M, V, KV = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"], 256

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    def block(i: int) -> dict[str, torch.Tensor]:
        shapes = {"q": (D, D), "k": (KV, D), "v": (KV, D), "o": (D, D)}
        parts = {f"self_attn.{role}_proj": random(*shape) for role, shape in shapes.items()}
        parts |= {"mlp.gate_proj": random(M, D), "mlp.up_proj": random(M, D), "mlp.down_proj": random(D, M)}
        parts |= {name: torch.ones(D).bfloat16() for name in ("input_layernorm", "post_attention_layernorm")}
        return {f"model.layers.{i}.{name}.weight": tensor for name, tensor in parts.items()}

    places: dict[str, str] = {}
    for i in range(layers + 1):
        ends = {"model.embed_tokens.weight": random(V, D), "lm_head.weight": random(V, D)}
        tensors = block(i) if i < layers else ends | {"model.norm.weight": torch.ones(D).bfloat16()}
        save_file(tensors, folder / f"part-{i}.safetensors", {"format": "pt"})
        places |= dict.fromkeys(tensors, f"part-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": layers}))


def make_rows(path: Path, count: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, SHAPE["vocab_size"], (count, length), generator=generator).tolist()
    rows = [{"ids": row, "trained": [0] + [1] * (length - 1)} for row in ids]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def side(script: str, folder: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """One process of its own."""
    out = folder / "result.json"
    command = [sys.executable, str(HERE / script), "--model-folder", str(folder / "model"), "--dtype", "nf4"]
    command += ["--train", str(folder / "train.jsonl"), "--validation", str(folder / "validation.jsonl")]
    command += ["--rank", str(options.rank), "--alpha", "32", "--lr", "1e-4", "--batch-size", str(options.rows)]
    command += ["--steps", str(options.steps), "--out", str(out), *more]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(out.read_text())


def compare(sides: dict[str, list[dict[str, Any]]], empty: int) -> dict[str, Any]:
    """Medians of each side; ratios ours / peer, pair by pair."""
    seconds = {who: [run["step_seconds"]["median"] for run in runs] for who, runs in sides.items()}
    return {
        "empty_process_bytes": empty,
        "step_seconds": {who: spread(values) for who, values in seconds.items()},
        "memory_above_empty_bytes": {
            who: spread([run["memory_bytes"]["after_training"] - empty for run in runs]) for who, runs in sides.items()
        },
        "loading_above_empty_bytes": {
            who: spread([run["memory_bytes"]["after_load"] - empty for run in runs]) for who, runs in sides.items()
        },
        "time_ratio": spread([ours / peer for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]),
        "validation_loss": {who: [run["validation_loss"] for run in runs] for who, runs in sides.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens in a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="the first two are left out of the medians")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--recompute", default="cheap", help="ours: train.recompute")
    parser.add_argument("--micro-tokens", type=int, default=256, help="ours: tokens computed at once")
    parser.add_argument("--compute", default="bfloat16", help="ours: model.compute")
    parser.add_argument("--autocast", action="store_true", help="the peer's adapters multiply in bfloat16 too")
    parser.add_argument("--only", choices=("ours", "peer"), help="one side alone, nothing is written")
    options = parser.parse_args()
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    more = {
        "ours": [
            "--recompute",
            options.recompute,
            "--micro-tokens",
            str(options.micro_tokens),
            "--compute",
            options.compute,
        ],
        "peer": ["--autocast"] if options.autocast else [],
    }
    about = environment()
    empty = empty_process()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        make_model(folder / "model", options.layers)
        make_rows(folder / "train.jsonl", options.steps * options.rows, options.length, seed=1)
        make_rows(folder / "validation.jsonl", options.rows, options.length, seed=2)
        for pair in range(options.pairs):
            for who in [options.only] if options.only else ["ours", "peer"]:
                sides[who].append(run := side(f"{who}.py", folder, options, *more[who]))
                peak = (run["memory_bytes"]["after_training"] - empty) / 1e9
                loss, seconds = run["validation_loss"], run["step_seconds"]["median"]
                print(f"pair {pair + 1}, {who}: {seconds:.2f} s a step, {peak:.2f} GB, loss {loss:.4f}", flush=True)
    if options.only:
        return
    result = {"what": "memory and time of a QLoRA step, 1.1B Llama shape", **about, "options": vars(options)}
    result |= {"threads": sides["ours"][0]["threads"], **compare(sides, empty), "runs": sides}
    path = HERE / "results" / f"qlora_memory_{options.layers}_layers_{options.compute}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("runs", "hardware")}, indent=1))


if __name__ == "__main__":
    main()
