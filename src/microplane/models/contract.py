"""What a model owes to methods, to the training loop and to generation. Every model family here keeps to it.

Roles. The linears of a block are attributes called q k v o (attention) and gate up down (feed-forward; no gate in the
plain kind). Some families store several of them as one matrix, qkv or gate_up. The output head is `head` (None where it
is tied to the embedding), the embedding is `embed`. Methods find linears by these names and put adapted ones in their
place, so a model always calls them as modules and never reads their `.weight`. Blocks stand in lists called `layers`:
of the model, or of its `encoder` and `decoder`.

Sockets. A socket is a place where a method can put a module; until then it is an `nn.Identity`. `attention_socket`,
`cross_attention_socket` and `mlp_socket` of each block (whose feed-forward is `mlp`) get a sub-layer's output before it
is added to the residual stream. Each attention has a `prefix`: None, or a module that gives keys and values (heads, P,
Dh). `prompt_socket`, a `PromptSocket`, gets the embeddings before positions are added; in an encoder-decoder, those of
the source. It may lengthen rows: the model computes the longer rows and returns them through
`prompt_socket.strip_prompt`.

Rows. A model takes `Rows` (an encoder-decoder `Pairs`), never a padded rectangle, and `logits` is asked only for
positions that are wanted. Activations stay in the model's compute format, whatever the format of what a method adds.

Frozen blocks. A method may leave the lowest blocks as they are: `frozen` counts them. They, and what stands before
them, compute without dropout in training too, so what `lower` gives for a row is the same in every step and can be
cached.

A model that is not ours keeps to none of this. `map_modules` (models/external/any_module.py) notes a `ModuleMap` on it,
which lists its linears under the model's own names; methods adapt those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.models.generation_rules import GenerationRules
from microplane.nn.cache import Cache
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.rows import Pairs, Rows
from microplane.nn.transposed import TransposedLinear, is_transposed

if TYPE_CHECKING:
    from microplane.models.task_head import TaskHead

ROLES = ("q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up", "head")


SEEING = ("vision_tower", "multi_modal_projector")  # parts of a model that also sees, as transformers calls them


class Inside(NamedTuple):
    """What a model that is a part of a larger one knows of the whole: the language model of one that also sees."""

    prefixes: Mapping[str, str]  # beginnings of Hugging Face's names -> how they begin in the whole model
    others: tuple[str, ...]  # modules of the whole that are not in this part

    def name(self, theirs: str) -> str:
        """What a tensor or module of this part is called in the whole."""
        prefix = next((prefix for prefix in self.prefixes if theirs.startswith(prefix)), "")
        return self.prefixes.get(prefix, "") + theirs.removeprefix(prefix)


class Model(nn.Module):
    """Base class of all model families.

    Shapes: T tokens in a batch, D model width, V vocabulary, K positions whose logits are wanted, B rows.

    Weights are undefined until they are loaded or `init_weights` is called.
    """

    __call__: Callable[..., Tensor]

    ARCHITECTURES: ClassVar[dict[str, str]]  # Hugging Face's class name -> its model_type
    KIND: ClassVar[str]  # "decoder", "encoder-decoder" or "encoder"
    TIED: ClassVar[tuple[str, str]] = ("", "")  # Hugging Face's names of the embedding and of the head
    TIE_BY_WEIGHTS: ClassVar[bool] = False  # the checkpoint's tensors decide whether the two are one, not config.json
    ZEROS: ClassVar[tuple[str, ...]] = ()  # what is zero where a checkpoint lacks it
    SAME_LOGITS: ClassVar[float] = 0.0  # how far two copies with the same weights may lie apart in one format
    UNSUPPORTED_DTYPES: ClassVar[Mapping[torch.dtype, str]] = {}  # number formats in which the family fails -> why
    post_norm: bool = False  # whether the norms stand behind the sums of its blocks, as in the Transformer of 2017
    source_config: dict[str, Any] | None = None  # the config.json it came from, with fields that are not used here
    generation_config: dict[str, Any] | None = None  # its generation_config.json, kept for saving
    config: Any  # frozen; has architecture, vocab_size, hidden_size, num_layers, context, tied, to_hf()
    load_notice: str | None = None  # what users are told when it is loaded
    compute: torch.dtype | None = None  # format of the activations where it is not that of the weights
    frozen: int = 0  # how many of the lowest blocks compute the same in every step; num_layers: all of them
    prompt_socket: PromptSocket
    embed: nn.Module
    head: nn.Module | None
    task_head: TaskHead | None  # predicts labels instead of text, and is trained whole beside any method
    inside: Inside | None = None  # where its files are those of a larger model
    sentence_pooling: str | None = None  # how its folder says that sentences are embedded
    sentence_tokens: int | None = None  # and how many tokens of one are read
    sentence_prompt: str = ""  # that is put before each
    sentence_lower: bool = False  # whether they are read in small letters
    extra_weights: dict[str, Tensor]  # tensors of the checkpoint that may initialise a task head; Hugging Face's names

    def __init__(self, config: Any = None):
        super().__init__()
        self.config = config
        self.task_head = None
        self.extra_weights = {}

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Model:
        """A model with the architecture that a config.json describes; its weights are undefined.

        Raises:
            ModelError: for an architecture or a setting that is not supported, and for missing or wrong fields.
        """
        raise NotImplementedError

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm, (T, D); of `Pairs`, those of the target rows."""
        raise NotImplementedError

    def lower(self, rows: Rows, blocks: int) -> Tensor:
        """The input of block number `blocks` (from 0), (T, D); with blocks = num_layers, the input of the last norm."""
        raise NotImplementedError

    def upper(self, x: Tensor, rows: Rows, blocks: int) -> Tensor:
        """The rest of the forward pass: hidden states after the last norm, (T, D), from x = lower(rows, blocks)."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """How many blocks there are with weights of their own, of which each may be several layers."""
        return int(getattr(self.config, "own_blocks", 0) or self.config.num_layers)

    def layers_below(self, block: int) -> int:
        """How many layers are computed before block number `block`, counted from 0; of `self.blocks`, all."""
        return block

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            for number, block in enumerate(cast(nn.ModuleList, self.layers), 1):
                if self.layers_below(number) <= self.frozen:
                    block.eval()
        return self

    def encode(self, source: Rows) -> Tensor:
        """The encoder's output for source rows, (T, D). Only encoder-decoders have it."""
        raise NotImplementedError

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens, (T,) -> (T, D): scaled if the family scales them, in the format of the activations."""
        x: Tensor = self.embed(ids)
        return x if self.compute is None else x.to(self.compute)

    def drop_head(self) -> None:
        """Take off what makes words of the states: a task head stands in for it."""
        self.head = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        raise NotImplementedError  # (V, D), the head's own weight or the embedding's

    @property
    def head_bias(self) -> Tensor | None:
        return None  # (V,), added to the logits, where the head has one

    @property
    def generation_rules(self) -> GenerationRules:
        """The rules in the model's generation_config.json.

        Raises:
            ModelError: if it asks for something that is not supported.
        """
        return GenerationRules()

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        """An empty cache, and for each prompt the tokens of the first step.

        A decoder's first tokens are the prompt. An encoder-decoder encodes the prompts here, keeps the result in the
        cache, and its first token is the decoder's start token.
        """
        raise NotImplementedError

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for all parameters of the plain model. A tied head is not listed, nor
        is a task head; the function `hf_names` below includes the task head."""
        raise NotImplementedError

    def plain_tensors(self) -> dict[str, Tensor]:
        """The tensors to save, by Hugging Face's names. Adapters must be merged before."""
        names, state = hf_names(self), self.state_dict()
        assert names.keys() == state.keys(), "merge what a method has added before saving the model"
        return {names[ours]: self.turned(ours, tensor) for ours, tensor in state.items()}

    def as_read(self, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The way back from `plain_tensors`: by the names of `hf_names`, as our parameters have them."""
        return stored

    def canonical_name(self, name: str) -> str:
        """A checkpoint tensor's name as names are compared: without the prefix of a model with a head, norms' old names
        (`gamma`, `beta`) as `weight`, `bias`."""
        return name

    def is_head_weight(self, name: str) -> bool:
        """True if this tensor (by its canonical name) is of a head of pre-training (BERT's pooler): `extra_weights`."""
        return False

    def extra_weights_to_save(self) -> dict[str, Tensor]:
        """Those of `extra_weights` that Hugging Face's files of the model without a task head contain."""
        return {}

    def is_unused_weight(self, name: str) -> bool:
        """True if this checkpoint tensor (Hugging Face's name) is known and not needed: loading skips it."""
        return name == self.tied_names[1] and self.config.tied

    def turned(self, ours: str, tensor: Tensor) -> Tensor:
        """A checkpoint's tensor as the parameter `ours` has it, and the other way round: the same for both."""
        return tensor

    @property
    def tied_names(self) -> tuple[str, str]:
        """`TIED`, for families whose names depend on their config."""
        return self.TIED

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Hugging Face's name -> other names under which a checkpoint may hold that tensor, in order of preference."""
        return {}

    def idle(self) -> Sequence[nn.Parameter]:
        return ()  # parameters that have no part in what is computed

    def init_weights(self, seed: int = 0) -> Model:
        """New random weights, as the family begins its training; the same for the same seed. Returns the model."""
        raise NotImplementedError

    @property
    def max_row_tokens(self) -> int | None:
        """Most tokens that a row may have: the context without the vectors of a prompt; None: no limit."""
        context: int | None = self.config.context
        return context - self.prompt_socket.length if context else None

    @classmethod
    def refuse_format(cls, dtype: torch.dtype | None) -> None:
        """Raises:
        ModelError: if the family fails with weights of that format, saying why.
        """
        if dtype is not None and dtype in cls.UNSUPPORTED_DTYPES:
            name, why = str(dtype).removeprefix("torch."), cls.UNSUPPORTED_DTYPES[dtype]
            raise ModelError(f"{cls.__name__} is never kept in {name}: {why}. Choose bfloat16 or float32")

    @property
    def device(self) -> torch.device:
        return device_of(self)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def hf_names(model: nn.Module) -> dict[str, str]:
    """Our parameter name -> Hugging Face's, with the task head if any; a model that is not ours has its own names."""
    module_map = module_map_of(model)
    if not isinstance(model, Model):
        assert module_map is not None, "call map_modules (models/external/any_module.py) on a model that is not ours"
        return module_map.names(model)
    names = model.hf_names()
    return names if model.task_head is None else model.task_head.hf_names(names)


def adapter_names(model: nn.Module) -> dict[str, str]:
    """As `hf_names`, but as the model is called whose files these are, which may be larger: adapters are of that."""
    names, inside = hf_names(model), getattr(model, "inside", None)
    return names if inside is None else {ours: inside.name(theirs) for ours, theirs in names.items()}


def unused(model: nn.Module) -> Sequence[nn.Module | nn.Parameter]:
    """What has no part in the result, as a decoder's parts where a task head reads the encoder alone."""
    idle = model.idle() if isinstance(model, Model) else ()
    parts = (getattr(model, name, None) for name in ("decoder", "target_embed") if _reads_encoder_alone(model))
    return [*idle, *(part for part in parts if part is not None)]


def _reads_encoder_alone(model: nn.Module) -> bool:
    head = getattr(model, "task_head", None)
    return head is not None and getattr(model, "KIND", "") == "encoder-decoder" and not head.config.reads_decoder


def last_stack(model: nn.Module) -> nn.Module:
    """The module whose `layers` give the model's output: the model itself; of an encoder-decoder its decoder, or its
    encoder if a task head reads that alone."""
    if cast(Model, model).KIND != "encoder-decoder":
        return model
    return cast(nn.Module, model.encoder if _reads_encoder_alone(model) else model.decoder)


def levels(model: nn.Module) -> dict[str, int]:
    """Parameter name -> its level, counted from the input: 0 before the blocks, then 1, 2, ... block by block (a
    decoder's blocks follow its encoder's), and one more for the last norm and the heads."""
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
    """Where a linear layer is attached, so that a method can replace it: it is `getattr(parent, attribute)`."""

    parent: nn.Module
    attribute: str
    role: str  # one of ROLES, or the last part of its name in a model that is not ours
    layer: int | None  # number of its block; None for the head

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
    """Dotted name (`layers.3.attention.q`) -> site, for every linear with a role, also those a method has replaced."""
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
    was_training = model.training  # it is in eval mode (no dropout) inside, and afterwards as before
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
