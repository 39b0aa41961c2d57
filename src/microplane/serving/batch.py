"""The answers that one set of modules is writing: at each step a token of every one, whoever asked and for whatever
adapter. Answers join the batch and leave it between two steps.

Shapes: B answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from microplane.config.knobs import GenerateKnobs
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.inference.generate import End, GenerationRow, next_logits, pick
from microplane.models.contract import Model
from microplane.models.generation_rules import GenerationRules
from microplane.nn.cache import Cache
from microplane.serving.json_text import JsonGuide
from microplane.serving.metrics import Metrics
from microplane.serving.routing import Router

MOST_LIKELY = 20  # tokens told beside each that is written, at most


class Engine(NamedTuple):
    """One set of modules, and what sends their tokens through adapters; None where they have none to choose from."""

    model: Model
    router: Router | None = None

    def send(self, adapters: Sequence[int | None], lengths: Sequence[int]) -> None:
        if self.router is not None:
            self.router.send(adapters, lengths, self.model.device)


class TokenScore(NamedTuple):
    """A token that was written, and how likely it was before temperature and all else."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass
class Piece:
    """The next part of an answer's text, in whole characters, and the tokens that it is made of, if asked for."""

    text: str
    scores: list[TokenScore] = field(default_factory=list)
    finish: str | None = None  # stop or length, with the last one
    error: Exception | None = None  # it was given up
    prompt_tokens: int = 0
    tokens: int = 0  # so far


class Generation:
    """One answer: asked for, being written, or over.

    Args:
        prompt: token ids.
        tell: gets the answer's pieces, on the thread that computes. The last one has `finish` or `error`.
        logprobs: how many likely tokens are told of each that is written; None: no scores at all.
        as_json: whether it must be an object in JSON.
        in_pieces: whether its pieces are told as they come; else all of it at its end.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        knobs: GenerateKnobs,
        stop_ids: Sequence[int],
        tell: Callable[[Piece], None],
        adapter: int | None = None,
        logprobs: int | None = None,
        as_json: bool = False,
        in_pieces: bool = True,
    ):
        self.row = GenerationRow(0, prompt, tokenizer, knobs.seed, knobs.max_new_tokens)
        self.end, self.knobs, self.tokenizer = End.of(tokenizer, stop_ids, knobs), knobs, tokenizer
        self.adapter, self.tell, self.logprobs, self.in_pieces = adapter, tell, logprobs, in_pieces
        self.guide = JsonGuide(tokenizer, self.end.stop_ids) if as_json else None
        self.scores: list[TokenScore] = []  # not told yet
        self.cancelled = self.over = False
        self.deadline = float("inf")

    @property
    def sampling(self) -> tuple[float, ...]:
        """The settings that decide what is chosen out of the same scores, but for the seed."""
        knobs = self.knobs
        return knobs.temperature, knobs.top_k, knobs.top_p, knobs.min_p, knobs.repetition_penalty

    @property
    def most_tokens(self) -> int:
        """Cells of the cache that it may come to need."""
        return len(self.row.prompt) + self.knobs.max_new_tokens

    def take(self, token: int, logits: Tensor | None) -> None:
        """Write one more token; `logits` (V) are what it was chosen by, where scores are asked for."""
        row = self.row
        row.ids.append(token)
        row.text += row.stream.feed(token)
        if self.logprobs is not None and logits is not None and token not in self.end.stop_ids:
            self.scores.append(_score(self.tokenizer, logits, token, self.logprobs))
        if self.guide is not None and self.guide.is_whole(row.text):
            self.over = True
            self._tell(row.text, "stop")
        elif self.end.reached(row.ids, row.text):
            answer = self.end.answer(row.ids)
            self.over = True
            self._tell(answer.text, "stop" if answer.stopped else "length")
        else:
            self._tell(self.end.without_stop_start(row.text), None)

    def _tell(self, text: str, finish: str | None) -> None:
        new = text[self.row.sent :]
        if finish is None and not (new and self.in_pieces):
            return
        self.row.sent += len(new)
        scores, self.scores = self.scores, []
        self.tell(Piece(new, scores, finish, None, len(self.row.prompt), len(self.row.ids)))

    def give_up(self, error: Exception) -> None:
        """It will not be finished, and whoever waits for it is told why."""
        if not self.over:
            self.over = True
            self.tell(Piece("", error=error, prompt_tokens=len(self.row.prompt), tokens=len(self.row.ids)))


def _score(tokenizer: Tokenizer, logits: Tensor, token: int, count: int) -> TokenScore:
    log_probs = logits.log_softmax(-1)
    best = log_probs.topk(min(count, len(log_probs))) if count else None
    likeliest = [] if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
    named = tuple((tokenizer.piece(other), value) for other, value in likeliest)
    return TokenScore(tokenizer.piece(token), float(log_probs[token]), named)


class Batch:
    """The answers that are being written with one engine."""

    def __init__(self, engine: Engine, metrics: Metrics | None = None):
        self.engine, self.metrics = engine, metrics or Metrics()
        self.answers: list[Generation] = []
        self.cache: Cache | None = None

    @property
    def is_open(self) -> bool:
        """Whether answers can join: not while others are written with caches of transformers' own."""
        return self.cache is None or self.cache.rows_can_join

    @torch.inference_mode()
    def join(self, new: Sequence[Generation]) -> None:
        """Read the prompts, write the first token of each answer, and let those that go on join."""
        model, engine = self.engine.model, self.engine
        adapters, lengths = [one.adapter for one in new], [len(one.row.prompt) for one in new]
        engine.send(adapters, lengths)
        cache, first = model.start_generation([one.row.prompt for one in new])
        for one, tokens in zip(new, first, strict=True):
            one.row.first_tokens = tokens
        engine.send(adapters, [len(tokens) for tokens in first])
        self._write(new, next_logits(model, first, cache))
        going = self._going(cache, new)
        if not going:
            return
        if self.cache is None:
            self.cache = cache
        else:
            self.cache.join(cache)
        self.answers += going

    @torch.inference_mode()
    def step(self) -> None:
        """Write one token of each answer."""
        assert self.cache is not None, "there is an answer to write"
        self.engine.send([one.adapter for one in self.answers], [1] * len(self.answers))
        tokens = [one.row.ids[-1:] for one in self.answers]
        self._write(self.answers, next_logits(self.engine.model, tokens, self.cache))
        self.tidy()

    @torch.inference_mode()
    def tidy(self) -> None:
        """Let those leave that are over or not wanted any more."""
        if self.cache is not None:
            self.answers = self._going(self.cache, self.answers)
            if not self.answers:
                self.cache = None  # its memory goes with it

    def give_up(self, error: Exception) -> None:
        """All of them end here."""
        for one in self.answers:
            one.give_up(error)
        self.answers, self.cache = [], None

    def _write(self, answers: Sequence[Generation], logits: Tensor) -> None:
        for one, token, own in zip(answers, self._choose(answers, logits), logits, strict=True):
            if one.over:
                continue
            one.take(token, own if one.logprobs is not None else None)

    def _choose(self, answers: Sequence[Generation], logits: Tensor) -> list[int]:
        """The next token of each: those with the same settings are chosen together."""
        alike = dict[object, list[int]]()
        for place, one in enumerate(answers):
            limit = one.knobs.max_new_tokens if self._rules.forced_eos is not None else None
            alike.setdefault((place,) if one.guide else (one.sampling, limit), []).append(place)
        chosen = [0] * len(answers)
        for places in alike.values():
            scores = logits if len(places) == len(answers) else logits[places]
            own = [answers[place] for place in places]
            try:
                tokens = self._of(own, scores)
            except DataError as error:  # of an answer in JSON, which is alone here
                own[0].give_up(error)
                continue
            for place, token in zip(places, tokens, strict=True):
                chosen[place] = token
        return chosen

    def _of(self, answers: list[Generation], scores: Tensor) -> list[int]:
        rows, first = [one.row for one in answers], answers[0]
        if first.guide is None:
            return pick(scores, rows, first.knobs, self._rules)
        return [first.guide.choose(scores, lambda rest: pick(rest, rows, first.knobs, self._rules)[0], first.row)]

    @property
    def _rules(self) -> GenerationRules:
        return self.engine.model.generation_rules

    def _going(self, cache: Cache, answers: Sequence[Generation]) -> list[Generation]:
        """Those of the cache's answers that go on, in the order that it has then; the others leave it."""
        gone = [place for place, one in enumerate(answers) if one.over or one.cancelled]
        if not gone:
            return list(answers)
        self.metrics.cancelled += sum(not answers[place].over for place in gone)
        if cache.rows_can_join:
            order = cache.drop(gone)
        else:
            order = [place for place in range(len(answers)) if place not in set(gone)]
            cache.select(order)
        return [answers[place] for place in order]
