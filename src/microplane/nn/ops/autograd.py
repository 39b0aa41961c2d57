"""A typed call of torch's autograd functions."""

from __future__ import annotations

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """function.apply(*arguments), for functions that return one tensor. torch itself gives `apply` no types."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result
