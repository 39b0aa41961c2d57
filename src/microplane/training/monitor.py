"""What the curves say (docs/verdicts.md): the best weights so far, whether to go on, overfitting, divergence. And the
proof that everything that should move has moved.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import nn

from microplane.errors import TrainingError
from microplane.methods import trainable
from microplane.models.files.opened import checksum
from microplane.nn.sharded import whole

Check = dict[str, Any]
"""step, validation_loss, train_loss (of the steps since the last one), train_error (the standard error of that),
end_loss and end_error (the same of the last quarter of these steps), passes over the training rows so far, groups (of
validation rows: summed loss and count); settled where false; ignores_inputs where that was looked at; decision where
there was one."""

CHECK_STEP = 3  # LoRA's A first moves in the second step, as its gradient is zero while B is
GROUPS = 20  # of validation rows, at most
CONFIRMED = 2  # checks in a row that a verdict needs
LEAST = 0.02  # of the best loss: what is less is no worsening, however certain
LARGE = 100.0  # of a weight: trained ones lie far below
QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # of Student's t, 0.975, from 1 degree of freedom
BEYOND = 2.2


@dataclass(frozen=True)
class ValidationLoss:
    """The mean loss on held-out rows, and the sums of which it was made."""

    mean: float
    groups: tuple[tuple[float, int], ...] = ()  # of rows: their summed loss, and how many items that is of
    ignores_inputs: bool | None = None  # the answers are the same, whatever is asked; None where that was not looked at

    @classmethod
    def of(cls, sums: Iterable[tuple[float, int]]) -> ValidationLoss:
        """From sums over batches, which are the same rows in each check."""
        batches = list(sums)
        parts = [batches[start::GROUPS] for start in range(min(GROUPS, len(batches)))]
        groups = tuple((math.fsum(loss for loss, _ in part), sum(count for _, count in part)) for part in parts)
        total = sum(loss for loss, _ in batches)
        return cls(total / sum(count for _, count in batches), groups)


Kind: TypeAlias = Literal["overfitting", "divergence", "mismatch", "unfinished"]


class Verdict(NamedTuple):
    """What is wrong with a run; `unfinished` where it only ended too soon."""

    kind: Kind
    since: int  # the step of the best weights
    text: str

    def __str__(self) -> str:
        return f"{self.kind} since step {self.since}"


@dataclass
class Monitor:
    """Follows validation against training. Its checks are plain values, so a resumed run says the same."""

    patience: int
    checks: list[Check] = field(default_factory=list)

    @property
    def best(self) -> Check | None:
        """The lowest validation loss among weights that can be the result, or among all as long as none can. Weights
        that ignore their inputs can't, if those of the start do not."""
        possible = [check for check in self.checks if check.get("settled", True)] or self.checks
        possible = [check for check in possible if not self.collapsed(check)] or possible
        return min(possible, key=lambda check: (check["validation_loss"], check["step"]), default=None)

    def add(
        self,
        step: int,
        validation: ValidationLoss,
        losses: Sequence[float],
        passes: float = 0.0,
        settled: bool = True,
    ) -> bool:
        """Note one validation; true if it is the best so far.

        Args:
            losses: of the steps since the last validation.
            passes: over the training rows, so far.
        """
        check: Check = {"step": step, "validation_loss": validation.mean, "passes": passes}
        end = losses[-max(1, len(losses) // 4) :]
        check |= {"train_loss": _mean(losses), "train_error": _error(losses)}
        check |= {"end_loss": _mean(end), "end_error": _error(end)}
        check |= {"groups": [list(group) for group in validation.groups]}
        check |= {} if validation.ignores_inputs is None else {"ignores_inputs": validation.ignores_inputs}
        self.checks.append(check if settled else check | {"settled": False})
        return self.best is self.checks[-1]

    def decide(self, decision: str) -> None:
        """Note what the method decided after the last validation; patience starts anew."""
        self.checks[-1]["decision"] = decision

    @property
    def since_best(self) -> int:
        """Validations that were worse than the best one, after it, or after the method's last decision if that came
        later."""
        best = self.best
        if best is None or not self.checks[-1].get("settled", True):
            return 0
        start = max([best["step"], *(check["step"] for check in self.checks if "decision" in check)])
        return sum(check["step"] > start and is_worse(check, best) for check in self.checks)

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations were worse than the best, the last one among them."""
        best = self.best
        if not self.patience or best is None:
            return False
        return self.since_best >= self.patience and is_worse(self.checks[-1], best)

    def verdict(self) -> Verdict | None:
        """What went wrong since the best check, None if nothing did."""
        best = self.best
        if best is None or best is self.checks[-1] or not self.checks[-1].get("settled", True):
            return None
        last = self.checks[-1]
        if self.collapsed(last):
            return _verdict("divergence", best, last, _COLLAPSED)
        after = [check for check in self.checks if check["step"] > best["step"]][-CONFIRMED:]
        confirmed = len(after) == CONFIRMED and all(is_worse(check, best) for check in after)
        if self._left_the_base(last) or (confirmed and _got_worse_on_training_rows(last, best)):
            return _verdict("divergence", best, last)
        if not confirmed:
            return None
        return _verdict("overfitting" if last["passes"] > 1 else "mismatch", best, last)

    def at_end(self) -> Verdict | None:
        """The verdict on a run that has made all its steps: also whether validation was still falling."""
        if len(self.checks) > 1 and self.best is self.checks[-1] and is_worse(self.checks[-2], self.checks[-1]):
            return _verdict("unfinished", self.checks[-2], self.checks[-1])
        return self.verdict()

    def collapsed(self, check: Check) -> bool:
        """Whether a model that looked at its inputs no longer does."""
        return check.get("ignores_inputs") is True and self.checks[0].get("ignores_inputs") is False

    def _left_the_base(self, last: Check) -> bool:
        """Whether both losses are above what the model had before the first step."""
        base = self.checks[0]
        above = last["train_loss"] - 2 * last["train_error"] > base["validation_loss"]
        return base["step"] == 0 and above and is_worse(last, base)


_TEXTS: dict[Kind, str] = {
    "overfitting": "overfitting since step {since}: validation loss rose from {low:.4g} to {high:.4g} while training "
    "loss fell, in pass {number} over the rows; the weights of step {since} are kept",
    "divergence": "divergence since step {since}: validation loss rose from {low:.4g} to {high:.4g}, and training loss "
    "({train:.4g}) does not fall either: the learning rate is too high; the weights of step {since} are kept",
    "mismatch": "validation loss rose from {low:.4g} to {high:.4g} since step {since} while training loss fell on rows "
    "seen for the first time: the two kinds of rows differ, or the learning rate is too high; the weights of step "
    "{since} are kept",
    "unfinished": "validation loss was still falling at the end: from {low:.4g} to {high:.4g} since step {since}. More "
    "steps would help: a larger train.epochs",
}


_COLLAPSED = (
    "divergence since step {since}: the model now gives the same answer whatever it is asked (validation loss "
    "{high:.4g}): the learning rate is too high; the weights of step {since} are kept"
)


def _verdict(kind: Kind, best: Check, last: Check, text: str | None = None) -> Verdict:
    since, number = int(best["step"]), math.ceil(last["passes"])
    low, high = best["validation_loss"], last["validation_loss"]
    told = {"since": since, "low": low, "high": high, "train": last["train_loss"], "number": number}
    return Verdict(kind, since, (text or _TEXTS[kind]).format(**told))


def is_worse(later: Check, best: Check) -> bool:
    """Whether a validation is worse than another by more than chance, and by more than `LEAST` of it.

    The same rows are measured each time, so the groups' differences tell how much of it is chance.
    """
    difference = later["validation_loss"] - best["validation_loss"]
    margin = max(LEAST * abs(best["validation_loss"]), _noise(later.get("groups", []), best.get("groups", [])))
    return not difference <= margin  # what is no number is worse


def _noise(later: Sequence[Sequence[float]], best: Sequence[Sequence[float]]) -> float:
    """How large a difference of two means, paired by groups of rows, is by chance in one case of forty.

    The ratio estimator's standard error (Cochran, Sampling Techniques, 6.4) times Student's t. Of a single group
    nothing can be told, and any difference counts. Where `best` has no groups (a check of a run of version 0.1) the
    spread of the later losses themselves stands in for that of the differences, which is smaller.
    """
    count = len(later)
    if count < 2:
        return 0.0
    if len(best) != count:
        best = [[0.0, group[1]] for group in later]
    items = sum(group[1] for group in best)
    differences = [now[0] - then[0] for now, then in zip(later, best, strict=True)]
    mean = math.fsum(differences) / items
    rest = math.fsum((d - mean * group[1]) ** 2 for d, group in zip(differences, best, strict=True))
    error = math.sqrt(count / (count - 1) * rest) / items
    return error * (QUANTILES[count - 2] if count - 2 < len(QUANTILES) else BEYOND)


def _error(losses: Sequence[float]) -> float:
    """The standard error of a mean; 0 where there is too little to tell."""
    return statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0


def _mean(losses: Sequence[float]) -> float:
    return statistics.fmean(losses) if losses else math.inf


def _got_worse_on_training_rows(last: Check, best: Check) -> bool:
    """Whether the model does worse on training rows than the best weights did on held-out ones, and no better than just
    before the best check: dropout and smoothed labels may keep training loss above validation in a run that is well."""
    if not last["train_loss"] - 2 * last["train_error"] > best["validation_loss"]:
        return False
    fall = best["end_loss"] - last["train_loss"]
    chance = 2 * math.hypot(last["train_error"], best["end_error"])
    return not best["step"] or not fall > max(chance, LEAST * best["end_loss"])


@dataclass
class Movement:
    """Which trainable tensors still are, bit for bit, what they were at the start."""

    start: dict[str, int]  # checksum of each trainable tensor

    @classmethod
    def of(cls, model: nn.Module) -> Movement:
        return cls({name: checksum(whole(tensor)) for name, tensor in trainable(model).items()})

    def extend(self, model: nn.Module) -> None:
        """Follow what has come to train since, too."""
        new = {name: tensor for name, tensor in trainable(model).items() if name not in self.start}
        self.start |= {name: checksum(whole(tensor)) for name, tensor in new.items()}

    def still(self, model: nn.Module, may_not_move: Set[str] = frozenset()) -> list[str]:
        now = {name: checksum(whole(tensor)) for name, tensor in trainable(model).items() if name not in may_not_move}
        return [name for name, numbers in now.items() if self.start.get(name) == numbers]

    def check(self, model: nn.Module, step: int, may_not_move: Set[str] = frozenset()) -> None:
        """Raises: TrainingError, naming the tensors that have not moved, but for those that need not have."""
        if still := self.still(model, may_not_move):
            shown = "\n  ".join(still[:10]) + (f"\n  and {len(still) - 10} more" if len(still) > 10 else "")
            moved = (x for name, x in trainable(model).items() if name not in still)
            largest = max((whole(tensor).abs().max().item() for tensor in moved), default=0.0)
            why = (
                "They get no gradient, or the learning rate is too small to change a float32. "
                "Try a larger train.lr, or fewer method.targets."
                if largest < LARGE
                else f"Others have weights as large as {largest:.3g} by now, beside which no gradient is left: the "
                "learning rate is too high. Try a smaller train.lr."
            )
            raise TrainingError(
                f"{len(still)} of {len(self.start)} trainable tensors have not moved after {step} steps:\n  {shown}\n"
                f"{why}"
            )
