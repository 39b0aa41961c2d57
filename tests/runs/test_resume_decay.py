"""A run that an earlier version began with another weight decay does not go on as something else."""

from __future__ import annotations

import json

import pytest

import microplane
from microplane.errors import CheckpointError
from microplane.runs.prepare import Prepared
from microplane.training.optim import DECAYED_OWN, DECAYED_VECTORS
from microplane.training.resume import DIVERGENCE
from tests.tiny import save_tiny_folder

SETS = {"train.steps": 2, "train.threads": 1, "train.patience": 0, "train.on_divergence": "go_on"}
SETS |= {"eval.rows": 0, "model.dtype": "float32"}


def begin(tmp_path, monkeypatch, method: str, decay: float, without: tuple[str, ...] = ()) -> microplane.Run:
    """A run whose checkpoints do not have some of what a run is known by, as those of earlier versions."""
    save_tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {letter}", "completion": letter * 2} for letter in "abcdefghijklmnop"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = Prepared.identity

    def earlier(prepared):
        known = whole(prepared)
        for name in without:
            known.pop(name, None)
            known["train"].pop(name.removeprefix("train."), None)
        return known

    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "identity", earlier)
        given = SETS | {"train.weight_decay": decay, "method.name": method, "runs": str(tmp_path / "runs")}
        return microplane.train(tmp_path / "model", tmp_path / "rows.jsonl", set=given)


def go_on(run: microplane.Run) -> int:
    return microplane.resume(run.folder, set={"train.steps": 4}).result["train"]["steps"]


@pytest.mark.parametrize(
    ("method", "lacks", "what"),
    [("dora", (DECAYED_OWN,), DECAYED_OWN), ("full", (DECAYED_VECTORS, DIVERGENCE), DECAYED_VECTORS)],
)
def test_a_run_whose_vectors_decayed_is_refused(tmp_path, monkeypatch, method, lacks, what):
    with pytest.raises(CheckpointError, match=f"{what}: True then, False now"):
        go_on(begin(tmp_path, monkeypatch, method, 0.1, lacks))


@pytest.mark.parametrize(
    ("method", "decay", "lacks"),
    [
        ("dora", 0.0, (DECAYED_OWN,)),  # nothing decayed
        ("lora", 0.1, (DECAYED_OWN, DECAYED_VECTORS, DIVERGENCE)),  # nor has it anything that would be left out
        ("full", 0.1, (DECAYED_VECTORS,)),  # of a version that left them out already
        ("dora", 0.1, ()),
        ("full", 0.1, ()),
    ],
)
def test_any_other_run_goes_on(tmp_path, monkeypatch, method, decay, lacks):
    assert go_on(begin(tmp_path, monkeypatch, method, decay, lacks)) == 4
