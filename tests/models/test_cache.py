"""The cache: growth, unequal rows, and dropping, reordering and doubling of rows."""

from __future__ import annotations

import weakref

import pytest
import torch

from microplane.models.decoder import Decoder, DecoderConfig
from microplane.nn.cache import Cache, PairCache
from microplane.nn.rows import Rows


@pytest.fixture
def model() -> Decoder:
    config = {
        "model_type": "mistral",
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "sliding_window": 5,
    }
    return Decoder(DecoderConfig.from_hf(config)).init_weights(1).requires_grad_(False)


def test_capacity_doubles_and_keeps_what_it_holds():
    cache = Cache(layers=1, batch=2, capacity=2)
    k, v = torch.randn(150, 1, 4), torch.randn(150, 1, 4)
    capacities, at = [], 0
    for lengths in ((1, 2), (2, 1), (70, 1), (1, 72)):
        rows = Rows.of([[0] * n for n in lengths], starts=cache.lengths)
        part = slice(at, at + sum(lengths))
        keys, values = cache.append(0, k[part], v[part], rows)
        cache.advance(rows)
        at += sum(lengths)
        capacities.append(cache.capacity)
        assert keys.shape == values.shape == (2, 1, max(cache.lengths), 4)
    assert capacities == [2, 64, 128, 128]
    assert cache.lengths == [74, 76]
    assert torch.equal(keys[0, 0, :74], k[[0, 3, 4, *range(6, 76), 77], 0])
    assert torch.equal(values[1, 0, :76], v[[1, 2, 5, 76, *range(78, 150)], 0])


def test_capacity_asked_for_is_given(model):
    cache = Cache(model.config.num_layers, 1, capacity=10)
    model(Rows.of([[3, 4]]), cache)
    assert cache.keys[0].shape == (1, 2, 10, 4)


@pytest.mark.parametrize("indices", [[0, 1, 2], [2], [2, 0], [1, 1, 0, 2]])
def test_selected_rows_go_on_as_if_alone(model, indices):
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
    cache, _ = model.start_generation(prompts)
    model(Rows.of(prompts), cache)
    cache.select(indices)
    assert cache.lengths == [len(prompts[i]) for i in indices]
    for token in (20, 21):
        hidden = model(Rows.of([[token + b] for b in range(len(indices))], starts=cache.lengths), cache)
    for b, i in enumerate(indices):
        alone = model(Rows.of([[*prompts[i], 20 + b, 21 + b]]))
        torch.testing.assert_close(hidden[b], alone[-1], rtol=1e-5, atol=1e-5)


def test_doubled_rows_do_not_share_cells(model):
    cache, _ = model.start_generation([[5, 6, 7]])
    model(Rows.of([[5, 6, 7]]), cache)
    cache.select([0, 0])
    model(Rows.of([[8], [9]], starts=cache.lengths), cache)
    assert not torch.equal(cache.keys[0][0, :, 3], cache.keys[0][1, :, 3])


def test_rooms_of_all_layers_are_the_same_list_until_one_is_another():
    like, one = torch.zeros(0, 2, 4), lambda cache: Rows.of([[1]] * len(cache.lengths), starts=cache.lengths)
    cache = Cache(2, 2, capacity=3)
    rooms = cache.rooms(like, one(cache))
    assert [x.shape for x in rooms.tensors] == [(2, 2, 3, 4)] * 4
    for _ in range(2):
        cache.advance(one(cache))
        assert cache.rooms(like, one(cache)) is rooms
    cache.advance(one(cache))
    grown = cache.rooms(like, one(cache))
    assert [x.shape[2] for x in grown.tensors] == [64] * 4
    assert grown.number != rooms.number
    old = [weakref.ref(x) for x in grown.tensors]
    del rooms, grown
    cache.select([1, 0])
    assert all(x() is None for x in old), "something holds what was replaced"
    chosen = cache.rooms(like, one(cache))
    assert {x.data_ptr() for x in chosen.tensors} == {x.data_ptr() for x in (*cache.keys, *cache.values)}
    cache.select([1])
    cache.join(Cache(2, 1))
    assert [len(x) for x in cache.rooms(like, one(cache)).tensors] == [2] * 4
    cache.drop([0])
    assert [len(x) for x in cache.rooms(like, one(cache)).tensors] == [1] * 4


def test_a_longer_row_joins_whole():
    caches, held = [], []
    for length in (2, 5):
        k, v = torch.randn(2, length, 1, 4)
        rows = Rows.of([[0] * length])
        cache = Cache(layers=1, batch=1, capacity=5)
        cache.append(0, k, v, rows)
        cache.advance(rows)
        caches.append(cache)
        held.append((k[:, 0], v[:, 0]))
    one, other = caches
    one.join(other)
    assert one.lengths == [2, 5]
    for row, (k, v) in enumerate(held):
        assert torch.equal(one.keys[0][row, 0, : len(k)], k)
        assert torch.equal(one.values[0][row, 0, : len(v)], v)


def test_sources_are_kept_as_long_as_the_longest_that_is_chosen():
    cache = PairCache(layers=1, source_lengths=(2, 5, 7))
    k, v = torch.randn(2, 3, 1, 7, 4)
    cache.memory = [(k, v)]
    cache.select([1, 0])
    assert cache.source_lengths == (5, 2)
    assert torch.equal(cache.memory[0][0], k[[1, 0], :, :5])
    assert torch.equal(cache.memory[0][1], v[[1, 0], :, :5])
