"""Whether an engine computes what was trained: ids of texts, logits of rows, greedy continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from microplane.config.knobs import GenerateKnobs
from microplane.exports.source import WRITTEN, Source, answer_scores, row_logits
from microplane.inference.generate import generate


class Engine(Protocol):
    """A program that opens what was exported."""

    @property
    def name(self) -> str: ...

    def ids(self, text: str) -> list[int]:
        """Of a text with what the model wants around it."""

    @property
    def measure(self) -> str:
        """What its scores are."""

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Of a decoder, at every position: (T, V)."""

    def scores(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Of an encoder-decoder, log p of each token of an answer: (T,)."""

    def greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """The continuations, of up to `most` tokens; where the engine itself stops, -1 in place of the stop token."""


@dataclass(frozen=True)
class Comparison:
    """What an engine computes, beside ours in float32."""

    engine: str
    texts: int
    other_ids: tuple[str, ...]  # the texts that it cuts otherwise
    rows: int
    difference: float  # the largest, of what `measure` says
    continuations: tuple[int | None, ...]  # of each, the number of the first token that differs; None: it is the same
    measure: str = "logit"

    def lines(self) -> Iterator[str]:
        same = self.texts - len(self.other_ids)
        if not self.texts:  # of what writes nothing
            yield f"{self.engine}: largest {self.measure} difference on {self.rows} texts {self.difference:.2e}"
            return
        yield f"{self.engine}: {same} of {self.texts} texts have the same token ids" + (
            f"; not {self.other_ids[0][:60]!r}" if self.other_ids else ""
        )
        yield f"{self.engine}: largest {self.measure} difference on {self.rows} rows {self.difference:.2e}"
        equal = sum(first is None for first in self.continuations)
        others = ", ".join(f"{n + 1} at token {first + 1}" for n, first in enumerate(self.continuations)
                           if first is not None)  # fmt: skip
        yield f"{self.engine}: {equal} of {len(self.continuations)} greedy continuations are the same" + (
            f"; number {others}" if others else ""
        )


def compare(source: Source, engine: Engine) -> Comparison:
    """An engine beside ours. Texts are given to it in the Unicode form that they are trained in."""
    texts = [source.tokenizer.in_form(text) for text in source.texts]
    others = tuple(text for text in texts if engine.ids(text) != source.tokenizer.encode(text))
    prompts = source.prompts()
    wanted = continuations(source, prompts)
    firsts = tuple(
        first_difference(mine, theirs) for mine, theirs in zip(wanted, engine.greedy(prompts, WRITTEN), strict=True)
    )
    pairs = list(_scores(source, engine, prompts, wanted))
    furthest = max((float((mine - theirs).abs().max()) for mine, theirs in pairs), default=0.0)
    return Comparison(engine.name, len(texts), others, len(pairs), furthest, firsts, engine.measure)


def _scores(
    source: Source, engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ours and the engine's: logits of rows, or of an encoder-decoder log p of its own answers."""
    if source.pipeline.model.KIND == "decoder":
        for ids, ours in zip(source.rows, row_logits(source.pipeline, source.rows), strict=True):
            yield ours, engine.logits(ids)
        return
    end = source.pipeline.stop_ids[0]
    for prompt, said in zip(prompts, answers, strict=True):
        answer = [end if token == -1 else token for token in said]
        yield answer_scores(source.pipeline, prompt, answer), engine.scores(prompt, answer)


def continuations(source: Source, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Ours, with the token that ends each."""
    pipeline = source.pipeline
    stops = pipeline.stop_ids
    model, knobs = pipeline.model, GenerateKnobs(max_new_tokens=WRITTEN)
    answers = generate(model, pipeline.tokenizer.for_targets, prompts, knobs, stops)
    return [answer.ids + ([-1] if answer.stopped else []) for answer in answers]


def first_difference(mine: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The place of the first token that differs. The end of an answer counts as the token -1, whichever it is."""
    for place, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            return place
    return None if len(mine) == len(theirs) else min(len(mine), len(theirs))
