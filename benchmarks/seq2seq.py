"""Translation from scratch: a Transformer and a T5 of some 10M parameters, Microplane against transformers in turn.

    python benchmarks/seq2seq.py [--families transformer t5] [--orders shuffled similar] [--steps 80] [--pairs 2]

English to French on Debian's package descriptions (debian_pairs.py). Both sides open the same initial weights and get
the same token ids in the same batches, AdamW, schedule and dropout; each runs in a process of its own, and transformers
in the way that a few steps show to be its fastest. The rows of a step are drawn at random, as transformers' Trainer
does where nothing else is asked (`shuffled`), or are of similar length, as Microplane's own plan has them (`similar`):
a padded rectangle then holds little padding. Writes results/seq2seq_<date>.json, ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common import environment, spread
from debian_pairs import Pair, fetch, held_out, read_pairs
from microplane.data.batch_plan import BatchPlan
from microplane.models.families import family_of
from microplane.models.files.load import save_model

HERE = Path(__file__).parent
PAD, END = 0, 1
VOCABULARY = 8192
LONGEST = 128  # tokens of a side; longer pairs are left out
STEP_TOKENS = 4000  # of both sides together
HELD_OUT = 0.02  # of the source packages
VALIDATION_ROWS = 400
LR, WARMUP = 1e-3, 20
PROBE_STEPS = 4
WAYS = [["--autocast", "--attention", how] for how in ("sdpa", "eager")]  # of the peer; float32 takes twice as long

COMMON = {
    "is_encoder_decoder": True,
    "vocab_size": VOCABULARY,
    "d_model": 256,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "transformer": {  # arXiv 1706.03762, smaller; Marian is its name in transformers
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        **COMMON,
        **{f"{side}_layers": 4 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 1024 for side in ("encoder", "decoder")},
        "activation_function": "relu",
        "dropout": 0.1,
        "scale_embedding": True,
        "max_position_embeddings": 256,
        "forced_eos_token_id": END,
    },
    "t5": {  # v1.1
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **COMMON,
        "d_kv": 64,
        "d_ff": 512,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.1,
    },
}


def prepare(folder: Path, steps: int, orders: Sequence[str]) -> dict[str, Any]:
    """Rows as both sides read them, and what there is of them."""
    pairs = read_pairs(fetch())
    tokenizer = learn([text for pair in pairs for text in pair[1:] if not held_out(pair.source_package, HELD_OUT)])
    random.Random(0).shuffle(pairs)
    known = [row for pair in pairs if not held_out(pair.source_package, HELD_OUT) if (row := row_of(pair, tokenizer))]
    unseen = [row for pair in pairs if held_out(pair.source_package, HELD_OUT) if (row := row_of(pair, tokenizer))]
    unseen = sorted(unseen[:VALIDATION_ROWS], key=lambda row: len(row["ids"]))
    write(folder / "validation.jsonl", [unseen[i : i + 64] for i in range(0, len(unseen), 64)])
    told: dict[str, Any] = {"training_pairs": len(known), "validation_pairs": len(unseen)}
    for order in orders:
        chosen = [[known[i] for i in step] for step in ORDERS[order](known, steps)]
        write(folder / f"{order}.jsonl", chosen)
        told[order] = {"pairs_used": sum(map(len, chosen)), "padding_of_the_peer": padding(chosen)}
    return told


def learn(texts: Sequence[str]) -> Tokenizer:
    """A vocabulary of byte pairs (arXiv 1508.07909), whose bytes leave nothing unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def row_of(pair: Pair, tokenizer: Tokenizer) -> dict[str, list[int]] | None:
    """Source and target in one row, each with its end token; None if one of them is too long."""
    source, target = ([*tokenizer.encode(text).ids, END] for text in (pair.english, pair.french))
    if max(len(source), len(target)) > LONGEST:
        return None
    return {"ids": source + target, "trained": [0] * len(source) + [1] * len(target)}


def shuffled(rows: Sequence[dict[str, list[int]]], steps: int) -> list[list[int]]:
    """Row numbers of each step: one after the other, as long as a step has room."""
    found: list[list[int]] = [[]]
    room = STEP_TOKENS
    for number, row in enumerate(rows):  # shuffled already
        if (room := room - len(row["ids"])) < 0:
            found.append([])
            room = STEP_TOKENS - len(row["ids"])
        found[-1].append(number)
    return enough(found[:-1], steps)


def similar(rows: Sequence[dict[str, list[int]]], steps: int) -> list[list[int]]:
    """Row numbers of each step: pairs of similar length, which leaves the peer little to pad."""
    lengths = np.array([len(row["ids"]) for row in rows])
    full = [
        step.tolist() for step in BatchPlan(lengths, 1, STEP_TOKENS).epoch(0) if lengths[step].sum() > STEP_TOKENS / 2
    ]
    return enough(full, steps)


def enough(found: list[list[int]], steps: int) -> list[list[int]]:
    if len(found) < steps:
        raise SystemExit(f"--steps {steps}: there are pairs for {len(found)} only")
    return found[:steps]


ORDERS = {"shuffled": shuffled, "similar": similar}


def padding(steps: Sequence[Sequence[dict[str, list[int]]]]) -> float:
    """The share of the cells of padded rectangles that hold nothing."""
    tokens = cells = 0
    for rows in steps:
        sources, targets = ([row["trained"].count(side) for row in rows] for side in (0, 1))
        tokens += sum(sources) + sum(targets)
        cells += len(rows) * (max(sources) + max(targets))
    return 1 - tokens / cells


def write(path: Path, steps: Sequence[Sequence[dict[str, list[int]]]]) -> None:
    lines = [json.dumps(row | {"step": number}) for number, rows in enumerate(steps) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def new_model(family: str, folder: Path) -> int:
    """Initial weights for both sides, in Hugging Face layout; returns how many."""
    fields = FAMILIES[family]
    model = family_of(fields).from_hf(fields).init_weights(0)
    model.source_config = fields
    save_model(model, folder / family)
    return sum(parameter.numel() for parameter in model.parameters())


def side(script: str, family: str, order: str, folder: Path, steps: int, *more: str) -> dict[str, Any]:
    out = folder / "out.json"
    files = ["--model-folder", folder / family, "--train", folder / f"{order}.jsonl"]
    files += ["--validation", folder / "validation.jsonl", "--out", out]
    knobs = ["--pairs", "--steps", steps, "--lr", LR, "--warmup", WARMUP, *more]
    command = [str(part) for part in (sys.executable, HERE / script, *files, *knobs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(out.read_text())


def fastest_way(family: str, order: str, folder: Path) -> tuple[list[str], dict[str, float]]:
    """Of the peer: what a few steps show, and the tokens/s of each way."""
    rates = {}
    for way in WAYS:
        run = side("peer.py", family, order, folder, PROBE_STEPS, *way)
        rates[" ".join(way)] = run["trained_tokens_per_second"]["median"]
        print(
            f"{family}, {order}: transformers {' '.join(way)}: {rates[' '.join(way)]:.0f} trained tokens/s", flush=True
        )
    return max(WAYS, key=lambda way: rates[" ".join(way)]), rates


def compare(family: str, order: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    way, rates = fastest_way(family, order, folder)
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for pair in range(options.pairs):
        seed = ["--seed", str(pair)]
        turns = ["peer", "ours"] if pair % 2 else ["ours", "peer"]
        for who in turns:
            more = [*seed, *way] if who == "peer" else seed
            sides[who].append(side(f"{who}.py", family, order, folder, options.steps, *more))
        check_same_start(family, sides["ours"][-1], sides["peer"][-1])
        told = "; ".join(f"{who}: {line(runs[-1])}" for who, runs in sides.items())
        print(f"{family}, {order}, pair {pair + 1} of {options.pairs}: {told}", flush=True)
    return {"peer_ways": rates, "peer": way, **ratios(sides), "runs": sides}


def check_same_start(family: str, ours: dict[str, Any], peer: dict[str, Any]) -> None:
    first, theirs = ours["untrained_loss"], peer["untrained_loss"]
    if abs(first - theirs) > 1e-3:
        raise SystemExit(f"{family}: untrained losses {first:.5f} and {theirs:.5f}: not the same model or rows")
    if (ours["tokens"], ours["trained_tokens"]) != (peer["tokens"], peer["trained_tokens"]):
        raise SystemExit(f"{family}: the two sides did not see the same tokens")


def line(run: dict[str, Any]) -> str:
    rate, memory = run["trained_tokens_per_second"]["median"], run["peak_memory_bytes"]
    return (
        f"{rate:.0f} trained tokens/s, {run['seconds']:.1f} s, {memory / 1e9:.2f} GB, loss {run['validation_loss']:.4f}"
    )


def ratios(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and spread of both sides, and ours / peer pair by pair."""
    figures = {
        "trained_tokens_per_second": lambda run: run["trained_tokens_per_second"]["overall"],
        "seconds": lambda run: run["seconds"],
        "peak_memory_bytes": lambda run: run["peak_memory_bytes"],
        "validation_loss": lambda run: run["validation_loss"],
    }
    told: dict[str, Any] = {}
    for name, figure in figures.items():
        values = {who: [figure(run) for run in runs] for who, runs in sides.items()}
        told[name] = {who: spread(each) for who, each in values.items()}
        told[name]["ratio"] = spread([ours / peer for ours, peer in zip(*values.values(), strict=True)])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    about, started = environment(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(folder, max(options.steps, PROBE_STEPS), options.orders)
        print(json.dumps(data), flush=True)
        families = {
            family: {
                "parameters": new_model(family, folder),
                **{order: compare(family, order, folder, options) for order in options.orders},
            }
            for family in options.families
        }
    result = {
        "what": "translation from scratch: Microplane against transformers",
        **about,
        "options": vars(options),
        "data": data,
        "seconds_in_all": time.perf_counter() - started,
        "families": families,
    }
    only = "" if set(options.orders) == set(ORDERS) else "_".join(["", *options.orders])
    path = HERE / "results" / f"seq2seq{only}_{about['date'][:10]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    for family, by_order in families.items():
        for order in options.orders:
            told = by_order[order]
            speed, loss = told["trained_tokens_per_second"]["ratio"], told["validation_loss"]["ratio"]
            print(f"{family}, {order}: {speed['median']:.2f} times the speed, {loss['median']:.4f} of the loss")


if __name__ == "__main__":
    main()
