"""Adapters as peft, and others that write its format, leave them: which of their tensors belongs where on a model.

What was adapted, the names in the file say. adapter_config.json says it by patterns that depend on the model (regular
expressions, layers_to_transform, exclude_modules), and may name layers that the model does not have. Beside the tensors
of the method there may be a head for labels, and weights of the base: trained in full (modules_to_save), or only saved
with it, as peft does with an adapted or enlarged embedding.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from microplane.errors import AdapterError, ConfigError, notice
from microplane.methods import Method
from microplane.methods.adapted_linear import hf_paths
from microplane.methods.method import PREFIX, head_state
from microplane.methods.peft_format import LABELS
from microplane.methods.targets import target_sites
from microplane.models.configs.head import FORMS, PER_TOKEN, PROBLEMS, pooling_of
from microplane.models.contract import SEEING, Model, hf_names, linears
from microplane.models.external.encoder import TransformersEncoder
from microplane.models.heads import add_head
from microplane.nn.layers import Linear

HEADS = {name: per_token for per_token, name in LABELS.items()}  # peft's task_type -> one prediction for each token
# What a layer has of the method itself, and the matrices that all layers of VeRA share.
ADAPTED = re.compile(r"\.(?:lora_(?:A|B|magnitude_vector)|ia3_l|vera_lambda_[bd])(?:\.|$)")
SHARED = re.compile(r"\.vera_[AB]$")


def is_of_method(name: str) -> bool:
    """Whether a tensor in a file is the adapter itself: not a head, nor a weight of the base."""
    return bool(ADAPTED.search(name) or SHARED.search(name))


def _layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapted layers as the file calls them, each with one of its tensors."""
    return {ADAPTED.split(name)[0]: tensor for name, tensor in state.items() if ADAPTED.search(name)}


def plain_name(name: str) -> str:
    """A tensor's name without what only some writers put into it: wrappers of torch (`module`, `_orig_mod`), peft's
    prefix and its wrappers, the adapter's name, and the place of a language model in one that also sees."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] == ["module"]:
        parts = parts[1:]
    name = ".".join(parts).removeprefix(PREFIX)
    name = re.sub(r"\.(lora_\w+|modules_to_save)\.default(?=\.|$)", r".\1", name)
    name = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    name = name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
    name = name.replace("language_model.model.", "model.").replace("model.language_model.", "model.")
    return name.removeprefix("language_model.")  # as the model without its head is called


def matching(stored: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Names in a file -> names here: the same ones, or the only one of which one is the end of the other."""
    by_plain = {plain_name(name): name for name in own}
    found = {}
    for name in stored:
        plain = plain_name(name)
        if plain in by_plain:
            found[name] = by_plain[plain]
            continue
        near = [other for other in by_plain if other.endswith(f".{plain}") or plain.endswith(f".{other}")]
        if len(near) == 1:
            found[name] = by_plain[near[0]]
    return found


def renamed(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The file's tensors under our names; those without one keep their own."""
    names = {name: name for name in state if name in own} | matching([n for n in state if n not in own], own)
    return {names.get(name, name): tensor for name, tensor in state.items()}


def settle(
    model: Model, method: Method, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[Method, dict[str, Tensor], list[str]]:
    """Put a head and weights of the base that the file holds on a model without adapter.

    Returns:
        The method with the targets that the file has, the file's other tensors, and which weights of the base were
        replaced, by Hugging Face's names.

    Raises:
        AdapterError: for what has no place on this model.
    """
    _check_saved(config, state)
    rest = _without_images(model, {n: t for n, t in state.items() if ".original_module." not in n})  # the base's own
    if config.get("task_type") in HEADS:
        rest = _put_head(model, config, rest)
    if not method.has_peft_format(model):
        for_labels = " for labels" if model.task_head is not None else ""
        raise AdapterError(
            f"{method.name}: peft computes another function on {model.config.architecture}{for_labels}; train it here"
        )
    beside = [name for name in rest if not is_of_method(name)]
    called = hf_names(model)
    of_head = {theirs for ours, theirs in called.items() if ours.startswith("task_head.")}
    names = {theirs: ours for ours, theirs in called.items() if theirs not in of_head}
    _, head = model.tied_names
    places = matching(beside, [*names, *([head] if head and head not in names and model.task_head is None else [])])
    whole = {places[name]: rest[name] for name in places}
    replaced = _put_weights(model, whole, names, config.get("modules_to_save") or ())
    rest = {name: tensor for name, tensor in rest.items() if name not in places}
    if embedded := next((name for name in rest if ".lora_embedding_" in name), None):
        raise AdapterError(f"target_modules: a LoRA of an embedding ({embedded}) is not supported; merge it with peft")
    targets = config.get("target_modules")
    if method.named is not None:
        if _adapts_tied_head(model, rest):  # peft adapts the head alone, and the embedding stays as it was
            _untie(model, model.get_parameter(names[model.tied_names[0]]), f"target_modules = {targets!r}")
        method = _with_targets(model, method, config, rest)
    return method, rest, replaced


def _check_saved(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError, if a part that was trained in full is not in the file."""
    usual = ("classifier", "score") if config.get("task_type") in HEADS else ()  # which peft names for any model
    saved = [plain_name(name) for name in state]
    for part in config.get("modules_to_save") or ():
        if part not in usual and not any(re.match(rf"(.*\.)?{re.escape(part)}(\.|$)", name) for name in saved):
            raise AdapterError(f"modules_to_save = {part!r}, and no such weights are in the file")


def _without_images(model: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what belongs to parts that see: the text part computes the same without it.

    Raises:
        AdapterError: if nothing is left.
    """
    if model.inside is None:
        return dict(state)
    kept = {name: x for name, x in state.items() if not any(f".{part}." in f".{plain_name(name)}" for part in SEEING)}
    if state and not kept:
        raise AdapterError("it adapts only layers that see images: the language model, which this is, stays as it is")
    if len(kept) < len(state):
        notice(f"{len(state) - len(kept)} tensors of the adapter belong to layers that see images, and are left out")
    return kept


def _adapts_tied_head(model: Model, state: Mapping[str, Tensor]) -> bool:
    """Whether there is a pair for a head that is the embedding's own matrix."""
    head = model.tied_names[1].removesuffix(".weight")
    if not (model.config.tied and head) or model.task_head is not None:
        return False
    return any(f".{plain_name(path)}".endswith(f".{head}") for path in _layers(state))


def _with_targets(model: Model, method: Method, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Method:
    sites = linears(model)
    paths = dict(zip(hf_paths(model, sites), sites, strict=True))
    stored = _layers(state)
    found = {paths[path]: stored[name] for name, path in matching(stored, paths).items()}
    told: dict[str, set[str]] = {}
    for target in method.named or ():
        with suppress(ConfigError):  # a layer that this model does not have
            told[target] = set(target_sites(model, [target]))
    named = set[str]().union(*told.values())
    targets: Any = config.get("target_modules")
    if not found and not named:
        roles = ", ".join(sorted({site.role for site in sites.values()}))
        raise AdapterError(f"target_modules = {targets!r}: no layer of this model, nor one in the file; it has {roles}")
    if found.keys() == named:
        return method.on({target: found[min(sites)] for target, sites in told.items()})
    if _told_by_names(config):
        elsewhere = any(
            f".{path}".endswith(f".{target}") for path in stored for target in targets if target not in told
        )
        if not (elsewhere and named <= found.keys()):
            return method  # the file has more or less than was adapted, and attaching or loading says what
    return method.on(found) if found else method


def _told_by_names(config: Mapping[str, Any]) -> bool:
    """Whether adapter_config.json lists what was adapted, and leaves nothing of it out by other fields."""
    restricted = any(config.get(field) not in (None, []) for field in ("layers_to_transform", "exclude_modules"))
    return isinstance(config.get("target_modules"), list) and not restricted


def as_stored(method: Method, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Method:
    """The method of an adapter of a model that is not ours, whose names are the file's: with the layers in the file as
    targets, where adapter_config.json names them by patterns."""
    if method.named is None or _told_by_names(config):
        return method
    return method.on({path.removeprefix(PREFIX): tensor for path, tensor in _layers(state).items()})


# Heads


def _put_head(model: Model, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head of one of Hugging Face's classes, as peft trained it beside the adapter."""
    per_token, fields = HEADS[config["task_type"]], model.source_config or {}
    architecture = model.config.architecture
    if isinstance(model, TransformersEncoder):
        form = model.layout(per_token)
    else:
        form = next((form for form in FORMS.values() if form.plain == architecture and form.tokens == per_token), None)
    end = f".{form.out}.weight" if form is not None else ""
    out = next((len(tensor) for name, tensor in state.items() if f".{plain_name(name)}".endswith(end)), None)
    if form is None or out is None:
        raise AdapterError(
            f"task_type = {config['task_type']!r}: the file has no head's weights for a {architecture}, or there is no "
            "such head; without them the adapter says no labels"
        )
    before = model.task_head
    old = before.config if before is not None else None
    if old is None or (len(old.labels), old.per_token) != (out, per_token):
        multilabel = fields.get("problem_type") == PROBLEMS["multilabel"]
        task = PER_TOKEN if per_token else "regression" if out == 1 else "classification"
        pooling = pooling_of(form, fields)
        labels = [f"LABEL_{number}" for number in range(out)]
        add_head(model, "multilabel" if multilabel and not per_token else task, labels, pooling)
    own = head_state(model)
    found = renamed(state, own)
    new = set() if old is not None and model.task_head is before else own.keys() - found.keys()
    inherited = {name for name in new if name.removeprefix(PREFIX).removeprefix(form.prefix) in model.extra_weights}
    if lacking := sorted(name.removeprefix(PREFIX) for name in new - inherited):
        notice(
            f"the head's {', '.join(lacking)} are neither in the adapter nor in the base: they were new when peft made "
            "the adapter, modules_to_save does not name them, and here as there they are drawn anew. Train it again"
        )
    return {**{name: tensor.detach() for name, tensor in own.items()}, **found}


# Weights of the base


def _put_weights(
    model: Model, whole: Mapping[str, Tensor], names: Mapping[str, str], trained: Collection[str]
) -> list[str]:
    """Replace weights of the base, also by larger ones where tokens were added.

    Args:
        whole: by Hugging Face's names.
        names: Hugging Face's name -> ours.
        trained: peft's modules_to_save.
    """
    embedding, head = model.tied_names
    tied = bool(model.config.tied) and model.task_head is None
    apart = tied and embedding in whole and any(embedding.endswith(f"{name}.weight") for name in trained)
    if tied and head in whole and _is_embedding(model, whole, names):  # they were trained as one, or not at all
        whole, apart = {name: tensor for name, tensor in whole.items() if name != head}, False
    if tied and (head in whole or apart):  # peft trains a copy of the one, and the other stays as it was
        _untie(model, model.get_parameter(names[embedding]), "modules_to_save")
        names = {**names, head: "head.weight"}
    replaced = []
    for theirs, tensor in whole.items():
        old, name = model.get_parameter(names[theirs]), names[theirs]
        tensor = model.turned(name, tensor)
        if theirs not in (embedding, head) and old.shape != tensor.shape:
            raise AdapterError(f"{theirs} is {tuple(tensor.shape)} in the adapter, {tuple(old.shape)} in the model")
        parent, _, kind = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, kind, nn.Parameter(tensor.to(old.dtype).contiguous(), requires_grad=False))
        if old.shape != tensor.shape or not torch.equal(tensor.to(old), old):
            replaced.append(theirs)
    _check_vocabulary(model, [names[name] for name in (embedding, head) if name in names])
    return replaced


def _is_embedding(model: Model, whole: Mapping[str, Tensor], names: Mapping[str, str]) -> bool:
    """Whether a head that was saved is the embedding, in the number format in which that is here."""
    embedding, head = model.tied_names
    own = model.get_parameter(names[embedding])
    return torch.equal(whole[head].to(own.dtype), whole.get(embedding, own).to(own.dtype))


def _untie(model: Model, weight: Tensor, field: str) -> None:
    """Give the model a head of its own, with a copy of this weight; `field` of adapter_config.json asks for it."""
    if model.KIND != "decoder":
        raise AdapterError(
            f"{field}: the adapter gives {model.config.architecture} a head apart from its embedding; it has none. "
            "Train it again without the head"
        )
    with torch.device("meta"):
        model.head = Linear(weight.shape[1], weight.shape[0], bias=False)
    model.head.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    model.config = replace(model.config, tied=False)


def _check_vocabulary(model: Model, tables: list[str]) -> None:
    """The embedding and the head have as many rows as each other, and the config says how many."""
    rows = {name: len(model.get_parameter(name)) for name in tables}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{count:,} in {name}" for name, count in rows.items())
        raise AdapterError(f"the adapter enlarges the vocabulary of one side only: {told}")
    for name, count in rows.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, "num_embeddings" if isinstance(owner, nn.Embedding) else "out_features", count)
        if count != model.config.vocab_size:
            model.config = replace(model.config, vocab_size=count)
