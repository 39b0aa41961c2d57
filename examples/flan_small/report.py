"""The results as one HTML file that opens offline, with the chart library of Microplane's own reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from microplane.files import write_aside
from microplane.report.page import chart_library, inline_json


def render(content: dict[str, Any]) -> str:
    data = {
        "accuracy": {name: arm["summary"]["curve"] for name, arm in content["arms"].items()},
        "losses": {name: content[name]["curve"] for name in ("pretrain", "instruct")},
    }
    strict = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = strict.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **content,
        busy=max(content["load"].values()) > content["machine"]["cores"],
        shown=lambda step: "never" if step is None else step,
        library=Markup(chart_library()),
        data=Markup(inline_json(data)),
    )


def write(content: dict[str, Any], path: Path) -> None:
    write_aside(path, render(content).encode())
