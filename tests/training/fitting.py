"""A run of the loop on next tokens, whose best adapter is saved in its folder."""

from __future__ import annotations

from microplane.checkpoints.adapter import save_adapter
from microplane.evaluation.evaluate import validation_loss
from microplane.objectives.next_token import NextToken
from microplane.training.loop import fit


class Killed(BaseException):
    """What a run is ended with where it could not expect it."""


def fit_next_token(
    folder, model, method, train, knobs, held_out, *, kill=None, identity=None, resume=False, measured=validation_loss
):
    """`fit` of a model to which the method is attached.

    Args:
        kill: sees each record; the run is killed where it is true.
        measured: `validation_loss`, or `evaluate_loss` for a mean that tells nothing of chance.
    """

    def watch(record):
        if kill is not None and kill(record):
            raise Killed

    return fit(
        model,
        method,
        train,
        knobs,
        folder,
        objective=NextToken(),
        validate=lambda tuned: measured(NextToken(), tuned, held_out, 64),
        save_best=lambda step, loss: save_adapter(folder / "adapter", model, method, {"step": step}),
        identity=identity or {},
        resume=resume,
        on_record=watch,
    )
