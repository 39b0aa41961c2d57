"""Two things with two lifetimes: `adapter/` (small, portable, the best) and `resume/` (exact, the last).

Both are safetensors and JSON only. Each file, and each checkpoint folder, is written aside and renamed, so a kill at
any moment leaves the old one or the new one.

    adapter/  method.json, adapter_model.safetensors, adapter_config.json (peft's, where the method has it)
    resume/   step-00000240/{weights,optimizer,method}.safetensors, state.json (position, monitor, checksums)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microplane.checkpoints.tensors import read_tensors, save_tensors
from microplane.config.build import dotted
from microplane.errors import CheckpointError
from microplane.files import file_sha256, folder_aside, object_in, read_object, write_json
from microplane.methods import Method, trainable
from microplane.methods.method import load_state, state_of
from microplane.nn.sharded import save_gathered, shared_as
from microplane.training.optim import DECAYED_OWN, DECAYED_VECTORS, add_groups

KEEP = 2  # checkpoints kept in resume/ while a run goes on
CHANGEABLE = {  # knobs that may be others in a run that goes on
    *("train.epochs", "train.steps", "train.patience", "train.eval_every", "train.save_every", "train.threads"),
    *("eval.rows", "eval.metrics", "eval.max_new_tokens", "eval.batch_tokens", "eval.general", "eval.shots"),
    *("model.device", "train.shard"),
    *("model.name", "data.train", "data.validation", "data.test"),  # the same weights and rows in another place
}
ROUNDS = {"threads", "device", "features kept", "train.shard"}
"""With another of these the numbers are the same to rounding alone."""
MAY_DIFFER = CHANGEABLE | ROUNDS  # of what a run is known by
BEST = "best.safetensors"
CLASSES = "classes"  # by their names
UNIT = "unit of numbers"  # that a regression learns in
DIVERGENCE = "train.on_divergence"
EARLIER = {DIVERGENCE: "go_on", "device": "cpu", "train.shard": False, UNIT: 1.0, DECAYED_OWN: True}
"""What runs did that were begun before there was a knob for it."""
WEIGHTS, FILES = {"weights", "config.json"}, {"model"}
"""By which a base is known: by what of its files is read; where a checkpoint does not have that (of an earlier version,
or of new weights), by the files themselves."""
TENSORS = ("weights.safetensors", "optimizer.safetensors", "method.safetensors")  # of a checkpoint


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: Collection[int] = (),
) -> None:
    """Write everything that step `step` needs to be continued exactly, then drop all but the newest checkpoints and
    those of the steps `keep`."""
    # The same step comes again after a resume from an earlier one; then the bytes are the same.
    with folder_aside(of_step(folder, step), there="replace") as temporary:
        for name, tensors in _tensors(model, method, optimizer).items():
            save_tensors(temporary / name, tensors)
        sums = {name: file_sha256(temporary / name) for name in TENSORS}
        whole = {**state, "step": step, "sha256": sums}
        write_json(temporary / "state.json", whole | {"checksum": _checksum(whole)})
    for old in checkpoints(folder)[:-KEEP]:
        if step_of(old) not in keep:
            shutil.rmtree(old, ignore_errors=True)


def _tensors(model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint's files hold."""
    whole = state_of(method, model), optimizer_tensors(model, optimizer), method.training_state(model)
    return dict(zip(TENSORS, whole, strict=True))


def hand_in_checkpoint(model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> None:
    """What the processes that do not write do, while one saves a checkpoint of a model of which each holds a part."""
    for tensors in _tensors(model, method, optimizer).values():
        save_gathered(tensors, None)


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps."""
    for later in checkpoints(folder):
        if step_of(later) > step:
            shutil.rmtree(later)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json, after its checksum and those of its tensors were compared.

    Raises:
        CheckpointError: if a file is missing, damaged or was changed.
    """
    advice = "Delete this folder to go on from the one before, or start the run anew."
    try:
        state = read_object(folder / "state.json", CheckpointError)
        if state.pop("checksum", None) != _checksum(state):
            raise CheckpointError("state.json is not what was saved")
        for name in TENSORS:
            if file_sha256(folder / name) != state["sha256"][name]:
                raise CheckpointError(f"{name} is not what was saved")
    except (CheckpointError, OSError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise CheckpointError(f"the checkpoint {folder} is damaged or was changed: {what}. {advice}") from None
    return state


def _checksum(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def check_resumable(run: Path, identity: Mapping[str, Any], steps: int | None = None) -> list[str]:
    """Refuse to continue a run with something else than it was begun with, before anything of it is touched.

    Args:
        identity: what must be the same: fingerprints of data and model, the method, the knobs.
        steps: how many the run is to have at its end, where that is known.

    Returns:
        What is to be said of differences that are allowed.

    Raises:
        CheckpointError: listing every difference; for fewer steps than were made; or for a checkpoint or a log that is
            damaged.
    """
    saved = checkpoints(run / "resume")
    if not saved:
        return []
    state = read_state(saved[-1])
    known = _classes_of(run) | dotted(state["identity"])
    then = EARLIER | {DECAYED_VECTORS: DIVERGENCE not in known} | known  # decay left vectors alone from then on
    ignored = FILES if then.keys() >= WEIGHTS else WEIGHTS
    differences = {
        name: f"{name}: {_brief(then.get(name))} then, {_brief(value)} now"
        for name, value in dotted(json.loads(json.dumps(identity))).items()
        if name not in ignored and (name not in then or then[name] != value)
    }
    if refused := [line for name, line in differences.items() if name not in MAY_DIFFER]:
        listed = "\n  ".join(refused)
        raise CheckpointError(
            f"this run cannot be continued from {saved[-1]}, since these differ:\n  {listed}\n"
            "Put them back as they were, or start a run with another name."
        )
    if steps is not None and steps < state["step"]:
        raise CheckpointError(
            f"this run has made {state['step']:,} steps already, and is asked for {steps:,} in all (train.steps or "
            "train.epochs): it can be given more, and not fewer. Leave that out, or start a run with another name."
        )
    log = run / "metrics.jsonl"
    size = log.stat().st_size if log.is_file() else 0
    if size < state["log_bytes"]:
        raise CheckpointError(
            f"{log} has {size:,} bytes, but had {state['log_bytes']:,} at step {state['step']}: it is not this run's, "
            "or was cut. Put it back as it was, or start a run with another name."
        )
    told = [f"goes on with another {line}" for line in differences.values()]
    rounding = "the same to rounding from here on, and no longer to the bit"
    return told + ([rounding] if differences.keys() & ROUNDS else [])


def _classes_of(run: Path) -> dict[str, Any]:
    """Those of a run's head, which the checkpoints of earlier versions do not name."""
    about = object_in(run / "adapter" / "method.json").get("about") or {}
    return {CLASSES: about["head"]["labels"]} if about.get("head") else {}


def nothing_left(step: int, total: int, patience: int) -> str:
    """What is said of a run that goes on where its training has ended."""
    if step >= total:
        why = f"all {total:,} steps were made. More of them: train.epochs or train.steps"
    else:
        last = f"validation was worse {patience} times in a row"
        why = f"{last}, and the run stopped at step {step:,}. To go on: a larger train.patience, or 0"
    return f"nothing is left to train: {why}"


def prune(folder: Path) -> None:
    """Keep of a finished run the last checkpoint alone, from which more passes go on."""
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def _brief(value: Any) -> str:
    return f"{value!r}" if len(str(value)) < 40 else f"'{str(value)[:12]}...'"


def load_checkpoint(folder: Path, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors back in place."""
    load_state(method, model, read_tensors(folder / "weights.safetensors", CheckpointError))
    state = read_tensors(folder / "method.safetensors", CheckpointError)
    device = next(iter(trainable(model).values())).device
    method.load_training_state(model, {name: tensor.to(device) for name, tensor in state.items()})
    add_groups(method, model, optimizer)
    load_optimizer(model, optimizer, read_tensors(folder / "optimizer.safetensors", CheckpointError))


def save_best(folder: Path, model: nn.Module, method: Method) -> None:
    """Keep the best weights for a method that changes them once more at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / BEST, state_of(method, model))


def load_best(folder: Path, model: nn.Module, method: Method) -> None:
    """Put the best weights back in place."""
    load_state(method, model, read_tensors(folder / BEST, CheckpointError))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{parameter name}/{key}`."""
    names = {id(parameter): name for name, parameter in trainable(model).items()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`: each tensor goes to the device of its parameter.

    The count of steps goes there only where the optimizer's kernel reads it; else it stays where Python reads it.

    Raises:
        CheckpointError: for the state of a parameter that does not train.
    """
    optimizer.state.clear()
    parameters = trainable(model)
    in_kernel = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group.get("fused") or group.get("capturable")
    }
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state of {name!r}, which does not train here")
        parameter = parameters[name]
        on_host = key == "step" and id(parameter) not in in_kernel
        optimizer.state[parameter][key] = value if on_host else shared_as(parameter, value)
