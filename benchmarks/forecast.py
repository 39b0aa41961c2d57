"""How far off is the forecast of a run's memory? Real runs, each in a process of its own, few steps.

    python benchmarks/forecast.py [--new] [--only NAME ...] [--out FILE]

Every run forecasts its own peak before training (microplane/forecast) and measures it; both stand in its result.json.
Memory may be measured beside other work, time not: the forecast of time is left out here. Constants of the forecast
were set on CASES and on a few of NEW (docs/log.md, 2026-11-30); NEW are other settings, without bfloat16. Models but
SmolLM2 and MiniLM (fetched where they are not there) have new weights of a published shape.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from forecast_cases import CASES, DECODER, ENCODER, LABELLED, NEW, SHAPES, T5

RESULTS = Path(__file__).parent / "results"
AT_ONCE = 4096  # tokens that are computed at once: no more rows are taken into a step
FOUND = ("forecast_bytes", "measured_bytes", "off", "parts", "error")  # what comes of a case
OWN = ("model", "method", "length", "dtype", "recompute", "task")  # what is no knob of `train`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new", action="store_true", help="settings that no constant was fitted on")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name holds one of these")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as place:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        out = options.out or RESULTS / f"forecast{'_new' if options.new else ''}_{today}.json"
        for one in NEW if options.new else CASES:
            if any(word in name_of(one) for word in options.only):
                batch_size = min(options.batch_size, AT_ONCE // one["length"]) if options.new else options.batch_size
                found.append(measured(one, Path(place), options.steps, batch_size))
                print(line_of(found[-1]), flush=True)
                result = summary(found, options)
                out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("off_median", "off_worst", "too_low_worst")}), out)


def name_of(one: dict[str, Any]) -> str:
    return "-".join(str(value) for name, value in one.items() if name not in FOUND)


def line_of(one: dict[str, Any]) -> str:
    if "error" in one:
        return f"{name_of(one):45} {one['error']}"
    forecast, measured_ = one["forecast_bytes"] / 1e6, one["measured_bytes"] / 1e6
    return f"{name_of(one):45} {forecast:8,.0f} MB forecast {measured_:8,.0f} MB measured {one['off']:+.1%}"


def measured(one: dict[str, Any], place: Path, steps: int, batch_size: int) -> dict[str, Any]:
    """One run; its folder is deleted."""
    name, head = name_of(one), one.get("task")
    model, rows = model_of(one["model"], place), rows_of(one, place, steps * batch_size)
    knobs = {
        "name": name,
        "runs": str(place / "runs"),
        "model.dtype": one["dtype"],
        "train.recompute": one["recompute"],
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.threads": 1,
        "data.max_length": one["length"] + 8,
        "data.template": "plain",
        "data.max_unknown": 1.0,
        "eval.rows": 0,
        **({"data.task": head} if head else {}),
        **{f"train.{knob}": value for knob, value in one.items() if knob not in OWN},
    }
    command = [sys.executable, "-m", "microplane", "train", model, str(rows), "--method", one["method"], "--quiet"]
    command += [part for knob, value in knobs.items() for part in ("--set", f"{knob}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return one | {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:300]}
    forecast = json.loads((place / "runs" / name / "result.json").read_text())["forecast"]
    if forecast.get("peak_memory_bytes") is None:
        return one | {"error": forecast["reason"]}
    figures = {"forecast_bytes": forecast["peak_memory_bytes"], "parts": forecast["parts"]}
    return (
        one
        | figures
        | {
            "measured_bytes": int(forecast["measured"]["peak_memory_bytes"]),
            "off": forecast["off"]["peak_memory_bytes"],
        }
    )


def model_of(name: str, place: Path) -> str:
    """A short name, or a folder with new weights of a shape."""
    if name in (DECODER, ENCODER):
        return name
    folder = place / name
    if not folder.is_dir():
        from microplane.models.families import family_of
        from microplane.models.files.load import save_model

        folder.mkdir()
        fields = SHAPES[name]
        save_model(family_of(fields).from_hf(fields).init_weights(0), folder)
        tokenizer = _words(name)
        tokenizer.save(str(folder / "tokenizer.json"))
        special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(special))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 1, "pad_token_id": 0}))
    return str(folder)


def _words(name: str) -> Any:
    """A tokenizer of one token a word: `w0` and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number + 3 for number in range(2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if name == T5:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def rows_of(one: dict[str, Any], place: Path, count: int) -> Path:
    """Rows of about so many tokens: a fifth shorter ones among them."""
    file, drawn = place / f"{name_of(one)}.jsonl", random.Random(0)
    words = [f"w{number}" for number in range(2000)] if one["model"] in SHAPES else PLAIN
    head = one.get("task") or ("classification" if one["model"] in LABELLED else None)

    def text(tokens: int) -> str:
        return " ".join(drawn.choice(words) for _ in range(max(1, tokens)))

    with file.open("w") as out:
        for number in range(count + count // 4 + 10):
            length = round(one["length"] * (1 if number % 5 else drawn.uniform(0.5, 1)))
            if head == "tokens":
                tokens = text(length - 4).split()
                row = {"tokens": tokens, "tags": ["even" if len(token) % 2 else "odd" for token in tokens]}
            elif head is not None:
                label = number / 10 if head == "regression" else "even" if number % 2 else "odd"
                row = {"text": text(length - 4), "label": label}
            else:
                row = {"prompt": text(length // 2 - 4), "completion": text(length // 2 - 4)}
            out.write(json.dumps(row) + "\n")
    return file


PLAIN = ["the", "house", "time", "water", "light", "people", "day", "work", "and", "of", "in", "world", "small", "old"]


def summary(found: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    off = [one["off"] for one in found if "off" in one]
    from importlib.metadata import version

    return {
        "what": "the forecast of a run's peak memory against what was measured",
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "load_before": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": {"steps": options.steps, "batch_size": options.batch_size, "only": options.only, "new": options.new},
        "threads": 1,
        "runs": len(off),
        "off_median": round(statistics.median(abs(value) for value in off), 4) if off else None,
        "off_worst": round(max((abs(value) for value in off), default=0.0), 4),
        "too_low_worst": round(-min(0.0, *off, 0.0), 4) if off else None,
        "cases": found,
    }


def _processor() -> str:
    from microplane.hardware import cpu_name

    return cpu_name()


if __name__ == "__main__":
    main()
