"""Which linear layers are adapted: by role, by name, by the end of a name, or by a pattern; `all` but the head.

    q                        a role: of every block
    layers.0.attention.q     a name, or the end of one (attention.q); Hugging Face's names too
    layers.[01].*            a pattern of names or their ends, as for files

The roles of a model that is not ours are the last parts of its names; where these are usual spellings of q k v o gate
up down, those roles are understood too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from microplane.errors import ConfigError, nearest
from microplane.models.contract import Model, ModuleMap, Site, hf_names, linears, module_map_of

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
    "query_proj": "q",
    "key_proj": "k",
    "value_proj": "v",  # DeBERTa v2
    "q_lin": "q",
    "k_lin": "k",
    "v_lin": "v",
    "out_lin": "o",
    "lin1": "up",
    "lin2": "down",  # DistilBERT, XLM
    "out_proj": "o",
    "fc1": "up",
    "fc2": "down",  # Marian
    "c_attn": "qkv",
    "c_fc": "up",  # GPT-2, whose c_proj is two of them
    "query_key_value": "qkv",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",  # GPT-NeoX
    "qkv_proj": "qkv",
    "gate_up_proj": "gate_up",  # Phi-3
}
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def target_sites(model: nn.Module, targets: Sequence[str], knob: str = "targets") -> dict[str, Site]:
    """The linear layers that `targets` names, by dotted name.

    Raises:
        ConfigError: for a target that names none in this model, with those that it has.
    """
    sites, module_map = linears(model), module_map_of(model)
    roles = sorted({site.role for site in sites.values()})
    if not roles:
        raise ConfigError(
            "this model has no linear layers that could be adapted: its own are of another kind. Train it with full, "
            "or its head alone with head-only"
        )
    if not targets:
        raise ConfigError(f"method.{knob} is empty; this model has {', '.join(roles)}, or all")
    theirs = hf_names(model) if isinstance(model, Model) else {}
    found = {
        target: {name for name, site in sites.items() if names(target, name, site, theirs.get(f"{name}.weight", ""))}
        for target in targets
    }
    if unknown := [target for target in targets if not found[target]]:
        raise ConfigError(
            f"method.{knob}: {', '.join(map(repr, unknown))} name no linear layer; this model has "
            f"{', '.join(roles)} (or all).{_hint(unknown[0], sites, roles)}{_note(unknown, model, module_map)}"
        )
    chosen = set().union(*found.values())
    return {name: site for name, site in sites.items() if name in chosen}


def names(target: str, name: str, site: Site, theirs: str = "") -> bool:
    """Whether a target means the linear layer that is called `name`, and whose weight Hugging Face calls `theirs`."""
    if target == "all":
        return site.role != "head"
    if target in (site.role, ROLES.get(site.role)):
        return True
    return any(fits(target, called) for called in (name, theirs.removesuffix(".weight")))


def fits(target: str, name: str) -> bool:
    """Whether a target is a dotted name or its end, or a pattern of one."""
    return target == name or name.endswith(f".{target}") or any(fnmatchcase(name, p) for p in (target, f"*.{target}"))


def _hint(target: str, sites: Mapping[str, Site], roles: Sequence[str]) -> str:
    """A near miss; of a dotted name or a pattern, of its last part that differs."""
    if close := nearest(target, [*roles, *sites]):
        return close
    last = target.rsplit(".", 1)[-1]
    if last == target or last not in roles:
        return nearest(last, roles)
    example = next(name for name, site in sites.items() if site.role == last)
    return f" A whole name is {example!r}."


def _note(unknown: Sequence[str], model: nn.Module, module_map: ModuleMap | None) -> str:
    if module_map is None:
        found = {site.role for site in linears(model).values()}
        for one, parts in FUSED.items():
            if one in found and set(unknown) & set(parts):
                return f" {', '.join(parts)} are one linear layer here, {one}."
        tied = "head" in unknown
        return " The head is tied to the embedding here, so it cannot be adapted alone." if tied else ""
    for target in unknown:
        for name, why in module_map.not_adaptable.items():
            if fits(target, name):
                return f" {name} {why}."
        for name, module in model.named_modules():
            if fits(target, name):
                return f" {name} is a {type(module).__name__}; only linear layers can be adapted."
    return ""
