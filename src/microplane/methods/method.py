"""The interface of a method: its facts and its verbs.

The frozen object *is* the method's configuration. The loop, the checkpoints, the command line, the reports and the
tests see this and nothing else; none of them asks which method it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from microplane.config.section import Knobs
from microplane.errors import AdapterError, ConfigError
from microplane.models.contract import adapter_names, module_map_of, unused
from microplane.nn.sharded import fill

PREFIX = "base_model.model."  # what peft's names begin with
OUTER_PREFIX = "base_model."  # of what stands beside vectors before a row, for which peft wraps no layer

USED = "microplane generate, eval and serve open it on its base, and microplane.load in Python"


POST_NORM = 0.5
"""A norm behind each sum scales what the blocks below pass on, and the gradients near the output are large (arXiv
2002.04745), so rates that a pre-norm model takes make it collapse: docs/methods/README.md, "Learning rates"."""
TUNED_WIDTH, TUNED_POST_NORM_WIDTH = 576, 384
"""Of the models that the default rates were tuned on. With Adam each entry of a weight moves by about the rate, and an
output is a sum over the width: on a wider model the same rate moves the outputs further, in proportion (arXiv
2203.03466, table 3; of LoRA's matrices 2402.12354 and 2602.06204)."""


class Method(Knobs):
    """A way to adapt a model. Only `attach` is obligatory."""

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for the command line
    default_lr: ClassVar[float]
    quantize: ClassVar[str | None] = None  # how the base must be loaded
    optimizers: ClassVar[tuple[str, ...] | None] = None  # None: works with any
    starts_at_base: ClassVar[bool] = True  # attach leaves the output unchanged
    # What trains: an adapter; a few vectors of the model's own, which `attach` casts to float32 while the rest of the
    # base may be in any format, also quantised; or weights of the model's own, so that the base is kept in float32.
    trains: ClassVar[Literal["adapter", "vectors", "weights"]] = "adapter"
    trains_matrices: ClassVar[bool] = True  # weights of linear layers, or factors of them; else vectors and prompts
    whole_model: ClassVar[bool] = False  # what it saves is a model, not an adapter
    peft_type: ClassVar[str | None] = None  # peft's name of the format that it reads and writes
    caution_in_peft: ClassVar[str] = ""  # what its adapters need there; nothing if empty
    prefix: ClassVar[str] = PREFIX  # what the names of a head begin with that trains beside it
    needs_float32: ClassVar[str | None] = None  # why the base must be float32: "the method X ..."
    needs_own_model: ClassVar[str | None] = None  # why it works on Microplane's own models only: "the method X ..."
    not_convertible: ClassVar[str | None] = None  # why no LoRA can stand for it, not even nearly: "the method X ..."
    counts_blocks: ClassVar[bool] = False  # its knobs number blocks: of a model with fewer it is another, or none

    def attach(self, model: nn.Module) -> None:
        """Freeze the model, then add or unfreeze exactly what trains."""
        raise NotImplementedError

    @classmethod
    def works_without_own_code(cls, has_labels: bool) -> bool:
        """Whether it can be attached to models without an implementation here; `has_labels`: to those with a head."""
        return cls.needs_own_model is None

    def refusal(self, model: nn.Module) -> str | None:
        """Why it can't be attached to this model that is not ours; None if it can."""
        return self.needs_own_model

    def idle_knobs(self) -> dict[str, str]:
        """Its knobs that would change nothing beside the others, and for each why and what to do about it."""
        return {}

    def rate(self, model: nn.Module) -> float:
        """The rate where none is set: `default_lr`; on a post-norm model (BERT) `POST_NORM` of it, of an adapter and of
        full fine-tuning; of matrices the smaller, the wider the model is beyond those that it was tuned on."""
        post_norm = getattr(model, "post_norm", False)
        rate = self.default_lr
        if post_norm and (self.trains == "adapter" or self.whole_model):
            rate *= POST_NORM
        width = getattr(getattr(model, "config", None), "hidden_size", None)
        if self.trains_matrices and isinstance(width, int):
            rate *= min(1.0, (TUNED_POST_NORM_WIDTH if post_norm else TUNED_WIDTH) / width)
        return float(f"{rate:.3g}")

    def frozen_below(self, model: nn.Module) -> int:
        """How many of the lowest blocks compute the same in every step; as many as there are: the last norm, too."""
        return 0

    @property
    def num_virtual_tokens(self) -> int:
        """How many places of a row's context it takes for itself."""
        return 0

    @property
    def named(self) -> tuple[str, ...] | None:
        """All that its knobs call linear layers by; None of a method that chooses none."""
        return None

    def on(self, layers: Mapping[str, Tensor]) -> Self:
        """The same on these layers (roles or whole names), each with a tensor that a file has of it."""
        raise NotImplementedError

    def with_tokens(self, encode: Callable[[str], list[int]]) -> Self:
        """The same method, with what its knobs say in words as the model's tokens."""
        return self

    @classmethod
    def at_rank(cls, rank: int) -> dict[str, Any]:
        """Its knobs at a rank, of a method that has one: those that follow it, too. An update that is scaled by alpha /
        rank gets the alpha with which it is as large as at the method's own rank: one that grows as the root of the
        rank (arXiv 2312.03732)."""
        own = cls.model_fields
        scaled = {"alpha": own["alpha"].default * (rank / own["rank"].default) ** 0.5} if "alpha" in own else {}
        return {"rank": rank, **scaled}

    @property
    def init_rows(self) -> int:
        """How many training rows `init_from_data` looks at; 0 for none."""
        return 0

    def init_from_data(
        self,
        model: nn.Module,
        losses: Sequence[Callable[[], Tensor]],
        weights: Callable[[str], Tensor] | None = None,
    ) -> None:
        """Choose the values that training starts from; called once after `attach`, not on resume or loading.

        Args:
            losses: each computes the model's mean loss on a few training rows, anew and differentiably; in all they
                see `init_rows` rows, drawn with the run's seed.
            weights: the base's weight of a linear layer by its dotted name, as it was before it was quantised.
        """

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """The optimizer's groups; together they hold each trainable tensor exactly once."""
        return [{"params": list(trainable(model).values()), "lr": lr}]

    def without_decay(self, model: nn.Module) -> list[nn.Parameter]:
        """Its own tensors that are not 0 where the model is its base: decay would pull the model away from it."""
        return []

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Added to the loss of an optimizer step."""
        return 0.0

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        """Make the optimizer's step number `step` of `total`. The gradients are final: accumulated and clipped."""
        optimizer.step()

    def can_be_result(self, step: int, total: int) -> bool:
        """Whether the weights after `step` steps can be the run's result, so that it may also end early there."""
        return True

    def after_validation(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[Mapping[str, Any]], total: int
    ) -> str | None:
        """Change the model or the optimizer's groups after a validation, and say what was decided; None: nothing was.

        A decision gives the run its whole patience back.

        Args:
            history: of each validation so far its step, validation_loss, train_loss, and decision if there was one.
            total: the run's steps.
        """
        return None

    def finish(self, model: nn.Module, validate: Callable[[], float]) -> str | None:
        """Change the best weights, which are in the model, once more, and say what was done.

        Args:
            validate: the validation loss of the model as it is.
        """
        return None

    def may_not_move(self, model: nn.Module) -> set[str]:
        """Names of trainable tensors that rightly are what they were at the start."""
        return set()

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """All that is needed to come back to this function from the untouched model; a task head need not be in it."""
        return dict(trainable(model))

    def load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, on a model to which this method is attached.

        Raises:
            AdapterError: listing every tensor that is missing, unexpected or of another shape.
        """
        copy_strictly(self.state(model), state)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What going on with training needs besides `state` and the optimizer's: averages, masks, start values."""
        return {}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`; called after `load`."""

    def merge(self, model: nn.Module) -> None:
        """Leave plain modules that compute the same."""
        raise AdapterError(f"{self.name} cannot be merged into the model's weights; it stays an adapter: {USED}")

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        """The fields of peft's adapter_config.json where the method has peft's format, else None."""
        return None

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """This method's knobs from an adapter_config.json of its `peft_type`, or None where another method is meant.

        Raises:
            AdapterError: for what peft could do and this method can't.
        """
        return None

    def state_of_peft(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of a file of peft's, with what the knobs that `of_peft` gave cannot say put into them."""
        return state

    def has_peft_format(self, model: nn.Module) -> bool:
        """Whether what it trains on this model can be an adapter of peft's."""
        return self.peft_type is not None

    @property
    def trains_base(self) -> bool:
        """Whether any of the model's own weights train."""
        return self.trains != "adapter"

    @property
    def mergeable(self) -> bool:
        """Whether it can end as plain weights: it has a `merge` of its own."""
        return type(self).merge is not Method.merge

    @property
    def finishes(self) -> bool:
        """Whether it changes the best weights once more at the end: it has a `finish` of its own."""
        return type(self).finish is not Method.finish

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FACTS}


NEEDS_SOCKETS = (
    "puts modules between the parts of a block, into places that Microplane's own models keep open and this one does "
    "not have. Take a method that changes its linear layers, as lora"
)
FACTS = ("quantize", "optimizers", "mergeable", "starts_at_base", "trains_base", "whole_model", "finishes")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable(model).values())


ATTACHED = "_microplane_method"


def attached_method(model: nn.Module) -> Method | None:
    """The method that `attach_method` has attached to this model, until it is merged."""
    return model.__dict__.get(ATTACHED)


def forget_method(model: nn.Module) -> None:
    """The model is a plain one again, with or without what was learned."""
    model.__dict__.pop(ATTACHED, None)


def attach_method(method: Method, model: nn.Module) -> None:
    """Attach a method; a task head trains beside any of them, and so do the parts that a model that is not ours names.

    Raises:
        ConfigError: if the method needs what a model that is not ours does not have.
    """
    module_map = module_map_of(model)
    if module_map is not None and (why := method.refusal(model)):
        raise ConfigError(f"method.name = {method.name!r} {why}")
    method.attach(model)
    model.__dict__[ATTACHED] = method
    model.frozen = method.frozen_below(model)  # type: ignore[assignment]
    if (head := getattr(model, "task_head", None)) is not None:
        head.requires_grad_(True)
    for part in unused(model):
        part.requires_grad_(False)
    for name in module_map.modules_to_save if module_map else ():
        model.get_submodule(name).requires_grad_(True)


def state_of(method: Method, model: nn.Module) -> dict[str, Tensor]:
    """`Method.state`, the task head, and of a model that is not ours what trains or moves beside the method; as files
    hold it, a head that learns in a unit of its own in that of the labels."""
    unit, last = _head_unit(model)
    whole = _parameters_of(method, model)
    return {name: tensor.detach() * unit if id(tensor) in last else tensor for name, tensor in whole.items()}


def _head_unit(model: nn.Module) -> tuple[float, set[int]]:
    """The unit that the task head learns in, and the parameters that are counted in it, by their identity."""
    head = getattr(model, "task_head", None)
    if head is None or head.unit == 1.0:
        return 1.0, set()
    return head.unit, {id(parameter) for parameter in head.last.parameters()}


def _parameters_of(method: Method, model: nn.Module) -> dict[str, Tensor]:
    """The tensors themselves of what `state_of` gives."""
    if method.whole_model:
        return method.state(model) | running_stats_of(model)
    beside = {f"{PREFIX}{name}": tensor for name, tensor in running_stats_of(model).items()}
    beside |= head_state(model, method.prefix)
    once = {id(tensor) for tensor in beside.values()}  # a head parameter that the method also lists is saved once
    return {name: tensor for name, tensor in method.state(model).items() if id(tensor) not in once} | beside


def load_state(method: Method, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `state_of`.

    Raises:
        AdapterError: see `Method.load`; nothing is changed then.
    """
    whole, methods_own = _parameters_of(method, model), method.state(model)
    state = {_as_now(method, name): tensor for name, tensor in state.items()}
    unit, last = _head_unit(model)
    state = {name: x / unit if name in whole and id(whole[name]) in last else x for name, x in state.items()}
    own = {name: whole[name] for name in whole.keys() - methods_own.keys()}
    if not methods_own:  # a head alone
        copy_strictly(own, state)
        return
    rest = {name: tensor for name, tensor in state.items() if name not in own}
    found = {name: tensor for name, tensor in state.items() if name in own}
    places = {id(tensor): name for name, tensor in own.items()}
    twins = {name: places[id(tensor)] for name, tensor in methods_own.items() if id(tensor) in places}
    rest |= {name: state[twin] for name, twin in twins.items() if twin in state}
    method.load(model, rest)
    copy_strictly(own, found)


def _as_now(method: Method, name: str) -> str:
    """A head's name in a file; earlier versions began it like any other."""
    if name.startswith(PREFIX) and method.prefix != PREFIX:
        return method.prefix + name.removeprefix(PREFIX)
    return name


def head_state(model: nn.Module, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The tensors of the task head, under the names that Hugging Face's classes give them, and of what trains beside
    the method in a model that is not ours."""
    head, module_map = getattr(model, "task_head", None), module_map_of(model)
    parts = [] if head is None else [("task_head", head)]
    parts += [(name, model.get_submodule(name)) for name in (module_map.modules_to_save if module_map else ())]
    names = adapter_names(model) if parts else {}
    own = ((f"{at}.{name}", tensor) for at, part in parts for name, tensor in part.named_parameters())
    return {f"{prefix}{names[name]}": tensor for name, tensor in own}


def running_stats_of(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model that is not ours that change as it trains, under its own names."""
    module_map = module_map_of(model)
    buffers = dict(model.named_buffers()) if module_map and module_map.running_stats else {}
    return (
        {name.removeprefix(module_map.prefix): buffers[name] for name in module_map.running_stats} if module_map else {}
    )


def copy_strictly(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `targets` in place, or change nothing and complain about everything at once."""
    check_fits({name: target.shape for name, target in targets.items()}, state)
    with torch.no_grad():
        for name, target in targets.items():
            fill(target, state[name])


def check_fits(shapes: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError, listing every tensor that is missing, unexpected or of another shape."""
    complaints = [f"missing: {name}" for name in shapes if name not in state]
    complaints += [f"unexpected: {name}" for name in state if name not in shapes]
    complaints += [
        f"shape of {name}: {tuple(state[name].shape)} in the adapter, {tuple(shape)} in the model"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    if complaints:
        shown = "\n  ".join(complaints[:12]) + (f"\n  and {len(complaints) - 12} more" if len(complaints) > 12 else "")
        raise AdapterError(f"the adapter does not fit this model and method ({len(complaints)} tensors):\n  {shown}")
