"""Switching an attached method off for a while: inside, the model computes what the untouched one does.

A preference loss (its reference is the base), a penalty on the distance from the base, and a server that answers with
and without an adapter need this. Nothing is copied: what a method has put into the model is taken out and put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from microplane.errors import AdapterError
from microplane.methods.method import attached_method


class AddedModule:
    """A mixin for a module that a method puts into a model, in place of another one or where there was none."""

    def replaced(self) -> nn.Module | None:
        """What stood in its place in the untouched model."""
        raise NotImplementedError


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Take the attached method out of `model`; it is put back at the end, after an exception too.

    Inside, the output is the untouched model's to the bit, but for a task head and parts named by `train`, which train
    beside the method and stay as they are. No optimizer step may be made inside, and no cache of keys and values may
    be carried in or out. May be nested.

    Raises:
        AdapterError: if no method is attached (or it was merged), or the method trains the model's own weights, whose
            untouched values are not kept.
    """
    method = attached_method(model)
    if method is None:
        raise AdapterError("there is nothing to switch off: no method is attached to this model, or it was merged")
    if method.trains_base and method.state(model):
        raise AdapterError(
            f"the method {method.name} trains the model's own weights, whose untouched values are not kept, so it "
            "cannot be switched off. Open the base model beside this one: microplane.load"
        )
    found = list(_added(model))
    for parent, name, added in found:
        setattr(parent, name, added.replaced())
    try:
        yield
    finally:
        for parent, name, added in found:
            assert isinstance(added, nn.Module)
            added.train(parent.training)  # what was set meanwhile
            setattr(parent, name, added)


def _added(model: nn.Module) -> Iterator[tuple[nn.Module, str, AddedModule]]:
    """Each module that a method has added, as (parent, attribute, module)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AddedModule):
                yield parent, name, child
