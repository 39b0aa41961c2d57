"""What models there are, and what each family can do: put together from the code that does it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated

import typer

from microplane.cli.lists import list_line


@dataclass(frozen=True)
class Family:
    """A family of models, by its model_type."""

    name: str
    architectures: tuple[str, ...]  # Hugging Face's classes that are opened
    kind: str  # decoder, encoder-decoder or encoder
    code: str  # "microplane" or "transformers"
    writes: bool
    heads: dict[str, str | None]  # rows, tokens -> Hugging Face's class with such a head; none: a head of ours alone
    labels: bool  # whether it takes a task head at all
    methods: tuple[str, ...]
    merged: tuple[str, ...]  # those of the methods that end as plain weights
    in_peft: tuple[str, ...]  # those whose adapters peft opens
    formats: tuple[str, ...]  # number formats of the weights
    gguf: bool  # read from GGUF files
    nf4_files: bool  # read from folders that are stored in 4 bits


def families() -> list[Family]:
    """Those with an implementation here, then those of the transformers that is installed."""
    return [*_own(), *_of_transformers()]


def _own() -> Iterator[Family]:
    from microplane.methods import METHODS
    from microplane.models.configs.head import FORMS
    from microplane.models.families import MODELS
    from microplane.models.files.gguf import SPECS

    in_gguf = {spec.model_type for spec in SPECS.values()}
    for model in MODELS:
        for name in dict.fromkeys(model.ARCHITECTURES.values()):
            classes = tuple(one for one, kind in model.ARCHITECTURES.items() if kind == name)
            heads = {
                what: next((form for form, at in FORMS.items() if at.plain in classes and at.tokens == tokens), None)
                for what, tokens in (("rows", False), ("tokens", True))
            }
            unsupported = {str(dtype).removeprefix("torch.") for dtype in model.UNSUPPORTED_DTYPES}
            yield _family(name, classes, model.KIND, "microplane", heads, tuple(METHODS), unsupported, name in in_gguf)


def _of_transformers() -> Iterator[Family]:
    if find_spec("transformers") is None:
        return
    from microplane.methods import METHODS
    from microplane.models.external.library import families_of_transformers, label_class
    from microplane.models.families import MODEL_TYPES

    for name, (kind, classes) in families_of_transformers().items():
        if name in MODEL_TYPES.values():
            continue
        encoder = kind == "encoder"
        heads = {what: label_class(name, what == "tokens") if encoder else None for what in ("rows", "tokens")}
        methods = tuple(known for known, method in METHODS.items() if method.works_without_own_code(has_labels=encoder))
        yield _family(name, classes, kind, "transformers", heads, methods, set(), False)


def _family(
    name: str,
    classes: tuple[str, ...],
    kind: str,
    code: str,
    heads: dict[str, str | None],
    methods: tuple[str, ...],
    unsupported: set[str],
    gguf: bool,
) -> Family:
    from microplane.methods import METHODS
    from microplane.nn.quantised import QUANTISED

    own = code == "microplane"
    return Family(
        name,
        classes,
        kind,
        code,
        writes=kind != "encoder",
        heads=heads,
        labels=own or kind == "encoder",
        methods=methods,
        merged=tuple(known for known in methods if METHODS[known]().mergeable),
        in_peft=tuple(known for known in methods if METHODS[known].peft_type),
        formats=tuple(form for form in ("float32", "bfloat16", "float16", *QUANTISED) if form not in unsupported),
        gguf=gguf,
        nf4_files=own,
    )


def models(
    json_: Annotated[bool, typer.Option("--json", help="Print everything that is known of each as JSON.")] = False,
) -> None:
    """List the models with a short name, and the families that can be opened, with what each of them can do."""
    from microplane.models.files.hub import SHORT_NAMES, is_cached

    found = families()
    if json_:
        short = [
            {"name": name, "model": entry.title, "bytes": entry.bytes, "here": is_cached(name)}
            for name, entry in SHORT_NAMES.items()
        ]
        typer.echo(json.dumps({"short_names": short, "families": [asdict(family) for family in found]}, indent=2))
        return
    _show_short_names()
    _show_own([family for family in found if family.code == "microplane"])
    _show_others([family for family in found if family.code != "microplane"])
    list_line("from: a Hugging Face folder, a .gguf file, or a Hub name such as HuggingFaceTB/SmolLM2-360M-Instruct")


def _show_short_names() -> None:
    from rich.table import Table

    from microplane.cli.terminal import make_console
    from microplane.models.files.hub import SHORT_NAMES, is_cached

    table = Table("short name", "model", "size", "here", box=None, pad_edge=False)
    for name, entry in SHORT_NAMES.items():
        table.add_row(
            name, entry.title, f"{entry.bytes / 1e6:.0f} MB", "yes" if is_cached(name) else "fetched at first use"
        )
    make_console().print(table)
    typer.echo()


def _show_own(own: list[Family]) -> None:
    """A line for each family, within 80 columns."""
    from microplane.methods import METHODS

    widths = "{:<12} {:<15} {:<7} {:<5} {:<4} {:<7} {:<13} {}"
    typer.echo(widths.format("family", "kind", "methods", "merge", "peft", "4/8 bit", "class of head", "GGUF"))
    for family in own:
        every = "all" if len(family.methods) == len(METHODS) else "of"
        heads = [what for what, form in family.heads.items() if form is not None]
        cells = (f"{every} {len(family.methods)}", str(len(family.merged)), str(len(family.in_peft)))
        bits = "yes" if {"int8", "nf4"} <= set(family.formats) else "no"
        line = widths.format(family.name, family.kind, *cells, bits, ", ".join(heads), "yes" if family.gguf else "")
        typer.echo(line.rstrip())
    list_line("merge, peft: how many methods end as plain weights, and whose adapters peft opens (microplane methods)")
    list_line("class of head: what it labels in a class of transformers; all take a head of ours for labels, too")
    typer.echo()


def _show_others(others: list[Family]) -> None:
    """The names by kind, and what these families lack."""
    from microplane.methods import METHODS

    if not others:
        list_line(
            "further families run through transformers, which is not installed: pip install 'microplane[transformers]'"
        )
        return
    list_line(f"through transformers {version('transformers')}: slower, and tried when it is opened")
    for kind, count in Counter(family.kind for family in others).items():
        same = [family for family in others if family.kind == kind]
        lacking = ", ".join(name for name in METHODS if name not in same[0].methods)
        labels = "labels and embeddings" if same[0].labels else "answers and text, no labels"
        names = ", ".join(family.name for family in same)
        list_line(f"  {count} of the kind {kind} ({labels}; not by {lacking}): {names}")
