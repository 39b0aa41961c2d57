"""`microplane machine`: measure, print."""

from __future__ import annotations

from typing import Annotated

import typer

from microplane.files import json_line


def machine(
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, also what is known.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the rates as JSON.")] = False,
) -> None:
    """How fast is this machine? The rates by which `plan` and each run forecast time: measured in seconds,
    and kept until the processor, the number of threads or torch is another. Measure on a machine at rest."""
    from dataclasses import asdict

    from microplane.forecast.machine import fingerprint, measured
    from microplane.hardware import cpu_name, free_memory

    rates, known = measured(refresh), fingerprint()
    if json_:
        typer.echo(json_line(asdict(rates) | known | {"free_memory_bytes": free_memory()}))
        return
    lines = {
        "processor": f"{cpu_name()}, {known['threads']} thread{'s' if known['threads'] > 1 else ''}",
        "torch": known["torch"],
        "free memory": f"{free_memory() / 1e9:.1f} GB",
        "float32": f"{_billions(rates.float32)} billion operations of a product in a second",
        "bfloat16": _billions(rates.bfloat16),
        "int8": _billions(rates.int8) if rates.int8 else "not on this machine",
        "copy": f"{rates.copy / 1e9:,.1f} GB read and written in a second",
        "overhead": f"{1e6 * rates.overhead:.1f} millionths of a second for an operation, however small",
    }
    for name, told in lines.items():
        typer.echo(f"{name:12} {told}")


def _billions(rate: float) -> str:
    return f"{rate / 1e9:,.{0 if rate >= 1e10 else 1}f}"
