"""What a checkpoint gives back to the optimizer lies where its parameters lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from microplane.checkpoints.tensors import save_tensors
from microplane.errors import CheckpointError
from microplane.training import resume
from microplane.training.adafactor import Adafactor
from microplane.training.log import Log, read_lines
from microplane.training.resume import load_optimizer, optimizer_tensors


class Halves(nn.Module):
    """A model over two devices; `meta` stands for a second one."""

    def __init__(self, second: str):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, device=second)


def stepped(kind: type[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """The state of an optimizer after two steps, as a checkpoint has it."""
    model = Halves("cpu")
    optimizer = kind(model.parameters())  # type: ignore[call-arg]
    for _ in range(2):
        model.second(model.first(torch.ones(1, 3))).sum().backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Adafactor])
@pytest.mark.parametrize(("options", "step"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")])
def test_state_goes_to_the_device_of_its_parameter(kind, options, step):
    """The count of steps goes there only for a kernel that reads it there."""
    saved, model = stepped(kind), Halves("meta")
    optimizer = kind(model.parameters())
    for group in optimizer.param_groups:
        group.update(options)
    load_optimizer(model, optimizer, saved)
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        assert set(state) == {key.split("/")[1] for key in saved if key.startswith(f"{name}/")}
        for key, value in state.items():
            on_first = parameter.device.type == "cpu"
            assert value.device.type == ("cpu" if on_first else step if key == "step" else "meta"), (name, key)
            assert not on_first or torch.equal(value, saved[f"{name}/{key}"])


def test_state_of_the_method_goes_to_the_device_of_what_trains(tmp_path, monkeypatch):
    for name in ("weights", "method", "optimizer"):
        save_tensors(tmp_path / f"{name}.safetensors", {"site.average": torch.ones(2)})
    for name in ("load_state", "add_groups", "load_optimizer"):
        monkeypatch.setattr(resume, name, lambda *arguments: None)

    class Averaging:
        def load_training_state(self, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
            self.state = state

    method: Any = Averaging()
    model = nn.Linear(2, 2, device="meta")
    resume.load_checkpoint(tmp_path, model, method, torch.optim.AdamW(model.parameters()))
    assert method.state["site.average"].device.type == "meta"


def test_state_of_what_does_not_train_is_refused():
    saved, model = stepped(torch.optim.AdamW), Halves("cpu")
    model.second.requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"state of 'second\.weight', which does not train here"):
        load_optimizer(model, torch.optim.AdamW(model.first.parameters()), saved)


def test_what_comes_behind_a_step_is_forgotten_and_not_the_step_itself(tmp_path):
    for step in (0, 5, 10, 15):
        (folder := resume.of_step(tmp_path, step)).mkdir()
        (folder / "state.json").touch()
    resume.forget_after(tmp_path, 5)
    assert [resume.step_of(folder) for folder in resume.checkpoints(tmp_path)] == [0, 5]


def test_what_the_clock_said_up_to_a_checkpoint_is_kept(tmp_path):
    log = Log(tmp_path, lambda record: None)
    for step in (1, 2, 3):
        log.write({"step": step}, {"step": step, "seconds": 1.0})
    log.rewind(2 * log.bytes // 3, 2)
    assert [record["step"] for record in read_lines(log.speed)] == [1, 2]
    assert [record["step"] for record in read_lines(log.metrics)] == [1, 2]


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path):
    """As a kill may leave one that is being deleted."""
    for step in (5, 10):
        resume.of_step(tmp_path, step).mkdir()
    (resume.of_step(tmp_path, 5) / "state.json").touch()
    assert [resume.step_of(folder) for folder in resume.checkpoints(tmp_path)] == [5]


def test_a_log_that_was_cut_is_refused(tmp_path, monkeypatch):
    """What a resumed run writes would stand behind something else."""
    (folder := resume.of_step(tmp_path / "resume", 5)).mkdir(parents=True)
    (folder / "state.json").touch()
    monkeypatch.setattr(resume, "read_state", lambda folder: {"identity": {}, "step": 5, "log_bytes": 10})
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b"x" * 10)
    assert resume.check_resumable(tmp_path, {}) == []
    log.write_bytes(b"x" * 9)
    with pytest.raises(CheckpointError, match="has 9 bytes, but had 10 at step 5"):
        resume.check_resumable(tmp_path, {})


def test_of_a_finished_run_the_last_checkpoint_stays(tmp_path):
    for step in (5, 10, 15):
        (folder := resume.of_step(tmp_path, step)).mkdir()
        (folder / "state.json").touch()
    resume.prune(tmp_path)
    assert [resume.step_of(folder) for folder in resume.checkpoints(tmp_path)] == [15]


def test_what_an_optimizer_has_beyond_a_checkpoint_is_forgotten():
    """Where a run goes back to its start, no average of the steps since stays."""
    model = Halves("cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    model.second(model.first(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    assert optimizer.state
    load_optimizer(model, optimizer, {})
    assert not optimizer.state
