"""Write an adapter that changes weights as a plain LoRA, which peft and servers open: exactly, or as near as may be."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from microplane.adapters.card import card_of, write_card
from microplane.adapters.export import check_free
from microplane.adapters.merge import probe_texts, probed, source_of
from microplane.checkpoints.adapter import save_adapter
from microplane.checkpoints.attach_saved import base_of
from microplane.errors import AdapterError, ConfigError
from microplane.evaluation.probe import largest_difference
from microplane.inference.pipeline import Pipeline, load
from microplane.methods import LoRA, Method
from microplane.methods.adapted_linear import AdaptedLinear, hf_paths
from microplane.methods.method import PREFIX, head_state, load_state
from microplane.models.contract import linears
from microplane.models.files.load import load_model
from microplane.models.heads import head_from

RANK = 16  # of an approximation, where none was asked for
EXACT = 1e-5  # a relative error that float32's rounding accounts for


@dataclass(frozen=True)
class Converted:
    folder: Path
    method: str
    rank: int
    error: float  # |change - B A| / |change| over all layers, Frobenius
    worst: tuple[float, str]  # the same of the layer where it is largest
    lost: float  # |change| / |weights| of what is no linear layer, which LoRA cannot carry
    difference: float  # largest logit difference, before against after, in float32

    def lines(self) -> Iterator[str]:
        yield f"wrote {self.folder}: {self.method} as LoRA of rank {self.rank}"
        if self.error < EXACT:
            yield f"exact but for rounding: relative error {self.error:.1e}"
        else:
            yield (
                f"the best approximation of this rank: relative error {self.error:.1%} of the change, "
                f"at most {self.worst[0]:.1%} in a layer ({self.worst[1]})"
            )
        if self.lost:
            yield f"left out: the change of embedding, norms and biases, {self.lost:.1e} of their size"
        yield f"largest logit difference, before against after: {self.difference:.2e}"


def convert(name: str | Path, out: str | Path, rank: int | None = None, base: str | Path | None = None) -> Converted:
    """Write the adapter of `name` as a LoRA in peft's format.

    Args:
        name: a run's folder, or an adapter's.
        out: the new folder; must not exist, or be empty.
        rank: of the LoRA. Otherwise the adapter's own where it has one, else 16.
        base: where the base is, if not where the adapter says.

    Raises:
        AdapterError: no adapter there, or `out` is taken, or a method that no LoRA can stand for.
    """
    source, folder = source_of(name), Path(out)
    check_free(folder, "convert")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank}: must be at least 1")
    loaded = load(name, dtype="float32", base=base)
    assert loaded.method is not None
    _refuse(loaded.method)
    about = dict(loaded.about or {})
    about.pop("peft", None)
    if replaced := about.pop("replaced", None):
        raise AdapterError(
            f"a LoRA cannot carry {', '.join(replaced)}, which {name} holds as a whole: merge it instead"
        )
    original = load_model(base_of(source, about, base) if loaded.method.whole_model else loaded.path)
    rows = probe_texts(Path(name), loaded)
    before = probed(loaded, rows)
    changes = dict(_changes(loaded, original, rank))
    width = max(len(change.A) for change in changes.values())
    lora = LoRA(rank=width, alpha=float(width), targets=_targets(loaded.model, changes))
    lost = _lost(loaded.model, original) if loaded.method.whole_model else 0.0
    head_from(original, about)  # first, for a head's class may call the layers otherwise
    prefixes = dict(zip(changes, hf_paths(original, changes), strict=True))
    lora.attach(original)
    state: dict[str, Tensor] = {}
    for path, change in changes.items():
        prefix = PREFIX + prefixes[path]
        state[f"{prefix}.lora_A.weight"] = _padded(change.A, width)
        state[f"{prefix}.lora_B.weight"] = _padded(change.B.t(), width).t()
    load_state(lora, original, state | head_state(loaded.model))
    about |= {"converted_from": loaded.method.name, "base": about.get("base")}
    save_adapter(folder, original, lora, about)
    write_card(folder, card_of(name, "peft", about, loaded.method.name))
    wrong, size = (math.sqrt(sum(getattr(c, n) ** 2 for c in changes.values())) for n in ("wrong", "size"))
    worst = max((c.wrong / c.size if c.size else 0.0, path) for path, c in changes.items())
    difference = largest_difference(before, probed(loaded, rows, original))
    return Converted(folder, loaded.method.name, width, wrong / size if size else 0.0, worst, lost, difference)


def _refuse(method: Method) -> None:
    reason = method.not_convertible
    if reason is None and not method.mergeable:
        reason = "adds to the model what is no change of a weight"
    if reason:
        raise AdapterError(f"a LoRA cannot stand for this adapter: the method {method.name} {reason}")


@dataclass(frozen=True)
class _Change:
    A: Tensor  # (r, in)
    B: Tensor  # (out, r)
    wrong: float  # |change - B A|
    size: float  # |change|


@torch.no_grad()
def _changes(loaded: Pipeline, base: nn.Module, rank: int | None) -> Iterator[tuple[str, _Change]]:
    """The change of each linear layer, by its dotted name."""
    originals = linears(base)
    for path, site in linears(loaded.model).items():
        module = site.module
        if isinstance(module, AdaptedLinear):
            pair, change = module.low_rank(), module.delta()
        elif loaded.method is not None and loaded.method.whole_model:
            pair, change = None, module.get_parameter("weight") - originals[path].module.get_parameter("weight")
        else:
            continue
        if pair is None or (rank is not None and len(pair[0]) > rank):
            pair = best_pair(change, rank or RANK)
        wrong = torch.linalg.norm(change - pair[1] @ pair[0])
        yield path, _Change(*pair, float(wrong), float(torch.linalg.norm(change)))


def best_pair(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A (r, in), B (out, r)) with B A the nearest to `change` of its rank (Eckart-Young)."""
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    root = S[:rank].sqrt()
    return root[:, None] * Vh[:rank], U[:, :rank] * root


def _targets(model: nn.Module, changed: Collection[str]) -> tuple[str, ...]:
    """The roles of the layers that changed, or their names where a role means others too."""
    sites = linears(model)
    roles = {sites[path].role for path in changed}
    whole = all(path in changed for path, site in sites.items() if site.role in roles)
    return tuple(sorted(roles if whole else changed))


def _padded(A: Tensor, rank: int) -> Tensor:
    """Rows of zeros below, so that all layers have one rank: servers want it so."""
    return torch.cat([A, A.new_zeros(rank - len(A), A.shape[1])])


@torch.no_grad()
def _lost(model: nn.Module, base: nn.Module) -> float:
    """How far the parameters outside linear layers went, relative to their size."""
    inside = {f"{path}.weight" for path in linears(model)}
    originals = dict(base.named_parameters())
    moved = size = 0.0
    for name, parameter in model.named_parameters():
        if name not in inside:
            moved += float((parameter - originals[name]).square().sum())
            size += float(originals[name].square().sum())
    return math.sqrt(moved / size) if size else 0.0
