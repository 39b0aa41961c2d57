"""Which parameters a result is made of: by the graph that autograd keeps of it, and by the gradients of linear layers.

Some lie in the graph and yet have no part: Longformer overwrites what the first token's own attention gave with what
its global attention gives, and in the last layer nothing else is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def last_norm(model: nn.Module, compute: Callable[[], Tensor]) -> str | None:
    """The name of the norm that is computed last."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _, __, ___, name=name: called.append(name))
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
    ]
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    return called[-1] if called else None


READ = "has a weight that the model reads itself, so that an adapter would be ignored"


def not_reached(model: nn.Module, compute: Callable[[], Tensor]) -> set[str]:
    """The names of the parameters that have no part in what is computed: nothing in them could train."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    outputs: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.setdefault(name, []).append(output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        model.requires_grad_(True)
        with torch.enable_grad():
            result = compute()
            idle = _without_gradient(result, outputs)
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
    found = _leaves(result)
    return {
        name
        for name, parameter in model.named_parameters()
        if (id(parameter) not in found and ".experts." not in name)  # which tokens choose, and few were tried
        or name.rpartition(".")[0] in idle
    }


def _without_gradient(result: Tensor, outputs: dict[str, list[Tensor]]) -> set[str]:
    """The layers whose every output changes nothing in the result; their own outputs' gradients are small."""
    made = [output for several in outputs.values() for output in several]
    marks = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    if not made:
        return set()
    gradients = torch.autograd.grad((result.float() * marks).sum(), made, allow_unused=True)
    moves = {id(x): g is not None and bool(g.any()) for x, g in zip(made, gradients, strict=True)}
    return {name for name, several in outputs.items() if not any(moves[id(output)] for output in several)}


def _leaves(result: Tensor) -> set[int]:
    """The ids of the tensors that the graph of a result begins with."""
    waiting, seen, found = [result.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        waiting += [below for below, _ in node.next_functions]
    return found


def read_by_the_model(model: nn.Module, compute: Callable[[], Tensor]) -> set[str]:
    """The names of the linear layers whose weight is read by other code than their own, which would ignore an adapter:
    Mamba multiplies with that of `dt_proj` itself."""
    found: set[str] = set()
    kinds = {module: type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    names = {module: name for name, module in model.named_modules()}

    def watched(module: nn.Linear) -> type[nn.Linear]:
        kind, inside = kinds[module], [False]

        class Watched(kind):  # type: ignore[misc, valid-type]
            def forward(self, *given: Any, **named: Any) -> Any:
                inside[0] = True
                try:
                    return super().forward(*given, **named)
                finally:
                    inside[0] = False

            def __getattr__(self, name: str) -> Any:
                if name == "weight" and not inside[0]:
                    found.add(names[self])
                return super().__getattr__(name)

        return Watched

    try:
        for module in kinds:
            module.__class__ = watched(module)
        compute()
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
    return found
