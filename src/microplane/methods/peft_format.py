"""peft's adapter format: what its tensors are called, and what of its adapter_config.json is understood.

A method says by `peft_type`, `peft_config` and `of_peft` how its knobs stand there; what several methods need is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from microplane.errors import AdapterError
from microplane.methods.method import Method
from microplane.models.contract import hf_names

ROLES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "lm_head": "head",
    "wi_0": "gate",
    "wi_1": "up",
    "wi": "up",
    "wo": "down",  # T5
    "query": "q",
    "key": "k",
    "value": "v",  # BERT
    "out_proj": "o",
    "fc1": "up",
    "fc2": "down",  # Marian
}
TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}
PREFIX = "base_model.model."
WHOLE = {"modules_to_save": None, "fan_in_fan_out": False, "bias": "none"}  # fields of several types


def paths(model: nn.Module, sites: Iterable[str]) -> dict[str, str]:
    """Where Hugging Face's model has these linear layers: dotted name -> dotted name."""
    names = hf_names(model)
    return {site: names[f"{site}.weight"].removesuffix(".weight") for site in sites}


def leaves(found: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once: how peft is told what to adapt."""
    return sorted({path.rsplit(".", 1)[-1] for path in found})


def common_fields(method: Method, model: nn.Module, adapted: Iterable[str]) -> dict[str, Any]:
    """What stands in every adapter_config.json; `adapted` are the adapted layers by Hugging Face's dotted names."""
    return {
        "peft_type": method.peft_type,
        "task_type": TASKS.get(getattr(model, "KIND", ""), "CAUSAL_LM"),
        "target_modules": leaves(adapted),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def refuse_unsupported(config: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raise an AdapterError at the first field that says something else than what is understood."""
    for name, value in plain.items():
        if config.get(name, value) not in (value, None):
            raise AdapterError(f"peft's {name} = {config[name]!r} is not supported; only {value!r} is")


def roles_of(config: Mapping[str, Any], field: str = "target_modules") -> list[str]:
    """The roles that a list of module names stands for; a name that is not known stays, for the model to refuse."""
    targets = config.get(field)
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"peft's {field} = {targets!r}; a list of module names is needed")
    return sorted({ROLES.get(name, name) for name in leaves(targets)})


def need(config: Mapping[str, Any], *names: str) -> None:
    if absent := [name for name in names if name not in config]:
        raise AdapterError(f"damaged, since it does not say {' and '.join(absent)}")
