"""Everything that can be learnt, by name. An objective is one object: it renders, collates, computes its loss, measures
and probes (see `base.Objective`); `select` says which one it is.
"""

from collections.abc import Callable

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
OBJECTIVES: dict[str, Callable[[Model], AnyObjective]] = {
    objective.name: objective.of for objective in (NextToken, Seq2Seq, SpanCorruption, PrefixLM)
} | {name: type(objective).of for name, objective in HEAD_OBJECTIVES.items()}
"""By name, as in `DataSummary.objective`: what makes the objective for a model."""
