"""Text generation: greedy, sampled or by beam search, in batches and with a key-value cache.

Shapes: B rows that are written (the beams of one prompt are adjacent), V vocabulary.

The order of operations and the formulas are those of transformers, so that results can be compared: repetition
penalty, temperature, top-k, top-p, min-p; beam search with its `early_stopping=False`. All of it in float32.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from microplane.config.knobs import GenerateKnobs
from microplane.data.tokenizers.text_stream import TextStream
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.device import put
from microplane.inference.limits import check_limits, tell_cut
from microplane.models.generation_rules import GenerationRules
from microplane.nn.cache import Cache
from microplane.nn.ops.low_rank import factors_kept
from microplane.nn.rows import Rows

BATCH_TOKENS = 16_384  # in the cache
MOST_ROWS = 128  # computed together: more gain nothing, and their logits over a large vocabulary fill the memory
WORTH_SHARING = 256  # tokens that are not computed for the other rows, if a beginning is computed once


@dataclass
class Answer:
    ids: list[int]  # without the stop token, and without tokens that only hold a stop text
    text: str  # without the stop text
    stopped: bool  # False: cut at max_new_tokens, or at the end of the context


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    knobs: GenerateKnobs,
    stop_ids: Sequence[int],
    on_text: Callable[[int, str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    fits: bool | None = None,
) -> list[Answer]:
    """One answer for each prompt, in their order. Apart from rounding it does not depend on the other prompts.

    Args:
        model: a `Decoder` or an encoder-decoder, in eval mode.
        fits: whether an answer ends where the context does, if `max_new_tokens` are more than there is room for behind
            its prompt. None: where that number is the default, and then it is said; one that was given is refused.
        stop_ids: tokens that end an answer.
        on_text: called with a prompt's number and the next piece of its answer's text, in whole characters; the pieces
            joined are `Answer.text`. Beam search gives each answer in one piece.
        progress: called with the numbers of finished answers and of prompts.
        batch_tokens: most tokens in the cache; prompts are computed together up to this, and at least one.

    Raises:
        ConfigError: for settings that exclude each other, or more tokens than the model's context holds.
        DataError: for a prompt without a token.
    """
    assert not model.training, "dropout would fall on the answers: call model.eval() first"
    given = "max_new_tokens" in knobs.model_fields_set if fits is None else not fits
    limits = check_limits(knobs, prompts, model, given)
    if fits is None:
        tell_cut(knobs.max_new_tokens, limits)
    end = End.of(tokenizer, stop_ids, knobs)
    ends = {limit: replace(end, limit=limit) for limit in limits}
    answers: dict[int, Answer] = {}
    with factors_kept():
        for numbers in batches([len(prompt) for prompt in prompts], knobs, batch_tokens):
            rows = [GenerationRow(number, prompts[number], tokenizer, knobs.seed, limits[number]) for number in numbers]
            how = model, rows, knobs, ends
            written = _search(*how) if knobs.beams > 1 else _write(*how, on_text)
            for row, answer in written:
                answers[row.number] = answer
                if on_text:
                    row.send(answer.text, on_text)
                if progress:
                    progress(len(answers), len(prompts))
    return [answers[number] for number in range(len(prompts))]


def batches(lengths: Sequence[int], knobs: GenerateKnobs, budget: int) -> Iterator[list[int]]:
    """Numbers of prompts to answer together, the longest first: as many as fit the budget with their whole answers."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while order:
        size = max(1, min(MOST_ROWS, budget // (lengths[order[0]] + knobs.max_new_tokens)) // knobs.beams)
        yield order[:size]
        order = order[size:]


class GenerationRow:
    """A prompt and the answer being written to it."""

    def __init__(self, number: int, prompt: Sequence[int], tokenizer: Tokenizer, seed: int, limit: int):
        self.number, self.limit = number, limit  # tokens that the answer may have
        self.prompt = list(prompt)
        self.first_tokens: list[int] = []  # the tokens of its row before the answer's: prompt, or decoder's start token
        self.ids: list[int] = []
        self.text = ""  # of `ids`, without an unfinished character at the end
        self.stream = TextStream(tokenizer)
        self.random = random.Random(f"{seed}/{number}")
        self.sent = 0  # number of characters that on_text has got

    def send(self, text: str, on_text: Callable[[int, str], None]) -> None:
        if len(text) > self.sent:
            on_text(self.number, text[self.sent :])
            self.sent = len(text)


@dataclass(frozen=True)
class End:
    """What ends an answer."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    texts: tuple[str, ...]
    limit: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, stop_ids: Sequence[int], knobs: GenerateKnobs) -> End:
        """Special tokens do not appear in decoded text, so a stop text that is one becomes a stop token."""
        written = [tokenizer.encode(text, special=False) for text in knobs.stop]
        hidden = [ids[0] for ids in written if len(ids) == 1 and not tokenizer.decode(ids)]
        return cls(tokenizer, frozenset([*stop_ids, *hidden]), knobs.stop, knobs.max_new_tokens)

    def reached(self, ids: Sequence[int], text: str) -> bool:
        return ids[-1] in self.stop_ids or len(ids) == self.limit or self._cut(text) is not None

    def answer(self, ids: list[int]) -> Answer:
        ids, stopped = (ids[:-1], True) if ids[-1] in self.stop_ids else (ids, False)
        text = self.tokenizer.decode(ids)
        place = self._cut(text)
        if place is None:
            return Answer(ids, text, stopped)
        text = text[:place]
        while ids and self.tokenizer.decode(ids[:-1]).startswith(text):
            ids = ids[:-1]
        return Answer(ids, text, True)

    def _cut(self, text: str) -> int | None:
        """Where the first stop text begins in `text`. Called after every token, so it is the one completed first."""
        return min((text.index(stop) for stop in self.texts if stop in text), default=None)

    def without_stop_start(self, text: str) -> str:
        """The text without an end that may be the start of a stop text."""
        lengths = (n for stop in self.texts for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(lengths, default=0)]


def _write(
    model: Any,
    rows: list[GenerationRow],
    knobs: GenerateKnobs,
    ends: Mapping[int, End],
    on_text: Callable[[int, str], None] | None,
) -> Iterator[tuple[GenerationRow, Answer]]:
    """Greedy or sampled: one token per row and step. A row that has ended leaves the batch."""
    cache, tokens = start(model, rows)
    while rows:
        chosen = pick(next_logits(model, tokens, cache), rows, knobs, model.generation_rules)
        going = []
        for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            end = ends[row.limit]
            row.ids.append(token)
            row.text += row.stream.feed(token)
            if end.reached(row.ids, row.text):
                yield row, end.answer(row.ids)
                continue
            going.append(place)
            if on_text:
                row.send(end.without_stop_start(row.text), on_text)
        rows = [rows[place] for place in going]
        cache.select(going)
        tokens = [row.ids[-1:] for row in rows]


def start(model: Any, rows: Sequence[GenerationRow]) -> tuple[Cache, list[list[int]]]:
    """A cache for the rows, and the tokens that are to be computed first: of a beginning that all share, none."""
    prompts = [row.prompt for row in rows]
    shared = computed_once(prompts, model.KIND)
    cache, tokens = model.start_generation([prompts[0][:shared]] if shared else prompts)
    if shared and type(cache) is Cache:
        model(Rows.of(tokens).to(model.device), cache)
        cache.select([0] * len(rows))
        tokens = [prompt[shared:] for prompt in prompts]
    elif shared:
        cache, tokens = model.start_generation(prompts)
    for row, first in zip(rows, tokens, strict=True):
        row.first_tokens = row.prompt if shared else first
    return cache, tokens


def computed_once(prompts: Sequence[Sequence[int]], kind: str) -> int:
    """How many tokens that all prompts begin with are computed for one of them alone."""
    shared = common_beginning(prompts) if kind == "decoder" else 0
    saved = shared * (len(prompts) - 1)
    if saved < WORTH_SHARING or 3 * saved < sum(map(len, prompts)):  # for attention to a cache takes longer
        return 0
    return shared


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, but for the last of each."""
    if len(prompts) < 2:
        return 0
    as_lists = [list(prompt) for prompt in prompts]
    least, most = min(as_lists), max(as_lists)  # in the order of a dictionary, all others lie between
    limit = min(map(len, prompts)) - 1
    return next((n for n in range(limit) if least[n] != most[n]), limit)


def next_logits(model: Any, tokens: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Append tokens to the cached rows and compute the logits of the next token: (B, V) float32."""
    rows = Rows.of(tokens, starts=cache.lengths).to(model.device)
    logits: Tensor = model.logits(model(rows, cache)[rows.last])
    return logits.float()


def pick(scores: Tensor, rows: Sequence[GenerationRow], knobs: GenerateKnobs, rules: GenerationRules) -> list[int]:
    scores = penalise(scores, [row.first_tokens + row.ids for row in rows], knobs.repetition_penalty)
    scores = confine(scores, [len(row.ids) for row in rows], [row.limit for row in rows], rules)
    if knobs.temperature == 0:
        return scores.argmax(-1).tolist()
    return draw(narrow(scores, knobs), [row.random.random() for row in rows])


def penalise(scores: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make tokens of `seen` less likely (arXiv 1909.05858, 4.1): positive scores are divided, negative multiplied."""
    if penalty == 1.0:
        return scores
    row = put(torch.tensor([number for number, tokens in enumerate(seen) for _ in tokens]), scores.device)
    token = put(torch.tensor([token for tokens in seen for token in tokens]), scores.device)
    value = scores[row, token]
    return scores.index_put((row, token), torch.where(value < 0, value * penalty, value / penalty))


def confine(scores: Tensor, written: Sequence[int], limits: Sequence[int], rules: GenerationRules) -> Tensor:
    """Scores (B, V) with minus infinity for bad tokens, and for all but the forced one at a row's first or last."""
    left = [limit - 1 - count for count, limit in zip(written, limits, strict=True)]
    if rules.bad_tokens:
        scores = scores.index_fill(1, put(torch.tensor(rules.bad_tokens), scores.device), -torch.inf)
    for token, counts in ((rules.forced_bos, written), (rules.forced_eos, left)):
        if token is not None and (forced := [row for row, count in enumerate(counts) if count == 0]):
            scores = scores.clone()
            scores[forced] = -torch.inf
            scores[forced, token] = 0.0
    return scores


def narrow(scores: Tensor, knobs: GenerateKnobs) -> Tensor:
    """Scores (B, V) after temperature, top-k, top-p and min-p; excluded tokens have minus infinity."""
    scores = scores / knobs.temperature
    if knobs.top_k:
        least = scores.topk(min(knobs.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if knobs.top_p < 1:
        ascending, order = scores.sort()
        unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - knobs.top_p
        unlikely[:, -1] = False
        scores = scores.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)
    if knobs.min_p:
        shares = scores.softmax(-1)
        scores = scores.masked_fill(shares < knobs.min_p * shares.amax(-1, keepdim=True), -torch.inf)
    return scores


def draw(scores: Tensor, chances: Sequence[float]) -> list[int]:
    """One token per row: the one at which the cumulative probability passes the row's random number from [0, 1)."""
    # in float64, for a sum of 50,000 float32 numbers is off by more than the last ones are worth
    exact = scores if scores.device.type != "mps" else scores.cpu()  # where there is no float64
    heights = exact.double().softmax(-1).cumsum(-1)
    marks = put(torch.tensor(chances, dtype=heights.dtype), heights.device)[:, None] * heights[:, -1:]
    return torch.searchsorted(heights, marks, right=True).flatten().tolist()


@dataclass
class _Beam:
    ids: list[int]
    score: float  # sum of log p; divided by the length penalty once it has ended


@dataclass
class _Beams:
    """Beam search for one prompt: the beams that grow, and the best of those that have ended."""

    row: GenerationRow
    growing: list[_Beam]
    ended: list[_Beam] = field(default_factory=list)  # best first

    def grow(self, log_probs: Tensor, knobs: GenerateKnobs, end: End) -> list[int]:
        """Extend the beams by one token, given log p (beams, V). Returns for each new beam the index of its parent.

        So many candidates are looked at that some go on even if the best all end here. Of those that end, the ones
        among the best `knobs.beams` count.
        """
        totals = log_probs + put(torch.tensor([beam.score for beam in self.growing]), log_probs.device)[:, None]
        wanted = max(2, 1 + len(end.stop_ids)) * knobs.beams
        best = totals.flatten().topk(min(wanted, totals.numel()))
        parents, growing = [], list[_Beam]()
        for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if score == -math.inf:  # all that is allowed has been looked at
                break
            parent, token = divmod(place, totals.shape[-1])
            ids = [*self.growing[parent].ids, token]
            if end.reached(ids, end.tokenizer.decode(ids) if end.texts else ""):
                if rank < knobs.beams:
                    self.ended.append(_Beam(ids, score / len(ids) ** knobs.length_penalty))
            elif len(growing) < knobs.beams:
                growing.append(_Beam(ids, score))
                parents.append(parent)
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[: knobs.beams]
        self.growing = growing
        return parents

    def over(self, knobs: GenerateKnobs) -> bool:
        """True if no beam grows, or the best one, ended now, would not be better than the worst that is kept."""
        if not self.growing or len(self.ended) < knobs.beams:
            return not self.growing
        best = self.growing[0]
        return bool(best.score / len(best.ids) ** knobs.length_penalty <= self.ended[-1].score)


def _search(
    model: Any, rows: list[GenerationRow], knobs: GenerateKnobs, ends: Mapping[int, End]
) -> Iterator[tuple[GenerationRow, Answer]]:
    """Beam search for several prompts at once. Each prompt is computed once, then shared by its beams."""
    searches = [_Beams(row, [_Beam([], 0.0)]) for row in rows]
    cache, tokens = start(model, rows)
    while searches:
        seen = [search.row.first_tokens + beam.ids for search in searches for beam in search.growing]
        written = [len(beam.ids) for search in searches for beam in search.growing]
        limits = [search.row.limit for search in searches for _ in search.growing]
        log_probs = penalise(next_logits(model, tokens, cache).log_softmax(-1), seen, knobs.repetition_penalty)
        log_probs = confine(log_probs, written, limits, model.generation_rules)
        if model.generation_rules.renormalize:
            log_probs = log_probs.log_softmax(-1)
        going: list[_Beams] = []
        kept: list[int] = []  # rows of the cache, one for each beam that grows on
        first = 0  # row of the search's first beam
        for search, part in zip(searches, torch.split(log_probs, [len(s.growing) for s in searches]), strict=True):
            end = ends[search.row.limit]
            parents = search.grow(part, knobs, end)
            if search.over(knobs):
                yield search.row, end.answer(search.ended[0].ids)
            else:
                going.append(search)
                kept += [first + parent for parent in parents]
            first += len(part)
        del log_probs, part
        searches = going
        cache.select(kept)
        tokens = [beam.ids[-1:] for search in searches for beam in search.growing]
