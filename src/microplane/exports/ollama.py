"""`--to ollama`: a GGUF file and the Modelfile that has Ollama ask and stop as the model was trained.

Ollama renders conversations by a template in Go's language, not by the model's Jinja template. Such a template is
written only for what can be proved: a conversation is a beginning (with the system message or without), and then in
turn a question, what stands between it and the answer, the answer, and what stands behind. The pieces are found by
rendering probes, and conversations put together from them are compared with the model's own template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microplane.adapters.asked import minds_an_empty_system
from microplane.data.reading.example import Message
from microplane.data.rendering.causal import causal_renderer
from microplane.data.tokenizers.gguf import KEY
from microplane.errors import AdapterError, MicroplaneError
from microplane.exports import gguf
from microplane.exports.llama_cpp import OwnReader
from microplane.exports.source import Source
from microplane.exports.written import Written
from microplane.inference.pipeline import Pipeline
from microplane.models.files.gguf_format import read_header

MODELFILE = "Modelfile"
SYSTEM, ASKED, SAID = "Qsystem0", ("Quser0", "Quser1", "Quser2"), ("Qassistant0", "Qassistant1")  # in no template
CONTENTS = (
    "turn on the light",
    "two\nlines\n\n- of a list",
    "{{ .Content }} {% x %} {",
    "Được, 言語 ½ é",
    "a \\ \"b\" 'c'",
)
ELSEWHERE = "llama.cpp renders the template itself: microplane export RUN FILE --to gguf, and llama-server --jinja"


@dataclass(frozen=True)
class Turns:
    """The pieces of a conversation."""

    alone: str  # before the first question, without a system message of the user's
    before_system: str
    behind_system: str  # up to the first question
    to_answer: str  # behind a question: where an answer is written
    before_answer: str  # what else stands before one that was written, as Mistral's space
    to_question: str  # behind an answer, and all that stands before the next question

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt: the messages, and what stands before the next answer."""
        system = [message.content for message in messages if message.role == "system"]
        text = self.before_system + system[0] + self.behind_system if system else self.alone
        for message in messages:
            if message.role != "system":
                asks = message.role == "user"
                text += (
                    message.content + self.to_answer
                    if asks
                    else self.before_answer + message.content + self.to_question
                )
        return text

    def in_go(self) -> str:
        """The same as a template of Go."""
        own = self.before_system != "" or self.behind_system != self.alone
        start = _literal(self.alone)
        if own:
            system = f"{_literal(self.before_system)}{{{{ .System }}}}{_literal(self.behind_system)}"
            start = f"{{{{ if .System }}}}{system}{{{{ else }}}}{start}{{{{ end }}}}"
        user, answer, end = (_literal(text) for text in (self.to_answer, self.before_answer, self.to_question))
        return (
            f'{start}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ .Content }}}}{end}{{{{ end }}}}{{{{ end }}}}'
        )


def _literal(text: str) -> str:
    if "{{" in text or '"""' in text:
        raise AdapterError(f"the chat template writes {text!r}, for which a Modelfile has no spelling. {ELSEWHERE}")
    return text


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Write the GGUF file and the Modelfile.

    Raises:
        AdapterError: if the template is of another shape, or the texts of the two are not the same.
    """
    turns = turns_of(source.pipeline)
    written = gguf.write(source, folder, dtype)
    if source.pipeline.system == "" and minds_an_empty_system(source.pipeline):
        alone, _ = _cut(rendered(source.pipeline, [Message("system", ""), Message("user", ASKED[0])]), ASKED[0])
        turns = replace(turns, alone=alone)
    told = read_header(folder / gguf.FILE).metadata
    if told[f"{KEY}add_bos_token"]:  # then Ollama puts it before the text
        turns = _without(turns, source.tokenizer.special_tokens["bos_token"] or "")
    if prefix := source.pipeline.prefix:
        turns = replace(turns, alone=turns.alone + prefix, behind_system=turns.behind_system + prefix)
    asked = _same_ids(source, OwnReader(folder / gguf.FILE, source.pipeline.model), turns)
    (folder / MODELFILE).write_text(modelfile(source, turns), encoding="utf-8")
    notices = [line for line in written.notices if not line.startswith("all its ")]
    if _trims(source.pipeline):
        notices.append("the chat template cuts spaces and line ends off both ends of a message, and Ollama's does not: "
                       "give it messages without them")  # fmt: skip
    if prefix:
        notices.append(
            f"the template puts {prefix!r}, with which all prompts of training began, before the first question"
        )
    how = "ollama create NAME -f Modelfile; ollama run NAME"
    facts: dict[str, object] = {"template": {"conversations_equal": len(probes()), "prompts_with_equal_ids": asked}}
    return replace(written, files=(gguf.FILE, MODELFILE), notices=tuple(notices), how=(how,), facts=facts)


def modelfile(source: Source, turns: Turns) -> str:
    stops = list(dict.fromkeys(source.tokenizer.piece(stop) for stop in source.pipeline.stop_ids))
    lines = [f"FROM ./{gguf.FILE}", f'TEMPLATE """{turns.in_go()}"""']
    if system := source.pipeline.system:
        if '"""' in system:
            raise AdapterError(f"the run's system message holds three quotes, for which a Modelfile has no spelling: "
                               f"{system!r:.200}. {ELSEWHERE}")  # fmt: skip
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop)]) + "\n"


def rendered(pipeline: Pipeline, messages: Sequence[Message]) -> str:
    """A prompt as the model's own template has it, without the run's system message."""
    renderer = causal_renderer(pipeline.tokenizer, pipeline.template)
    return renderer.template.trace(messages, generation_prompt=True).text


def turns_of(pipeline: Pipeline) -> Turns:
    """The pieces, proved on the probes.

    Raises:
        AdapterError: if conversations are not put together so.
    """
    if pipeline.frame is not None and pipeline.frame[1] == "":
        raise AdapterError(
            "this run continues plain text, and Ollama asks questions: microplane export RUN FILE --to gguf, and give "
            "llama.cpp the text itself"
        )
    users, answers = [Message("user", text) for text in ASKED], [Message("assistant", text) for text in SAID]
    try:
        turns = _pieces(
            rendered(pipeline, users[:1]),
            rendered(pipeline, [users[0], answers[0], users[1]]),
            rendered(pipeline, [Message("system", SYSTEM), users[0]]),
        )
        different = [probe for probe in probes() if turns.render(probe) != rendered(pipeline, probe)]
    except (MicroplaneError, ValueError) as error:
        raise AdapterError(f"the chat template is not of a shape that Go's language is known to say ({error}). "
                           f"{ELSEWHERE}") from None  # fmt: skip
    if different:
        shown = ", ".join(message.role for message in different[0])
        raise AdapterError(
            f"the chat template renders {len(different)} of {len(probes())} conversations otherwise than in turns (the "
            f"first: {shown}), so that a template for Ollama is not certain. {ELSEWHERE}"
        )
    return turns


def _pieces(single: str, longer: str, with_system: str) -> Turns:
    """Raises: ValueError, if a content is not there, or not once."""
    alone, to_answer = _cut(single, ASKED[0])
    before_system, behind_system, _ = _cut(with_system, SYSTEM, ASKED[0])
    _, first, to_question, _ = _cut(longer, ASKED[0], SAID[0], ASKED[1])
    if not first.startswith(to_answer):
        raise ValueError("an answer in the past begins otherwise than the one to be written")
    return Turns(alone, before_system, behind_system, to_answer, first.removeprefix(to_answer), to_question)


def _cut(text: str, *marks: str) -> list[str]:
    parts = re.split("|".join(marks), text)
    if re.findall("|".join(marks), text) != list(marks):
        raise ValueError("a message is left out, or stands elsewhere")
    return parts


def probes() -> list[list[Message]]:
    """Conversations of one to three questions, with a system message and without."""
    found = []
    for number, content in enumerate(CONTENTS):
        others = CONTENTS[number:] + CONTENTS[:number]
        users = [Message("user", text) for text in (content, *others[1:3])]
        answers = [Message("assistant", text) for text in others[3:]]
        for start in ([], [Message("system", others[1])]):
            found += [[*start, users[0]], [*start, users[0], answers[0], users[1]],
                      [*start, users[0], answers[0], users[1], answers[1], users[2]]]  # fmt: skip
    return found


def _trims(pipeline: Pipeline) -> bool:
    return " x " not in rendered(pipeline, [Message("user", " x ")])


def _without(turns: Turns, bos: str) -> Turns:
    """Without the BOS that the template writes itself."""
    if turns.before_system:
        turns = replace(turns, before_system=turns.before_system.removeprefix(bos))
    return replace(turns, alone=turns.alone.removeprefix(bos))


def _same_ids(source: Source, file: OwnReader, turns: Turns) -> int:
    """How many questions become the same tokens through the Modelfile as through the run.

    Raises:
        AdapterError: if one does not.
    """
    pipeline = source.pipeline
    system = [Message("system", pipeline.system)] if pipeline.system else []
    for question in source.questions:
        text = pipeline.tokenizer.in_form(question).removeprefix(pipeline.prefix)
        if file.ids(turns.render([*system, Message("user", text)])) != pipeline.prompt(question):
            raise AdapterError(f"{question!r} becomes other tokens in Ollama than in training. {ELSEWHERE}")
    return len(source.questions)
