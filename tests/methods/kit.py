"""What tests of single methods share."""

from __future__ import annotations

import torch

from microplane.methods import make_method
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.methods.method import trainable
from microplane.objectives.next_token import NextToken
from microplane.training.init_from_data import sample_losses
from tests.tiny import copy_task, tiny

DATA = copy_task()


def attached(family="llama-tied", prepare=True, exact=False, **knobs):
    """(method, model) from knobs; `exact` in float64."""
    method = make_method(knobs)
    model = tiny(family).double() if exact else tiny(family)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.3)  # a new model's are zero, which hides what forgets them
    torch.manual_seed(0)
    method.attach(model)
    if exact:
        model.double()
    if prepare:
        method.init_from_data(model, sample_losses(NextToken(), model, DATA, method.init_rows, 0, 64))
    return method, model.eval()


@torch.no_grad()
def shake(model, size=0.1):
    for parameter in trainable(model).values():
        parameter.add_(torch.randn_like(parameter) * size)


def layers(model):
    return dict(adapted_layers(model, AdaptedLinear))


def loss(model, rows=16):
    batch = NextToken().collate(DATA, range(rows))
    return NextToken().loss(model, batch) / len(batch.targets)
