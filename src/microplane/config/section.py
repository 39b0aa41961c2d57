"""What all sections of knobs have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Knobs(BaseModel):
    """A section of knobs. Frozen, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        """Text must survive run.yaml and result.json, which bytes of another encoding in a file's name would not."""
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and ("\0" in text or not is_utf8(text)):
                raise ValueError("must be text in UTF-8, without the character 0")
        return value


def is_utf8(text: str) -> bool:
    """Whether the text can be written down. A command line or a file's name may hold bytes that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
