"""Everything that can be learnt, by name. An objective is one object: it renders, collates, computes its loss, measures
and probes (see `base.Objective`); `select` says which one it is.
"""

from collections.abc import Callable

from microplane.config.extensions import Registry
from microplane.models.contract import Model
from microplane.objectives.base import AnyObjective
from microplane.objectives.classification import Classification
from microplane.objectives.denoising import PrefixLM, SpanCorruption
from microplane.objectives.head import HeadObjective
from microplane.objectives.multilabel import MultiLabel
from microplane.objectives.next_token import NextToken
from microplane.objectives.regression import Regression
from microplane.objectives.seq2seq import Seq2Seq
from microplane.objectives.token_classification import TokenClassification

__all__ = ["HEAD_OBJECTIVES", "OBJECTIVES", "AnyObjective"]

_WITH_HEAD: tuple[HeadObjective, ...] = (Classification(), MultiLabel(), Regression(), TokenClassification())
HEAD_OBJECTIVES: dict[str, HeadObjective] = {objective.name: objective for objective in _WITH_HEAD}
_BUILT_IN: dict[str, Callable[[Model], AnyObjective]] = {
    objective.name: objective.of for objective in (NextToken, Seq2Seq, SpanCorruption, PrefixLM)
} | {name: type(objective).of for name, objective in HEAD_OBJECTIVES.items()}


def _checked(name: str, found: object) -> Callable[[Model], AnyObjective]:
    """Raises: TypeError or ValueError, saying what is wrong with what a package calls an objective."""
    if not isinstance(found, type):
        raise TypeError("which is no class")
    if missing := [part for part in _PARTS if not hasattr(found, part)]:
        raise TypeError(f"which lacks {', '.join(missing)} of microplane.objectives.base.Objective")
    if found.name != name:  # type: ignore[attr-defined]
        raise ValueError(f"which calls itself {found.name!r}: the two must be the same")  # type: ignore[attr-defined]
    if found.needs_head:  # type: ignore[attr-defined]
        raise ValueError("which needs a task head: objectives with one can't be added from outside")
    return found.of  # type: ignore[attr-defined, no-any-return]


_PARTS = ("name", "needs_head", "of", "renderer", "view", "collate", "loss", "measure", "probe_row", "probe", "parts")
OBJECTIVES = Registry("microplane.objectives", _BUILT_IN, _checked)
"""By name, as in `DataSummary.objective`: what makes the objective for a model. Installed packages may add some."""
