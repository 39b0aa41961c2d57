"""Sharding: of several processes that fine-tune a whole model, each holds a part of its weights, of their gradients and
of the optimizer's averages, by torch's FSDP2.

A block's weights are gathered when it computes, forward and backward, and let go again; its gradients are summed where
their rows lie. What stands outside of blocks (embedding, last norm, head) is one part more, and stays gathered from the
forward pass until the backward pass has ended, as the loss multiplies by the head's weight. So all processes must
compute as many times, in the same order: who has fewer micro-batches computes a row once more, and counts it not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.cpu_memory import give_back_memory
from microplane.errors import ConfigError
from microplane.methods import Method
from microplane.models.contract import module_map_of
from microplane.models.encoder_decoder import EncoderDecoder
from microplane.training.ranks import Ranks


def refuse_shard(knobs: TrainKnobs, method: Method) -> None:
    """Raises: ConfigError, where the weights cannot be shared out."""
    if not method.whole_model:
        raise ConfigError(
            f"train.shard shares out the weights that full fine-tuning trains; the method {method.name} leaves most of "
            "them as they are. Set method.name=full, or train.shard=false; model.dtype=nf4 makes a frozen base small"
        )
    if knobs.unfreeze_every:
        raise ConfigError("train.shard and train.unfreeze_every cannot be had together: set one of them to its default")
    if knobs.optimizer != "adamw":
        raise ConfigError(
            f"train.shard cuts AdamW's averages into parts; those of train.optimizer={knobs.optimizer} belong to whole "
            "tensors. Set train.optimizer=adamw, or train.shard=false"
        )


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Leave each process its part of the model, which all hold alike; parameters become sharded tensors.

    Raises:
        ConfigError: for a model that is not ours, whose parts may be read in ways that are not known here.
    """
    if module_map_of(model) is not None:
        raise ConfigError("train.shard works on models that have an implementation here: set it to false")
    from torch.distributed.device_mesh import init_device_mesh  # seconds, and only needed here
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.size,))
    for unit in _units(model):
        fully_shard(unit, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sums: the loss is divided by the tokens of all
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    ranks.sharded = True
    give_back_memory()  # of the whole weights


def _units(model: nn.Module) -> Iterator[Any]:
    """What is gathered at once, the inner parts first: those of a block that are called before the block is, the
    blocks, and the rest of the model."""
    for module in model.modules():
        relative = getattr(module, "relative", None)
        if isinstance(relative, nn.Module) and any(True for _ in relative.parameters()):
            yield relative
    if isinstance(model, EncoderDecoder):
        yield from (model.reader(block).source_parts for block in model.decoder_blocks)
    for module in model.modules():
        if isinstance(layers := getattr(module, "layers", None), nn.ModuleList):
            yield from layers
    yield model
