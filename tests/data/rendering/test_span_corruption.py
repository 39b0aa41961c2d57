"""Span corruption and prefix language modelling: what goes in comes out again, in the published numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplane.data.rendering.span_corruption import (
    corrupt_spans,
    corrupted_lengths,
    noise_counts,
    noise_mask,
    prefix_lm,
    restore,
    spans_input_length,
)
from microplane.errors import DataError

SENTINELS = list(range(32099, 31999, -1))
EOS = 1
QUICK = settings(max_examples=60, deadline=None)
TEXTS = st.lists(st.integers(2, 31999), min_size=2, max_size=700).map(lambda ids: np.array(ids, np.int32))
SEEDS = st.integers(0, 2**32)
# a mean span below 2 makes so many spans that the sentinels of T5 would not do for 700 tokens
NOISES, MEANS = st.floats(0.01, 0.9), st.floats(7.0, 20.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def of(ids, wanted):
    return [token for token in ids.tolist() if token in wanted]


@QUICK
@given(TEXTS, SEEDS, st.sampled_from([EOS, None]))
def test_inputs_and_targets_interleaved_are_the_text(ids, seed, eos):
    inputs, targets = corrupt_spans(ids, SENTINELS, eos, rng(seed))
    back = restore(inputs, targets, SENTINELS, eos)
    assert back.tolist() == ids.tolist()
    assert inputs.dtype == targets.dtype == ids.dtype


@QUICK
@given(TEXTS, SEEDS, NOISES, MEANS)
def test_with_any_share_of_noise_too(ids, seed, noise, mean_span):
    inputs, targets = corrupt_spans(ids, SENTINELS, EOS, rng(seed), noise, mean_span)
    assert restore(inputs, targets, SENTINELS, EOS).tolist() == ids.tolist()
    assert (len(inputs), len(targets)) == corrupted_lengths(len(ids), noise, mean_span)


@QUICK
@given(TEXTS, SEEDS)
def test_the_numbers_of_tokens_and_sentinels(ids, seed):
    inputs, targets = corrupt_spans(ids, SENTINELS, EOS, rng(seed))
    tokens, spans = noise_counts(len(ids))
    assert tokens == min(max(round(0.15 * len(ids)), 1), len(ids) - 1)
    assert of(inputs, SENTINELS) == of(targets, SENTINELS) == SENTINELS[:spans]
    assert len(targets) == tokens + spans + 1
    assert len(inputs) == len(ids) - tokens + spans + 1
    assert inputs[-1] == targets[-1] == EOS
    assert inputs[0] == ids[0]  # begins with what is not noise
    assert targets[0] == SENTINELS[0]
    assert inputs[-2] == SENTINELS[spans - 1]  # and ends with noise


@QUICK
@given(st.integers(2, 700), SEEDS, NOISES, MEANS)
def test_the_mask_has_exactly_n_tokens_in_s_spans(length, seed, noise, mean_span):
    mask = noise_mask(length, rng(seed), noise, mean_span)
    tokens, spans = noise_counts(length, noise, mean_span)
    assert len(mask) == length
    assert mask.sum() == tokens
    assert (np.diff(mask.astype(int)) == 1).sum() == spans
    assert not mask[0]
    assert mask[-1]


@QUICK
@given(TEXTS, SEEDS)
def test_the_seed_decides(ids, seed):
    for function in (lambda r: corrupt_spans(ids, SENTINELS, EOS, r), lambda r: prefix_lm(ids, EOS, r)):
        for first, second in zip(function(rng(seed)), function(rng(seed)), strict=True):
            assert first.tolist() == second.tolist()


def test_other_seeds_make_other_spans_and_the_text_stays():
    ids = np.arange(100, 300)
    made = {corrupt_spans(ids, SENTINELS, EOS, rng(seed))[0].tobytes() for seed in range(20)}
    assert len(made) == 20
    assert ids.tolist() == list(range(100, 300))


def test_the_lengths_of_t5():
    assert spans_input_length(512) == (568, 114)
    assert noise_counts(568) == (85, 28)
    assert corrupted_lengths(568) == (512, 114)
    inputs, targets = corrupt_spans(np.full(568, 7), SENTINELS, EOS, rng())
    assert (len(inputs), len(targets)) == (512, 114)


@QUICK
@given(st.integers(3, 900), st.floats(0.05, 0.5), st.floats(1.5, 10.0))
def test_one_token_more_would_not_fit(inputs, noise, mean_span):
    length, targets = spans_input_length(inputs, noise, mean_span)
    fits, made = corrupted_lengths(length, noise, mean_span)
    assert fits <= inputs < corrupted_lengths(length + 1, noise, mean_span)[0]
    assert made == targets


def test_all_partitions_are_equally_likely():
    """Ten tokens, four of them noise in two spans: 5 ways to cut six, times 3 ways to cut four."""
    generator, draws = rng(), 6000
    seen = Counter(noise_mask(10, generator, 0.4, 2.0).tobytes() for _ in range(draws))
    assert len(seen) == 15
    sigma = (draws / 15 * 14 / 15) ** 0.5
    assert all(abs(count - draws / 15) < 4 * sigma for count in seen.values())


def test_an_example_by_hand(monkeypatch):
    mask = np.array([0, 1, 1, 0, 0, 0, 1, 1], bool)
    monkeypatch.setattr("microplane.data.rendering.span_corruption.noise_mask", lambda *given: mask)
    inputs, targets = corrupt_spans(np.arange(10, 18), [99, 98, 97], EOS, rng(), 0.5, 2.0)
    assert inputs.tolist() == [10, 99, 13, 14, 15, 98, EOS]
    assert targets.tolist() == [99, 11, 12, 98, 16, 17, EOS]


@QUICK
@given(TEXTS, SEEDS)
def test_a_prefix_and_its_continuation_are_the_text(ids, seed):
    inputs, targets = prefix_lm(ids, EOS, rng(seed))
    assert len(inputs) > 1
    assert len(targets) > 1
    assert inputs[-1] == targets[-1] == EOS
    assert [*inputs[:-1], *targets[:-1]] == ids.tolist()


def test_every_place_to_cut_is_equally_likely():
    generator, draws = rng(), 4000
    seen = Counter(len(prefix_lm(np.arange(6), None, generator)[0]) for _ in range(draws))
    assert set(seen) == {1, 2, 3, 4, 5}
    assert all(abs(count - draws / 5) < 4 * (draws * 0.16) ** 0.5 for count in seen.values())


@pytest.mark.parametrize(("noise", "mean_span"), [(0.0, 3.0), (1.0, 3.0), (0.15, 0.5)])
def test_a_share_of_all_or_nothing_is_a_mistake(noise, mean_span):
    with pytest.raises(AssertionError, match="a share, and at least 1 token"):
        noise_counts(10, noise, mean_span)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(DataError, match="a text of 1 tokens cannot be cut .* at least 2 are needed"):
        corrupt_spans(np.array([5]), SENTINELS, EOS, rng())
    with pytest.raises(DataError, match="a text of 0 tokens"):
        prefix_lm(np.array([], np.int32), EOS, rng())
    with pytest.raises(DataError, match=r"of 2,100 tokens makes 105 spans, but the tokenizer has 100 sentinels; cut"):
        corrupt_spans(np.full(2100, 5), SENTINELS, EOS, rng())
    with pytest.raises(DataError, match="the text holds the sentinel 32098"):
        corrupt_spans(np.array([5, 32098, 6]), SENTINELS, EOS, rng())
    with pytest.raises(DataError, match="inputs of 2 tokens: at least 3"):
        spans_input_length(2)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([5, 99, 6, 98], [99, 7], "inputs with 2 sentinels and targets with 1"),
        ([5, 98, 6, 99], [99, 7, 98, 8], r"the sentinels \[98, 99\] are out of order"),
        ([5, 99], [7, 99, 8], "not of one text"),
    ],
)
def test_what_does_not_belong_together_is_not_restored(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        restore(np.array(inputs), np.array(targets), [99, 98], EOS)


@pytest.mark.parametrize(("length", "counts"), [(568, (85, 28)), (33, (5, 2)), (50, (8, 3)), (10, (2, 1)), (2, (1, 1))])
def test_noise_and_spans_are_rounded_to_the_nearest(length, counts):
    assert noise_counts(length) == counts
