"""A step of LoRA on the shapes of families that people bring: Microplane against transformers + peft, in turn.

    python benchmarks/families.py [--steps 12] [--pairs 5] [--shapes deberta mpnet ...] [--dtype float32]

Random weights of the released sizes, the same rows of unequal length in the same batches, rank 8 on all linear layers
of the blocks, AdamW; each side in a process of its own, the peer once as it is and once under torch.compile: whichever
of the two is slower by a tenth in the first round is left out of the others. Bfloat16, or float32 where a processor has
no instructions for it. Prints a line for each shape, and adds it to results/families_<date>.json at once.

BART and ALBERT ran through transformers on both sides at first, which showed what is added there. BERT has ALBERT's
blocks, with weights of their own: what code gained there is what it was to gain for ALBERT.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common import WARM_STEPS, environment, peak_rss

HERE = Path(__file__).parent
ROWS, RANK, LABELS = 16, 8, 3
LENGTHS = [128, 96, 77, 64, 60, 51, 47, 40, 38, 33, 30, 24, 19, 15, 12, 9]  # as short texts are: half of a rectangle
V3 = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "max_relative_positions": -1,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
}
SIZES = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
GEMMA_SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
}  # t5gemma-s-s
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # model_type, fields
    "deberta": ("deberta-v2", SIZES | V3 | {"num_hidden_layers": 6, "vocab_size": 128_100}),  # deberta-v3-small
    "mpnet": ("mpnet", SIZES | {"num_hidden_layers": 12, "max_position_embeddings": 514}),
    "distilbert": ("distilbert", {}),
    "gpt2": ("gpt2", {}),
    "bart": ("bart", {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072,
                      "decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12}),
    "albert": ("albert", SIZES | {"num_hidden_layers": 12, "embedding_size": 128}),
    "bert": ("bert", SIZES | {"num_hidden_layers": 12}),
    "t5gemma": ("t5gemma", dict.fromkeys(("encoder", "decoder"), GEMMA_SMALL)),
}  # fmt: skip
PAIRS = ("bart", "t5gemma")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--side", choices=SIDES, help="what a process of its own is asked for")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.side:
        print(json.dumps(SIDES[options.side](options.folder, options.shapes[0], options.steps, dtype)))
        return
    for shape in options.shapes:
        about = environment()
        with tempfile.TemporaryDirectory() as name:
            build(shape, Path(name), dtype)
            pairs = rounds(Path(name), shape, options)
        for side in ("peer", "compiled"):
            measured = [one for one in pairs if side in one]
            step, peak = (
                statistics.median(one[side][key] / one["ours"][key] for one in measured) for key in ("step", "peak")
            )
            told = f"a step of the {side} takes {step:.2f} of ours, its memory {peak:.2f}"
            print(f"{shape}: {told} ({len(measured)} rounds)", flush=True)
        path = HERE / "results" / f"families_{about['date'][:10]}.json"
        found = json.loads(path.read_text()) if path.exists() else {"what": "a step of LoRA by family", "shapes": {}}
        found["shapes"][shape] = {**about, "dtype": options.dtype, "pairs": pairs}
        path.write_text(json.dumps(found, indent=1) + "\n")


def build(shape: str, folder: Path, dtype: torch.dtype) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind, fields = SHAPES[shape]
    autos: dict[str, Any] = {"gpt2": AutoModelForCausalLM, **dict.fromkeys(PAIRS, AutoModelForSeq2SeqLM)}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **fields)
    autos.get(shape, AutoModel).from_config(config).to(dtype).save_pretrained(folder)


def rounds(folder: Path, shape: str, options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    found, sides = [], list(SIDES)
    for _ in range(options.pairs):
        found.append({side: run_side(folder, shape, options, side) for side in sides})
        least = min(found[0][side]["step"] for side in ("peer", "compiled"))
        sides = [side for side in sides if side == "ours" or found[0][side]["step"] < 1.1 * least]
    return found


def run_side(folder: Path, shape: str, options: argparse.Namespace, side: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--folder", folder, "--shapes", shape]
    command += ["--steps", options.steps, "--dtype", options.dtype]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 20_000, (length,), generator=generator).tolist() for length in LENGTHS]


def timed(step: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter], steps: int) -> dict[str, float]:
    optimizer, seconds = torch.optim.AdamW(parameters, 1e-4), []
    for _ in range(steps + WARM_STEPS):
        began = time.perf_counter()
        step().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"step": statistics.median(seconds[WARM_STEPS:]), "peak": float(peak_rss())}


def ours(folder: Path, shape: str, steps: int, dtype: torch.dtype) -> dict[str, float]:
    from microplane.methods import make_method
    from microplane.methods.method import attach_method, trainable
    from microplane.models.files.load import load_model
    from microplane.models.heads import add_head, task_scores
    from microplane.nn.rows import Pairs, Rows
    from microplane.objectives.text import TokenBatch, token_loss

    model = load_model(folder, dtype)
    told, generator = rows(), torch.Generator().manual_seed(1)
    if model.KIND == "encoder":
        add_head(model, "classification", ("a", "b", "c"), "cls")
    attach_method(make_method({"name": "lora", "rank": RANK}), model)
    labels = torch.randint(LABELS, (ROWS,), generator=generator)

    def step() -> torch.Tensor:
        if model.KIND == "encoder":
            return torch.nn.functional.cross_entropy(task_scores(model, Rows.of(told)), labels)
        batch = Rows.of(told)
        last = torch.ones(len(batch.ids), dtype=torch.bool).index_fill(0, batch.last, False)
        if model.KIND == "decoder":
            where = last.nonzero().squeeze(1)
            return token_loss(model, TokenBatch(batch, where, batch.ids[where + 1])) / len(where)
        hidden = model(Pairs(batch, batch))
        return torch.nn.functional.cross_entropy(model.logits(hidden[last]).float(), batch.ids.roll(-1)[last])

    model.train()
    return timed(step, list(trainable(model).values()), steps)


def peer(folder: Path, shape: str, steps: int, dtype: torch.dtype, compiled: bool = False) -> dict[str, float]:
    """As one who knows both would write it: padded to the longest of the batch, torch's own attention."""
    import peft
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
    from transformers.pytorch_utils import Conv1D

    autos: dict[str, Any] = {"gpt2": AutoModelForCausalLM, **dict.fromkeys(PAIRS, AutoModelForSeq2SeqLM)}
    auto = autos.get(shape, AutoModelForSequenceClassification)
    more = {} if shape in autos else {"num_labels": LABELS}
    net = auto.from_pretrained(folder, dtype=dtype, **more)
    kind = "SEQ_CLS" if more else "CAUSAL_LM" if shape == "gpt2" else "SEQ_2_SEQ_LM"
    linear = (torch.nn.Linear, Conv1D)  # those of the blocks, which have a number in their names
    targets = [
        name
        for name, module in net.named_modules()
        if isinstance(module, linear) and any(part.isdigit() for part in name.split("."))
    ]
    model: Any = peft.get_peft_model(net, peft.LoraConfig(r=RANK, task_type=kind, target_modules=targets))
    if compiled:  # for these very shapes: more than rows of changing length would allow it
        model = torch.compile(model, dynamic=False)
    told, longest = rows(), max(LENGTHS)
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in told])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in told])
    classes = torch.randint(LABELS, (ROWS,), generator=torch.Generator().manual_seed(1))
    labels = classes if more else ids.masked_fill(mask == 0, -100)

    def step() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return loss

    model.train()
    return timed(step, [parameter for parameter in model.parameters() if parameter.requires_grad], steps)


SIDES: dict[str, Callable[[Path, str, int, torch.dtype], dict[str, float]]] = {
    "ours": ours,
    "peer": peer,
    "compiled": functools.partial(peer, compiled=True),
}


if __name__ == "__main__":
    main()
