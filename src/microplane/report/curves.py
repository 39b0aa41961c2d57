"""The learning curves as lists of points for the page's script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microplane.report.read import Line, RunRecord
from microplane.report.words import is_finite

Points = list[tuple[int, float | None]]  # (step, value); None leaves a gap where a value is not a number
MAX_POINTS = 2000  # more than any screen is wide


@dataclass(frozen=True)
class Sweep:
    """Gain by rate, rates on a logarithmic scale; 100 wide and 40 high."""

    points: str  # of an SVG line
    chosen: float  # where the chosen rate is, from the left
    nothing: float  # where no gain is, from the top
    lowest: float  # rates
    highest: float
    why: str


def curves(record: RunRecord) -> dict[str, Any]:
    """Everything the charts draw, ready for JSON."""
    train = points(record.train, "loss")
    return {
        "train": thin(train),
        "smooth": thin(smooth(train)),
        "validation": thin(points(record.validation, "validation_loss")),
        "best": best_step(record),
        "lr": thin(points(record.train, "lr")),
        "speed": thin(points(record.speed, "tokens_per_second")),
        "trained_speed": thin(points(record.speed, "trained_tokens_per_second")),
    }


def sweep(record: RunRecord) -> Sweep | None:
    """The search of the learning rate as a drawing; None where there was none."""
    found = record.result["lr_search"]
    rates, gains, chosen = (found.get(name) for name in ("rates", "gains", "chosen"))
    if not (isinstance(rates, list) and isinstance(gains, list) and is_finite(chosen) and chosen > 0):
        return None
    known = [(r, g) for r, g in zip(rates, gains, strict=False) if is_finite(r) and is_finite(g) and r > 0]
    if len(known) < 2:
        return None
    low, high = math.log(min(chosen, known[0][0])), math.log(max(chosen, known[-1][0]))
    top, bottom = max(g for _, g in known), max(-1.0, min(0.0, *(g for _, g in known)))

    def x(rate: float) -> float:
        return round(100 * (math.log(rate) - low) / max(high - low, 1e-9), 2)

    def y(gain: float) -> float:
        return float(round(40 * (top - max(gain, bottom)) / max(top - bottom, 1e-9), 2))

    line = " ".join(f"{x(rate)},{y(gain)}" for rate, gain in known)
    return Sweep(line, x(chosen), y(0.0), known[0][0], known[-1][0], str(found.get("why") or ""))


def best_step(record: RunRecord) -> int | None:
    """The step whose weights are kept, if there was a validation at it."""
    best = record.result["train"].get("best_step")
    if best is None:
        best = next((line["step"] for line in reversed(record.validation) if line.get("best")), None)
    return best if any(line["step"] == best for line in record.validation) else None


def points(lines: Sequence[Line], key: str) -> Points:
    """The curve of one field; steps that do not have it are left out."""
    return [(line["step"], line[key] if is_finite(line[key]) else None) for line in lines if key in line]


def smooth(curve: Points) -> Points:
    """Exponential average over about a twentieth of the curve, corrected for its start (arXiv 1412.6980, section 3)."""
    keep = 1 - 2 / (1 + max(5, len(curve) / 20))
    total = weight = 0.0
    smoothed: Points = []
    for step, value in curve:
        if value is None:
            smoothed.append((step, None))
            continue
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed.append((step, total / weight))
    return smoothed


def thin(curve: Points) -> Points:
    """About MAX_POINTS: of each stretch the lowest, the highest and the last, so that no spike and no gap is lost."""
    if len(curve) <= MAX_POINTS:
        return curve
    stretch = -(-4 * len(curve) // MAX_POINTS)
    kept: set[int] = {0}
    for start in range(0, len(curve), stretch):
        inside = range(start, min(start + stretch, len(curve)))
        known = [(value, index) for index in inside if (value := curve[index][1]) is not None]
        gaps = [index for index in inside if curve[index][1] is None]
        kept.update(gaps[:1], (index for _, index in (min(known), max(known))) if known else (), inside[-1:])
    return [curve[index] for index in sorted(kept)]
