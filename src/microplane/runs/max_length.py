"""How long a row may be: what the user sets, within what the model can read."""

from __future__ import annotations

from collections.abc import Callable, Collection

from microplane.config.knobs import DataKnobs
from microplane.errors import ConfigError


def within_context(
    data: DataKnobs, context: int | None, taken: int, say: Callable[[str], None], asked: Collection[str] | None = None
) -> DataKnobs:
    """Rows must fit the model's context, of which the method has taken some places; the greatest lengths are bounds, so
    they are lowered without asking, but said.

    Args:
        context: tokens that the model can read, or None for any number.
        taken: vectors that the method puts before each row.
        asked: the lengths that are said, where not all are.

    Raises:
        ConfigError: if nothing is left for the rows.
    """
    if context is None:
        return data
    if taken >= context:
        raise ConfigError(
            f"the method puts {taken} vectors before each row, and the context of this model is {context}: no room is "
            "left for the rows. Set method.length lower"
        )
    lowered = {}
    for name, beside in (("max_length", taken), ("max_target_length", 0)):
        if (wanted := getattr(data, name)) is not None and wanted > context - beside:
            lowered[name] = context - beside
            vectors = f" beside the {beside} vectors of the method" if beside else ""
            if asked is None or name in asked:
                say(f"data.{name} lowered from {wanted} to {lowered[name]}, the context of this model{vectors}")
    return data.model_copy(update=lowered)
