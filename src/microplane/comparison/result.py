"""What `comparison.json` says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from microplane.comparison.course import Course
from microplane.comparison.learning_curve import learning_curve
from microplane.comparison.plan import UNMEASURED, Plan
from microplane.comparison.shown import general_name, shown
from microplane.comparison.table import (
    Measured,
    baseline_rows,
    curves,
    method_rows,
    reference_of,
    row_lines,
    searched,
    told,
)
from microplane.comparison.trials import Outcome
from microplane.comparison.verdict import Judgement
from microplane.config.build import parse_value
from microplane.runs import provenance
from microplane.runs.general import DEFAULT

SCHEMA = 1
SHOWN_ROWS = 200  # with all answers, in comparison.json and the page


def result_of(
    folder: Path,
    plan: Plan,
    course: Course,
    finals: Mapping[str, Sequence[Outcome]],
    found: Measured,
    judgement: Judgement,
) -> dict[str, Any]:
    advised = judgement.advised
    learning = learning_curve(plan, found.metric, advised, course.parts, finals[advised]) if course.parts else None
    search = searched(plan, course.short, course.half)
    ledger = [one.line() for one in course.trials.ledger.values()]
    result = {
        "schema": SCHEMA,
        "name": folder.name,
        "answer": told(found, judgement),
        "notes": _notes(plan, found.dropped, search, finals, course.trials.at_once),
        "metric": {
            "name": found.metric.name,
            "lower_is_better": found.metric.lower,
            "share": found.metric.share,
            "rows": judgement.rows,
        },
        "reference": reference_of(plan, finals),
        "methods": method_rows(plan, found, judgement, finals),
        "failed": [{"method": name, "reason": reason} for name, reason in course.failed.items()],
        "baselines": baseline_rows(found),
        "search": search,
        "curves": curves(finals),
        "general": general_of(plan, finals),
        "learning_curve": learning,
        "rows": row_lines(found, SHOWN_ROWS),
        "ledger": ledger,
        "seconds": sum(line["seconds"] for line in ledger),
        "plan": asdict(plan),
        "command": command_of(plan),
        "environment": provenance.describe(),
    }
    return shown(result, folder, plan)


def general_of(plan: Plan, finals: Mapping[str, Sequence[Outcome]]) -> dict[str, Any] | None:
    """The text of forgetting: its name, how many of its tokens are predicted, and by which objective."""
    if plan.general is None:
        return None
    first = next(iter(finals.values()))[0].result["general"]
    return {name: first[name] for name in ("text", "tokens", "objective")}


def _notes(
    plan: Plan, dropped: int, search: Mapping[str, Any], finals: Mapping[str, Sequence[Outcome]], at_once: int
) -> list[str]:
    """What one should know of how the figures came about."""
    parts = ", and by those of the learning curve" if plan.learning_curve else ""
    notes = [f"Test rows: {plan.rows.told}. They were read once, at the end, by the final runs{parts}."]
    if at_once > 1:
        notes.append(
            f"Up to {at_once} trials ran at once (--parallel, --ray), so seconds and tokens per second are those of "
            "trials that shared a machine, or of different machines."
        )
    if plan.answer_rows < plan.counts["test"]:
        notes.append(
            f"Answers were generated to {plan.answer_rows:,} of {plan.counts['test']:,} test rows; "
            f"--set eval.rows={plan.counts['test']} takes all."
        )
    if dropped:
        notes.append(f"{dropped:,} rows were left out, as some answer to them was no number.")
    for name, told_ in search.items():
        if told_["edge"]:
            notes.append(
                f"The best rate of {name} is the {told_['edge']} that was tried ({told_['taken']:g}): "
                "a better one may lie beyond."
            )
    if plan.task:
        notes.append(f"Not measured: {UNMEASURED.format(task=plan.task)}.")
    for name, runs in finals.items():
        if len(runs) < plan.seeds:
            notes.append(f"Of {name} {plan.seeds - len(runs)} of {plan.seeds} seeds failed; the ledger says why.")
    return notes


def command_of(plan: Plan) -> str:
    """That makes the same comparison again."""
    words = ["microplane", "compare", plan.model, plan.data, "--methods", ",".join(plan.methods)]
    if plan.budget is not None:
        option = "--budget" if plan.budget.kind == "seconds" else f"--{plan.budget.kind}"
        words += [option, f"{plan.budget.amount:.0f}{'s' if plan.budget.kind == 'seconds' else ''}"]
    words += ["--seeds", str(plan.seeds)] + (["--metric", plan.metric] if plan.metric else [])
    words += ["--general", str(general_name(plan))] if plan.general not in (None, DEFAULT) else []
    words += ["--learning-curve"] if plan.learning_curve else []
    for name, value in plan.set.items():
        words += ["--set", f"{name}={_written(value)}"]
    return shlex.join(words)


def _written(value: Any) -> str:
    """As `--set` reads it back."""
    text = str(value)
    return text if parse_value(text) == value else json.dumps(value, ensure_ascii=False)
