"""Runs that cannot be begun, continued or reported."""

from __future__ import annotations

import json

import pytest

from tests.bad_input.kit import (
    BASE,
    RESUME,
    ROWS,
    Case,
    cut,
    edit,
    edit_tensors,
    in_checkpoint,
    jsonl,
    newest_checkpoint,
    remove,
    sets,
    snapshot,
    train,
    write,
)

CHANGED = jsonl([*ROWS[:-1], {"prompt": "x", "completion": "y"}])
DAMAGED = ("resume/step-00000004 is damaged or was changed", "Delete this folder to go on from the one before")


def resume(kind: str, *says: str, spoil) -> Case:
    return Case(kind, RESUME, says, spoil)


def checkpoint(kind: str, spoil, *says: str) -> Case:
    """`spoil` is given the name of the newest checkpoint's folder."""
    return Case(kind, RESUME, (*DAMAGED, *says), in_checkpoint(spoil))


def flip(name: str):
    """Change the last byte."""

    def spoil(here):
        content = (here / name).read_bytes()
        (here / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return spoil


def reword(name: str, old: str, new: str):
    def spoil(here):
        text = (here / name).read_text()
        assert old in text
        (here / name).write_text(text.replace(old, new))

    return spoil


CASES = [
    Case("a name that is taken", train("--name", "base"), ("runs/base exists", "--resume runs/base", "another --name")),
    Case(
        "a file in the way of a run",
        train("--name", "f"),
        ("runs/f", "File exists", "runs=FOLDER"),
        write("runs/f", ""),
    ),
    Case(
        "a file in the way of all runs",
        train(*sets("runs=r")),
        ("at r: Not a directory", "runs=FOLDER"),
        write("r", ""),
    ),
    Case("a run that is not there", ["train", "--resume", "runs/bas"], ("runs/bas", "no such folder", "'runs/base'")),
    Case("a folder that is no run", ["train", "--resume", "model"], ("model is not a run", "no run.yaml")),
    Case("a file that is no run", ["train", "--resume", "rows.jsonl"], ("rows.jsonl is not a run", "no run.yaml")),
    Case("--resume with a model", [*RESUME, "model"], ("--resume runs/base", "give it alone")),
    Case("--resume with a knob", [*RESUME, *sets("train.lr=9")], ("train.lr cannot be changed", "--from runs/base")),
    resume("data that changed", "train rows: '", "then, '", "Put them back", spoil=write("rows.jsonl", CHANGED)),
    resume("data that vanished", "no file rows.jsonl", spoil=remove("rows.jsonl")),
    resume("a model that vanished", "no model 'model'", spoil=remove("model")),
    resume(
        "a model that changed",
        "weights: '",
        "Put them back",
        spoil=edit_tensors("model/model.safetensors", lambda t: t["model.norm.weight"].add_(1)),
    ),
    resume(
        "a knob that changed", "train.lr: 0.01 then, 0.02 now", spoil=reword(f"{BASE}/run.yaml", "lr: 0.01", "lr: 0.02")
    ),
    resume(
        "a method that changed", "method.rank: 2 then, 3 now", spoil=reword(f"{BASE}/run.yaml", "rank: 2", "rank: 3")
    ),
    resume("a broken run.yaml", "run.yaml is not YAML", spoil=write(f"{BASE}/run.yaml", "a: [")),
    resume(
        "an unknown knob in run.yaml",
        "run.yaml",
        "foo: there is no such knob",
        spoil=write(f"{BASE}/run.yaml", "foo: 1"),
    ),
    resume("a log that is too short", "metrics.jsonl has 5 bytes", "at step 4", spoil=cut(f"{BASE}/metrics.jsonl", 5)),
    resume("a log that vanished", "metrics.jsonl has 0 bytes", spoil=remove(f"{BASE}/metrics.jsonl")),
    resume("an adapter that vanished", "adapter is not an adapter", spoil=remove(f"{BASE}/adapter")),
    resume("a damaged probe", "probe.safetensors is truncated", spoil=cut(f"{BASE}/resume/probe.safetensors", 9)),
    checkpoint(
        "tampered weights", lambda c: flip(f"{c}/weights.safetensors"), "weights.safetensors is not what was saved"
    ),
    checkpoint("a tampered optimizer", lambda c: flip(f"{c}/optimizer.safetensors"), "optimizer.safetensors is not"),
    checkpoint("truncated weights", lambda c: cut(f"{c}/weights.safetensors", 99), "weights.safetensors is not"),
    checkpoint(
        "weights that vanished", lambda c: remove(f"{c}/weights.safetensors"), "weights.safetensors: No such file"
    ),
    checkpoint("a tampered step", lambda c: edit(f"{c}/state.json", step=3), "state.json is not what was saved"),
    checkpoint(
        "tampered totals", lambda c: edit(f"{c}/state.json", totals={"step": 1}), "state.json is not what was saved"
    ),
    checkpoint("tampered checksums", lambda c: edit(f"{c}/state.json", sha256=[1]), "state.json is not what was saved"),
    checkpoint("a state without its checksum", lambda c: edit(f"{c}/state.json", ("checksum",)), "state.json is not"),
    checkpoint("a truncated state", lambda c: cut(f"{c}/state.json", 200), "state.json is not valid JSON"),
    checkpoint("a state of rubbish", lambda c: write(f"{c}/state.json", b"\xff\x00"), "state.json is not valid JSON"),
    Case("no run to report", ["report", "runs/bas"], ("no run at runs/bas", "runs/<name>")),
    Case("a damaged result to report", ["report", BASE], ("result.json is damaged",), cut(f"{BASE}/result.json", 99)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_runs(microplane, case):
    microplane.check(case)


def test_a_run_goes_on_after_all_that_was_wrong_is_put_right(microplane, here):
    rows, weights = here / "rows.jsonl", newest_checkpoint(here) / "weights.safetensors"
    good = rows.read_bytes(), weights.read_bytes()
    rows.write_text(CHANGED)
    microplane.refuses(*RESUME)
    rows.write_bytes(good[0])
    weights.write_bytes(b"")
    microplane.refuses(*RESUME)
    weights.write_bytes(good[1])
    before = snapshot(here / BASE)
    code, _, err = microplane.run(*RESUME)
    assert code == 0, err
    after = snapshot(here / BASE)
    assert {name for name in after if after[name] != before[name]} <= {"result.json", "report.html"}


def test_a_damaged_checkpoint_deleted_as_advised_gives_the_same_run(microplane, here):
    adapter = (here / BASE / "adapter" / "adapter_model.safetensors").read_bytes()
    metrics = (here / BASE / "metrics.jsonl").read_bytes()
    in_checkpoint(remove)(here)
    code, _, err = microplane.run(*RESUME)
    assert code == 0, err
    assert (here / BASE / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert (here / BASE / "metrics.jsonl").read_bytes() == metrics


def test_a_run_is_continued_from_within_its_own_folder(microplane, here, monkeypatch):
    for name in ("model", "rows.jsonl"):  # the run names them as they were named then
        (here / BASE / name).symlink_to(here / name)
    monkeypatch.chdir(here / BASE)
    before = snapshot(here / "runs")
    code, _, err = microplane.run("train", "--resume", ".")
    assert code == 0, err
    assert snapshot(here / "runs").keys() == before.keys()


@pytest.mark.parametrize(
    ("knob", "says"),
    [("train.lr=1e30", "nan in step 2, in the rows rows.jsonl:"), ("train.lr=1e-30", "have not moved after 3 steps")],
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_that_fails_keeps_what_there_is(microplane, here, method, knob, says):
    told = microplane.refuses(*train("--name", "x", "-m", method, *sets(knob, "train.batch_size=2")))
    assert says in told.error
    assert "train.lr" in told.error
    result = json.loads((here / "runs/x/result.json").read_text())
    assert (result["status"], result["error"]) == ("failed", told.error)
    assert {"runs/x/run.yaml", "runs/x/metrics.jsonl", "runs/x/report.html", "runs/x/adapter/method.json"} <= set(
        told.new
    )


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"step": 1}\n'])
def test_a_damaged_clock_ends_no_run(microplane, here, content):
    (here / BASE / "speed.jsonl").write_bytes(content)
    code, _, err = microplane.run(*RESUME)
    assert code == 0, err
