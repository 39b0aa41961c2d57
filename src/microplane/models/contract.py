"""What a model owes to methods, to the training loop and to generation. Every model family here keeps to it.

Roles. The linears of a block are attributes called q k v o (attention) and gate up down (feed-forward), the output head
is `head` (None where it is tied to the embedding), the embedding is `embed`. Methods find linears by these names
and put adapted ones in their place, so a model always calls them as modules and never reads `.weight` of its own.

Sockets. Two places are kept open as `nn.Identity`: `prelude`, which sees the embeddings before the first block, and
`attention_socket` / `mlp_socket` of each block, which see a sub-layer's output before it is added to the stream.

Rows. A model takes `Rows`, never a padded rectangle, and `logits` is asked only for positions that are wanted.
Activations stay in the number format of the base, whatever the format of what a method adds.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from microplane.nn.cache import Cache
from microplane.nn.rows import Rows

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "head")


@runtime_checkable
class LanguageModel(Protocol):
    """T tokens in a batch, D model width, V vocabulary, K positions that are wanted."""

    config: Any
    prelude: nn.Module
    embed: nn.Module
    head: nn.Module | None

    def __call__(self, rows: Rows, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm, (T, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(K, D) -> (K, V)."""

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the head's own weight or the embedding's."""

    def new_cache(self, batch: int, capacity: int = 0) -> Cache:
        """An empty cache for `batch` rows with room for `capacity` tokens each; it grows as needed."""

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for all parameters of the plain model; a tied head is not listed."""


def hf_names(model: nn.Module) -> dict[str, str]:
    """Our parameter name -> Hugging Face's, of a model that keeps to this contract."""
    return cast(LanguageModel, model).hf_names()


class Site(NamedTuple):
    """Where a linear hangs: `getattr(parent, attribute)` is it."""

    parent: nn.Module
    attribute: str
    role: str
    layer: int | None  # None for the head

    @property
    def module(self) -> nn.Module:
        return getattr(self.parent, self.attribute)

    def replace(self, module: nn.Module) -> None:
        setattr(self.parent, self.attribute, module)


def linears(model: nn.Module) -> dict[str, Site]:
    """All linears that carry a role, by dotted name (`layers.3.attention.q`), also where a method has put its own."""
    layer_of = {
        module: index
        for index, block in enumerate(getattr(model, "layers", ()))
        for module in block.modules()
    }  # fmt: skip
    found = {}
    for path, parent in model.named_modules():
        for role in ROLES:
            child = getattr(parent, role, None)
            if isinstance(child, nn.Module) and hasattr(child, "in_features"):
                found[f"{path}.{role}" if path else role] = Site(parent, role, role, layer_of.get(parent))
    return found
