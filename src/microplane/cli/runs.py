"""`microplane runs`: what lies under a folder of runs, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microplane.errors import ConfigError
from microplane.files import json_line, lock, object_in

LAST = ("loss", "perplexity")  # figures that are told only where there is no other


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where runs are kept.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="A line of JSON for each run.")] = False,
) -> None:
    """List the runs in FOLDER, the newest last: status, method, the task's first metric before and after, time."""
    from rich.console import Console
    from rich.table import Table

    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give the one that holds your runs")
    found = [facts(path.parent) for path in sorted(folder.glob("*/run.yaml"), key=lambda path: path.stat().st_mtime)]
    if not found:
        raise ConfigError(f"{folder} holds no run; runs are made by microplane train")
    if json_:
        for one in found:
            typer.echo(json_line(one))
        return
    table = Table("run", "status", "method", "metric", "before", "after", "time", box=None, pad_edge=False)
    for one in found:
        table.add_row(*(_said(name, one[name]) for name in one))
    Console(highlight=False).print(table)


def facts(run: Path) -> dict[str, Any]:
    """What is known of a run; None where it has not got so far."""
    result = object_in(run / "result.json")
    metrics = result.get("metrics") or {}
    after, before = metrics.get("after") or {}, metrics.get("before") or {}
    name = next((name for name in after if name not in LAST), next(iter(after), None))
    return {
        "run": run.name,
        "status": "running" if _is_held(run) else result.get("status", "unfinished"),
        "method": (result.get("method") or {}).get("name"),
        "metric": name,
        "before": before.get(name),
        "after": after.get(name),
        "seconds": result.get("seconds"),
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
