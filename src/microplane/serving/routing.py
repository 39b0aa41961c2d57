"""Many low-rank adapters on one base, each row of a batch through its own: y = W x + bias + B_a A_a x.

The tokens of an adapter are brought side by side, so that its pair is one product of matrices for all of them, and what
comes out goes back to where they stand. The base is multiplied once for all.
Shapes: T tokens of all rows, A (r, in), B (out, r) with the method's scale in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from microplane.device import put
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.models.contract import Model, linears

Pairs = Mapping[str, tuple[Tensor, Tensor]]  # a linear layer's dotted name -> A and B


class Route(NamedTuple):
    """Where the tokens of one forward pass go."""

    spans: tuple[tuple[int, int, int], ...] = ()  # an adapter's number, and first and end of its tokens in `order`
    order: Tensor | None = None  # the tokens that have an adapter, by adapter; None: as they stand

    @classmethod
    def of(cls, adapters: Sequence[int | None], lengths: Sequence[int], device: torch.device) -> Route:
        """Of rows of these lengths and adapters; None is the base alone."""
        starts, place = list[int](), 0
        for length in lengths:
            starts.append(place)
            place += length
        rows = sorted((a, row) for row, a in enumerate(adapters) if a is not None)
        order, spans = list[int](), list[tuple[int, int, int]]()
        for adapter, row in rows:
            first = len(order)
            order += range(starts[row], starts[row] + lengths[row])
            if spans and spans[-1][0] == adapter:
                spans[-1] = (adapter, spans[-1][1], len(order))
            else:
                spans.append((adapter, first, len(order)))
        stands = order == list(range(len(order)))
        return cls(tuple(spans), None if stands else put(torch.tensor(order), device))


class Router:
    """What all layers of a model ask: where the tokens that they are given go."""

    def __init__(self) -> None:
        self._tokens, self._rows = Route(), Route()
        self._count = 0
        self._all: int | None = None

    def send(self, adapters: Sequence[int | None], lengths: Sequence[int], device: torch.device) -> None:
        """Until the next call, rows of these lengths go through these adapters. A head gets one vector of each row."""
        self._count, self._all = sum(lengths), None
        self._tokens = Route.of(adapters, lengths, device)
        single = self._count == len(lengths)
        self._rows = self._tokens if single else Route.of(adapters, [1] * len(lengths), device)

    @contextmanager
    def only(self, adapter: int | None) -> Iterator[None]:
        """Inside, all tokens go through one adapter, or none."""
        self._tokens = self._rows = Route()
        self._all = adapter
        try:
            yield
        finally:
            self._all = None

    def route(self, tokens: int) -> Route:
        if self._all is not None:
            return Route(((self._all, 0, tokens),))
        return self._tokens if tokens == self._count else self._rows


class RoutedLinear(nn.Module):
    """A frozen linear layer and the pairs of every adapter that changes it."""

    def __init__(self, base: nn.Module, router: Router):
        super().__init__()
        self.base, self.router = base, router
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}  # A^T (in, r) and B^T (r, out)

    def forward(self, x: Tensor) -> Tensor:  # (T, in) -> (T, out)
        y: Tensor = self.base(x)
        spans, order = self.router.route(len(x))
        spans = tuple(span for span in spans if span[0] in self.pairs)
        if not spans:
            return y
        if order is None:
            for adapter, first, end in spans:
                A, B = self.pairs[adapter]
                y[first:end].addmm_(x[first:end] @ A, B)
            return y
        own = x.index_select(0, order)
        change = y.new_zeros(len(own), self.out_features)
        for adapter, first, end in spans:
            A, B = self.pairs[adapter]
            torch.mm(own[first:end] @ A, B, out=change[first:end])
        return y.index_add_(0, order, change)


def make_routed(model: Model) -> Router:
    """Put a `RoutedLinear` in place of every linear layer; without adapters they compute what these do."""
    router = Router()
    for site in linears(model).values():
        site.replace(RoutedLinear(site.module, router))
    return router


def routed_layers(model: nn.Module) -> dict[str, RoutedLinear]:
    """By dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RoutedLinear)}


@torch.no_grad()
def add_pairs(model: Model, adapter: int, pairs: Pairs) -> None:
    """Give a model of routed layers one more adapter, in the format that its activations have."""
    layers = routed_layers(model)
    dtype = model.compute or next(iter(model.parameters())).dtype
    for name, (A, B) in pairs.items():
        A, B = (factor.detach().to(dtype).t().contiguous() for factor in (A, B))
        layers[name].pairs[adapter] = A, B


def remove_pairs(model: Model, adapter: int) -> None:
    for layer in routed_layers(model).values():
        layer.pairs.pop(adapter, None)


def low_rank_pairs(model: Model) -> Pairs | None:
    """The pairs of an attached adapter, if they are all that it adds to a model; else None."""
    if model.task_head is not None:
        return None
    pairs = {}
    for name, site in linears(model).items():
        module = getattr(site.parent, site.attribute)
        if isinstance(module, AdaptedLinear):
            if (pair := module.low_rank()) is None:
                return None
            pairs[name] = pair
    return pairs or None
