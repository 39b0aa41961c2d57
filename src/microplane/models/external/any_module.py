"""Adapting any nn.Module: which of its linear layers can be adapted, which cannot, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import nn

from microplane.errors import ConfigError, nearest
from microplane.models.contract import MODULE_MAP, ModuleMap
from microplane.nn.quantised import QuantisedLinear
from microplane.nn.transposed import is_transposed

Averaging = (nn.modules.batchnorm._NormBase,)  # batch and instance norms


def map_modules(
    model: nn.Module, modules_to_save: Sequence[str] = (), prefix: str = "", left: Mapping[str, str] | None = None
) -> ModuleMap:
    """Find what methods can adapt in a model that is not ours, and note it on the model for `module_map_of`.

    Args:
        modules_to_save: names of parts that train in full beside the method, and are therefore not adapted.
        prefix: only modules below it are mapped; it is no part of the model's own names.
        left: further modules that are not to be adapted, and why.

    Raises:
        ConfigError: for a part that the model does not have, or one without weights.
    """
    _check_parts(model, modules_to_save)
    head = _head(model.get_submodule(prefix.removesuffix(".")))
    not_adaptable = {**(left or {}), **_not_adaptable(model, modules_to_save)}
    uses = Counter(name for name in _weights(model))
    found = []
    for path, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear | QuantisedLinear) or is_transposed(module)
        if not is_linear or not path.startswith(prefix):
            continue
        if not path:
            continue  # the whole model is one linear layer: there is nothing in which it could be replaced
        if not isinstance(module, QuantisedLinear) and uses[id(module.get_parameter("weight"))] > 1:
            not_adaptable.setdefault(path, "shares its weight with another part, so it cannot be adapted alone")
        if path not in not_adaptable:
            found.append(path)
    name = next((path for path in found if model.get_submodule(path) is head), None)
    module_map = ModuleMap(
        tuple(found), name, not_adaptable, tuple(modules_to_save), tuple(_running_stats(model)), prefix
    )
    setattr(model, MODULE_MAP, module_map)
    return module_map


def unmap(model: nn.Module) -> None:
    """Remove the note that `map_modules` left on the model."""
    model.__dict__.pop(MODULE_MAP, None)


def _check_parts(model: nn.Module, modules_to_save: Sequence[str]) -> None:
    parts = [name for name, _ in model.named_modules() if name]
    for name in modules_to_save:
        if name not in parts:
            ends = {part.rsplit(".", 1)[-1]: part for part in reversed(parts)}
            hint = f" Did you mean {ends[name]!r}?" if name in ends else nearest(name, parts)
            raise ConfigError(f"train = {name!r}: the model has no such part.{hint}")
        if not any(True for _ in model.get_submodule(name).parameters()):
            raise ConfigError(f"train = {name!r}: that part has no weights")


def _head(model: nn.Module) -> nn.Module | None:
    """The output layer that a model of transformers names as such; None for other models."""
    ask = getattr(model, "get_output_embeddings", None)
    return cast("nn.Module | None", ask()) if callable(ask) else None


def _weights(model: nn.Module) -> Iterable[int]:
    """The id of each parameter, once for every place where it is used: shared ones come several times."""
    for _, module in model.named_modules(remove_duplicate=False):
        yield from (id(parameter) for parameter in module.parameters(recurse=False))


def _not_adaptable(model: nn.Module, modules_to_save: Sequence[str]) -> dict[str, str]:
    not_adaptable = {}
    for path, module in model.named_modules():
        if any(path == part or path.startswith(f"{part}.") for part in modules_to_save):
            not_adaptable[path] = "trains in full"
        if isinstance(module, nn.MultiheadAttention):
            name = f"{path}.out_proj" if path else "out_proj"
            not_adaptable[name] = (
                "lies in an nn.MultiheadAttention, which reads its weight itself and would ignore an adapter"
            )
    return not_adaptable


def _running_stats(model: nn.Module) -> Iterable[str]:
    for path, module in model.named_modules():
        if isinstance(module, Averaging) and module.track_running_stats:
            yield from (f"{path}.{name}" if path else name for name, _ in module.named_buffers(recurse=False))
