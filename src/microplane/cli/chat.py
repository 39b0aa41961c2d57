"""Answers in the terminal, as they come: single prompts, and a conversation."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from microplane.cli import interrupts
from microplane.config.knobs import GenerateKnobs
from microplane.data.reading.example import Message
from microplane.errors import ConfigError, MicroplaneError
from microplane.files import json_line
from microplane.inference.pipeline import Pipeline

STDIN = "-"


def ask_as_told(loaded: Pipeline, knobs: GenerateKnobs, system: str | None, no_prefix: bool) -> None:
    """Give a model the system prompt and the prefix that the command line asks for.

    Raises:
        ConfigError: for settings of generation where a task head gives labels, which would change nothing; for a system
            prompt of a run of plain text.
    """
    if loaded.model.task_head is not None:
        given = [name for name, field in GenerateKnobs.model_fields.items() if getattr(knobs, name) != field.default]
        given += ["--system"] if system is not None else []
        given += ["--no-prefix"] if no_prefix else []
        if given:
            raise ConfigError(
                f"{', '.join(given)}: this model has a task head, which gives labels and generates nothing, so it "
                "would change nothing. Leave it out"
            )
    if system is not None and loaded.frame is not None:
        raise ConfigError("--system: this run was trained on plain text, which has no system prompt. Leave it out")
    if system is not None:
        loaded.system = system
    if no_prefix:
        loaded.prefix = ""
        loaded.frame = None if loaded.frame is None else ("", "")


def answer_prompts(loaded: Pipeline, prompts: Sequence[str], knobs: GenerateKnobs, as_json: bool = False) -> None:
    """One prompt streams its answer; several are answered together, each under its prompt, or each a line of JSON.

    A model with a task head says its labels instead; a tab parts two texts that belong together, if the model was
    trained on such.
    """
    if as_json:
        _answers_as_json(loaded, prompts, knobs)
        return
    if loaded.objective.needs_head:
        predictions = loaded.classify([texts_of(prompt, loaded.pairs) for prompt in prompts])
        for prompt, prediction in zip(prompts, predictions, strict=True):
            write(f"> {prompt}\n{prediction}\n" if len(prompts) > 1 else f"{prediction}\n")
        return
    if len(prompts) == 1 and knobs.beams == 1:
        loaded.answers(prompts, knobs, on_text=lambda row, text: write(text))
        write("\n")
        return
    for prompt, answer in zip(prompts, loaded.answers(prompts, knobs), strict=True):
        write(f"> {prompt}\n{answer.text}\n" if len(prompts) > 1 else f"{answer.text}\n")


def _answers_as_json(loaded: Pipeline, prompts: Sequence[str], knobs: GenerateKnobs) -> None:
    if loaded.objective.needs_head:
        predictions = loaded.classify([texts_of(prompt, loaded.pairs) for prompt in prompts])
        said = [{name: value for name, value in asdict(one).items() if value} for one in predictions]
    else:
        said = [{"answer": answer.text} for answer in loaded.answers(prompts, knobs)]
    for prompt, fields in zip(prompts, said, strict=True):
        write(json_line({"prompt": prompt, **fields}) + "\n")


def texts_of(line: str, pairs: bool) -> str | tuple[str, str]:
    """One text, or two with a tab between them where there may be two."""
    first, tab, second = line.partition("\t")
    return (first, second) if tab and pairs else line


def given_or_lines(texts: Sequence[str] | None) -> list[str]:
    """The texts of the command line, or those of standard input where there are none, or - in their place.

    Raises:
        ConfigError: for - among others, which would pass for a text.
    """
    if texts and len(texts) > 1 and STDIN in texts:
        raise ConfigError("- stands for the lines of standard input and is given alone: leave it out, or put all there")
    return read_lines() if not texts or list(texts) == [STDIN] else list(texts)


def read_lines() -> list[str]:
    """Prompts from standard input, one on each line; of other line ends a prompt may hold some."""
    return [line for line in _stdin().read().split("\n") if line.strip()]


def _stdin() -> TextIO:
    """Bytes that are not UTF-8 become lone surrogates, which `Pipeline.prompt` refuses with their place."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def chat(loaded: Pipeline, knobs: GenerateKnobs) -> None:
    """A conversation until /quit or the end of input. /new begins another; Ctrl-C cuts an answer short."""
    labels = loaded.objective.needs_head
    if not labels:
        loaded.answers([], knobs)  # refuses what excludes each other before the first message
    if sys.stdin.isatty():
        write("Type a message. /new begins another conversation, /quit ends.\n")
    messages: list[Message] = []
    stdin = _stdin()
    while True:
        if sys.stdin.isatty():
            write("> ")
        line = stdin.readline()
        text = line.strip()
        if not line or text == "/quit":
            return
        if text == "/new":
            messages = []
        elif text and labels:
            answer_prompts(loaded, [text], knobs)
        elif text:
            messages = _turn(loaded, messages, text, knobs)


def _turn(loaded: Pipeline, messages: list[Message], text: str, knobs: GenerateKnobs) -> list[Message]:
    asked = [*messages, Message("user", text) if messages else loaded.asked(text)]
    pieces: list[str] = []

    def show(row: int, piece: str) -> None:
        pieces.append(piece)
        write(piece)

    try:
        answer = loaded.answers([asked], knobs, on_text=show)[0].text
    except KeyboardInterrupt:
        interrupts.forget()
        answer = "".join(pieces)
    except MicroplaneError as error:  # too long a conversation, say: tell, and let the user go on
        write(f"error: {error}\n")
        return messages
    write("\n")
    return [*asked, Message("assistant", answer)]


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
