"""What of a model int8 and nf4 do not reach: they are for linear layers, and not all that is large is one."""

from __future__ import annotations

import re

from torch import nn

from microplane.models.contract import Model, linears

WORTH_A_WORD = 0.1  # of the weights in the layers
NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")  # of a layer, or of a part of one


def stays_wide(model: Model) -> tuple[float, list[str]]:
    """What of the weights in a model's layers quantising leaves as it is: experts that are one tensor of three
    dimensions, as transformers has them, and convolutions. The embedding and the head are not counted.

    Returns:
        Its share of the weights in the layers, from 0 to 1, and its parts by their names there, the largest first.
    """
    quantised = {
        id(site.module)
        for site in linears(model).values()
        if site.layer is not None and isinstance(site.module, nn.Linear)
    }
    total, wide = 0, dict[str, int]()
    for path, module in model.named_modules():
        *before, inside = NUMBER.split(path)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or not before:
                continue
            total += parameter.numel()
            if id(module) not in quantised:
                part = f"{inside}.{name}".lstrip(".")
                wide[part] = wide.get(part, 0) + parameter.numel()
    return sum(wide.values()) / max(total, 1), sorted(wide, key=wide.__getitem__, reverse=True)


def told_of_what_stays_wide(model: Model, kind: str) -> str | None:
    """A line for users, where int8 or nf4 (`kind`) leaves much of a model as it is."""
    share, parts = stays_wide(model)
    if share < WORTH_A_WORD:
        return None
    return (
        f"model.dtype={kind} is for linear layers: {share:.0%} of the weights in the layers are none, and take as much "
        f"memory as before ({', '.join(parts[:3])})"
    )
