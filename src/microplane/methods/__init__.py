"""Every method by its name. Adding one: its file, and its line here.

Or, from a package of one's own, an entry point in the group "microplane.methods" (config/extensions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microplane.config.build import build
from microplane.config.extensions import Registry
from microplane.errors import ConfigError, nearest
from microplane.methods.adalora import AdaLoRA
from microplane.methods.bitfit import BitFit
from microplane.methods.bottleneck import Bottleneck
from microplane.methods.dora import DoRA
from microplane.methods.full import Full
from microplane.methods.head_only import HeadOnly
from microplane.methods.ia3 import IA3
from microplane.methods.last_n import LastN
from microplane.methods.lora import LoRA
from microplane.methods.lora_auto import GrowingLoRA
from microplane.methods.lora_fa import LoRAFA
from microplane.methods.lora_plus import LoRAPlus
from microplane.methods.method import Method, trainable, trainable_parameters
from microplane.methods.nb_lora import NBLoRA
from microplane.methods.norms import Norms
from microplane.methods.paca import PaCA
from microplane.methods.prefix import PrefixTuning
from microplane.methods.prompt import PromptTuning
from microplane.methods.qlora import QLoRA
from microplane.methods.rslora import RsLoRA
from microplane.methods.scalora import ScaLoRA
from microplane.methods.vera import VeRA

BUILT_IN: tuple[type[Method], ...] = (
    *(LoRA, RsLoRA, LoRAPlus, LoRAFA, QLoRA, DoRA, GrowingLoRA, AdaLoRA, ScaLoRA, NBLoRA, IA3, VeRA, PaCA),
    *(Bottleneck, PromptTuning, PrefixTuning),
    *(Full, HeadOnly, LastN, BitFit, Norms),
)


def _checked(name: str, found: object) -> type[Method]:
    """Raises: TypeError or ValueError, saying what is wrong with what a package calls a method."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise TypeError("which is no subclass of microplane.methods.Method")
    if missing := [fact for fact in ("name", "summary", "default_lr") if not hasattr(found, fact)]:
        raise ValueError(f"which does not say its {' and '.join(missing)}")
    if found.name != name:
        raise ValueError(f"which calls itself {found.name!r}: the two must be the same")
    return found


METHODS = Registry("microplane.methods", {method.name: method for method in BUILT_IN}, _checked)

USUAL, USUAL_WITH_LABELS = ("lora", "full", "ia3"), ("lora", "full", "head-only")  # where none are named

__all__ = [
    "METHODS",
    "USUAL",
    "USUAL_WITH_LABELS",
    "Full",
    "LoRA",
    "Method",
    "QLoRA",
    "facts_table",
    "make_method",
    "trainable",
    "trainable_parameters",
]


def facts_table() -> str:
    """What each method says of itself with its defaults, as a table in Markdown."""
    lines = [
        "| method | train.lr | starts as the base | merges | trains the base's own weights | base | file of peft |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kind in METHODS.items():
        method = kind()
        wide = method.needs_float32 is not None or method.trains == "weights"
        base = method.quantize or ("float32" if wide else "any")
        own = "yes" if method.trains_base else "no"
        shown = [f"{method.default_lr:g}", *("yes" if x else "no" for x in (method.starts_at_base, method.mergeable))]
        lines.append(f"| {' | '.join([name, *shown, own, base, method.peft_type or '-'])} |")
    return "\n".join(lines)


def make_method(knobs: Mapping[str, Any] | str) -> Method:
    """A method from its name, or from `{"name": ..., knob: value}`.

    Raises:
        ConfigError: for an unknown method or knob, with the nearest name.
    """
    values = {"name": knobs} if isinstance(knobs, str) else dict(knobs)
    name = values.pop("name", "lora")
    if name == LoRA.name and values.get("rank") == "auto":
        name = GrowingLoRA.name
    if name not in METHODS:
        raise ConfigError(
            f"method.name = {name!r}: there is no such method; there are {', '.join(METHODS)}."
            f"{nearest(str(name), METHODS)}"
        )
    return build(METHODS[name], values, section="method.")
