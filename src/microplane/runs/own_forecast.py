"""A run's forecast of itself, made before training, and how far it was off."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from microplane.config.knobs import GenerateKnobs
from microplane.data.store import TokenDataset
from microplane.errors import MicroplaneError, first_line
from microplane.evaluation.evaluate import answer_limit
from microplane.forecast import machine
from microplane.forecast.at_once import AtOnce, Before
from microplane.forecast.memory import Forecast, Process, Shapes, forecast, forget_blocks
from microplane.inference.generate import BATCH_TOKENS, batches, computed_once
from microplane.inference.limits import check_limits
from microplane.models.heads import caches_pooled
from microplane.nn.cache import LEAST_CAPACITY
from microplane.report.words import duration, size
from microplane.runs.fit import if_kept
from microplane.runs.prepare import Prepared
from microplane.training.feature_cache import BUDGET

FAR = 2.0  # times: a forecast of time that is off by that is no longer believed
ENOUGH = 20  # steps of a run that says so; the first ones take longer


@dataclass(frozen=True)
class ForecastSection:
    """What was forecast before training, and what was measured of it.

    Attributes:
        parts: of the memory, in bytes, and what else is in `Forecast`.
        measured: under the same names as here, as far as training came to it.
        off: forecast by measured, less 1: 0.1 where the forecast was a tenth too high.
        reason: why there is no forecast.
    """

    peak_memory_bytes: int | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    parts: dict[str, Any] | None = None
    measured: dict[str, float] | None = None
    off: dict[str, float] | None = None
    reason: str | None = None

    def beside(self, steps: int, seconds: float, peak_memory_bytes: int) -> ForecastSection:
        """With what came of it."""
        figures = {"peak_memory_bytes": float(peak_memory_bytes)}
        figures |= {"step_seconds": seconds / steps, "seconds": seconds} if steps and seconds else {}
        own = {name: value for name in figures if (value := getattr(self, name)) is not None}
        off = {name: round(value / figures[name] - 1, 4) for name, value in own.items()}
        return ForecastSection(**{**vars(self), "measured": {name: figures[name] for name in own}, "off": off})

    def line(self) -> str:
        """In words, before training."""
        if self.peak_memory_bytes is None:
            return f"none, {self.reason}"
        if self.seconds is None or self.step_seconds is None:
            return f"{size(self.peak_memory_bytes)} of memory at most"
        time = f"{duration(max(self.seconds, 0.001))} of training, {duration(max(self.step_seconds, 0.001))} a step"
        return f"{size(self.peak_memory_bytes)} of memory at most; {time}"

    def off_line(self) -> str | None:
        """How far it was off, in words."""
        if not self.off or not self.measured:
            return None
        names = {"peak_memory_bytes": "memory", "seconds": "training"}
        told = []
        for name, what in names.items():
            if name in self.off:
                say = size if name == "peak_memory_bytes" else duration
                high = "too high" if self.off[name] > 0 else "too low"
                told.append(f"{what} {say(self.measured[name])}, the forecast {abs(self.off[name]):.0%} {high}")
        return "; ".join(told)


def try_again_if_far_off(prepared: Prepared, found: ForecastSection, steps: int) -> bool:
    """Forget blocks that were tried on a machine which, by what the run took, was busy then, or is now: the next run
    tries them anew. Whether they were forgotten."""
    off = (found.off or {}).get("step_seconds")
    if off is None or steps < ENOUGH or 1 / FAR < 1 + off < FAR:
        return False
    forget_blocks(prepared.shapes, run_at_once(prepared), prepared.config.train)
    return True


def run_at_once(prepared: Prepared) -> AtOnce:
    """What the run computes at once."""
    splits, config = prepared.splits, prepared.config
    totals = splits.summary.to_dict()
    share = totals["trained_tokens"]["train"] / max(1, totals["tokens"]["train"])
    measured = splits.validation.lengths, prepared.held_out.lengths
    found = AtOnce.of(prepared.batch_plan, measured, share, config.train, config.eval.batch_tokens)
    return replace(found, before=_before(prepared))


def _before(prepared: Prepared) -> Before:
    """What the run computes before its first step: features of frozen blocks, and answers of the untouched model."""
    writes = not prepared.objective.needs_head and prepared.answer_rows
    found = _writing(prepared) if writes else Before()
    splits, model, knobs = prepared.splits, prepared.shapes.attached, prepared.config.train
    sets, passes = (splits.train, splits.validation), prepared.batch_plan.passes(if_kept(model, knobs))
    if not model.frozen or knobs.feature_cache == "off" or passes <= 1 or not isinstance(splits.train, TokenDataset):
        return found
    filled = max(max(int(rows.lengths.max()), min(BUDGET, int(rows.lengths.sum()))) for rows in sets)
    pooled = caches_pooled(model)
    return replace(found, filled=filled, vectors=sum(len(x) if pooled else int(x.lengths.sum()) for x in sets))


def _writing(prepared: Prepared) -> Before:
    """Of answers to some held-out rows."""
    pairs = [prepared.held_out.prompt_and_target(row) for row in prepared.answer_rows]
    prompts, targets = [prompt for prompt, _ in pairs], [target for _, target in pairs]
    model, found = prepared.shapes.attached, Before()
    knobs = GenerateKnobs(max_new_tokens=answer_limit(targets, prepared.config.eval))
    limits = check_limits(knobs, prompts, model, given=False)
    for numbers in batches([*map(len, prompts)], knobs, BATCH_TOKENS):
        together = [prompts[number] for number in numbers]
        once = computed_once(together, model.KIND)
        read = sum(map(len, together)) - once * (len(together) - 1)
        cached = len(together) * _capacity(max(len(prompts[number]) + limits[number] for number in numbers))
        found = Before(
            read=max(found.read, read),
            cached=max(found.cached, cached),
            answers=max(found.answers, len(together)),
        )
    return found


def _capacity(tokens: int) -> int:
    """Of a row in the cache, which doubles."""
    return int(LEAST_CAPACITY << max(0, math.ceil(math.log2(tokens / LEAST_CAPACITY))))


def own_forecast(prepared: Prepared) -> ForecastSection:
    """Of a run's training, before its base is read. A run is never stopped by what is wrong with its forecast."""
    if prepared.form.device.type != "cpu":
        return ForecastSection(reason="which is made for the processor alone")
    try:
        shapes, at_once = prepared.shapes, run_at_once(prepared)
        found = _forecast(prepared, shapes, at_once)
    except (MicroplaneError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        return ForecastSection(reason=f"for {type(error).__name__}: {first_line(error)}")
    per_step = found.seconds_per_1000_tokens
    step = None if per_step is None else per_step * at_once.step / 1000
    seconds = None if step is None else step * prepared.batch_plan.run_steps(prepared.config.train)
    return ForecastSection(found.peak_memory_bytes, step, seconds, asdict(found) | asdict(at_once))


def _forecast(prepared: Prepared, shapes: Shapes, at_once: AtOnce) -> Forecast:
    return forecast(shapes, at_once, prepared.config.train, Process.now(), machine.known())
