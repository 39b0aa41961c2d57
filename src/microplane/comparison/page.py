"""Makes `comparison.html`, and the page of finished runs side by side: one file that opens offline, in the style of a
run's report and by the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from microplane.comparison.output import (
    FIGURES,
    comma_separated,
    difference_cell,
    forgetting_cell,
    speed_cell,
    star,
    ways_cell,
    words_of,
)
from microplane.files import json_value
from microplane.report.page import (
    chart_library,
    inline_json,
    own_file,
    policy,
    template,
    without_surrogates,
)
from microplane.report.words import duration, facts, moment, rate, say, short_count, significant, size

ROOM = "microplane.comparison"


def render(result: Mapping[str, Any]) -> str:
    """The page of a comparison as text."""
    return _page("comparison.html.j2", result, f"{result['name']} · comparison", {
        "names": [row["method"] for row in result["methods"]],
        "rows_told": "test rows, first those on which the methods differ most; scores are means over the seeds, "
        "answers of the first.",
        "csv": Markup(inline_json(comma_separated(result))),
        "star": star(result),
        "environment": facts(result["environment"], "environment"),
        "when": moment(str(result["environment"].get("date", ""))),
        "columns": FIGURES,
    })  # fmt: skip


def render_runs(result: Mapping[str, Any]) -> str:
    """The page of finished runs side by side as text."""
    return _page("side_by_side.html.j2", result, f"{len(result['runs'])} runs · Microplane", {
        "names": [row["run"] for row in result["runs"] if row["comparable"]],
        "rows_told": "rows whose answers were kept, first those on which the runs differ most.",
        "csv": None,
        "star": star(result) if result["answer"] else None,
        "said": say,
    })  # fmt: skip


def _page(name: str, result: Mapping[str, Any], title: str, more: Mapping[str, Any]) -> str:
    whole = json_value(dict(result))
    style = own_file("page.css") + own_file("comparison.css", ROOM)
    script = own_file("shared.js") + own_file("comparison.js", ROOM)
    library = chart_library()
    words = words_of(result) if result["metric"] else None
    content = {
        "result": whole,
        "title": title,
        "data": Markup(inline_json(whole)),
        "style": Markup(style),
        "script": Markup(script),
        "library": Markup(library),
        "policy": policy(style, (script, library)),
        "figure": words and words.figure,
        "between": words and (lambda score: f"{words.figure(score['low'])} to {words.figure(score['high'])}"),
        "gap": words and (lambda found: difference_cell(words, found)),
        "forgot": forgetting_cell,
        "in_use": speed_cell,
        "used_as": ways_cell,
        "say": {"duration": duration, "size": size, "count": short_count, "rate": rate, "number": significant},
        **more,
    }
    return without_surrogates(template(ROOM, name).render(content))
