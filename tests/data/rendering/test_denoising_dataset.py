"""Texts as pairs by span corruption and prefix language modelling: pieces, epochs, and what stays the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.data.rendering.denoising_dataset import DenoisedDataset, sentinels_of
from microplane.data.rendering.span_corruption import restore
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import DataError
from microplane.objectives.select import candidates
from microplane.objectives.seq2seq import Seq2Seq
from tests.tiny import save_byte_tokenizer, tiny_pairs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    save_byte_tokenizer(folder, ends=True)
    return load_tokenizer(folder)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"a text of number {n} and {n * n}"}) + "\n" for n in range(60)))
    return path


def splits(file, tokenizer, seed=0, **knobs):
    model = tiny_pairs("t5")
    data = DataKnobs(train=str(file), max_length=40, **knobs)
    return load_splits(data, tokenizer, candidates(model, data), seed=seed)


def sides(dataset, row):
    ids, trained = dataset[row]
    cut = int(np.argmax(trained))
    assert trained[cut:].all()
    return ids[:cut], ids[cut:]


def test_pieces_together_are_the_stream_of_all_texts(file, tokenizer):
    train = splits(file, tokenizer).train
    sentinels = sentinels_of(tokenizer)
    pieces = [restore(*sides(train, row), sentinels, 1) for row in range(len(train))]
    whole = np.concatenate(pieces)
    assert np.array_equal(whole, train.texts.flat_ids[: len(whole)])
    assert len(train.texts.flat_ids) - len(whole) < train.piece / 4


def test_lengths_are_those_of_the_inputs_asked_for_and_do_not_change_with_the_epoch(file, tokenizer):
    train = splits(file, tokenizer).train
    for epoch in (0, 3):
        seen = train.at(epoch)
        assert [len(seen[row][0]) for row in range(len(seen))] == train.lengths.tolist()
        assert [int(seen[row][1].sum()) for row in range(len(seen))] == train.trained_counts.tolist()
    assert len(sides(train, 0)[0]) == 40


def test_every_epoch_draws_anew_and_repeats_itself(file, tokenizer):
    train = splits(file, tokenizer).train
    assert not np.array_equal(train.at(0)[1][0], train.at(1)[1][0])
    assert np.array_equal(train.at(1)[1][0], train.at(0).at(1)[1][0])
    assert train.at(0) is train


def test_prefix_language_modelling_cuts_without_sentinels(file, tokenizer):
    train = splits(file, tokenizer, objective="prefix_lm").train
    source, target = sides(train, 0)
    assert np.array_equal(np.concatenate([source[:-1], target[:-1]]), train.texts.flat_ids[:40])
    assert source[-1] == target[-1] == 1
    assert Seq2Seq().collate(train, [0, 1]).count == sum(len(sides(train, row)[1]) for row in (0, 1))


def test_where_a_piece_begins_is_told_by_the_text_that_it_begins_in(file, tokenizer):
    train = splits(file, tokenizer).train
    assert train.where(0) == train.texts.where(0)
    rows = [int(train.where(row).split(":")[1]) for row in range(len(train))]
    assert rows == sorted(rows)


def test_too_little_text_and_no_sentinels_are_refused(file, tokenizer, tmp_path, make_tiny):
    texts = splits(file, tokenizer).train.texts
    short = type("Short", (), {"flat_ids": texts.flat_ids[:5], "fingerprint": "", "where": texts.where})()
    with pytest.raises(DataError, match="the text has 5 tokens, too few for one piece of data.max_length = 40"):
        DenoisedDataset(short, "span_corruption", 40, sentinels_of(tokenizer), 1)
    with pytest.raises(DataError, match="this vocabulary has no <extra_id_0>; choose data.objective=prefix_lm"):
        sentinels_of(make_tiny())


def test_more_spans_than_sentinels_are_refused_before_any_row_with_the_length_that_works(file, tokenizer):
    texts, few = splits(file, tokenizer).train.texts, sentinels_of(tokenizer)[:3]
    with pytest.raises(DataError, match="spans to be taken out, and the vocabulary has 3 sentinels") as told:
        DenoisedDataset(texts, "span_corruption", 100, few, 1)
    most = int(str(told.value).split("set data.max_length to ")[1].split()[0])
    works = DenoisedDataset(texts, "span_corruption", most, few, 1)
    assert max(len(works.pair(row)[0]) for row in range(len(works))) == most
    assert max(int(ids.max()) for row in range(len(works)) for ids in works.pair(row)) == works.highest_id
    with pytest.raises(DataError, match="3 sentinels"):
        DenoisedDataset(texts, "span_corruption", most + 1, few, 1)


def test_an_answer_is_the_target_without_its_end(file, tokenizer):
    train = splits(file, tokenizer).train
    source, target = (side.tolist() for side in train.pair(0))
    assert target[-1] == tokenizer.eos_ids[0]
    assert train.prompt_and_target(0) == (source, target[:-1])


@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_the_seed_draws_the_training_rows_and_not_those_to_measure_on(file, tokenizer, objective):
    one, again, other = (splits(file, tokenizer, seed, objective=objective) for seed in (1, 1, 2))
    rows = range(len(one.train))
    drawn = [[side.tolist() for row in rows for side in made.train.pair(row)] for made in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({made.train.fingerprint for made in (one, other)}) == 2
    assert one.validation.fingerprint == other.validation.fingerprint
    assert all(np.array_equal(*pair) for pair in zip(one.validation.pair(0), other.validation.pair(0), strict=True))
