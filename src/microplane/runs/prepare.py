"""What a run works on, made ready from its configuration before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from microplane.data.preparing.load_splits import Splits
from microplane.data.preparing.tokenise import layout_for
from microplane.data.reading.formats import Message
from microplane.data.row_kind import Shape
from microplane.data.tokenizers.tokenizer import Tokenizer

MARK = "\N{PILCROW SIGN}\N{SECTION SIGN}"


def shared_prefix(prompts: Sequence[str], tokenizer: Tokenizer, template: str, system: str | None, shape: Shape) -> str:
    """The whole lines with which what the user says begins in every one of these rendered prompts."""
    if shape.kind == "labels":
        return ""
    asked = layout_for(tokenizer, template, system, shape).prompt([Message("user", MARK)])
    empty = tokenizer.decode(asked, skip_special=False)
    frame, common = empty.split(MARK)[0], os.path.commonprefix(list(prompts))  # noqa: RUF071 - of characters
    if len(prompts) < 2 or not common.startswith(frame):
        return ""
    said = common[len(frame) :]
    return said[: said.rfind("\n") + 1]


def inferred(splits: Splits) -> dict[str, Any]:
    summary = splits.summary
    form = {"task": summary.task} if summary.task else {"format": summary.format.split(" ")[0]}
    return {
        **form,
        "template": summary.template if summary.template != "none" else "plain",
    }
