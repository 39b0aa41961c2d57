"""How a run is asked beside its template. No other tool's files have a place for it, so that users are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from microplane.data.reading.example import Message
from microplane.data.rendering.causal import causal_renderer
from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.errors import DataError
from microplane.inference.pipeline import Pipeline
from microplane.models.generation_rules import MEANS_NOTHING, left_out


def asked_as(pipeline: Pipeline) -> Iterator[str]:
    """What belongs around a question of what was trained, of a model that writes."""
    model = pipeline.model
    if model.task_head is not None or model.KIND == "encoder":
        return
    if pipeline.system:
        yield f"all its rows had the system message {pipeline.system!r}: give it too"
    elif pipeline.system == "" and minds_an_empty_system(pipeline):
        yield "all its rows had an empty system message, which switches the template's own off: give an empty one too"
    if pipeline.prefix:
        yield f"all its prompts began with {pipeline.prefix!r}: put it before each question"


def without_chat(pipeline: Pipeline) -> Iterator[str]:
    """Where a run was trained without the chat template that its tokenizer has."""
    model = pipeline.model
    if pipeline.about and model.KIND == "decoder" and model.task_head is None and pipeline.tokenizer.chat_template:
        if pipeline.frame is not None and pipeline.frame[1] == "":
            yield "it was trained to continue text: give it the text as it stands, without the chat template"
        elif pipeline.frame is None and pipeline.template == "plain":
            yield "it was trained without the chat template: give it the question and a line end, and not a chat"


def settings_of_writing(pipeline: Pipeline) -> dict[str, Any]:
    """See `left_out`; none of what writes nothing."""
    model = pipeline.model
    if model.task_head is not None or model.KIND == "encoder":
        return {}
    return left_out(model.generation_config, model.source_config)


def stops_apart(stops: Sequence[int], base: TokenizerFolder | None) -> list[int]:
    """The tokens that end an answer, where the files of its base name others, or too few of them; else none."""
    apart = base is not None and set(stops) != set(base.stops_in_transformers())
    return list(stops) if apart else []


def stops_in_peft(stops: Sequence[int]) -> str:
    """How a model is told its stop tokens of which `stops_apart` has found that no file tells them; empty without."""
    if not stops:
        return ""
    return (
        "peft's format has no place for what ends an answer, and the base's own files name other tokens: "
        f"generate(..., eos_token_id={list(stops)})"
    )


def written_otherwise(settings: Mapping[str, Any]) -> str:
    """How transformers is had to write as it is done here, where `left_out` has found settings; empty without."""
    if not settings:
        return ""
    found = ", ".join(f"{name}={value!r:.40}" for name, value in settings.items())
    plain = ", ".join(f"{name}={MEANS_NOTHING[name]!r}" for name in settings)
    return (
        f"transformers goes by the base's own settings as it writes ({found}): for the answers that are written here, "
        f"generate(..., {plain})"
    )


def minds_an_empty_system(pipeline: Pipeline) -> bool:
    """Whether the chat template writes something of its own where no system message is given."""
    if pipeline.model.KIND != "decoder":
        return False
    template, question = causal_renderer(pipeline.tokenizer, pipeline.template).template, Message("user", "a")
    try:
        texts = [
            template.trace(messages, generation_prompt=True).text
            for messages in ([question], [Message("system", ""), question])
        ]
    except DataError:  # it takes no system message
        return False
    return texts[0] != texts[1]


def asked_in_card(about: Mapping[str, Any]) -> Iterator[str]:
    """The same from what an adapter says of its making, in Markdown."""
    system, prefix, frame = about.get("system"), about.get("prefix"), about.get("frame")
    if frame and not frame[1]:
        yield "- text, continued as it stands, without the chat template"
    if system is not None:
        yield f"- with the system message `{system}`" if system else "- with an empty system message"
    if prefix:
        yield f"- each prompt begins with `{prefix.strip()}`, as in training"
