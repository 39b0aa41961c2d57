"""How long until SmolLM2 is ready out of its GGUF file: model in float32 and tokenizer, ours and transformers in turn.

Each measurement is a fresh process. `ready` counts from the first line of Python, so it includes what is imported;
`load` only what comes after the imports. The file lies in the page cache for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS = """
import time; start = time.perf_counter()
import json, sys
from pathlib import Path
from microplane.data.tokenizers.load import load_tokenizer
from microplane.models.files.load import load_model
imported = time.perf_counter()
path = Path(sys.argv[1])
tokenizer = load_tokenizer(path)
model = load_model(path)
"""
THEIRS = """
import time; start = time.perf_counter()
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
imported = time.perf_counter()
path = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
model = AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
)
"""
END = """
end = time.perf_counter()
parameters = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps({"ready": end - start, "load": end - imported, "parameters": parameters}))
"""


def measure(code: str, path: Path, threads: int) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", code + END, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(path: Path, repeats: int, threads: int) -> dict[str, Any]:
    from common import environment, spread

    told = environment()  # before the first measurement, for the load average of the machine
    path.read_bytes()
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "transformers": []}
    for _ in range(repeats):
        sides["ours"].append(measure(OURS, path, threads))
        sides["transformers"].append(measure(THEIRS, path, threads))
    assert len({run["parameters"] for runs in sides.values() for run in runs}) == 1
    result: dict[str, Any] = {"what": "seconds until SmolLM2-135M-Instruct (Q4_1 GGUF) is ready, float32", **told}
    result |= {"options": {"repeats": repeats, "model": path.name}, "threads": threads}
    for what in ("ready", "load"):
        seconds = {side: [run[what] for run in runs] for side, runs in sides.items()}
        ratios = [ours / theirs for ours, theirs in zip(seconds["ours"], seconds["transformers"], strict=True)]
        result[what] = (
            seconds | {"ratio": spread(ratios)} | {f"{side}_seconds": spread(seconds[side]) for side in sides}
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "load_time.json")
    options = parser.parse_args()
    from microplane.models.files.hub import resolve

    result = compare(resolve("smollm2"), options.repeats, options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({what: result[what] for what in ("ready", "load")}, indent=2))


if __name__ == "__main__":
    main()
