"""What a mixture will give, to look at before anything is trained: `microplane mixture FILE`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from microplane.cli.show_data import shorten, visible
from microplane.data.mixtures.sampler import CHUNK, Mixture

LOOKED = 2000  # rows that are rendered at most to find one of each kind
KINDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "zero-shot": lambda row: not (row["shots"] or row["options"] or _inverted(row)),
    "zero-shot with options": lambda row: row["options"] and not row["shots"],
    "few-shot": lambda row: row["shots"] > 0 and not (row["options"] or _inverted(row)),
    "few-shot with options": lambda row: row["shots"] > 0 and row["options"],
    "inverted": lambda row: _inverted(row) and not row["shots"],
}


def _inverted(row: dict[str, Any]) -> bool:
    return str(row["template"]).split("/")[1] == "inverted"


def describe_mixture(mixture: Mixture, rows: int | None = None) -> MixtureDescription:
    """Shares by the rules and as drawn for `rows` rows (those of the file if None), and a row of each kind."""
    knobs = mixture.plan.knobs
    rows = rows or knobs.rows
    counts, styles = _count(mixture, rows)
    shares = mixture.shares()
    sources = []
    for number, source in enumerate(mixture.sources):
        count, have = int(counts[number]), len(source.sides["train"])
        sources.append(
            {
                "submixture": source.plan.submixture,
                "name": source.name,
                "family": source.plan.knobs.family,
                "rows": have,
                "rule": float(shares[number]),
                "sampled": count / rows,
                "drawn": count,
                "epochs": count / have,
                "bad_rows": source.problems.total,
            }
        )
    rules = mixture.style_shares()
    facts = {
        "file": str(mixture.plan.path),
        "seed": knobs.seed,
        "rows": rows,
        "submixtures": _submixtures(mixture, sources),
        "sources": sources,
        "styles": {name: {"rule": rules[name], "sampled": styles[name] / rows} for name in rules},
        "notes": [*mixture.plan.notes, *(f"{source.name}: {source.note}" for source in mixture.sources if source.note)],
        "samples": _samples(mixture, rows),
    }
    return MixtureDescription(facts)


def _count(mixture: Mixture, rows: int) -> tuple[np.ndarray, dict[str, int]]:
    """How often each source was drawn, (sources,), and each style."""
    counts = np.zeros(len(mixture.sources), np.int64)
    styles = {"few_shot": 0, "with_options": 0, "inverted": 0}
    for start in range(0, rows, CHUNK):
        drawn = mixture.draws(start, min(start + CHUNK, rows))
        counts += np.bincount(drawn.source, minlength=len(counts))
        styles["few_shot"] += int(drawn.few_shot.sum())
        styles["with_options"] += int(drawn.options.sum())
        styles["inverted"] += int(drawn.inverted.sum())
    return counts, styles


def _submixtures(mixture: Mixture, sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for name, knobs in mixture.plan.submixtures.items():
        own = [source for source in sources if source["submixture"] == name]
        sums = {key: sum(source[key] for source in own) for key in ("rows", "rule", "sampled", "drawn")}
        made.append({"name": name, "weight": knobs.weight, "cap": knobs.cap, "sources": len(own), **sums})
    return made


def _samples(mixture: Mixture, rows: int) -> list[dict[str, Any]]:
    """The first row of each kind."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(mixture.rows(0, min(rows, LOOKED))):
        for kind, fits in KINDS.items():
            if kind not in found and fits(row):
                found[kind] = {"kind": kind, "row": number, **row}
        if len(found) == len(KINDS):
            break
    return [found[kind] for kind in KINDS if kind in found]


@dataclass
class MixtureDescription:
    """What `microplane mixture` prints; `facts` is the same for `--json`."""

    facts: dict[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts = self.facts
        yield Text(f"{facts['file']}: {facts['rows']:,} rows are drawn, with seed {facts['seed']}\n")
        yield self._shares()
        yield Text()
        yield self._styles()
        for note in facts["notes"]:
            yield Text.assemble(("\nnote: ", "bold yellow"), note)
        for source in facts["sources"]:
            if source["bad_rows"]:
                yield Text.assemble(
                    ("\nwarning: ", "bold yellow"), f"{source['bad_rows']:,} bad rows of {source['name']} are left out"
                )
        for sample in facts["samples"]:
            yield from _shown(sample)

    def _shares(self) -> Table:
        table = Table("", "family", "rows", "rule", "sampled", "drawn", "epochs", box=None, pad_edge=False)
        for column in table.columns[2:]:
            column.justify = "right"
        for part in self.facts["submixtures"]:
            weight = f"weight {part['weight']:g}" + (f", cap {part['cap']:,}" if part["cap"] else "")
            table.add_row(Text(part["name"], "bold"), weight, *_figures(part), "")
            for source in self.facts["sources"]:
                if source["submixture"] == part["name"]:
                    epochs = f"{source['epochs']:.2f}"
                    table.add_row(Text(f"  {source['name']}"), source["family"], *_figures(source), epochs)
        return table

    def _styles(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, share in self.facts["styles"].items():
            table.add_row(name.replace("_", " "), f"rule {share['rule']:.2%}", f"sampled {share['sampled']:.2%}")
        return table


def _figures(part: dict[str, Any]) -> list[str]:
    return [f"{part['rows']:,}", f"{part['rule']:.2%}", f"{part['sampled']:.2%}", f"{part['drawn']:,}"]


def _shown(sample: dict[str, Any]) -> RenderResult:
    shots = f", {sample['shots']} exemplars" if sample["shots"] > 1 else ", 1 exemplar" if sample["shots"] else ""
    place = f" (row {sample['row']} from {sample['source']}, template {sample['template']}{shots})"
    yield Text.assemble((f"\n{sample['kind']}", "bold"), place)
    for part in ("inputs", "targets"):
        yield Text(f"  {part}", "dim")
        yield Text(indent(visible(shorten(sample[part])), "    "))
