"""Each method and start through the whole job, on the command line's path: what was saved is what was trained."""

from __future__ import annotations

import json

import pytest

import microplane
from tests.tiny import save_tiny_folder

SETS = {
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "eval.rows": 2,
    "eval.max_new_tokens": 4,
}
CASES = [
    ({"name": "rslora", "rank": 4}, "float32"),
    ({"name": "lora+", "rank": 4}, "float32"),
    ({"name": "dora", "rank": 4, "start": "pissa"}, "bfloat16"),
    ({"name": "ia3"}, "bfloat16"),
    ({"name": "vera", "rank": 16}, "bfloat16"),
    ({"name": "lora", "rank": 4, "start": "pissa"}, "bfloat16"),
    ({"name": "lora", "rank": 4, "start": "olora"}, "float32"),
    ({"name": "lora", "rank": 4, "start": "eva"}, "float32"),
    ({"name": "lora", "rank": 4, "start": "lora_ga"}, "bfloat16"),
    ({"name": "bottleneck", "kind": "houlsby"}, "nf4"),
    ({"name": "prompt", "length": 8, "start": "text", "text": "say a letter"}, "float32"),
    ({"name": "prefix", "length": 8, "mlp": True, "mlp_width": 16}, "bfloat16"),
    ({"name": "norms"}, "bfloat16"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    save_tiny_folder(folder / "model")
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(7)] * 6
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("method", "dtype"), CASES, ids=lambda case: str(case))
def test_it_learns_and_what_was_saved_is_what_was_trained(place, method, dtype):
    sets = SETS | {"runs": str(place / "runs"), "model.dtype": dtype}
    sets |= {f"method.{knob}": value for knob, value in method.items()}
    done = microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets)
    assert all(check["passed"] for check in done.result["checks"]), done.result["checks"]
    assert next(check for check in done.result["checks"] if check["name"] == "saved = trained")["value"] == 0.0
    assert done.metrics["after"]["loss"] < done.metrics["before"]["loss"]
    assert done.load().generate("say aa", max_new_tokens=2) is not None
