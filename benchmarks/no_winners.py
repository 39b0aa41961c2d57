"""Does a comparison name winners out of noise, and does it find one that is there?

    python benchmarks/no_winners.py [--noise 20] [--power 20]

The model is the first two of MiniLM's six blocks, and reads the first 32 tokens of a review: what is asked is how the
verdict does, not the model.

Noise: film reviews whose labels were shuffled, 300 rows to train on and 300 to test, other rows in each repetition;
head-only against LoRA, the whole of `compare` with its search of rates and three seeds. Nothing can be learnt, so
whatever is told apart (two methods, or a method from the best baseline) is told wrongly.

Power: twenty LoRA runs on the true labels of the same 1,500 rows, with other seeds, and 1,260 rows to test. In each
repetition six of them, drawn anew, are one method, and six others another, of whose right answers so many are
turned around at random that its accuracy is five points lower. It should be told apart where the comparison itself
says that five points are visible.

Trials run in this process: it is the verdict that counts here, and not memory or time. Writes
results/no_winners_<date>.json after each repetition and keeps what is there already.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from common import environment
from microplane.comparison.compare import compare
from microplane.comparison.plan import Trial
from microplane.comparison.table import Answers, scored
from microplane.comparison.trials import Outcome, Trials
from microplane.comparison.verdict import Judgement
from microplane.config.build import assemble
from microplane.models.files.hub import resolve
from microplane.runs.train import resume, train
from movies import snippets, split

HERE = Path(__file__).parent
BLOCKS = 2  # of MiniLM's
ROWS, TEST_ROWS = 300, 300
KNOBS = {"train.epochs": 1, "train.batch_size": 16, "train.threads": 1, "train.eval_every": 5, "data.max_length": 32}
LEARNT = {"train.epochs": 3, "train.eval_every": 50}  # of the power: enough that seeds differ, and not by too much
POWER_ROWS = 1500
HANDICAP, POOL, SIDE, SEEDS = 0.05, 20, 6, 3  # runs of a side; seeds of a comparison of shuffled labels
OTHER = {"positive": "negative", "negative": "positive"}


class InThisProcess(Trials):
    """Trials by the same arguments as a process of their own would get."""

    def _make(self, trial: Trial) -> Outcome:
        command = self.command(trial)
        if "--resume" in command:
            resume(command[-1])
        else:
            config, name = (command[command.index(option) + 1] for option in ("--config", "--name"))
            sets = [command[at + 1] for at, part in enumerate(command) if part == "--set"]
            train(knobs=assemble(Path(config), {"name": name}, sets))
        found = self._finished(trial)
        assert found is not None, trial
        return found


def shallow(folder: Path) -> str:
    """MiniLM without its upper blocks."""
    there = resolve("minilm", None)
    shutil.copytree(there, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": BLOCKS}))
    tensors = load_file(next(there.glob("*.safetensors")))
    upper = [f"layer.{number}." for number in range(BLOCKS, fields["num_hidden_layers"])]
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in upper)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def write(folder: Path, sides: dict[str, list[dict[str, str]]]) -> Path:
    for name, rows in sides.items():
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def shuffled(rows: Sequence[dict[str, str]], seed: int) -> dict[str, list[dict[str, str]]]:
    drawn = random.Random(seed)
    chosen = drawn.sample(list(rows), ROWS + TEST_ROWS)
    labels = [row["label"] for row in chosen]
    drawn.shuffle(labels)
    given = [row | {"label": label} for row, label in zip(chosen, labels, strict=True)]
    return {"train": given[:ROWS], "test": given[ROWS:]}


def noise(model: str, rows: Sequence[dict[str, str]], number: int) -> dict[str, Any]:
    """One comparison on shuffled labels, and what it claims."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        data = write(folder / "data", shuffled(rows, number))
        how: dict[str, Any] = {"methods": ["lora", "head-only"], "seeds": SEEDS, "set": KNOBS}
        result = compare(model, str(data), out=folder / "compared", **how).result
    claims: list[dict[str, Any]] = []
    for row in result["methods"]:
        told = [found for beside in ("to_reference", "to_baseline") if (found := row[beside]) and found["told_apart"]]
        claims += [{"method": row["method"], "to": found["to"], "value": found["value"]} for found in told]
    return {
        "number": number,
        "claims": claims,
        "answer": result["answer"]["sentences"][0],
        "visible": result["answer"]["visible"],
        "scores": {row["method"]: row["score"] for row in result["methods"]},
        "baselines": {row["name"]: row["score"]["value"] for row in result["baselines"]},
        "seconds": round(time.monotonic() - begun, 1),
    }


def pool(model: str, rows: Sequence[dict[str, str]], test: Sequence[dict[str, str]], folder: Path) -> list[Answers]:
    """Runs on the true labels, each with a seed of its own."""
    (folder / "data").mkdir()
    data = write(folder / "data", {"train": random.Random(0).sample(list(rows), POWER_ROWS), "test": list(test)})
    given = KNOBS | LEARNT | {"runs": str(folder / "runs"), "eval.rows": len(test)}
    found = []
    for number in range(POOL):
        run = train(model, str(data), method="lora", set=given | {"train.seed": number})
        found.append(Answers.of(run.folder))
        print(f"run {number + 1} of {POOL} for the power", flush=True)
    if len({tuple(run.said("after")) for run in found}) == 1:
        raise SystemExit("all runs answered every row alike: nothing was learnt, and their seeds tell nothing")
    return found


def handicapped(run: Answers, drawn: random.Random) -> Answers:
    """With so many right answers turned around that the accuracy is five points lower."""
    right = [at for at, line in enumerate(run.lines) if line["after"] == line["target"]]
    turned = set(drawn.sample(right, round(HANDICAP * len(run.lines))))
    return Answers(
        [line | {"after": OTHER[line["after"]]} if at in turned else line for at, line in enumerate(run.lines)]
    )


def power(runs: Sequence[Answers], number: int) -> dict[str, Any]:
    drawn = random.Random(1000 + number)
    chosen = drawn.sample(list(runs), 2 * SIDE)
    answers = {"whole": chosen[:SIDE], "handicapped": [handicapped(run, drawn) for run in chosen[SIDE:]]}
    found = scored(answers, None, "classification")
    judgement = Judgement(found.methods, found.baselines, dict.fromkeys(answers, 1.0), found.metric.lower)
    claim = judgement.claim("whole", "handicapped")
    return {
        "number": number,
        "visible": judgement.visible,
        "suffices": judgement.visible is not None and judgement.visible <= HANDICAP,
        "found": judgement.is_better("whole", "handicapped"),
        "difference": claim.difference.value,
        "p_adjusted": claim.p,
        "scores": {name: scores.mean for name, scores in found.methods.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--noise", type=int, default=20)
    parser.add_argument("--power", type=int, default=20)
    asked = parser.parse_args()
    import microplane.comparison.compare as comparison

    comparison.Trials = InThisProcess  # type: ignore[misc]
    path = HERE / "results" / f"no_winners_{datetime.date.today()}.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    kept |= {"noise": kept.get("noise", []), "power": kept.get("power", []), "environment": environment()}
    sides = split(snippets())

    def keep() -> None:
        told, suffices = kept["noise"], [one for one in kept["power"] if one["suffices"]]
        kept["summary"] = {
            "noise": {"repetitions": len(told), "with_claims": sum(bool(one["claims"]) for one in told)},
            "power": {
                "repetitions": len(kept["power"]),
                "rows_suffice": len(suffices),
                "found": sum(one["found"] for one in suffices),
            },
        }
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(json.dumps(kept["summary"]), flush=True)

    with tempfile.TemporaryDirectory() as name:
        model = shallow(Path(name) / "minilm-2-blocks")
        if len(kept["power"]) < asked.power:
            runs = pool(model, sides["train"], sides["test"], Path(name))
            kept["power"] = [power(runs, number) for number in range(asked.power)]
            keep()
        for number in range(len(kept["noise"]), asked.noise):
            kept["noise"].append(noise(model, sides["train"] + sides["test"], number))
            keep()


if __name__ == "__main__":
    main()
