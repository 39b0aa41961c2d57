"""What the curves say, in words: overfitting, and the proof that everything that should move has moved."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from microplane.errors import TrainingError
from microplane.methods import trainable

CHECK_STEP = 3  # LoRA's A first moves in the second step, as its gradient is zero while B is


@dataclass
class Monitor:
    """Follows validation against training. JSON-able by `state`, so a resumed run says the same."""

    patience: int
    checks: list[dict[str, float]] = field(default_factory=list)  # step, validation_loss, train_loss

    @property
    def best(self) -> dict[str, float] | None:
        return min(self.checks, key=lambda check: (check["validation_loss"], check["step"]), default=None)

    def add(self, step: int, validation_loss: float, train_loss: float) -> bool:
        """Note one validation; true if it is the best so far."""
        previous = self.best
        self.checks.append({"step": step, "validation_loss": validation_loss, "train_loss": train_loss})
        return previous is None or validation_loss < previous["validation_loss"]

    @property
    def since_best(self) -> int:
        """Validations after the best one."""
        best = self.best
        return sum(check["step"] > best["step"] for check in self.checks) if best else 0

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

    def state(self) -> list[dict[str, float]]:
        return self.checks


@dataclass
class Movement:
    """Which trainable tensors still are, bit for bit, what they were at the start."""

    start: dict[str, int]  # checksum of each trainable tensor

    @classmethod
    def of(cls, model: nn.Module) -> Movement:
        return cls({name: checksum(tensor) for name, tensor in trainable(model).items()})

    def still(self, model: nn.Module) -> list[str]:
        return [name for name, tensor in trainable(model).items() if self.start.get(name) == checksum(tensor)]

    def check(self, model: nn.Module, step: int) -> None:
        """Raises: TrainingError, naming the tensors that have not moved."""
        if still := self.still(model):
            shown = "\n  ".join(still[:10]) + (f"\n  and {len(still) - 10} more" if len(still) > 10 else "")
            raise TrainingError(
                f"{len(still)} of {len(self.start)} trainable tensors have not moved after {step} steps:\n  {shown}\n"
                "They get no gradient, or the learning rate is too small to change a float32. "
                "Try a larger train.lr, or fewer method.targets."
            )


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
