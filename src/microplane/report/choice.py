"""What the page tells of a method or a rank that was chosen by trials."""

from __future__ import annotations

from dataclasses import dataclass

from microplane.report.read import Line, RunRecord
from microplane.report.words import Figure, is_finite


@dataclass(frozen=True)
class Choice:
    """Of `result.json`: the candidates, the decision and its cost."""

    title: str
    why: str
    chosen: str
    whole: bool  # the trials were whole runs, and the best of them is this one
    cost: tuple[Figure, Figure, Figure] | None  # steps of all trials, of the run, seconds
    near: tuple[Figure, Figure] | None  # loss with the own answers, and with those of other rows
    candidates: list[tuple[str, Figure, Figure, Figure, Figure, str]]  # memory, steps, tokens, loss, what came of it


def choice(record: RunRecord) -> Choice | None:
    """None where nothing was chosen."""
    found = record.result["choice"]
    candidates = found.get("candidates")
    if not found.get("chosen") or not isinstance(candidates, list):
        return None
    rank, near = found.get("knob") == "method.rank", found.get("near")
    cost = tuple(Figure(f"choice.{name}", found.get(name)) for name in ("steps", "run_steps", "seconds"))
    losses = tuple(Figure(f"choice.near.{name}", near.get(name)) for name in ("loss", "shuffled")) if near else ()
    return Choice(
        title="Choice of the rank" if rank else "Choice of the method",
        why=str(found.get("why") or ""),
        chosen=str(found["chosen"]),
        whole=found.get("share") == 1,
        cost=(cost[0], cost[1], cost[2]) if found.get("steps") else None,
        near=(losses[0], losses[1]) if losses else None,
        candidates=[_row(number, one) for number, one in enumerate(candidates) if isinstance(one, dict)],
    )


def _row(number: int, one: Line) -> tuple[str, Figure, Figure, Figure, Figure, str]:
    at, tried = f"choice.candidates.{number}", is_finite(one.get("loss"))
    memory, loss = Figure(f"{at}.memory_bytes", one.get("memory_bytes")), Figure(f"{at}.loss", one.get("loss"))
    steps, tokens = (Figure(f"{at}.{name}", one.get(name) if tried else None) for name in ("steps", "tokens"))
    return str(one.get("name")), memory, steps, tokens, loss, str(one.get("why") or "")
