"""How long a row may be: what the user sets, within what the model can read."""

from __future__ import annotations

from microplane.config.knobs import RunKnobs
from microplane.data.progress import Watcher
from microplane.errors import ConfigError
from microplane.models.configs.head import plain_of
from microplane.models.families import context_of
from microplane.models.files.checkpoint import Checkpoint


def cap_max_length(knobs: RunKnobs, checkpoint: Checkpoint, taken: int, watch: Watcher) -> RunKnobs:
    """Rows must fit the model's context, of which the method has taken some places; max_length is a bound, so it is
    lowered without asking, but said.

    Args:
        taken: vectors that the method puts before each row.

    Raises:
        ConfigError: if nothing is left for the rows.
    """
    context = context_of(plain_of(checkpoint.config))
    if context is None or knobs.data.max_length <= context - taken:
        return knobs
    if taken >= context:
        raise ConfigError(
            f"the method puts {taken} vectors before each row, and the context of this model is {context}: no room is "
            "left for the rows. Set method.length lower"
        )
    context -= taken
    beside = f" beside the {taken} vectors of the method" if taken else ""
    watch.say(f"data.max_length lowered from {knobs.data.max_length} to {context}, the context of this model{beside}")
    return knobs.model_copy(update={"data": knobs.data.model_copy(update={"max_length": context})})
