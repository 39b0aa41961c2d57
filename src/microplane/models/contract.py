"""What a model owes to methods, to the training loop and to generation. Every model family here keeps to it.

Roles. The linears of a block are attributes called q k v o (attention) and gate up down (feed-forward; no gate in the
plain kind), where a family stores some of them as one matrix qkv and gate_up. The output head is `head` (None where it
is tied to the embedding), the embedding is `embed`. Methods find linears by these names and put adapted ones in their
place, so a model always calls them as modules and never reads `.weight` of its own. Blocks stand in lists called
`layers`: of the model, or of its `encoder` and `decoder`.

Sockets. Places are kept open as `nn.Identity`: `attention_socket`, `cross_attention_socket` and `mlp_socket` of each
block (whose feed-forward is `mlp`) see a sub-layer's output before it is added to the stream. Each attention has a
`prefix`, None or a module that gives keys and values (heads, P, Dh). `prelude`, a `Prelude`, sees what `embedded` gives
before positions are added; of an encoder-decoder, the source's. It may lengthen rows: a model computes what it gives
and hands out `prelude.own` of it.

Rows. A model takes `Rows` (an encoder-decoder `Pairs`), never a padded rectangle, and `logits` is asked only for
positions that are wanted. Activations stay in the model's compute format, whatever the format of what a method adds.

Frozen blocks. A method may leave the lowest blocks as they are: `frozen` counts them. They, and what stands before
them, compute without dropout in training too, so what `lower` gives of a row is the same in every step and can be kept.

A model that is not ours keeps to none of this. `map_modules` (models/external/any_module.py) notes a `ModuleMap` on it,
which lists its linears under the model's own names; methods adapt those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.nn.cache import Cache
from microplane.nn.prompt_socket import Prelude
from microplane.nn.rows import Pairs, Rows
from microplane.nn.transposed import TransposedLinear, is_transposed

if TYPE_CHECKING:
    from microplane.models.task_head import TaskHead

ROLES = ("q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up", "head")


class Writing(NamedTuple):
    """How a model writes, whatever a user chooses: what generation_config.json says beyond the knobs."""

    never: tuple[int, ...] = ()  # tokens that are never written
    last: int | None = None  # the token that a text ends with where it is cut at its greatest length
    renormalize: bool = False  # beams count log p over the tokens that may be written


class Model(nn.Module):
    """T tokens in a batch, D model width, V vocabulary, K positions that are wanted, B rows.

    Weights are random and of any scale until they are loaded or `init_weights` is called.
    """

    ARCHITECTURES: ClassVar[dict[str, str]]  # Hugging Face's class name -> its model_type
    KIND: ClassVar[str]  # "decoder", "encoder-decoder" or "encoder"
    TIED: ClassVar[tuple[str, str]] = ("", "")  # Hugging Face's names of the embedding and of the head
    TENSORS_TIE: ClassVar[bool] = False  # whether the two are one is seen by the tensors, not by config.json
    NEVER: ClassVar[Mapping[torch.dtype, str]] = {}  # formats in which the family fails, and why
    source_config: dict[str, Any] | None = None  # the config.json it came from, for fields that we have no use for
    generation_config: dict[str, Any] | None = None  # its generation_config.json, kept for saving
    config: Any  # frozen; has architecture, vocab_size, hidden_size, num_layers, context, tied, to_hf()
    note: str | None = None  # what users are told when it is loaded
    compute: torch.dtype | None = None  # format of the activations where it is not that of the weights
    frozen: int = 0  # lowest blocks that compute the same in every step; as many as there are: all of them
    prelude: Prelude
    embed: nn.Module
    head: nn.Module | None
    task_head: TaskHead | None  # what predicts something else than words, trained beside any method
    spare: dict[str, Tensor]  # tensors of its checkpoint that only a task head has a use for, by Hugging Face's names

    def __init__(self, config: Any = None):
        super().__init__()
        self.config = config
        self.task_head = None
        self.spare = {}

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Model:
        """A model of the shapes that a config.json describes.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        raise NotImplementedError

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm, (T, D); of `Pairs`, those of the target rows."""
        raise NotImplementedError

    def lower(self, rows: Rows, blocks: int) -> Tensor:
        """What enters block number `blocks`, (T, D); for as many as there are, what enters the last norm."""
        raise NotImplementedError

    def upper(self, x: Tensor, rows: Rows, blocks: int) -> Tensor:
        """Hidden states after the last norm, (T, D), from what `lower` gave for as many blocks."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            for block in cast(nn.ModuleList, self.layers)[: self.frozen]:
                block.eval()
        return self

    def encode(self, source: Rows) -> Tensor:
        """Of an encoder-decoder: what its encoder makes of rows, (T, D)."""
        raise NotImplementedError

    def embedded(self, ids: Tensor) -> Tensor:
        """(T,) -> (T, D), scaled if the family scales them, in the format that activations have."""
        x = self.embed(ids)
        return x if self.compute is None else x.to(self.compute)

    def logits(self, hidden: Tensor) -> Tensor:
        """(K, D) -> (K, V)."""
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the head's own weight or the embedding's."""
        raise NotImplementedError

    @property
    def head_bias(self) -> Tensor | None:
        """(V,), what the head adds to its scores, or None."""
        return None

    @property
    def writing(self) -> Writing:
        """Raises:
        ModelError: if generation_config.json asks for what is not supported.
        """
        return Writing()

    def open(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        """Begin to write: a cache, and the tokens that the first step computes. Of an encoder-decoder, `prompts` are
        read by its encoder here, and the first tokens are its start token."""
        raise NotImplementedError

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for all parameters of the plain model; a tied head is not listed, and
        neither is a task head: the function `hf_names` has both."""
        raise NotImplementedError

    def plain_tensors(self) -> dict[str, Tensor]:
        """What is saved of the model, by Hugging Face's names; adapters must be merged before."""
        names, state = hf_names(self), self.state_dict()
        assert names.keys() == state.keys(), "merge what a method has added before saving the model"
        return {names[ours]: tensor for ours, tensor in state.items()}

    def called(self, name: str) -> str:
        """A tensor's name in a checkpoint, in the one spelling by which names are compared."""
        return name

    def keeps(self, name: str) -> bool:
        """Whether a tensor that the plain model has no use for belongs in `spare`; by its name as `called`."""
        return False

    def kept(self) -> dict[str, Tensor]:
        """Of `spare`, what is saved with a model that has no task head of Hugging Face's."""
        return {}

    def ignores(self, name: str) -> bool:
        """Whether a tensor of a checkpoint, by Hugging Face's name, is of no use here, and no reason to complain."""
        return name == self.tied_names[1] and self.config.tied

    @property
    def tied_names(self) -> tuple[str, str]:
        """`TIED`, of a family whose names depend on its config too."""
        return self.TIED

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Hugging Face's name -> other names under which a checkpoint may hold that tensor, the first before others."""
        return {}

    def init_weights(self, seed: int = 0) -> Model:
        """New random weights, as the family begins its training; the same for the same seed."""
        raise NotImplementedError

    @property
    def room(self) -> int | None:
        """Tokens that a row may have: the context, without what the prelude puts before it; None: no bound."""
        context = self.config.context
        return context - self.prelude.length if context else None

    @classmethod
    def refuse_format(cls, dtype: torch.dtype | None) -> None:
        """Raises:
        ModelError: if the family fails with weights of that format, saying why.
        """
        if dtype is not None and dtype in cls.NEVER:
            name = str(dtype).removeprefix("torch.")
            raise ModelError(f"{cls.__name__} is never kept in {name}: {cls.NEVER[dtype]}. Choose bfloat16 or float32")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def hf_names(model: nn.Module) -> dict[str, str]:
    """Our parameter name -> Hugging Face's, with the task head if any; a model that is not ours has its own names."""
    module_map = module_map_of(model)
    if not isinstance(model, Model):
        assert module_map is not None, "call map_modules (models/external/any_module.py) on a model that is not ours"
        return module_map.names(model)
    names = model.hf_names()
    return names if model.task_head is None else model.task_head.hf_names(names)


def unused(model: nn.Module) -> list[nn.Module]:
    """Parts of an encoder-decoder that its task head does not look at, so that nothing in them can train."""
    head = getattr(model, "task_head", None)
    if head is None or cast(Model, model).KIND != "encoder-decoder" or head.reads_decoder:
        return []
    parts = (getattr(model, name, None) for name in ("decoder", "target_embed"))
    return [part for part in parts if part is not None]


def last_stack(model: nn.Module) -> nn.Module:
    """Whose blocks give the model's output: the model's own; of an encoder-decoder the decoder's, or the encoder's
    where a task head reads that alone."""
    if cast(Model, model).KIND != "encoder-decoder":
        return model
    return cast(nn.Module, model.encoder if unused(model) else model.decoder)


def levels(model: nn.Module) -> dict[str, int]:
    """How high each parameter stands: 0 before the blocks, then block by block (a decoder's above its encoder's), and
    one more for the last norm and the heads."""
    stacks = [s for s in model.modules() if isinstance(getattr(s, "layers", None), nn.ModuleList)]
    found: dict[nn.Module, int] = {}
    level = 0
    for stack in stacks:
        for block in cast(nn.ModuleList, stack.layers):
            level += 1
            found |= dict.fromkeys(block.modules(), level)
        if isinstance(norm := getattr(stack, "norm", None), nn.Module):
            found[norm] = level  # of an encoder in an encoder-decoder; the last one's comes next
    last = (getattr(part, name, None) for part, name in ((stacks[-1], "norm"), (model, "head"), (model, "task_head")))
    for part in last:
        found |= dict.fromkeys(part.modules(), level + 1) if part is not None else {}
    return {
        f"{path}.{name}" if path else name: found.get(module, 0)
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }


class Site(NamedTuple):
    """Where a linear hangs: `getattr(parent, attribute)` is it."""

    parent: nn.Module
    attribute: str
    role: str
    layer: int | None  # None for the head

    @property
    def module(self) -> nn.Module:
        """The linear layer, with its weight as (out, in)."""
        module = getattr(self.parent, self.attribute)
        return TransposedLinear(module) if is_transposed(module) else module

    def replace(self, module: nn.Module) -> None:
        setattr(self.parent, self.attribute, module)


@dataclass(frozen=True)
class ModuleMap:
    """What can be adapted in a model that is not ours, by its own dotted names, before a method is attached."""

    linears: tuple[str, ...]  # those that can be adapted
    head: str | None = None  # the one of them that gives the logits
    not_adaptable: Mapping[str, str] = field(default_factory=dict)  # linear -> why it cannot be adapted
    modules_to_save: tuple[str, ...] = ()  # parts that train in full beside the method (peft's word)
    running_stats: tuple[str, ...] = ()  # buffers that change as the model trains, as the averages of batch norms do
    prefix: str = ""  # our names begin with it, the model's own names do not

    def sites(self, model: nn.Module) -> dict[str, Site]:
        """A layer's role is the last part of its name."""
        found = {}
        for path in self.linears:
            parent, _, last = path.rpartition(".")
            layer = next((int(part) for part in path.split(".") if part.isdigit()), None)
            role = "head" if path == self.head else last
            found[path] = Site(model.get_submodule(parent), last, role, None if path == self.head else layer)
        return found

    def names(self, model: nn.Module) -> dict[str, str]:
        """Our parameter name -> the model's own."""
        ours = [name for name, _ in model.named_parameters()] + [f"{path}.weight" for path in self.linears]
        return {name: name.removeprefix(self.prefix) for name in ours if name.startswith(self.prefix)}


MODULE_MAP = "_microplane_module_map"


def module_map_of(model: nn.Module) -> ModuleMap | None:
    """The map that `map_modules` noted on a model that is not ours; None on one of ours."""
    return model.__dict__.get(MODULE_MAP)


def linears(model: nn.Module) -> dict[str, Site]:
    """All linears that carry a role, by dotted name (`layers.3.attention.q`), also where a method has put its own."""
    if (module_map := module_map_of(model)) is not None:
        return module_map.sites(model)
    layer_of = {
        module: index
        for stack in model.modules()
        if isinstance(layers := getattr(stack, "layers", None), nn.ModuleList)
        for index, block in enumerate(layers)
        for module in block.modules()
    }
    found = {}
    for path, parent in model.named_modules():
        for role in ROLES:
            child = getattr(parent, role, None)
            if isinstance(child, nn.Module) and hasattr(child, "in_features"):
                found[f"{path}.{role}" if path else role] = Site(parent, role, role, layer_of.get(parent))
    return found


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
