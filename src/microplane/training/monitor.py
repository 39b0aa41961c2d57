"""What the curves say, in words: overfitting, and the proof that everything that should move has moved."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from microplane.errors import TrainingError
from microplane.methods import trainable
from microplane.models.files.opened import checksum

Check = dict[str, Any]  # step, validation_loss, train_loss; settled where false; decision where there was one

CHECK_STEP = 3  # LoRA's A first moves in the second step, as its gradient is zero while B is


@dataclass
class Monitor:
    """Follows validation against training. Its checks are plain values, so a resumed run says the same."""

    patience: int
    checks: list[Check] = field(default_factory=list)

    @property
    def best(self) -> Check | None:
        """The lowest validation loss among weights that can be the result, or among all as long as none can."""
        possible = [check for check in self.checks if check.get("settled", True)] or self.checks
        return min(possible, key=lambda check: (check["validation_loss"], check["step"]), default=None)

    def add(self, step: int, validation_loss: float, train_loss: float, settled: bool = True) -> bool:
        """Note one validation; true if it is the best so far."""
        check: Check = {"step": step, "validation_loss": validation_loss, "train_loss": train_loss}
        self.checks.append(check if settled else check | {"settled": False})
        return self.best is self.checks[-1]

    def decide(self, decision: str) -> None:
        """Note what the method decided after the last validation; patience starts anew."""
        self.checks[-1]["decision"] = decision

    @property
    def since_best(self) -> int:
        """Validations after the best one, or after the method's last decision if that came later."""
        best = self.best
        if best is None or not self.checks[-1].get("settled", True):
            return 0
        start = max([best["step"], *(check["step"] for check in self.checks if "decision" in check)])
        return sum(check["step"] > start for check in self.checks)

    @property
    def exhausted(self) -> bool:
        return bool(self.patience) and self.since_best >= self.patience

    def verdict(self) -> str | None:
        """A plain sentence when validation got worse while training went on to fall, else None."""
        best = self.best
        if best is None or self.since_best < 2:
            return None
        after = [check for check in self.checks if check["step"] > best["step"]]
        rises = 0
        for earlier, later in zip([best, *after], after, strict=False):
            rises = rises + 1 if later["validation_loss"] > earlier["validation_loss"] else 0
        if rises < 2 or after[-1]["train_loss"] >= best["train_loss"]:
            return None
        return (
            f"validation loss has risen for {rises} checks while training loss fell: overfitting since step "
            f"{best['step']:.0f}; the adapter of step {best['step']:.0f} is kept"
        )


@dataclass
class Movement:
    """Which trainable tensors still are, bit for bit, what they were at the start."""

    start: dict[str, int]  # checksum of each trainable tensor

    @classmethod
    def of(cls, model: nn.Module) -> Movement:
        return cls({name: checksum(tensor) for name, tensor in trainable(model).items()})

    def extend(self, model: nn.Module) -> None:
        """Follow what has come to train since, too."""
        self.start |= {name: checksum(tensor) for name, tensor in trainable(model).items() if name not in self.start}

    def still(self, model: nn.Module, may_not_move: Set[str] = frozenset()) -> list[str]:
        tensors = trainable(model).items()
        return [n for n, tensor in tensors if n not in may_not_move and self.start.get(n) == checksum(tensor)]

    def check(self, model: nn.Module, step: int, may_not_move: Set[str] = frozenset()) -> None:
        """Raises: TrainingError, naming the tensors that have not moved, but for those that need not have."""
        if still := self.still(model, may_not_move):
            shown = "\n  ".join(still[:10]) + (f"\n  and {len(still) - 10} more" if len(still) > 10 else "")
            raise TrainingError(
                f"{len(still)} of {len(self.start)} trainable tensors have not moved after {step} steps:\n  {shown}\n"
                "They get no gradient, or the learning rate is too small to change a float32. "
                "Try a larger train.lr, or fewer method.targets."
            )
