"""`microplane runs`: what lies under a folder of runs, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microplane.errors import ConfigError
from microplane.files import json_line, lock

WIDE = 32  # letters of a run's name; a longer one moves its own line alone
LAST = ("loss", "perplexity")  # figures that are told only where there is no other


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where runs are kept.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="A line of JSON for each run.")] = False,
) -> None:
    """List the runs in FOLDER, the newest last: status, method, the task's first metric before and after, time."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give the one that holds your runs")
    found = [facts(path.parent) for path in sorted(folder.glob("*/run.yaml"), key=_changed)]
    if not found:
        raise ConfigError(f"{folder} holds no run; runs are made by microplane train")
    if json_:
        for one in found:
            typer.echo(json_line(one))
        return
    heads = ["run", "status", "method", "metric", "before", "after", "time"]
    table = [heads, *([_said(name, one[name]) for name in one] for one in found)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    widths[0] = min(widths[0], WIDE)
    for row in table:  # names are whole, however narrow the terminal: they are what other commands take
        typer.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it was deleted meanwhile, or is a link to nothing
        return 0.0


def facts(run: Path) -> dict[str, Any]:
    """What is known of a run; None where it has not got so far, or what stands there is no figure."""
    from microplane.report.read import ReportError, read_result
    from microplane.report.words import is_finite

    path = run / "result.json"
    try:
        result = read_result(path) if path.is_file() else {}
    except ReportError:
        result = {"status": "unreadable"}
    metrics = result.get("metrics") or {}
    after, before = metrics.get("after") or {}, metrics.get("before") or {}
    name = next((name for name in after if name not in LAST), next(iter(after), None))
    figures = {"before": before.get(name), "after": after.get(name), "seconds": result.get("seconds")}
    return {
        "run": run.name,
        "status": "running" if _is_held(run) else result.get("status", "unfinished"),
        "method": (result.get("method") or {}).get("name"),
        "metric": name,
        **{name: value if is_finite(value) else None for name, value in figures.items()},
    }


def _is_held(run: Path) -> bool:
    """Whether a process works in its folder."""
    held = lock(run)
    if held is None:
        return True
    held.release()
    return False


def _said(name: str, value: Any) -> str:
    from microplane.report.words import duration, significant

    if value is None:
        return "-"
    if name == "seconds":
        return duration(max(value, 0.01))
    return significant(value) if isinstance(value, float) else str(value)
