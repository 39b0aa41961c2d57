"""The FLAN experiment, small and real: does instruction tuning on other tasks help with a task that was held out?

    make flan-small            or            .venv/bin/python examples/flan_small/run.py

Everything is fetched, made and trained below `data/` beside this file; the results go to `results/`. Stop it at any
time (Ctrl-C, kill): the same command goes on where it was. `--tiny` goes through all stages in a few minutes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Threads that wait by spinning steal the time of the one that works where a machine is shared: ten times slower steps.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MICROPLANE_CACHE", str(HERE / "data" / "cache"))

import argparse  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
from typing import Any  # noqa: E402

import arms  # noqa: E402
import fetch  # noqa: E402
import report  # noqa: E402
import tasks  # noqa: E402
import torch  # noqa: E402
import vocabulary  # noqa: E402
from stages import Stages, StoppedError, run_facts, train_run  # noqa: E402

from microplane.cli.terminal import Terminal, make_console  # noqa: E402
from microplane.config.build import build  # noqa: E402
from microplane.config.knobs import RunKnobs  # noqa: E402
from microplane.errors import MicroplaneError  # noqa: E402
from microplane.files import write_aside  # noqa: E402
from microplane.inference.pipeline import number_format  # noqa: E402
from microplane.runs import provenance  # noqa: E402

ARMS = {"direct": "pretrained, then fine-tuned", "instructed": "pretrained, instruction-tuned, then fine-tuned"}
SEEDS = (0, 1, 2)
FULL: dict[str, Any] = {
    "pieces": 8000, "vocabulary_rows": 12000, "text_rows": 240_000, "pretrain_steps": 1600, "instruct_steps": 600,
    "fine_steps": 300, "every": 25, "validation_rows": 300, "test_rows": 1300, "written": 200, "lrs": (5e-4, 1.5e-3),
    "seeds": SEEDS, "batch_tokens": 4096, "batch_size": 32,
}  # fmt: skip
TINY: dict[str, Any] = FULL | {
    "vocabulary_rows": 2000, "text_rows": 5000, "pretrain_steps": 12, "instruct_steps": 12, "fine_steps": 12,
    "every": 6, "validation_rows": 40, "test_rows": 40, "written": 10, "lrs": (5e-4, 1.5e-3), "seeds": (0, 1),
    "batch_tokens": 1024, "batch_size": 8,
}  # fmt: skip


class Experiment:
    def __init__(self, folder: Path, results: Path, size: dict[str, Any], threads: int | None):
        self.data, self.work, self.results, self.size = folder, folder / "runs", results, size
        self.console = Terminal(make_console())
        self.stages = Stages(self.work, self.say)
        self.threads = threads

    def say(self, text: str) -> None:
        self.console.say(text)

    def run(self) -> dict[str, Any]:
        do, size = self.stages.do, self.size
        machine = do("machine", self.machine)
        torch.set_num_threads(machine["threads"])
        do("fetch", self.fetch)
        do("tasks", lambda: tasks.build(self.data))
        do("vocabulary", self.vocabulary)
        do("pretrain", lambda: self.train("pretrain", self.data / "model", "random", self.data / "text.jsonl", 2e-2))
        before = arms.start_from(self.work / "pretrain" / "adapter", self.data / "start" / "pretrained", 0.0)
        do("instruct", lambda: self.train("instruct", before, "pretrained", self.mixture(), 1e-3))
        plan = self.plan(machine)
        starts = {
            arm: arms.start_from(self.work / run / "adapter", self.data / "start" / arm, plan.dropout)
            for arm, run in (("direct", "pretrain"), ("instructed", "instruct"))
        }
        do("baselines", lambda: arms.baselines(plan))
        for arm, start in starts.items():
            do(f"zero-shot, {arm}", lambda start=start: arms.zero_shot(start, plan, size["written"]))
        chosen = {arm: self.tuned(arm, start, plan) for arm, start in starts.items()}
        return self.finish(chosen)

    def machine(self) -> dict[str, Any]:
        """Threads and number format, settled once, so that a resumed run computes as it began."""
        load, cores = os.getloadavg()[0], provenance.describe()["cores"]
        threads = self.threads or min(2, cores)
        torch.set_num_threads(threads)
        dtype = number_format("auto").name
        return {"threads": threads, "dtype": dtype, "load_at_start": load, **provenance.describe()}

    def fetch(self) -> dict[str, Any]:
        fetch.debian(self.data)
        return {name: (self.data / f"{name}.txt").stat().st_size for name in ("packages", "en", "fr")}

    def vocabulary(self) -> dict[str, Any]:
        files = sorted((self.data / "tasks").glob("*.jsonl"))
        size = self.size
        return vocabulary.build(
            self.data / "text.jsonl", files, self.data / "model", size["pieces"], size["vocabulary_rows"]
        )

    def mixture(self) -> Path:
        """mixture.yaml beside the files that it names."""
        shutil.copyfile(HERE / "mixture.yaml", self.data / "mixture.yaml")
        os.utime(self.data / "mixture.yaml", (0, 0))  # its rendered rows are kept by its time; the text decides
        return self.data / "mixture.yaml"

    def train(self, name: str, model: Path, init: str, data: Path, lr: float) -> dict[str, Any]:
        size, machine = self.size, self.stages.records["machine"]["made"]
        steps = size[f"{name}_steps"]
        corrupted = init == "random"
        knobs = {
            "name": name,
            "runs": str(self.work),
            "model": {"name": str(model), "init": init, "dtype": machine["dtype"]},
            "method": {"name": "full"},
            "data": {"train": str(data), "max_length": 128 if corrupted else 192, "max_target_length": 64}
            | ({"limit": size["text_rows"]} if corrupted else {}),
            "train": {
                "steps": steps, "batch_tokens": size["batch_tokens"], "micro_tokens": size["batch_tokens"], "lr": lr,
                "schedule": "inverse_sqrt" if corrupted else "linear", "warmup": 0.08, "threads": machine["threads"],
                # as T5 was pretrained; AdamW at 2e-3 was behind it at every step (5.42 against 5.35 after 250)
                **({"optimizer": "adafactor", "scale_parameter": True} if corrupted else {}),
                "eval_every": max(1, steps // 12), "patience": 0,
            },
            "eval": {"rows": 0 if corrupted else 40},
        }  # fmt: skip
        done = train_run(build(RunKnobs, knobs), self.console)
        return run_facts(done) | {"parameters": done.result["model"]["parameters"]}

    def plan(self, machine: dict[str, Any]) -> arms.Plan:
        size = self.size
        return arms.Plan(
            data=self.data / "held_out", steps=size["fine_steps"], batch_size=size["batch_size"], every=size["every"],
            validation_rows=size["validation_rows"], test_rows=size["test_rows"], longest=96, dropout=0.1,
            threads=machine["threads"], form=number_format(machine["dtype"])._replace(weights=torch.float32),
        )  # fmt: skip

    def tuned(self, arm: str, start: Path, plan: arms.Plan) -> dict[str, Any]:
        """The learning rate chosen on the first seed, then the other seeds with it."""

        def once(lr: float, seed: int) -> dict[str, Any]:
            name = f"fine-tune, {arm}, lr {lr:g}, seed {seed}"
            folder = self.work / f"{arm}-{lr:g}-{seed}"
            return self.stages.do(name, lambda: arms.fine_tune(start, plan, lr, seed, folder, self.say))

        first, *others = self.size["seeds"]
        tried = [once(lr, first) for lr in self.size["lrs"]]
        lr = arms.choose_lr(tried)
        runs = [next(run for run in tried if run["lr"] == lr), *(once(lr, seed) for seed in others)]
        return {"about": ARMS[arm], "lr": lr, "tried": tried, "runs": runs}

    def finish(self, chosen: dict[str, Any]) -> dict[str, Any]:
        records = self.stages.records
        levels = arms.levels_of([run["curve"] for arm in chosen.values() for run in arm["runs"]])
        seconds = self.stages.seconds()
        content = {
            "question": "Does instruction tuning on other tasks help a small T5 with a task that was held out?",
            "held_out": "the section of a Debian package, from its description, among four that are listed",
            "machine": records["machine"]["made"],
            "load": {name: record["load"] for name, record in records.items()},
            "interrupted": {name: record["starts"] - 1 for name, record in records.items() if record["starts"] > 1},
            "size": self.size,
            "rows": records["tasks"]["made"],
            "vocabulary": records["vocabulary"]["made"],
            "pretrain": records["pretrain"]["made"],
            "instruct": records["instruct"]["made"],
            "baselines": records["baselines"]["made"],
            "zero_shot": {arm: records[f"zero-shot, {arm}"]["made"] for arm in ARMS},
            "levels": levels,
            "arms": {arm: found | {"summary": arms.summary(found["runs"], levels)} for arm, found in chosen.items()},
            "stage_seconds": seconds,
            "total_seconds": round(sum(seconds.values()), 1),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_aside(self.results / "flan_small.json", text.encode() + b"\n")
        report.write(content, self.results / "report.html")
        self.say(f"{content['total_seconds'] / 60:.0f} minutes in all; see {self.results / 'report.html'}")
        return content


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="all stages with next to no training, into data/tiny/")
    parser.add_argument("--threads", type=int, help="processor threads; 2 otherwise")
    asked = parser.parse_args()
    data = HERE / "data" / ("tiny" if asked.tiny else "full")
    size, results = (TINY, data / "results") if asked.tiny else (FULL, HERE / "results")
    experiment = Experiment(data, results, size, asked.threads)
    try:
        experiment.run()
    except StoppedError as told:
        sys.exit(f"{told}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with this stage")
    except MicroplaneError as error:
        sys.exit(f"error: {error}")
    finally:
        experiment.console.close()


if __name__ == "__main__":
    main()
