"""The head of one of transformers' classes that label sentences or tokens, as it stands in that class's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from microplane.models.configs.head import HeadConfig
from microplane.models.external.library import POOLER
from microplane.models.task_head import TaskHead
from microplane.nn.rows import Rows


class ClassHead(TaskHead):
    """What such a class has beside the model without a head: it trains whole, in float32, and the class computes it.

    Args:
        net: the class's model, of which the parts are modules.
    """

    def __init__(self, config: HeadConfig, net: Any):
        nn.Module.__init__(self)
        self.config = config
        self.paths = {
            path.replace(".", "_"): path for path in head_parts(net, config.per_token)
        }  # our name -> transformers'
        for ours, path in self.paths.items():
            part = net.get_submodule(path)
            self.add_module(ours, part)
            if not any(parameter.is_meta for parameter in part.parameters()):
                part.float()
            for module in part.modules():
                if not hasattr(module, "_microplane_widened") and any(True for _ in module.parameters(recurse=False)):
                    module._microplane_widened = module.register_forward_pre_hook(_widen)

    @property
    def last(self) -> nn.Linear | None:
        """The only linear layer with as many outputs as there are labels."""
        wide = len(self.config.labels)
        found = [one for one in self.modules() if isinstance(one, nn.Linear) and one.out_features == wide]
        return found[0] if len(found) == 1 else None

    def scores(self, hidden: Tensor, rows: Rows) -> NoReturn:
        raise AssertionError(f"{self.config.form} itself computes its scores")

    def predict(self, x: Tensor) -> NoReturn:
        raise AssertionError(f"{self.config.form} itself computes its scores")

    def hf_names(self, beneath: Mapping[str, str]) -> dict[str, str]:
        names = dict(beneath)
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            names[f"task_head.{name}"] = f"{self.paths[part]}.{rest}"
        return names

    def hidden_layer(self) -> dict[str, Tensor]:
        return {}

    def modules_to_save(self) -> list[str]:
        return sorted({path.rsplit(".", 1)[-1] for path in self.paths.values()})


def _widen(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A head is computed in float32, whatever the format of the states below it."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)


def head_parts(net: Any, per_token: bool) -> list[str]:
    """The modules with weights of a class's model that are its head: those beside the model without a head, and the
    pooler, which is a part of that one and makes one vector of a row."""
    base = net.base_model
    pooler = getattr(base, POOLER, None)
    found = [name for name, part in net.named_children() if part is not base]
    found += [f"{net.base_model_prefix}.{POOLER}"] if isinstance(pooler, nn.Module) and not per_token else []
    return [name for name in found if any(True for _ in net.get_submodule(name).parameters())]


@torch.no_grad()
def fill_new(net: Any, seed: int, known: Mapping[str, Tensor]) -> None:
    """Give weights to the modules of `net` that have none yet (that are on the meta device), in float32: those of
    `known` that fit, by name, else new ones as the class draws them."""
    fresh = list(_without_weights(net))
    for module in fresh:
        module.to_empty(device="cpu", recurse=False)  # drawn there, whatever the device
        module.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh:
            net._init_weights(module)
    own = dict(net.named_parameters())
    new = {id(parameter) for module in fresh for parameter in module.parameters(recurse=False)}
    for name, tensor in known.items():
        if name in own and id(own[name]) in new and own[name].shape == tensor.shape:
            own[name].copy_(tensor)
    net.to(net.get_input_embeddings().weight.device)


def _without_weights(net: nn.Module) -> Iterator[nn.Module]:
    for module in net.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in tensors):
            yield module
