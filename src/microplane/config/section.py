"""What all sections of knobs have in common."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Knobs(BaseModel):
    """A section of knobs. Frozen, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Text must survive run.yaml and result.json, which bytes of another encoding in a file's name would not. true
        is no number, though pydantic, as Python, takes it for 1."""
        kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, str) and ("\0" in item or not is_utf8(item)):
                raise ValueError("must be text in UTF-8, without the character 0")
            if isinstance(item, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError("must be a number, not true or false")
        return value


def kinds_of(annotation: Any) -> frozenset[Any]:
    """The types that a knob's values and their parts can have, as `{float, None}` of `tuple[float, float] | None`; of
    one of a few words, these."""
    parts = get_args(annotation)
    if not parts:
        return frozenset([annotation])
    inner = parts[:1] if hasattr(annotation, "__metadata__") else parts  # Annotated
    holds = {dict} if get_origin(annotation) is dict else set()
    return frozenset(holds).union(*map(kinds_of, inner))


def is_utf8(text: str) -> bool:
    """Whether the text can be written down. A command line or a file's name may hold bytes that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
