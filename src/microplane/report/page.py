"""Makes `report.html` in a run's folder: one file that opens offline.

Style, script, data and the chart library stand in the file itself. Its content security policy allows only these,
by their hashes, so that no text of a data set can run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from microplane.files import write_aside
from microplane.report import story
from microplane.report.choice import choice
from microplane.report.curves import curves, sweep
from microplane.report.places import home_name, renamed
from microplane.report.read import ReportError, RunRecord, read_run
from microplane.report.words import Figure, facts

ROOM = "microplane.report"
CHART_LIBRARY = "django/static/chartkick/Chart.bundle.js"  # Chart.js, as the package chartkick ships it


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run's folder, also for a run that failed or is still going.

    Returns:
        The path of the report.

    Raises:
        ReportError: if there is no run, a file of it is damaged, the chart library is missing, or the report cannot
            be written.
    """
    path = Path(run_folder) / "report.html"
    page = render(read_run(Path(run_folder)))
    try:
        write_aside(path, page.encode("utf-8"))
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror}. Free space or allow writing there, and try again"
        ) from None
    return path


def render(record: RunRecord) -> str:
    """The page as text without lone surrogates, which UTF-8 cannot hold."""
    return without_surrogates(template(ROOM, "page.html.j2").render(_content(_to_be_shared(record))))


def _to_be_shared(record: RunRecord) -> RunRecord:
    """Without where this user's files and the run lie on the machine; people's own texts as they are."""
    names = home_name() | {str(place): "" for place in (record.folder.absolute(), record.folder.resolve())}
    whole = record.folder.absolute().name
    told = {key: value if key == "samples" else renamed(value, names, whole) for key, value in record.result.items()}
    return replace(record, result=told, run_yaml=renamed(record.run_yaml, names, whole))


def without_surrogates(page: str) -> str:
    """Text that UTF-8 can hold."""
    return page.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@cache
def template(room: str, name: str) -> jinja2.Template:
    """A page's, out of a package."""
    strict = jinja2.StrictUndefined
    loader = jinja2.FunctionLoader(lambda name: own_file(name, room))
    environment = jinja2.Environment(
        autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    return environment.get_template(name)


def _content(record: RunRecord) -> dict[str, Any]:
    style, script, library = own_file("page.css"), own_file("shared.js") + own_file("page.js"), chart_library()
    metric_rows = story.metric_rows(record)
    data = curves(record)
    return {
        "result": record.result,
        "status": story.STATUS.get(record.result["status"], str(record.result["status"])),
        "outcome": story.outcome(record),
        "warnings": story.warnings(record),
        "verdict": story.verdict(record),
        "retreats": record.result["train"].get("retreats") or [],
        "lead": next((row for row in metric_rows if row.key == story.leading_metric(record)), None),
        "cards": story.cards(record),
        "curves": data,
        "choice": choice(record),
        "sweep": sweep(record),
        "data": Markup(inline_json(data)),
        "loss_summary": story.loss_summary(record),
        "curve_table": story.curve_table(record),
        "metric_rows": metric_rows,
        "rows": Figure("metrics.rows", record.result["metrics"].get("rows")),
        "forgotten": story.forgotten(record),
        "held_out": story.held_out(record),
        "class_tables": story.class_tables(record),
        "confusion": story.confusion(record),
        "samples": story.samples(record),
        "checks": story.checks(record),
        "forecast": story.forecast(record),
        "parts": story.parts(record),
        "environment": facts(record.result["environment"], "environment"),
        "run_yaml": record.run_yaml,
        "commands": story.commands(record),
        "style": Markup(style),
        "script": Markup(script),
        "library": Markup(library),
        "policy": policy(style, (script, library)),
    }


def inline_json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def chart_library() -> str:
    """Chart.js as one script.

    Raises:
        ReportError: if the installed chartkick does not hold it.
    """
    try:
        text = resources.files("chartkick").joinpath(CHART_LIBRARY).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise ReportError(
            f"the report needs Chart.js, which the package chartkick holds as {CHART_LIBRARY}; it is not there. "
            "Install it: pip install 'chartkick>=1.2'"
        ) from None
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def own_file(name: str, room: str = ROOM) -> str:
    return resources.files(room).joinpath(name).read_text(encoding="utf-8")


def policy(style: str, scripts: tuple[str, ...]) -> str:
    """Only our own style and scripts, by hash; nothing from anywhere else."""
    allowed = " ".join(_hash(script) for script in scripts)
    rules = ("default-src 'none'", "img-src data:", f"style-src {_hash(style)}", f"script-src {allowed}")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
