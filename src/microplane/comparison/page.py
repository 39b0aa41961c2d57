"""Makes `comparison.html`: one file that opens offline, in the style of a run's report and by the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from microplane.comparison.output import (
    FIGURES,
    comma_separated,
    difference_cell,
    forgetting_cell,
    short_count,
    star,
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
from microplane.report.words import duration, facts, moment, rate, significant, size

ROOM = "microplane.comparison"


def render(result: Mapping[str, Any]) -> str:
    """The page as text."""
    whole = json_value(dict(result))
    style = own_file("page.css") + own_file("comparison.css", ROOM)
    script = own_file("shared.js") + own_file("comparison.js", ROOM)
    library, words = chart_library(), words_of(result)
    content = {
        "result": whole,
        "data": Markup(inline_json(whole)),
        "csv": Markup(inline_json(comma_separated(result))),
        "style": Markup(style),
        "script": Markup(script),
        "library": Markup(library),
        "policy": policy(style, (script, library)),
        "figure": words.figure,
        "between": lambda score: f"{words.figure(score['low'])} to {words.figure(score['high'])}",
        "gap": lambda found: difference_cell(words, found),
        "forgot": forgetting_cell,
        "star": star(result),
        "environment": facts(result["environment"], "environment"),
        "when": moment(str(result["environment"].get("date", ""))),
        "say": {"duration": duration, "size": size, "count": short_count, "rate": rate, "number": significant},
        "columns": FIGURES,
    }
    return without_surrogates(template(ROOM, "comparison.html.j2").render(content))
