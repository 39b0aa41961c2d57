"""Questions behind a few training rows with their answers, as a conversation in the model's own template: what an
untouched model does when it is shown what is wanted (arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from microplane.config.knobs import EvalKnobs
from microplane.data.progress import Progress
from microplane.data.reading.example import Message
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.evaluation import text_metrics as metrics
from microplane.evaluation.evaluate import answer_limit, choose_rows, generated_texts, template_frame, without_frame
from microplane.evaluation.trivial import Trivial
from microplane.objectives.base import AnyObjective

MOST_TOKENS = 1024  # of a prompt with its examples


class Asked(NamedTuple):
    """How a template puts a question, and by what it is recognised in rows of tokens."""

    objective: AnyObjective
    tokenizer: Tokenizer
    template: str
    system: str | None


class Shots(NamedTuple):
    """Questions with their examples.

    Args:
        examples: training rows before each question.
        prompts: token ids, of each question.
    """

    examples: int
    prompts: list[list[int]]


def with_examples(asked: Asked, train: Dataset, held_out: Dataset, rows: Sequence[int], count: int, room: int) -> Shots:
    """As many examples as fit, up to so many, the same before each question; none where a row is more than a question
    and its answer.

    Args:
        rows: of `held_out`, the questions.
        room: tokens of the longest prompt.
    """
    frame = template_frame(asked.objective, asked.tokenizer, asked.template, asked.system)
    questions = [_question(asked, held_out, row, frame) for row in rows]
    shown = [row for row in choose_rows(train, count) if _question(asked, train, row, frame) is not None]
    if any(question is None for question in questions):
        return Shots(0, [])
    for number in range(len(shown), 0, -1):
        said = [message for row in shown[:number] for message in _example(asked, train, row, frame)]
        try:
            prompts = [_prompt(asked, [*said, Message("user", str(question))]) for question in questions]
        except DataError:  # the template takes one question alone
            break
        if max(map(len, prompts), default=0) <= room:
            return Shots(number, prompts)
    return Shots(0, [])


def _question(asked: Asked, dataset: Dataset, row: int, frame: tuple[str, str]) -> str | None:
    """A row's question without its template; None of a row that begins or ends otherwise, or has more of the template's
    tokens than one question takes, as a longer conversation."""
    ids = dataset.prompt_and_target(row)[0]
    text = asked.tokenizer.decode(ids)
    inner = without_frame(text, frame)
    if any(frame) and (inner == text or _marks(asked, ids) != _marks(asked, _prompt(asked, [Message("user", "a")]))):
        return None
    return inner


def _marks(asked: Asked, ids: Sequence[int]) -> int:
    """How many special tokens there are, but for unknown ones."""
    added = asked.tokenizer.backend.get_added_tokens_decoder()
    return sum(token in added and added[token].special and token != asked.tokenizer.unk_id for token in ids)


def _example(asked: Asked, dataset: Dataset, row: int, frame: tuple[str, str]) -> list[Message]:
    answer = asked.tokenizer.for_targets.decode(dataset.prompt_and_target(row)[1])
    return [Message("user", str(_question(asked, dataset, row, frame))), Message("assistant", answer)]


def _prompt(asked: Asked, messages: Sequence[Message]) -> list[int]:
    return asked.objective.prompt(messages, asked.tokenizer, asked.template, asked.system)


def room_of(model: Any, held_out: Dataset, rows: Sequence[int], knobs: EvalKnobs) -> int:
    """Tokens of a prompt, so that the answer fits behind it."""
    context: int | None = model.max_row_tokens
    if context is None or model.KIND != "decoder":
        return min(MOST_TOKENS, context or MOST_TOKENS)
    return min(MOST_TOKENS, context - answer_limit([held_out.prompt_and_target(row)[1] for row in rows], knobs))


def few_shot_answers(
    asked: Asked,
    model: Any,
    shots: Shots,
    held_out: Dataset,
    rows: Sequence[int],
    knobs: EvalKnobs,
    progress: Progress | None = None,
) -> Trivial:
    """What the model answers, greedily, and its metrics."""
    targets = [held_out.prompt_and_target(row)[1] for row in rows]
    stop_ids = asked.objective.stop_ids(asked.tokenizer, asked.template)
    texts = generated_texts(model, asked.tokenizer, shots.prompts, targets, knobs, stop_ids, progress)
    truths = [asked.tokenizer.for_targets.decode(target) for target in targets]
    return Trivial(metrics.score(knobs.metrics, texts, truths), texts)
