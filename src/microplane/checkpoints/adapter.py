"""`adapter/`: small and portable, the best weights of a run: method.json, adapter_model.safetensors, and
adapter_config.json (peft's, where the method has it).

Safetensors and JSON only. Each file is written aside and renamed, so a kill at any moment leaves the old one or the
new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from microplane.checkpoints.peft_files import renamed
from microplane.checkpoints.tensors import disk_errors, read_tensors, save_tensors
from microplane.errors import AdapterError, ConfigError
from microplane.files import read_object, write_json
from microplane.methods import METHODS, Method, make_method
from microplane.methods.method import load_state, state_of
from microplane.models.contract import Model
from microplane.models.files.load import save_model
from microplane.models.files.packaged import hub_name, hub_revision
from microplane.nn.sharded import save_gathered


def save_adapter(
    folder: Path,
    model: nn.Module,
    method: Method,
    about: Mapping[str, Any],
    tokens: Mapping[str, Any] | None = None,
) -> int:
    """Write the method's state; returns the bytes of its weights file.

    Args:
        about: what else method.json says: the base's name and fingerprint, the template, the step.
        tokens: of a whole model, see `save_model`.
    """
    config = method.peft_config(model)
    if config is not None:
        base, revision = about.get("base"), about.get("revision")
        if isinstance(base, str):
            base, revision = hub_name(base), revision or hub_revision(base)
        config |= {"base_model_name_or_path": base, "revision": revision}
        write_json(folder / "adapter_config.json", config)
    else:  # what a method cannot be any more, as lora-auto after it has grown
        (folder / "adapter_config.json").unlink(missing_ok=True)
    write_json(folder / "method.json", {"name": method.name, **method.model_dump(mode="json"), "about": dict(about)})
    weights = folder / weights_name(method)
    if method.whole_model:
        with disk_errors(weights):
            save_model(model, folder, tokens=tokens)
        return weights.stat().st_size
    # The weights come last: they are what a new best replaces, and a reader that finds them finds the rest.
    save_tensors(weights, state_of(method, model), {"format": "pt"})
    return weights.stat().st_size


def hand_in_adapter(model: Model) -> None:
    """What the processes that do not write do, while one saves a model of which each holds a part."""
    save_gathered(model.plain_tensors(), None)


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
        about = {
            "base": config.get("base_model_name_or_path"),
            "revision": config.get("revision"),
            "peft": dict(config),
        }
        train = config.pop("modules_to_save", None)
        if beside:
            about["train"] = train
        return _method(file, _of_peft(folder, config)), about
    raise AdapterError(
        f"{folder} is not an adapter: it has neither method.json (Microplane) nor adapter_config.json (peft)"
    )


def read_state(folder: Path, method: Method) -> dict[str, Tensor]:
    """The tensors of an adapter folder.

    Raises:
        AdapterError: if there are none, or they are damaged.
    """
    path = folder / weights_name(method)
    if not path.is_file():
        if (pickle := path.with_suffix(".bin")).is_file():
            raise AdapterError(
                f"the weights in {pickle} are a pickle, which can run any code when opened, and are not read. Where "
                "you trust them, peft converts them: PeftModel.from_pretrained(base, folder).save_pretrained(folder)"
            )
        raise AdapterError(f"{folder} has no {path.name}; the adapter is not whole")
    state = read_tensors(path, AdapterError)
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise AdapterError(
            f"{path} is damaged: {len(broken)} of {len(state)} tensors hold NaN or infinity, such as {broken[0]}. "
            "Fetch it again, or train again"
        )
    return state


def load_adapter(folder: Path, model: nn.Module, method: Method, state: Mapping[str, Tensor] | None = None) -> None:
    """Fill a model to which `method` is attached from an adapter folder.

    Args:
        state: what of its tensors is to be loaded; all of them otherwise.
    """
    state = read_state(folder, method) if state is None else state
    if method.whole_model and isinstance(model, Model):
        state = {name: x for name, x in model.as_read(state).items() if not model.is_unused_weight(name)}
    try:
        if not (folder / "method.json").is_file():
            config = read_object(folder / "adapter_config.json", AdapterError)
            state = renamed(method.state_of_peft(config, state), state_of(method, model))
        load_state(method, model, state)
    except AdapterError as error:
        raise AdapterError(f"{folder / weights_name(method)}: {error}") from None


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
