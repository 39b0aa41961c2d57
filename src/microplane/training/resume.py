"""Two things with two lifetimes: `adapter/` (small, portable, the best) and `resume/` (exact, the last).

Both are safetensors and JSON only. Each file, and each checkpoint folder, is written aside and renamed, so a kill at
any moment leaves the old one or the new one.

    adapter/  method.json, adapter_model.safetensors, adapter_config.json (peft's, where the method has it)
    resume/   step-00000240/{weights,optimizer,method}.safetensors, state.json (position, monitor, checksums)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from microplane.errors import AdapterError, CheckpointError, ConfigError, MicroplaneError
from microplane.files import aside, file_sha256, read_object, write_aside
from microplane.methods import METHODS, Method, make_method, trainable
from microplane.methods.method import load_state, state_of
from microplane.models.files.load import save_model
from microplane.training.optim import add_groups

KEEP = 2  # checkpoints kept in resume/
BEST = "best.safetensors"
TENSORS = ("weights.safetensors", "optimizer.safetensors", "method.safetensors")  # of a checkpoint

# ---------------------------------------------------------------------------------------------------- adapter/


def save_adapter(folder: Path, model: nn.Module, method: Method, about: Mapping[str, Any]) -> int:
    """Write the method's state; returns the bytes of its weights file.

    Args:
        about: what else method.json says: the base's name and fingerprint, the template, the step.
    """
    config = method.peft_config(model)
    if config is not None:
        config["base_model_name_or_path"] = about.get("base")
        _write_json(folder / "adapter_config.json", config)
    else:  # what a method cannot be any more, as lora-auto after it has grown
        (folder / "adapter_config.json").unlink(missing_ok=True)
    _write_json(folder / "method.json", {"name": method.name, **method.model_dump(mode="json"), "about": dict(about)})
    weights = folder / weights_name(method)
    if method.whole_model:
        with disk_errors(weights):
            save_model(model, folder)
        return weights.stat().st_size
    # The weights come last: they are what a new best replaces, and a reader that finds them finds the rest.
    save_tensors(weights, state_of(method, model), {"format": "pt"})
    return weights.stat().st_size


def weights_name(method: Method) -> str:
    return "model.safetensors" if method.whole_model else "adapter_model.safetensors"


def read_method(folder: Path, beside: bool = False) -> tuple[Method, dict[str, Any]]:
    """(method, about) of an adapter folder; of one that peft wrote, too.

    Args:
        beside: parts that peft trained in full beside the adapter (modules_to_save) are understood, as about["train"].

    Raises:
        AdapterError: if there is no adapter, or it is of a kind that is not known here.
    """
    if (file := folder / "method.json").is_file():
        values = read_object(file, AdapterError)
        about = values.pop("about", {})
        if not isinstance(about, dict) or not isinstance(values.get("name"), str):
            raise AdapterError(f"{file} is damaged: expected the method's name, and what `about` says as an object")
        return _method(file, values), about
    if (file := folder / "adapter_config.json").is_file():
        config = read_object(file, AdapterError)
        about = {"base": config.get("base_model_name_or_path"), "revision": config.get("revision")}
        if beside:
            about["train"] = config.pop("modules_to_save", None)
        return _method(file, _of_peft(folder, config)), about
    raise AdapterError(
        f"{folder} is not an adapter: it has neither method.json (Microplane) nor adapter_config.json (peft)"
    )


def load_adapter(folder: Path, model: nn.Module, method: Method) -> None:
    """Fill a model to which `method` is attached from an adapter folder."""
    path = folder / weights_name(method)
    if not path.is_file():
        raise AdapterError(f"{folder} has no {path.name}; the adapter is not whole")
    state = read_tensors(path, AdapterError)
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise AdapterError(
            f"{path} is damaged: {len(broken)} of {len(state)} tensors hold NaN or infinity, such as {broken[0]}. "
            "Fetch it again, or train again"
        )
    try:
        load_state(method, model, state)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None


def _method(file: Path, values: Mapping[str, Any]) -> Method:
    try:
        return make_method(values)
    except ConfigError as error:
        raise AdapterError(f"{file} describes a method that cannot be read here. {error}") from None


def _of_peft(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The name and knobs of the method that peft's adapter_config.json means; each method knows its own format."""
    kind = config.get("peft_type")
    known = sorted({method.peft_type for method in METHODS.values() if method.peft_type})
    if kind not in known:
        raise AdapterError(f"{folder}: an adapter of peft's type {kind!r}; {', '.join(known)} can be read")
    for method in METHODS.values():
        try:
            knobs = method.of_peft(config) if method.peft_type == kind else None
        except AdapterError as error:
            raise AdapterError(f"{folder / 'adapter_config.json'}: {error}") from None
        if knobs is not None:
            return {"name": method.name, **knobs}
    raise AdapterError(f"{folder}: an adapter of peft's type {kind!r} in a form that no method here has")


# ---------------------------------------------------------------------------------------------------- resume/


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Write everything that step `step` needs to be continued exactly, then drop all but the newest checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".step-{uuid.uuid4().hex[:8]}.tmp"
    final = folder / f"step-{step:08d}"
    try:
        temporary.mkdir()
        save_tensors(temporary / "weights.safetensors", state_of(method, model))
        save_tensors(temporary / "optimizer.safetensors", optimizer_tensors(model, optimizer))
        save_tensors(temporary / "method.safetensors", method.training_state(model))
        sums = {name: file_sha256(temporary / name) for name in TENSORS}
        whole = {**state, "step": step, "sha256": sums}
        _write_json(temporary / "state.json", whole | {"checksum": _checksum(whole)})
        if final.exists():  # the same step again, after a resume from an earlier one: the bytes are the same
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


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


def check_resumable(run: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run with something else than it was begun with, before anything of it is touched.

    Args:
        identity: what must be the same: fingerprints of data and model, the method, the knobs.

    Raises:
        CheckpointError: listing every difference; or for a checkpoint or a log that is damaged.
    """
    saved = checkpoints(run / "resume")
    if not saved:
        return
    state = read_state(saved[-1])
    then = _flat(state["identity"])
    differences = [
        f"{name}: {_brief(then.get(name))} then, {_brief(value)} now"
        for name, value in _flat(identity).items()
        if name not in then or then[name] != value
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise CheckpointError(
            f"this run cannot be continued from {saved[-1]}, since these differ:\n  {listed}\n"
            "Put them back as they were, or start a run with another name."
        )
    log = run / "metrics.jsonl"
    size = log.stat().st_size if log.is_file() else 0
    if size < state["log_bytes"]:
        raise CheckpointError(
            f"{log} has {size:,} bytes, but had {state['log_bytes']:,} at step {state['step']}: it is not this run's, "
            "or was cut. Put it back as it was, or start a run with another name."
        )


def _brief(value: Any) -> str:
    return f"{value!r}" if len(str(value)) < 40 else f"'{str(value)[:12]}...'"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, `train.lr` and so on; as JSON has the values."""
    found: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(values)).items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def load_checkpoint(folder: Path, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors back in place."""
    load_state(method, model, read_tensors(folder / "weights.safetensors", CheckpointError))
    method.load_training_state(model, read_tensors(folder / "method.safetensors", CheckpointError))
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
    optimizer.state.clear()
    parameters = trainable(model)
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state of {parameter!r}, which does not train here")
        optimizer.state[parameters[parameter]][key] = value


# ---------------------------------------------------------------------------------------------------- files


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, aside and renamed."""
    with disk_errors(path), aside(path) as temporary:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata)


def read_tensors(path: Path, error: type[MicroplaneError]) -> dict[str, Tensor]:
    if not path.is_file():
        raise error(f"{path} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} is truncated, or is not a safetensors file: {problem}. Fetch or make it again") from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is written, as OSError; safetensors tells of a full disk by an error of its own."""
    try:
        yield
    except SafetensorError as error:
        if not (found := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    except OSError as error:
        error.filename = str(path)  # and not the temporary one
        raise


def _write_json(path: Path, value: Any) -> None:
    write_aside(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
