"""Linear layers that are stored the other way round: transformers' Conv1D (GPT-2) has its weight as (in, out)."""

from __future__ import annotations

import copy
import sys

from torch import nn


class TransposedLinear(nn.Linear):
    """A frozen linear layer that shares the weight of a Conv1D, so that methods get (out, in) as from any other."""

    def __init__(self, stored: nn.Module):
        weight, bias = stored.get_parameter("weight").detach().t(), stored.get_parameter("bias")
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        shell = copy.copy(stored)
        shell._parameters = {}
        self.shell = (shell,)  # in a tuple, so that it is not taken for a part of this module

    def restored(self, plain: nn.Linear) -> nn.Module:
        """A Conv1D with the weight (out, in) and the bias of `plain`."""
        stored = copy.copy(self.shell[0])
        stored._parameters = {}
        weight = plain.weight.detach().t().contiguous()
        stored.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        stored.register_parameter("bias", plain.bias)
        return stored


def is_transposed(module: nn.Module) -> bool:
    """True for a Conv1D. Whoever has one has imported transformers, so it need not be imported here."""
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return kind is not None and isinstance(module, kind)
