"""T5's objectives on plain text (arXiv 1910.10683, section 3.1): span corruption, and the prefix language model.

    text      the cat sat on the mat and slept
    inputs    the <0> on the mat <1> EOS              each span of noise becomes a sentinel
    targets   <0> cat sat <1> and slept EOS           and each span in between does so here

Pure functions of the token ids and a random generator. L tokens of text, N of them noise in S spans. Sentinels are
given in the order in which they are used; for T5 `<extra_id_0>`, `<extra_id_1>`, ..., which are 32099, 32098, ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from microplane.errors import DataError

NOISE = 0.15  # share of the tokens that is noise
MEAN_SPAN = 3.0  # tokens in a span of noise

Pair = tuple[np.ndarray, np.ndarray]


def noise_counts(length: int, noise: float = NOISE, mean_span: float = MEAN_SPAN) -> tuple[int, int]:
    """(N, S) of a text of L tokens, L >= 2: at least one token is noise and one is not."""
    assert 0 < noise < 1 <= mean_span, f"noise {noise} in spans of {mean_span}: a share, and at least 1 token"
    tokens = min(max(round(length * noise), 1), length - 1)
    return tokens, min(max(round(tokens / mean_span), 1), length - tokens)


def corrupted_lengths(length: int, noise: float = NOISE, mean_span: float = MEAN_SPAN) -> tuple[int, int]:
    """Tokens of (inputs, targets) that a text of L tokens makes, an EOS in each."""
    tokens, spans = noise_counts(length, noise, mean_span)
    return length - tokens + spans + 1, tokens + spans + 1


def spans_input_length(inputs: int, noise: float = NOISE, mean_span: float = MEAN_SPAN) -> tuple[int, int]:
    """(L, targets): the most tokens of text whose corrupted inputs fit into `inputs`, and how many targets they make.

    For T5's 512 they are 568 and 114.
    """
    length = 2
    if inputs < corrupted_lengths(length, noise, mean_span)[0]:
        raise DataError(f"span corruption into inputs of {inputs} tokens: at least 3 are needed")
    while corrupted_lengths(length + 1, noise, mean_span)[0] <= inputs:
        length += 1
    return length, corrupted_lengths(length, noise, mean_span)[1]


def max_inputs(sentinels: int) -> int:
    """The longest inputs of a whole piece that need no more than so many sentinels."""
    length = 2
    while noise_counts(length + 1)[1] <= sentinels:
        length += 1
    return corrupted_lengths(length)[0]


def noise_mask(length: int, rng: np.random.Generator, noise: float = NOISE, mean_span: float = MEAN_SPAN) -> np.ndarray:
    """Which of L tokens are noise, bool (L,): S spans of each kind in turn, the first of them not noise.

    N and L - N are each cut into S positive lengths, all ways to do so being equally likely.
    """
    tokens, spans = noise_counts(length, noise, mean_span)
    lengths = np.stack([_partition(length - tokens, spans, rng), _partition(tokens, spans, rng)], axis=1)  # (S, 2)
    return np.repeat(np.tile([False, True], spans), lengths.ravel())


def _partition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt_spans(
    ids: np.ndarray,
    sentinels: Sequence[int],
    eos: int | None,
    rng: np.random.Generator,
    noise: float = NOISE,
    mean_span: float = MEAN_SPAN,
) -> Pair:
    """(inputs, targets) of a text; `restore` puts them together again.

    Args:
        ids: (L,) whole numbers, without an EOS.
        eos: ends both sides; None adds nothing.

    Raises:
        DataError: for a text of one token, one with a sentinel in it, or one with more spans than there are sentinels.
    """
    _check_length(ids)
    _, spans = noise_counts(len(ids), noise, mean_span)
    if spans > len(sentinels):
        raise DataError(
            f"span corruption of {len(ids):,} tokens makes {spans} spans, but the tokenizer has {len(sentinels)} "
            "sentinels; cut the text into shorter rows"
        )
    if (held := np.isin(ids, np.asarray(sentinels))).any():
        raise DataError(f"the text holds the sentinel {int(ids[held][0])}, which span corruption puts in itself")
    mask = noise_mask(len(ids), rng, noise, mean_span)
    used = sentinels[:spans]
    return _ended(_replaced(ids, mask, used), eos), _ended(_replaced(ids, ~mask, used), eos)


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: Sequence[int], eos: int | None) -> np.ndarray:
    """The text that `corrupt_spans` made inputs and targets of: each sentinel gives way to what follows it there.

    Raises:
        DataError: if the two do not have the same sentinels in their order.
    """
    first, second = (_spans(_without(side, eos), sentinels) for side in (inputs, targets))
    if len(first) != len(second) or len(second[0]):
        raise DataError(
            f"inputs with {len(first) - 1} sentinels and targets with {len(second) - 1} are not of one text"
        )
    pieces = [first[0]]
    for gap, after in zip(second[1:], first[1:], strict=True):
        pieces += [gap, after]
    return np.concatenate(pieces)


def prefix_lm(ids: np.ndarray, eos: int | None, rng: np.random.Generator) -> Pair:
    """(inputs, targets): a text cut at a random place, each of the L - 1 places equally likely; `eos` ends both.

    Raises:
        DataError: for a text of one token.
    """
    _check_length(ids)
    cut = int(rng.integers(1, len(ids)))
    return _ended(ids[:cut], eos), _ended(ids[cut:], eos)


def _check_length(ids: np.ndarray) -> None:
    if len(ids) < 2:
        raise DataError(f"a text of {len(ids)} tokens cannot be cut into inputs and targets: at least 2 are needed")


def _replaced(ids: np.ndarray, gone: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    """`ids` with each run of `gone` tokens as one sentinel."""
    starts = gone & ~np.concatenate([[False], gone[:-1]])
    marked = ids.copy()
    marked[starts] = sentinels
    kept: np.ndarray = marked[starts | ~gone]
    return kept


def _ended(ids: np.ndarray, eos: int | None) -> np.ndarray:
    return ids.copy() if eos is None else np.append(ids, np.array(eos, ids.dtype))


def _without(ids: np.ndarray, eos: int | None) -> np.ndarray:
    return ids[:-1] if eos is not None and len(ids) and ids[-1] == eos else ids


def _spans(ids: np.ndarray, sentinels: Sequence[int]) -> list[np.ndarray]:
    """What lies before, between and after the sentinels, which must come in their order."""
    places = np.flatnonzero(np.isin(ids, np.asarray(sentinels)))
    if ids[places].tolist() != list(sentinels[: len(places)]):
        raise DataError(f"the sentinels {ids[places].tolist()} are out of order")
    return [part[bool(number) :] for number, part in enumerate(np.split(ids, places))]
