"""How a run is to be asked, by the rows that it was trained on: what its adapter says of that."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from microplane.adapters.asked import stops_apart
from microplane.config.knobs import DataKnobs
from microplane.data.preparing.summary import DataSummary
from microplane.data.reading.example import Message
from microplane.data.reading.formats import TEXT
from microplane.data.reading.installed import FORMATS
from microplane.data.rendering.causal import causal_renderer
from microplane.data.rendering.chat_template import MARK
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.evaluation.evaluate import choose_rows
from microplane.inference.pipeline import stops_of
from microplane.models.generation_rules import left_out
from microplane.objectives.base import AnyObjective
from microplane.objectives.next_token import NextToken

PROBED = 100  # training rows that are looked at for what all of them begin with
CLASS_NAMES = "class_names"  # whether classes of a Parquet file were read by their names; earlier, by number
TAKEN_OVER = (
    "max_length",
    "max_target_length",
    "long_rows",
    "fields",
    "no_label",
    "objective",
    "format",
    "unicode",
    "segment",
    "date",
    "source_language",
    "target_language",
)
"""Knobs of the data that an evaluation of the run takes over."""
LENGTHS = TAKEN_OVER[:3]  # those that decide how a row is cut


def how_asked(
    objective: AnyObjective, train: Dataset, tokenizer: Tokenizer, data: DataKnobs, summary: DataSummary
) -> dict[str, Any]:
    """What stood around the questions of the training rows, and how these rows were made.

    Returns:
        template, system, prefix (see `shared_prefix`), frame (see `text_frame`), of labels pairs (whether rows had two
        texts), knobs of the data that an evaluation takes over, and of what writes, where the base's files say
        something else: stops and generation (see `left_out`).
    """
    about: dict[str, Any] = {"template": data.template, "system": data.system, "prefix": "", "frame": None}
    about |= {"pairs": bool(summary.second_texts)} if objective.needs_head else {}
    about |= {name: getattr(data, name) for name in TAKEN_OVER}
    about |= {"unicode": tokenizer.unicode, "date": tokenizer.date, CLASS_NAMES: True}
    if (chosen := tokenizer.languages) is not None:
        about |= {"source_language": chosen.source, "target_language": chosen.target}
    if data.format not in FORMATS:  # only a package's is recognised by no keys
        about["format"] = "auto"
    rows = choose_rows(train, PROBED)
    if summary.format_name == TEXT:
        if isinstance(objective, NextToken):
            texts = [tokenizer.decode(train[row][0].tolist(), skip_special=False) for row in rows]
            about["frame"] = text_frame(texts, tokenizer)
    elif not objective.needs_head:
        if data.system is None:
            about["system"] = summary.shared_system
        asked = [train.prompt_and_target(row)[0] for row in rows]
        prompts = [tokenizer.decode(ids, skip_special=False) for ids in asked]
        about["prefix"] = shared_prefix(objective, prompts, tokenizer, data.template, about["system"])
    if (source := tokenizer.source) is None or objective.needs_head:
        return about
    stops = stops_apart(stops_of(objective, tokenizer, data.template, about["frame"]), source)
    settings = left_out(source.generation_config, source.model_config)
    return about | ({"stops": stops} if stops else {}) | ({"generation": settings} if settings else {})


def shared_prefix(
    objective: AnyObjective, prompts: Sequence[str], tokenizer: Tokenizer, template: str, system: str | None
) -> str:
    """What the first user messages of rendered training prompts begin with, as far as it is whole (see `_whole`): a
    fixed instruction, such as "Convert the command to JSON." or "Translate: "; empty where there is none."""
    asked = objective.prompt([Message("user", MARK)], tokenizer, template, system)
    frame, common = _around(asked, tokenizer)[0], os.path.commonprefix(list(prompts))  # noqa: RUF071 - of characters
    if len(set(prompts)) < 2 or not common.startswith(frame):  # of one question all of it is shared
        return ""
    return _whole(common[len(frame) :])


def _around(asked: Sequence[int], tokenizer: Tokenizer) -> tuple[str, str]:
    """What stands before and behind `MARK` in a rendered prompt."""
    before, _, behind = tokenizer.decode(asked, skip_special=False).partition(MARK)
    return before, behind


_ENDS = re.compile(
    r"\n"  # of a line
    r"|:[ \t]+|：|(?<!\d):\Z"  # of what says what follows; one that stands alone may be of an address or a time
    r"|[。！？][ \u3000]*|(?P<sentence>[.!?])(?:[ \t]+|\Z)"
    r"|(?:[>\]】]|→)(?:[ \t]+|\Z)"  # of a mark, as of [TASK] or ->
)
SENTENCE = 3  # words, of which a beginning that ends with a full stop has as many: "Dr. " is none


def _whole(shared: str) -> str:
    """A beginning up to the last place where something in it ends: a line, a sentence, a mark, or a colon."""
    ends = [
        found.end()
        for found in _ENDS.finditer(shared)
        if not found["sentence"] or len(shared[: found.start()].split()) >= SENTENCE
    ]
    return shared[: max(ends, default=0)]


def text_frame(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """What stands before and behind the first question in rows of plain text that follow the model's chat template;
    nothing where they do not."""
    if not tokenizer.chat_template or len(texts) < 2:
        return ["", ""]
    renderer = causal_renderer(tokenizer, "chat")
    try:
        asked = renderer.prompt([Message("user", MARK)])
    except DataError:  # the template asks for more
        return ["", ""]
    before, behind = _around(asked, tokenizer)
    bos = "" if renderer.bos is None else tokenizer.decode([renderer.bos], skip_special=False)
    closing = tokenizer.decode([renderer.end], skip_special=False)
    opening = before.removeprefix(bos).rpartition(closing)[2].strip("\n")  # of the user's turn
    common = os.path.commonprefix([text.removeprefix(bos) for text in texts])  # noqa: RUF071 - of characters
    if not opening or opening not in common or not all(behind.strip() in text for text in texts):
        return ["", ""]
    start = common.rfind(opening) + len(opening)
    while common[start : start + 1] == "\n":
        start += 1
    tail = behind.strip()
    shared = "" if tail and tail in common[start:] else common[start:]  # all ask one question
    return [common[:start] + _whole(shared), behind]
