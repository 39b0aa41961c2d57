"""ROUGE, a measure of summaries by the words that they share with a reference (Lin 2004, aclanthology.org/W04-1013)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]


def rouge_n(prediction: Words, target: Words, n: int) -> float:
    """F of the runs of `n` words that both have, each counted as often as both have it; a share in 0..1."""
    guess, truth = _ngrams(prediction, n), _ngrams(target, n)
    return _f_measure((guess & truth).total(), guess.total(), truth.total())


def rouge_l(prediction: Words, target: Words) -> float:
    """F of the longest sequence of words that both have in the same order, gaps allowed; a share in 0..1."""
    return _f_measure(longest_common_subsequence(prediction, target), len(prediction), len(target))


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Its length, by one addition for each word of `b` on a number with one bit for each word of `a`.

    A zero bit at place i says that the subsequence of a[: i + 1] is one longer than that of a[:i] (Hyyrö 2004,
    "Bit-parallel LCS-length computation revisited").
    """
    places: Counter[str] = Counter()  # of each word of `a`, a bit for each place where it stands
    for place, word in enumerate(a):
        places[word] += 1 << place
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        met = row & places[word]
        row = ((row + met) | (row - met)) & every
    return len(a) - row.bit_count()


def _ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _f_measure(shared: int, in_prediction: int, in_target: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / in_prediction, shared / in_target
    return 2 * precision * recall / (precision + recall)
