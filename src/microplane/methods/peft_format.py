"""peft's adapter format: what its tensors are called, and what of its adapter_config.json is understood.

A method says by `peft_type`, `peft_config` and `of_peft` how its knobs stand there; what several methods need is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from microplane.errors import AdapterError
from microplane.methods.adapted_linear import hf_paths
from microplane.methods.method import Method
from microplane.methods.targets import FUSED, ROLES
from microplane.models.contract import linears, module_map_of
from microplane.nn.transposed import TransposedLinear

TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}
LABELS = {False: "SEQ_CLS", True: "TOKEN_CLS"}  # one prediction for each token -> what peft calls such a task
# Fields of several types. (fan_in_fan_out is none of them: peft asks the layers too how their weight lies.)
MERGES = ("LORA", "ADALORA", "IA3", "VERA")
MERGED_THERE = (
    "Merge it with peft, and give that folder: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
    ".save_pretrained(FOLDER), with the tokenizer of the base beside it"
)
WHOLE = {"modules_to_save": None, "bias": "none"}


def leaves(found: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once: how peft is told what to adapt."""
    return sorted({path.rsplit(".", 1)[-1] for path in found})


def common_fields(method: Method, model: nn.Module, adapted: Iterable[str]) -> dict[str, Any]:
    """What stands in every adapter_config.json; `adapted` are the adapted layers by Hugging Face's dotted names."""
    transposed = any(isinstance(module, TransposedLinear) for module in model.modules())
    transposed |= getattr(model, "is_transposed", False)
    return {
        "peft_type": method.peft_type,
        "target_modules": shortest(model, adapted),
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        **task_fields(model),
    }


def task_fields(model: nn.Module) -> dict[str, Any]:
    """By which peft chooses how the base is asked, and what trains in full beside the adapter, as a head of one of
    Hugging Face's classes does."""
    module_map = module_map_of(model)
    task = TASKS.get(getattr(model, "KIND", ""), "CAUSAL_LM" if module_map is None else None)
    beside = list(module_map.modules_to_save) if module_map is not None else []
    if (head := getattr(model, "task_head", None)) is not None and head.config.form is not None:
        task, beside = LABELS[head.config.per_token], head.modules_to_save()
    return {"task_type": task, **({"modules_to_save": beside} if beside else {})}


def shortest(model: nn.Module, adapted: Iterable[str]) -> list[str]:
    """How peft is told what to adapt: the last parts of names where these mean nothing else, or the whole names."""
    chosen, module_map = set(adapted), module_map_of(model)
    every = set(hf_paths(model, linears(model)))
    every |= (
        {name.removeprefix(module_map.prefix) for name in module_map.not_adaptable} if module_map is not None else set()
    )
    inside = getattr(model, "inside", None)
    every |= set(inside.others) if inside is not None else set()
    other = set(leaves(every - chosen))
    return sorted({leaf if (leaf := path.rsplit(".", 1)[-1]) not in other else path for path in chosen})


def refuse_unsupported(config: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raise an AdapterError at the first field that says something else than what is understood, with the way round:
    what merges in peft is a plain model behind that."""
    way = f". {MERGED_THERE}" if config.get("peft_type") in MERGES else ""
    for name, value in plain.items():
        if config.get(name, value) not in (value, None, [], {}):
            raise AdapterError(f"peft's {name} = {config[name]!r} is not supported; only {value!r} is{way}")


def roles_of(config: Mapping[str, Any], field: str = "target_modules") -> list[str]:
    """What a list of module names stands for here: roles, and names that the model is to look up, as those of layers
    that only some families have."""
    targets = config.get(field)
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"peft's {field} = {targets!r}; a list of module names is needed")
    roles = ((name, ROLES.get(name)) for name in targets)
    return sorted({name if role is None or role in FUSED else role for name, role in roles})


def need(config: Mapping[str, Any], *names: str) -> None:
    if absent := [name for name in names if name not in config]:
        raise AdapterError(f"damaged, since it does not say {' and '.join(absent)}")
