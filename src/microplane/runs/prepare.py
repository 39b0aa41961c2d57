"""What a run works on, made ready from its configuration before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from microplane.data.reading.formats import Message
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.objectives import AnyObjective
from microplane.objectives.select import AnySplits

MARK = "\N{PILCROW SIGN}\N{SECTION SIGN}"


def shared_prefix(
    objective: AnyObjective, prompts: Sequence[str], tokenizer: Tokenizer, template: str, system: str | None
) -> str:
    """The whole lines with which what the user says begins in every one of these rendered prompts."""
    if objective.needs_head:
        return ""
    asked = objective.prompt([Message("user", MARK)], tokenizer, template, system)
    empty = tokenizer.decode(asked, skip_special=False)
    frame, common = empty.split(MARK)[0], os.path.commonprefix(list(prompts))  # noqa: RUF071 - of characters
    if len(prompts) < 2 or not common.startswith(frame):
        return ""
    said = common[len(frame) :]
    return said[: said.rfind("\n") + 1]


def inferred(splits: AnySplits) -> dict[str, Any]:
    summary = splits.summary
    form = {"task": summary.task} if summary.task else {"format": summary.format_name}
    return {
        **form,
        "template": summary.template if summary.template != "none" else "plain",
    }
