"""A comparison's result as text: Markdown for a pull request, CSV, and lines for a terminal of 80 columns."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from microplane.comparison.verdict import Words, plain
from microplane.report.words import duration, rate, short_count, size

Result = Mapping[str, Any]
COLUMNS = (
    *("method", "score", "95% interval", "to {reference}", "rate", "time", "memory", "weights", "file"),
    *("trained tokens/s", "speed in use", "gap", "forgetting", "can be used as"),
)


def words_of(result: Result) -> Words:
    return Words(result["metric"]["share"])


def cells(result: Result) -> list[list[str]]:
    """The table's rows as text, under `COLUMNS`; baselines last."""
    words, lines = words_of(result), []
    for row in result["methods"]:
        lines.append(
            [
                row["method"],
                words.figure(row["score"]["value"]),
                _between(words, row["score"]),
                difference_cell(words, row["to_reference"]),
                f"{row['lr']:g}{_edge(result, row['method'])}",
                duration(row["seconds"]),
                size(row["peak_memory_bytes"]),
                short_count(row["trainable_parameters"]),
                size(row["adapter_bytes"]) if row["adapter_bytes"] else "-",
                rate(row["trained_tokens_per_second"]) if row["trained_tokens_per_second"] else "-",
                speed_cell(row["speed"]),
                f"{row['gap']:+.3g}",
                forgetting_cell(row["forgetting"]),
                ways_cell(row),
            ]
        )
    for row in result["failed"]:
        lines.append([row["method"], "failed", *[""] * (len(COLUMNS) - 2)])
    for row in result["baselines"]:
        score = words.figure(row["score"]["value"]), _between(words, row["score"])
        lines.append([row["name"], *score, *[""] * (len(COLUMNS) - 3)])
    return lines


def heads(result: Result) -> list[str]:
    return [name.format(reference=result["reference"]) for name in COLUMNS]


def _between(words: Words, score: Mapping[str, float]) -> str:
    low, high = score["low"], score["high"]
    return f"{100 * low:.1f} to {100 * high:.1f}" if words.share else f"{plain(low)} to {plain(high)}"


def difference_cell(words: Words, found: Mapping[str, Any] | None) -> str:
    """`+1.2`, with a star where it is certain; `same` where not one row differs."""
    if found is None:
        return "-"
    if found["identical"]:
        return "same"
    said = f"{100 * found['value']:+.1f}" if words.share else plain(found["value"], "+")
    return "+0.0" if said == "-0.0" else said + (" *" if found["told_apart"] else "")


def forgetting_cell(found: Mapping[str, float] | None) -> str:
    """`+0.031`: what the loss on general text grew by."""
    return "-" if found is None else f"{found['difference']:+.3f}"


def speed_cell(found: Mapping[str, Any] | None) -> str:
    """`312 tokens/s`, with a word where the adapter stays beside the base."""
    if found is None:
        return "-"
    return f"{rate(found['per_second'])} {found['unit']}/s{'' if found['merged'] else ', unmerged'}"


def ways_cell(row: Mapping[str, Any]) -> str:
    """Where the tuned model can be used."""
    return ", ".join(row["ways"]) or "Microplane alone"


def _edge(result: Result, method: str) -> str:
    return " (edge)" if result["search"][method]["edge"] else ""


STAR = "*: told apart from {reference} for certain (Holm over {claims}, 5% in all)"


def star(result: Result) -> str:
    """What a star in the table means; empty where there is nothing to tell apart from the reference."""
    if not any(row["to_reference"] for row in result.get("methods") or result["runs"]):
        return ""
    count = result["answer"]["claims"]
    claims = "one comparison" if count == 1 else f"{count} comparisons"
    return STAR.format(reference=result["reference"], claims=claims)


def markdown(result: Result) -> str:
    """The answer and the table."""
    first, *more = result["answer"]["sentences"]
    more += [curve["sentence"]] if (curve := result["learning_curve"]) else []
    lines = [f"**{first}**", *more, ""]
    title = heads(result)
    lines += [_markdown_row(title), _markdown_row(["---"] * len(title)), *map(_markdown_row, cells(result)), ""]
    told = f" {star(result)}." if star(result) else ""
    lines += [f"{_metric(result)}{told}", ""]
    lines += [f"- {note}" for note in result["notes"]]
    lines += [f"- {row['method']} failed: {row['reason']}" for row in result["failed"]]
    return "\n".join([*lines, "", f"`{result['command']}`", ""])


def _metric(result: Result) -> str:
    metric = result["metric"]
    kind = "lower is better" if metric["lower_is_better"] else "higher is better"
    return f"Score: {metric['name']} on {metric['rows']:,} test rows ({kind}), mean of the seeds."


def _markdown_row(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


FIGURES = (  # of a method, beside its score
    *("lr", "seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes", "trainable_parameters"),
    *("adapter_bytes", "train_loss", "validation_loss", "gap", "steps", "tokens", "merges", "peft"),
)


def comma_separated(result: Result) -> str:
    """Figures of each method and baseline, unrounded."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    more = ["forgetting", "speed_per_second", "speed_unit", "ways"]
    out.writerow(["name", "kind", "score", "low", "high", *FIGURES, *more])
    for row in result["methods"]:
        forgetting, speed = row["forgetting"] or {}, row["speed"] or {}
        figures = [*(row[name] for name in FIGURES), forgetting.get("difference")]
        figures += [speed.get("per_second"), speed.get("unit"), " ".join(row["ways"])]
        out.writerow([row["method"], "method", *row["score"].values(), *figures])
    for row in result["baselines"]:
        out.writerow([row["name"], "baseline", *row["score"].values()])
    return text.getvalue()


NARROW = (0, 1, 2, 3, 4, 5, 6)  # the columns that fit in a terminal, but for the last ones where figures are long
WIDTH, NAMES = 80, 12  # characters of a line, and of a name at least


def terminal(result: Result) -> list[str]:
    """The same within 80 columns; names that are too long for that are cut."""
    table = [[row[at] for at in NARROW] for row in [heads(result), *cells(result)]]
    for row in table:
        row[4] = row[4].replace(" (edge)", "!")
    table[0][3] = _cut(table[0][3], 10)
    widths = [max(len(row[at]) for row in table) for at in range(1, len(NARROW))]
    longest = max(len(row[0]) for row in table)
    while (room := WIDTH - sum(widths) - 2 * len(widths)) < min(longest, NAMES):
        widths.pop()
    room = min(longest, room)
    lines = [
        "  ".join([_cut(first, room).ljust(room), *map(str.rjust, rest, widths)]).rstrip() for first, *rest in table
    ]
    edge = ["!: the best rate lies on the edge of those that were tried"] if "!" in "".join(lines) else []
    told = [star(result)] if star(result) else []
    return [*lines, *told, *edge, *_in_use(result), *_forgetting(result)]


def _in_use(result: Result) -> list[str]:
    """How fast the tuned models are, in lines of their own, for the table has no room."""
    found = [f"{row['method']} {speed_cell(row['speed'])}" for row in result["methods"] if row["speed"]]
    return _wrapped(f"In use: {', '.join(found)}") if found else []


def _forgetting(result: Result) -> list[str]:
    """The same of what each method forgot."""
    found = [f"{row['method']} {forgetting_cell(row['forgetting'])}" for row in result["methods"] if row["forgetting"]]
    return _wrapped(f"Forgetting (loss on general text, after less before): {', '.join(found)}") if found else []


def _wrapped(told: str) -> list[str]:
    return textwrap.wrap(told, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 2] + ".."
