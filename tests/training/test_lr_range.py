"""The search of the learning rate: what a sweep says, and that the run starts as if there had been none."""

from __future__ import annotations

import json
import shutil

import pytest

import microplane
from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import METHODS, make_method
from microplane.methods.method import attach_method
from microplane.objectives.next_token import NextToken
from microplane.report.page import write_report
from microplane.runs import lr_search
from microplane.training.lr_range import PART, _loss_at_start, choose
from microplane.training.step import Totals, TrainState, train_step
from tests.data.preparing.test_doubts import asked
from tests.labels import encoder_folder, reviews
from tests.tiny import copy_task, save_tiny_folder, tiny

SETS = {"train.threads": 1, "model.dtype": "float32", "eval.rows": 0, "train.steps": 48, "train.batch_size": 2}
SETS |= {"train.eval_every": 48}
QUICK = ("lora", "full", "adalora", "scalora", "prefix")
RATES = [10.0**power for power in range(-6, 2)]


def test_a_third_of_the_rate_that_gained_most():
    found = choose(1e-3, RATES, [0, 0, 0.1, 0.4, 0.9, 0.2, -3, -9])
    assert found.chosen == pytest.approx(1e-2 * PART, rel=0.01)
    assert not found.edge
    assert "less beyond: a third of that" in found.why


def test_chance_is_averaged_away():
    noisy = [0, 0.05, 0, 0.3, 0.1, 0.35, 0.5, 0.4]
    assert choose(1e-3, RATES, noisy).chosen == pytest.approx(RATES[7] * PART, rel=0.01)


def test_the_first_rates_of_a_sweep_count_as_much_as_the_others():
    assert choose(1e-3, RATES, [0.5, *[0.4] * 7]).chosen == pytest.approx(RATES[0] * PART, rel=0.01)


def test_an_edge_is_told():
    found = choose(1e-3, RATES, [0, 0, 0, 0, 0, 0, 0.1, 0.9])
    assert found.edge
    assert "the highest that was tried" in found.why


@pytest.mark.parametrize("gains", [[], [-0.1, -0.2], [0.0, 0.0]])
def test_without_any_gain_the_methods_own_rate_stays(gains):
    found = choose(2e-3, RATES[: len(gains)], gains)
    assert found.chosen == 2e-3
    assert "the method's own" in found.why


@pytest.mark.parametrize("given", ["fast", 0, -1, "0"])
def test_what_is_no_rate_is_refused(given):
    with pytest.raises(ConfigError, match=r"train\.lr"):
        microplane.train("smollm2", "rows.jsonl", set={"train.lr": given})


def test_a_rate_that_is_searched_may_be_lowered():
    assert TrainKnobs(lr="auto").lowers_lr
    assert not TrainKnobs(lr=1e-3).lowers_lr


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_start_is_measured_by_the_loss_of_the_steps(smoothing):
    method, model = make_method({"name": "lora"}), tiny()
    attach_method(method, model)
    knobs = TrainKnobs(batch_size=8, micro_tokens=20, steps=1, label_smoothing=smoothing)
    state = TrainState.of(NextToken(), model, method, copy_task(16), knobs)
    start = _loss_at_start(state, model, 0)
    assert start == pytest.approx(train_step(state, Totals())["loss"], rel=1e-5)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "adapter").glob("*.safetensors")}


@pytest.mark.parametrize(
    "method",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
        if name not in ("bitfit", "head-only")  # which this model has nothing for
    ],
)
def test_the_run_is_the_one_that_was_given_the_rate(method, tmp_path):
    """To the bit, whatever the sweep trained before it."""
    model, rows = save_tiny_folder(tmp_path / "model"), asked(60)
    sets = SETS | {"runs": str(tmp_path / "runs")} | ({"model.dtype": "nf4"} if method == "qlora" else {})
    searched = microplane.train(model, rows, method=method, set=sets | {"train.lr": "auto"})
    rate = searched.result["lr_search"]["chosen"]
    assert searched.result["run"]["train"]["lr"] == rate
    given = microplane.train(
        model, rows, method=method, set=sets | {"train.lr": rate, "train.on_divergence": "lower_lr"}
    )
    assert files(searched.folder) == files(given.folder)
    assert (searched.folder / "metrics.jsonl").read_bytes() == (given.folder / "metrics.jsonl").read_bytes()


def test_a_method_that_changes_the_base_is_refused(tmp_path, monkeypatch):
    def meddling(self, model, optimizer, step, total):
        optimizer.step()
        next(p for p in model.parameters() if not p.requires_grad).data.add_(1.0)

    monkeypatch.setattr(METHODS["lora"], "step", meddling)
    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs"), "train.lr": "auto"}
    with pytest.raises(ConfigError, match=r"changes the base's own weights .* Set train\.lr"):
        microplane.train(model, asked(60), set=sets)


def test_an_encoder_and_its_report(tmp_path):
    sets = SETS | {"runs": str(tmp_path / "runs"), "train.lr": "auto"}
    run = microplane.train(encoder_folder(tmp_path / "model"), reviews(), method="lora", set=sets)
    page = write_report(run.folder).read_text()
    assert "Search of the learning rate" in page
    assert run.result["lr_search"]["why"][:20] in page


def test_it_is_searched_once(tmp_path, monkeypatch):
    """A run that goes on, and one that was stopped right behind the search, take what was found."""
    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs"), "train.lr": "auto"}
    run = microplane.train(model, asked(60), set=sets)
    again = microplane.train(model, asked(60), set=sets)
    assert again.result["lr_search"] == run.result["lr_search"]  # the same seed, the same sweep
    monkeypatch.setattr(lr_search, "range_test", lambda *how: pytest.fail("searched again"))
    longer = microplane.resume(run.folder, set={"train.steps": 52})
    assert longer.result["lr_search"] == run.result["lr_search"]
    shutil.rmtree(run.folder / "resume")  # as after a kill between the search and the first checkpoint
    written = run.folder / "run.yaml"
    written.write_text(written.read_text().replace(f"lr: {run.result['lr_search']['chosen']}", "lr: auto"))
    assert "lr: auto" in written.read_text()
    resumed = microplane.resume(run.folder, set={"train.steps": 56})
    assert resumed.result["run"]["train"]["lr"] == run.result["lr_search"]["chosen"]


def test_a_run_too_short_to_search_for(tmp_path):
    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs"), "train.lr": "auto"}
    with pytest.raises(ConfigError, match="a run of 8 is too short"):
        microplane.train(model, asked(60), set=sets | {"train.steps": 8})


def test_the_search_is_in_the_folder(tmp_path):
    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs"), "train.lr": "auto"}
    run = microplane.train(model, asked(60), set=sets)
    found = json.loads((run.folder / "lr_search.json").read_text())
    assert len(found["rates"]) >= len(found["gains"]) > 4
    assert found["rates"] == sorted(found["rates"])
