"""Two things with two lifetimes: `adapter/` (small, portable, the best) and `resume/` (exact, the last).

Both are safetensors and JSON only. Each file, and each checkpoint folder, is written aside and renamed, so a kill at
any moment leaves the old one or the new one.

    adapter/  method.json, adapter_model.safetensors, adapter_config.json (peft's, where the method has it)
    resume/   step-00000240/{weights,optimizer}.safetensors, state.json (position, monitor, checksums of the two)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from microplane.errors import AdapterError, CheckpointError, MicroplaneError
from microplane.methods import Method, make_method, trainable
from microplane.models.load import save_model
from microplane.paths import aside, write_aside

KEEP = 2  # checkpoints kept in resume/

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
    _write_json(folder / "method.json", {"name": method.name, **method.model_dump(mode="json"), "about": dict(about)})
    weights = folder / weights_name(method)
    if method.whole_model:
        save_model(model, folder)
        return weights.stat().st_size
    # The weights come last: they are what a new best replaces, and a reader that finds them finds the rest.
    save_tensors(weights, method.state(model), {"format": "pt"})
    return weights.stat().st_size


def weights_name(method: Method) -> str:
    return "model.safetensors" if method.whole_model else "adapter_model.safetensors"


def read_method(folder: Path) -> tuple[Method, dict[str, Any]]:
    """(method, about) of an adapter folder; of one that peft wrote, too.

    Raises:
        AdapterError: if there is no adapter, or it is of a kind that is not known here.
    """
    if (folder / "method.json").is_file():
        values = _read_json(folder / "method.json", AdapterError)
        about = values.pop("about", {})
        return make_method(values), about
    if (folder / "adapter_config.json").is_file():
        config = _read_json(folder / "adapter_config.json", AdapterError)
        about = {"base": config.get("base_model_name_or_path"), "revision": config.get("revision")}
        return _peft_method(folder, config), about
    raise AdapterError(
        f"{folder} is not an adapter: it has neither method.json (Microplane) nor adapter_config.json (peft)"
    )


def load_adapter(folder: Path, model: nn.Module, method: Method) -> None:
    """Fill a model to which `method` is attached from an adapter folder."""
    path = folder / weights_name(method)
    if not path.is_file():
        raise AdapterError(f"{folder} has no {path.name}; the adapter is not whole")
    state = read_tensors(path, AdapterError)
    try:
        method.load(model, state)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None


def _peft_method(folder: Path, config: Mapping[str, Any]) -> Method:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{folder}: an adapter of peft's type {kind!r}; LORA is what can be read")
    unsupported = {
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_bias": False,
        "fan_in_fan_out": False,
    }
    for name, plain in unsupported.items():
        if config.get(name, plain) not in (plain, None):
            raise AdapterError(f"{folder}: peft's {name} = {config[name]!r} is not supported; only {plain!r} is")
    targets = config.get("target_modules") or []
    roles = sorted({_PEFT_ROLES.get(name.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1]) for name in targets})
    if isinstance(targets, str) or not roles:
        raise AdapterError(f"{folder}: peft's target_modules = {targets!r}; a list of module names is needed")
    return make_method(
        {
            "name": "lora",
            "rank": config["r"],
            "alpha": config["lora_alpha"],
            "dropout": config.get("lora_dropout", 0.0),
            "rslora": bool(config.get("use_rslora")),
            "targets": roles,
        }
    )


_PEFT_ROLES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "lm_head": "head",
}

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
        save_tensors(temporary / "weights.safetensors", method.state(model))
        save_tensors(temporary / "optimizer.safetensors", optimizer_tensors(model, optimizer))
        sums = {name: _sha256(temporary / name) for name in ("weights.safetensors", "optimizer.safetensors")}
        _write_json(temporary / "state.json", {**state, "step": step, "sha256": sums})
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
    """A checkpoint's state.json, after its tensors' checksums were compared.

    Raises:
        CheckpointError: if a file is missing, damaged or was changed.
    """
    state = _read_json(folder / "state.json", CheckpointError)
    for name, wanted in state.get("sha256", {}).items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise CheckpointError(f"the checkpoint {folder} cannot be read: {name}: {error.strerror}") from None
        if found != wanted:
            raise CheckpointError(
                f"the checkpoint {folder} is damaged or was changed: {name} is not what was saved. "
                "Delete this folder to go on from the one before, or start the run anew."
            )
    if not isinstance(state.get("step"), int) or len(state.get("sha256", {})) != 2:
        raise CheckpointError(f"the checkpoint {folder} is damaged: state.json lacks its step or its checksums")
    return state


def load_checkpoint(folder: Path, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors back in place."""
    method.load(model, read_tensors(folder / "weights.safetensors", CheckpointError))
    load_optimizer(model, optimizer, read_tensors(folder / "optimizer.safetensors", CheckpointError))


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
    with aside(path) as temporary:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata)


def read_tensors(path: Path, error: type[MicroplaneError]) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} cannot be read: {problem}. It is not whole, or not a safetensors file.") from None


def _write_json(path: Path, value: Any) -> None:
    write_aside(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def _read_json(path: Path, error: type[MicroplaneError]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{path} must hold an object, but holds a {type(value).__name__}")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
