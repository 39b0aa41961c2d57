"""A training step of fixed shapes: Microplane against transformers + peft, in turn, each in a process of its own.

    python benchmarks/workloads.py [--work W1 W3 W6 W4] [--pairs 5] [--steps 8]

W1: SmolLM2, LoRA of rank 8 on q and v, 8 rows of 256 tokens, the last 64 of each trained, in bfloat16, at once and in
two parts; also with the base in int8 and nf4, multiplied in 8 bits. W3: random weights of FLAN-T5-small's shape, the
same LoRA, 8 pairs of 256 and 64 tokens, dropout 0.1; also in int8. W6: W1 on an nf4 base, the peer's by bitsandbytes.
W4: MiniLM's shape, full fine-tuning of a classifier in float32 weights, 32 rows of 10 to 256 tokens.

The peer is tried in the first round as it is, under autocast (adapters multiply in bfloat16) and under torch.compile
for these very shapes; those slower by a tenth than its best are left out of the other rounds. All sides get the same
ids and begin with the same weights: first losses that differ by 2% make a run void (5% with dropout, a new head or an
int8 base, 10% of nf4 beside bfloat16: these ids are random). Compiling is not counted. Adds to
results/workloads_<date>.json work by work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import WARM_STEPS, environment, peak_rss, spread

HERE = Path(__file__).parent
RANK, LR = 8, 1e-4
ROWS, LENGTH, TRAINED = 8, 256, 64
T5 = {
    "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.1,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
LENGTHS = [10 + round(246 * (number / 31) ** 2) for number in range(32)]  # W4: many short texts and a few long ones
BOTH = "peer compiled autocast"
SIDES = {
    "W1": [
        "ours bfloat16",
        "ours bfloat16 in two",
        "ours int8",
        "ours nf4",
        "peer plain",
        "peer autocast",
        "peer compiled",
        BOTH,
    ],
    "W3": ["ours bfloat16", "ours int8", "peer plain", "peer autocast", "peer compiled"],
    "W4": ["ours float32", "ours bfloat16", "peer plain", "peer autocast", "peer compiled", BOTH],
    "W6": ["ours nf4", "ours nf4 wide", "peer plain", "peer autocast"],
}


class Job(NamedTuple):
    """A side that is ready: its loss as a function, and what trains."""

    loss: Callable[[], Tensor]
    parameters: list[nn.Parameter]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--pairs", type=int, default=5, help="rounds, in each of which every side runs once")
    parser.add_argument("--steps", type=int, default=8, help=f"that count, after {WARM_STEPS} that do not")
    parser.add_argument("--side", help="what a process of its own is asked for")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measured(make(options.work[0], options.side, options.folder), options.steps)))
        return
    for work in options.work:
        about = environment()
        with tempfile.TemporaryDirectory() as name:
            build(work, Path(name))
            rounds = all_rounds(work, Path(name), options)
        path = HERE / "results" / f"workloads_{about['date'][:10]}.json"
        found = (
            json.loads(path.read_text()) if path.exists() else {"what": "training steps of fixed shapes", "works": {}}
        )
        found["works"][work] = {**about, "threads": torch.get_num_threads(), **compared(work, rounds), "rounds": rounds}
        path.write_text(json.dumps(found, indent=1) + "\n")


def build(work: str, folder: Path) -> None:
    """The weights that both sides open."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    if work == "W3":
        net = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **T5))
        net.to(torch.bfloat16).save_pretrained(folder)
    elif work == "W4":
        config = AutoConfig.for_model("bert", **MINILM, num_labels=2)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    else:
        from microplane.models.files.hub import resolve
        from microplane.models.files.load import load_model, save_model

        save_model(load_model(resolve("smollm2"), torch.bfloat16), folder)


def all_rounds(work: str, folder: Path, options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    found: list[dict[str, dict[str, float]]] = []
    sides = SIDES[work]
    for number in range(options.pairs):
        found.append({})
        for side in sides:
            found[-1][side] = one = run_side(work, side, folder, options.steps)
            told = f"{one['step']:.3f} s, {one['peak'] / 1e9:.2f} GB, loss {one['first']:.4f} to {one['last']:.4f}"
            print(f"{work} {number + 1}/{options.pairs}  {side:22} {told}", flush=True)
        peers = {side: found[0][side]["step"] for side in sides if side.startswith("peer")}
        sides = [side for side in sides if peers.get(side, 0) < 1.1 * min(peers.values())]
    return found


def run_side(work: str, side: str, folder: Path, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", work, "--side", side, "--folder", folder, "--steps", steps]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{work}, {side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(work: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """How many times as long a step of the peer's best takes as ours, and our memory in terms of its, by rounds.

    Raises:
        SystemExit: if two sides did not begin with the same loss.
    """
    peers = [side for side in rounds[0] if side.startswith("peer")]
    best = min(peers, key=lambda side: statistics.median(one[side]["step"] for one in rounds if side in one))
    results: dict[str, Any] = {"peer": best}
    for side in rounds[0]:
        mine = [one for one in rounds if side in one]
        within = 0.1 if "nf4" in side and work == "W1" else 0.05 if work in ("W3", "W4") or "int8" in side else 0.02
        if abs(mine[0][side]["first"] / rounds[0][best]["first"] - 1) > within:
            raise SystemExit(f"{work}: {side} begins with another loss than {best}: the comparison is void")
        results[side] = {key: spread([one[side][key] for one in mine]) for key in ("step", "peak")}
        if side.startswith("ours"):
            results[side]["speed_ratio"] = spread([one[best]["step"] / one[side]["step"] for one in mine])
            results[side]["memory_ratio"] = spread([one[side]["peak"] / one[best]["peak"] for one in mine])
            times, memory = (results[side][f"{what}_ratio"]["median"] for what in ("speed", "memory"))
            told = f"{times:.2f} times, memory {memory:.2f}"
            print(f"{work}: {side} against {best}: {told}", flush=True)
    if work == "W1":
        results["products"] = products(rounds)
    return results


def products(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """All multiplications of a step of W1, and how much of it would be left at this machine's own rate of them."""
    D, M, KV, LAYERS, VOCABULARY = 576, 1536, 192, 30, 49152
    tokens, targets = ROWS * LENGTH, ROWS * TRAINED
    blocks = LAYERS * (2 * D * D + 2 * D * KV + 3 * D * M)
    forward_and_back = 2 * 2  # of a frozen weight: its output, and the gradient of what enters
    attention = LAYERS * 2 * 2 * tokens * (LENGTH / 2) * D * 3.5  # causal; backward computes the scores anew
    total = forward_and_back * (tokens * blocks + targets * D * VOCABULARY) + attention
    x, weight = torch.randn(tokens, D).bfloat16(), torch.randn(M, D).bfloat16()
    seconds = []
    for _ in range(60):
        began = time.perf_counter()
        x @ weight.T
        seconds.append(time.perf_counter() - began)
    rate = 2 * tokens * D * M / statistics.median(seconds)
    step = statistics.median(one["ours bfloat16"]["step"] for one in rounds)
    return {"operations": total, "per_second": rate, "share_of_the_rate": total / rate / step}


def measured(job: Job, steps: int) -> dict[str, float]:
    """Median seconds of a step (forward, backward, clipping, AdamW), the process's peak, first and last loss."""
    optimizer, seconds, losses = torch.optim.AdamW(job.parameters, LR, weight_decay=0.0, fused=True), [], []
    for _ in range(steps + WARM_STEPS):
        began = time.perf_counter()
        loss = job.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(job.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds[WARM_STEPS:])
    return {"step": step, "peak": float(peak_rss()), "first": losses[0], "last": losses[-1]}


def ids_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 20_000, (length,), generator=generator).tolist() for length in lengths]


def make(work: str, side: str, folder: Path) -> Job:
    who, way = side.split(" ", 1)
    if who == "ours":
        return ours_classifier(folder, way) if work == "W4" else ours(work, folder, way)
    return peer_classifier(folder, way) if work == "W4" else peer(work, folder, way)


def ours(work: str, folder: Path, way: str) -> Job:
    from microplane.methods import make_method
    from microplane.methods.base_format import number_format
    from microplane.methods.method import attach_method, trainable
    from microplane.models.files.load import load_model
    from microplane.nn.rows import Pairs, Rows
    from microplane.objectives.text import TokenBatch, token_loss

    name = way.split()[0]
    narrow = name in ("int8", "nf4") and way != "nf4 wide"
    model = load_model(folder, number_format(name, "int8" if narrow else "auto"))
    attach_method(make_method({"name": "lora", "rank": RANK, "targets": ["q", "v"]}), model)
    told, answers = ids_of([LENGTH] * ROWS), ids_of([TRAINED] * ROWS, 1)
    model.train()

    def loss() -> Tensor:
        if work == "W3":
            batch = Pairs(Rows.of(told), Rows.of([[0, *answer[:-1]] for answer in answers]))
            targets = torch.tensor(answers).flatten()
            return token_loss(model, TokenBatch(batch, torch.arange(len(targets)), targets)) / len(targets)
        if way.endswith("in two"):
            (first := of_rows(told[: ROWS // 2])).backward()
            return of_rows(told[ROWS // 2 :]) + first.detach()
        return of_rows(told)

    def of_rows(some: list[list[int]]) -> Tensor:
        rows = Rows.of(some)
        ends = torch.arange(1, len(some) + 1)[:, None] * LENGTH
        where = (ends - TRAINED - 1 + torch.arange(TRAINED)).flatten()
        return token_loss(model, TokenBatch(rows, where, rows.ids[where + 1])) / (ROWS * TRAINED)

    return Job(loss, list(trainable(model).values()))


def peer(work: str, folder: Path, way: str) -> Job:
    """As one who knows both would write it: torch's own attention, no cache, labels where something is trained."""
    import peft
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

    auto: Any = AutoModelForSeq2SeqLM if work == "W3" else AutoModelForCausalLM
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    net = auto.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=four if work == "W6" else None)
    net.config.use_cache = False
    kind, targets = ("SEQ_2_SEQ_LM", ["q", "v"]) if work == "W3" else ("CAUSAL_LM", ["q_proj", "v_proj"])
    model: Any = peft.get_peft_model(net, peft.LoraConfig(r=RANK, task_type=kind, target_modules=targets))
    ids, answers = torch.tensor(ids_of([LENGTH] * ROWS)), torch.tensor(ids_of([TRAINED] * ROWS, 1))
    labels = answers if work == "W3" else ids.clone()
    if work != "W3":
        labels[:, :-TRAINED] = -100
    model.train()
    return Job(_way(model, way, {"input_ids": ids, "labels": labels}), _trained(model))


def ours_classifier(folder: Path, way: str) -> Job:
    from microplane.methods import make_method
    from microplane.methods.method import attach_method, trainable
    from microplane.models.files.load import load_model
    from microplane.models.heads import add_head, task_scores
    from microplane.nn.number_format import NumberFormat
    from microplane.nn.rows import Rows

    model = load_model(folder, NumberFormat(getattr(torch, way), weights=torch.float32))
    if model.task_head is None:
        add_head(model, "classification", ("a", "b"), "cls")
    attach_method(make_method({"name": "full"}), model)
    told, labels = ids_of(LENGTHS), torch.arange(len(LENGTHS)) % 2
    model.train()
    return Job(
        lambda: nn.functional.cross_entropy(task_scores(model, Rows.of(told)).float(), labels),
        list(trainable(model).values()),
    )


def peer_classifier(folder: Path, way: str) -> Job:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    told, longest = ids_of(LENGTHS), max(LENGTHS)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in told])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in told])
    model.train()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(LENGTHS)) % 2}
    return Job(_way(model, way, inputs), _trained(model))


def _way(model: Any, way: str, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    called = torch.compile(model, dynamic=False) if "compiled" in way else model

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in way):
            found: Tensor = called(**inputs).loss
        return found

    return loss


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


if __name__ == "__main__":
    main()
