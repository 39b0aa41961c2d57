"""Whole commands, from the shell to the end of the process, in turn with scripts on transformers, peft and datasets.

    pip install --no-deps --target more datasets pyarrow pandas dill multiprocess xxhash python-dateutil six
    python benchmarks/whole_commands.py [--work W5 W9 W10] [--pairs 5] [--more more]

W5: a head on MiniLM, the rest frozen, five passes over 6,000 film reviews, then scores on 1,260. W9: LoRA of rank 16 on
all linear layers of SmolLM2, three passes over 200 home commands, the adapter saved, opened again and compared; once as
the command comes (untouched model measured, answers written before and after), once without answers (eval.rows=0), as
the script is. W10: a million short prompts and answers (`--rows`) become tokens, with the chat template, in a cache; by
`datasets` on as many processes as there are cores. Each round has rows of its own, so that nothing is found in a cache
that was not there before; models and compiled operations are.

Seconds are of the whole process; memory is the most that it held, or that it and its children held together, looked at
twice a second. Adds to results/whole_commands_<date>.json work by work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import environment, spread

HERE = Path(__file__).parent
SIDES = {
    "W5": ["ours", "peer autocast"],  # without autocast the script took 209 s where it takes 93
    "W9": ["ours", "ours without answers", "peer", "peer autocast"],
    "W10": ["ours", "peer"],
}
PASSES = {"W5": 5, "W9": 3}
BATCH = 16
EVERY = 0.5  # seconds between two looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--pairs", type=int, default=5, help="rounds, in each of which every side runs once")
    parser.add_argument("--first", type=int, default=0, help="number of the first round; another for other rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of W10")
    parser.add_argument("--more", type=Path, metavar="FOLDER", help="where `datasets` and what it needs are installed")
    parser.add_argument("--side", help="what a process of its own is asked for")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        {"W5": peer_head, "W9": peer_lora, "W10": peer_tokens}[options.work[0]](options.folder, options.side)
        return
    for work in options.work:
        about = environment()
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(options.first, options.first + options.pairs):
            with tempfile.TemporaryDirectory() as name:
                prepare(work, Path(name), number, options.rows)
                rounds.append({})
                for side in SIDES[work]:
                    rounds[-1][side] = one = measured(work, side, Path(name), options.more)
                    told = ", ".join(f"{name} {value:.4g}" for name, value in one.items())
                    print(f"{work} {len(rounds)}/{options.pairs}  {side:22} {told}", flush=True)
        write(about, f"{work}, {options.rows:,} rows" if work == "W10" else work, rounds)


def write(about: dict[str, Any], work: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    path = HERE / "results" / f"whole_commands_{about['date'][:10]}.json"
    found = json.loads(path.read_text()) if path.exists() else {"what": "whole commands", "works": {}}
    found["works"][work] = {**about, **compared(rounds), "rounds": rounds}
    path.write_text(json.dumps(found, indent=1) + "\n")


def compared(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Spread of each side, and of ours against the faster of the peer's ways, by rounds."""
    results: dict[str, Any] = {
        side: {name: spread([one[side][name] for one in rounds]) for name in rounds[0][side]} for side in rounds[0]
    }
    peers = [side for side in results if side.startswith("peer")]
    results["peer"] = best = min(peers, key=lambda side: results[side]["seconds"]["median"])
    for side in [side for side in rounds[0] if side.startswith("ours")]:
        pairs = [(one[side], one[best]) for one in rounds]
        results[side]["speed_ratio"] = spread([peer["seconds"] / ours["seconds"] for ours, peer in pairs])
        results[side]["memory_ratio"] = spread([ours["peak"] / peer["peak"] for ours, peer in pairs])
        times, memory = (results[side][f"{what}_ratio"]["median"] for what in ("speed", "memory"))
        print(f"{side} against {best}: {times:.2f} times, memory {memory:.2f}", flush=True)
    return results


def prepare(work: str, folder: Path, number: int, rows: int) -> None:
    """Files of this round, the same for both sides."""
    from microplane.data.tokenizers.load import load_tokenizer
    from microplane.models.files.hub import resolve
    from microplane.models.files.load import load_model, save_model

    path = resolve("minilm" if work == "W5" else "smollm2")
    if work == "W5":
        (folder / "model").symlink_to(path)
        reviews(folder, number)
        return
    import torch

    save_model(load_model(path, torch.bfloat16), folder / "model")
    load_tokenizer(path).save(folder / "model")
    if work == "W9":
        commands(folder, number)
    else:
        write_rows(folder / "train.jsonl", (short_row(random.Random(f"{number} {row}"), row) for row in range(rows)))


def reviews(folder: Path, number: int) -> None:
    from movies import snippets, split

    splits = split(snippets())
    drawn = random.Random(number).sample(splits["train"], 6000)
    for name, rows in (("train", drawn), ("validation", splits["validation"]), ("test", splits["test"])):
        write_rows(folder / f"{name}.jsonl", ({"text": row["text"], "label": row["label"]} for row in rows))


def commands(folder: Path, number: int) -> None:
    from microplane.cli.demo import recipe

    recipe().build(folder / "built", train_rows=240 + number, test_rows=40)
    rows = [json.loads(line) for line in (folder / "built" / "train.jsonl").read_text().splitlines()][number:]
    asked = [{"prompt": row["input"], "completion": row["output"]} for row in rows]
    write_rows(folder / "train.jsonl", asked[:200])
    write_rows(folder / "validation.jsonl", asked[200:240])


WORDS = """kitchen light lamp turn on off set to percent please what is the temperature in bedroom window open close
garage door music play stop next volume up down morning night alarm timer minutes seconds twenty five ten""".split()


def short_row(draw: random.Random, number: int) -> dict[str, str]:
    told = " ".join(draw.choices(WORDS, k=draw.randint(4, 12)))
    return {"prompt": f"{told} {number}", "completion": " ".join(draw.choices(WORDS, k=draw.randint(2, 6)))}


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def measured(work: str, side: str, folder: Path, more: Path | None) -> dict[str, float]:
    """Seconds of the process, bytes that it and its children held at most, and what it says of its result."""
    command = ours(work, side, folder) if side.startswith("ours") else script(work, side, folder)
    paths = [str(more.resolve())] if more and not side.startswith("ours") else []
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
    log = folder / f"{side}.log"
    began, peak = time.perf_counter(), 0
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environ)
        while True:
            peak = max(peak, held(process.pid))
            try:
                process.wait(EVERY)
                break
            except subprocess.TimeoutExpired:
                continue
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{work}, {side}: {log.read_text()[-3000:]}")
    return {"seconds": seconds, "peak": float(peak)} | outcome(work, side, folder)


def held(root: int) -> int:
    """Bytes that a process has held at most; where it has started others, what all hold now, what they share once."""
    pids = [root]
    for pid in pids:
        for task in _lines(Path(f"/proc/{pid}/task")):
            pids += [int(child) for child in "".join(_lines(Path(task) / "children")).split()]
    file, key = ("status", "VmHWM:") if len(pids) == 1 else ("smaps_rollup", "Pss:")
    told = [line.split() for pid in pids for line in _lines(Path(f"/proc/{pid}/{file}"))]
    return sum(1024 * int(words[1]) for words in told if words and words[0] == key)


def _lines(path: Path) -> list[str]:
    """Of a file, or the entries of a folder; none if its process has ended."""
    try:
        return [str(entry) for entry in path.iterdir()] if path.is_dir() else path.read_text().splitlines()
    except OSError:
        return []


def outcome(work: str, side: str, folder: Path) -> dict[str, float]:
    if work == "W10":
        return {}
    if side.startswith("peer"):
        return dict(json.loads((folder / f"{side}.json").read_text()))
    result = json.loads((folder / "runs" / side / "result.json").read_text())
    if work == "W5":
        return {"accuracy": result["metrics"]["after"]["accuracy"]}
    return {"validation_loss": result["train"]["validation_loss"]}


def ours(work: str, side: str, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "microplane"]
    if work == "W10":
        return [*command, "data", "train.jsonl", "--model", "model"]
    knobs = {
        "runs": "runs",
        "train.epochs": PASSES[work],
        "train.batch_size": BATCH,
        "data.validation": "validation.jsonl",
        "train.patience": 0,
        "method.name": "head-only" if work == "W5" else "lora",
        **({"data.test": "test.jsonl", "model.pooling": "mean"} if work == "W5" else {"method.rank": 16}),
        **({"eval.rows": 0} if side == "ours without answers" else {}),
    }
    sets = [part for name, value in knobs.items() for part in ("--set", f"{name}={value}")]
    return [*command, "train", "model", "train.jsonl", "--name", side, *sets]


def script(work: str, side: str, folder: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--work", work, "--side", side, "--folder", str(folder)]


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def peer_head(folder: Path, side: str) -> None:
    """A linear head over the mean of MiniLM's last states, as one who knows transformers would write it."""
    import torch
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    tokenizer, base = AutoTokenizer.from_pretrained(folder / "model"), AutoModel.from_pretrained(folder / "model")
    base.eval().requires_grad_(False)
    splits = {name: rows_of(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    classes = sorted({row["label"] for row in splits["train"]})
    head = nn.Linear(base.config.hidden_size, len(classes))
    ids = {
        name: tokenizer([row["text"] for row in rows], truncation=True, max_length=256)["input_ids"]
        for name, rows in splits.items()
    }
    labels = {name: torch.tensor([classes.index(row["label"]) for row in rows]) for name, rows in splits.items()}

    def scores(name: str, rows: list[int]) -> torch.Tensor:
        padded = tokenizer.pad({"input_ids": [ids[name][row] for row in rows]}, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in side):
            states = base(**padded).last_hidden_state.float()
        mask = padded["attention_mask"][..., None]
        return head((states * mask).sum(1) / mask.sum(1))

    def accuracy(name: str) -> float:
        by_length = sorted(range(len(ids[name])), key=lambda row: len(ids[name][row]))
        with torch.no_grad():
            found = [(scores(name, part).argmax(-1) == labels[name][part]).sum().item() for part in cut(by_length, 64)]
        return sum(found) / len(by_length)

    total = PASSES["W5"] * -(-len(ids["train"]) // BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    torch.manual_seed(0)
    for _ in range(PASSES["W5"]):
        for part in cut(torch.randperm(len(ids["train"])).tolist(), BATCH):
            nn.functional.cross_entropy(scores("train", part), labels["train"][part]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        accuracy("validation")
    torch.save(head.state_dict(), folder / "head.pt")
    (folder / f"{side}.json").write_text(json.dumps({"accuracy": accuracy("test")}))


def cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def peer_lora(folder: Path, side: str) -> None:
    """LoRA with transformers and peft, the adapter saved, opened again and compared."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16, use_cache=False)
    torch.manual_seed(0)
    knobs = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model: Any = peft.get_peft_model(base, knobs)

    def encoded(row: dict[str, str]) -> tuple[list[int], list[int]]:
        asked = [{"role": "user", "content": row["prompt"]}]
        whole = [*asked, {"role": "assistant", "content": row["completion"]}]
        before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(whole, return_dict=False)
        return ids, [-100] * len(before) + ids[len(before) :]

    rows = [encoded(row) for row in rows_of(folder / "train.jsonl")]
    held_out = [encoded(row) for row in rows_of(folder / "validation.jsonl")]

    def loss_of(part: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        longest = max(len(ids) for ids, _ in part)
        inputs = {
            "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in part]),
            "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in part]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in part]),
        }
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in side):
            loss: torch.Tensor = model(**inputs).loss
        return loss

    def validation() -> float:
        model.eval()
        with torch.no_grad():
            found = [loss_of([held_out[row] for row in part]).item() for part in cut(list(range(len(held_out))), BATCH)]
        model.train()
        return sum(found) / len(found)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = PASSES["W9"] * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    model.train()
    loss = validation()
    for _ in range(PASSES["W9"]):
        for part in cut(torch.randperm(len(rows)).tolist(), BATCH):
            loss_of([rows[row] for row in part]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss = validation()
    model.save_pretrained(folder / f"{side} adapter")
    tuned = loss
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16, use_cache=False)
    model = peft.PeftModel.from_pretrained(base, folder / f"{side} adapter")
    if abs(validation() / tuned - 1) > 0.01:
        raise SystemExit("what was saved is not what was trained")
    (folder / f"{side}.json").write_text(json.dumps({"validation_loss": tuned}))


def peer_tokens(folder: Path, side: str) -> None:
    """`datasets` in batches, on all cores: what is trained is told apart as TRL's prompt and completion are."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def encoded(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        asked = [[{"role": "user", "content": prompt}] for prompt in rows["prompt"]]
        answers = [[{"role": "assistant", "content": answer}] for answer in rows["completion"]]
        whole = [one + answer for one, answer in zip(asked, answers, strict=True)]
        before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(tokenizer.apply_chat_template(whole, tokenize=False), add_special_tokens=False)["input_ids"]
        told = [len(one) for one in tokenizer(before, add_special_tokens=False)["input_ids"]]
        trained = [[0] * count + [1] * (len(row) - count) for row, count in zip(ids, told, strict=True)]
        return {"input_ids": ids, "trained": trained}

    data = datasets.load_dataset(
        "json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    data = data.map(encoded, batched=True, num_proc=os.cpu_count(), remove_columns=data.column_names)
    (folder / f"{side}.json").write_text(json.dumps({"rows": len(data)}))


if __name__ == "__main__":
    main()
