"""Classes that count more than others in the loss: the knob `train.class_weights`.

They are a part of the objective that trains, and of the validation that chooses the weights of the model; what is
measured before and after is measured without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from microplane.errors import ConfigError, nearest
from microplane.objectives.base import AnyObjective
from microplane.objectives.classification import Classification
from microplane.objectives.multilabel import MultiLabel


def with_class_weights(
    objective: AnyObjective,
    wanted: str | Mapping[str, float],
    classes: Sequence[str],
    counts: Mapping[str, int],
    rows: int,
) -> AnyObjective:
    """The objective with the weights that the knob asks for.

    Args:
        wanted: "none", "balanced", or the weight of each class by name, 1 for others.
        classes: their names, by number.
        counts: training rows (or words) of each class.
        rows: training rows.

    Raises:
        ConfigError: for a class that there is not.
    """
    if wanted == "none" or not isinstance(objective, Classification | MultiLabel):
        return objective
    if isinstance(wanted, str):
        several = isinstance(objective, MultiLabel)
        weights = _against_rest(classes, counts, rows) if several else balanced(classes, counts)
    else:
        for name in wanted:
            if name not in classes:
                raise ConfigError(
                    f"train.class_weights: there is no class {name!r}.{nearest(name, list(classes))} "
                    f"Classes: {', '.join(classes[:20])}"
                )
        weights = [wanted.get(name, 1.0) for name in classes]
    return replace(objective, class_weights=tuple(weights))


def balanced(classes: Sequence[str], counts: Mapping[str, int]) -> list[float]:
    """Each class counts as much as any other: rows / (classes x rows of the class), whose mean over the rows is 1. As
    scikit-learn's `class_weight="balanced"`; 1 for a class without a row."""
    there = [counts.get(name, 0) for name in classes]
    occurring = sum(count > 0 for count in there)
    return [sum(there) / (occurring * count) if count else 1.0 for count in there]


def _against_rest(classes: Sequence[str], counts: Mapping[str, int], rows: int) -> list[float]:
    """Of each class, that rows which have it count as much as those which do not: (rows - its rows) / its rows."""
    there = [counts.get(name, 0) for name in classes]
    return [(rows - count) / count if 0 < count < rows else 1.0 for count in there]
