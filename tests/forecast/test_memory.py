"""What is computed at once, and what is held at most."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan
from microplane.forecast import memory
from microplane.forecast.at_once import AtOnce, Before
from microplane.forecast.blocks import BlockCost, Line
from microplane.forecast.held import Held
from microplane.forecast.machine import Rates
from microplane.forecast.memory import Forecast, Process, Shapes, TrainingBytes, forecast
from microplane.methods import make_method
from microplane.methods.method import attach_method
from microplane.models.heads import meta_copy
from microplane.nn.number_format import NumberFormat
from microplane.training.adafactor import Adafactor
from microplane.training.adamw_8bit import PART, AdamW8bit
from microplane.training.context import KEPT_PRODUCTS
from microplane.training.optim import AdamW
from tests.tiny import LLAMA, tiny

GB = 10**9
PROCESS = Process(GB)
KNOBS = TrainKnobs()
RATES = Rates(float32=1e11, bfloat16=2e11, int8=None, copy=1e10, overhead=1e-6)


def shapes(method: str = "lora", blocks: int | None = None, family: str = "llama-tied") -> Shapes:
    knobs = {"n": blocks} if blocks else {}
    made, form = make_method({"name": method, **knobs}), NumberFormat(torch.float32)
    plain = tiny(family).to("meta")
    with torch.device("meta"):
        attach_method(made, attached := meta_copy(plain))
    return Shapes(LLAMA, plain, attached, made, form)


def rows(tokens: int = 1000, evaluated: int = 0) -> AtOnce:
    return AtOnce(tokens, row=10, trained=tokens // 2, step=2 * tokens, evaluated=evaluated)


@pytest.fixture
def cost(monkeypatch):
    """Of blocks that nobody tries, in a heap without holes."""
    monkeypatch.setattr(memory, "can_cache", lambda: False)
    monkeypatch.setattr(memory, "HEAP", 0.0)

    def put(**lines: Line | float) -> None:
        monkeypatch.setattr(memory, "block_cost", lambda *how: BlockCost(**lines))

    return put


def activations(method: str = "lora", at_once: AtOnce | None = None) -> int:
    return forecast(shapes(method), at_once or rows(), KNOBS, PROCESS, None, always=True).activations


def test_each_block_keeps_and_one_works(cost):
    cost()
    least = activations()  # the head's part, gradients being none yet
    cost(kept=Line(0, 1e4), once=Line(5e5, 1e3))
    gradients = forecast(shapes(), rows(), KNOBS, PROCESS, None, always=True).gradients
    assert activations() - least == pytest.approx(2 * 1e7 - gradients + 5e5 + 1e6)


def test_gradients_and_what_is_kept_are_not_there_together(cost):
    """Of full fine-tuning, whose gradients come while what is kept goes."""
    cost(kept=Line(1e6, 0))
    trained = forecast(shapes("full"), rows(), KNOBS, PROCESS, None, always=True)
    cost(kept=Line(0, 0))
    without = forecast(shapes("full"), rows(), KNOBS, PROCESS, None, always=True)
    assert trained.activations - without.activations == pytest.approx(max(2e6 - trained.gradients, 1e6))


def test_a_long_validation_counts(cost):
    cost(kept=Line(0, 1), evaluated=Line(0, 1e5))
    assert activations(at_once=rows(evaluated=1000)) - activations() > 0.9 * 1e8


def test_products_in_bfloat16_are_compiled_for_each_size_up_to_a_limit(cost):
    cost()

    def held(sizes: int, dtype: torch.dtype) -> int:
        made = replace(shapes(), form=NumberFormat(dtype))
        return forecast(made, replace(rows(), sizes=sizes), KNOBS, PROCESS, None, always=True).activations

    one, two, many, more = (held(sizes, torch.bfloat16) for sizes in (1, 2, 25, 1000))
    assert two - one == memory.SHAPES * memory.COMPILED_BYTES
    assert many - one == (KEPT_PRODUCTS - memory.SHAPES) * memory.COMPILED_BYTES
    assert more == many
    assert held(1, torch.float32) == held(1000, torch.float32)


def test_holes_of_the_heap_are_a_share_of_what_is_kept_or_computed_anew(monkeypatch):
    """Of blocks that are computed anew too, though they keep next to nothing."""
    kept = {"none": Line(1e7, 0), "cheap": Line(1e6, 0), "blocks": Line(1e4, 0)}
    caching = [False]
    monkeypatch.setattr(memory, "can_cache", lambda: caching[0])
    monkeypatch.setattr(memory, "block_cost", lambda *how: BlockCost(kept=kept[how[-1]]))

    def lost(recompute: str) -> float:
        found = forecast(shapes(), rows(), TrainKnobs(recompute=recompute), Process(GB, True), None, always=True)
        return found.activations - max(0.0, 2 * kept[recompute](1) - found.gradients, kept[recompute](1))

    assert lost("none") == pytest.approx(lost("cheap"), abs=2)
    large_pieces_apart = 2 * 1e7 * (memory.HEAP - memory.NO_HEAP)
    assert lost("none") - lost("blocks") == pytest.approx(large_pieces_apart, abs=2)
    assert lost("none") > memory.HEAP * 2e7
    with_heap, caching[0] = lost("none"), True
    less = memory.LIBRARIES - memory.LIBRARIES_ALONE + memory.LOADED * shapes().base_bytes
    assert with_heap - lost("none") == pytest.approx(2 * 1e7 * (memory.HEAP - memory.CACHED) + less, abs=2)
    assert lost("none") == pytest.approx(lost("blocks"), abs=2)


@pytest.mark.parametrize(("before", "holes"), [(Before(), 1), (Before(filled=1, vectors=1), 0)])
def test_frozen_blocks_leave_the_holes_of_one(monkeypatch, before, holes):
    """Where all are frozen, and computed at each step; not where their features are kept."""
    monkeypatch.setattr(memory, "can_cache", lambda: False)

    def held(kept: float) -> int:
        monkeypatch.setattr(memory, "block_cost", lambda *how: BlockCost(kept=Line(kept, 0)))
        made = shapes("head-only", family="llama-untied")
        assert made.computed == 0
        return forecast(made, replace(rows(), before=before), KNOBS, PROCESS, None, always=True).activations

    assert held(1e8) - held(0) == pytest.approx(holes * memory.HEAP * 1e8, abs=2)


def test_large_gradients_find_no_room_in_the_heap(cost, monkeypatch):
    """The small ones do, as what was kept goes when they come."""
    cost(kept=Line(1e6, 0))
    small = activations("full")
    monkeypatch.setattr(memory, "MAPPED", 4 * 97 * 32)  # as the table has
    assert shapes("full").mapped == 4 * 97 * 32
    assert activations("full") - small == pytest.approx(4 * 97 * 32)


def test_frozen_blocks_keep_nothing(cost):
    cost(kept=Line(0, 1e6))
    every, one = (
        forecast(shapes(*method), rows(), KNOBS, PROCESS, None, always=True).activations
        for method in (("full",), ("last-n", 1))
    )
    assert one < 0.6 * every


def test_frozen_blocks_compute_all_rows_of_a_step(cost):
    """What no gradient goes through holds something on its way too; not where its features are kept."""
    cost(evaluated=Line(0, 1e5))

    def held(tokens: int, method: str, *blocks: int, **before: int) -> int:
        given = replace(rows(tokens=tokens), before=Before(**before))
        return forecast(shapes(method, *blocks), given, KNOBS, PROCESS, None, always=True).activations

    assert held(1000, "last-n", 1) - held(10, "last-n", 1) > 0.9 * 990 * 1e5
    kept = {"filled": 1, "vectors": 1}
    assert held(1000, "last-n", 1, **kept) - held(10, "last-n", 1, **kept) < 0.1 * 990 * 1e5
    assert held(1000, "full") - held(10, "full") < 0.1 * 990 * 1e5  # nothing of it is frozen


def test_features_are_computed_of_many_tokens_at_once_and_mapped(cost):
    cost(evaluated=Line(0, 1e5))
    few, many = (replace(rows(tokens=10), before=Before(filled=filled, vectors=1)) for filled in (1000, 3000))
    grown = activations("last-n", many) - activations("last-n", few)
    assert grown == pytest.approx((1 + memory.PASSED) * 2000 * 1e5, abs=2)
    cost()
    width, much = shapes().plain.config.hidden_size, 10**6
    mapped, none = (replace(rows(), before=Before(filled=1, vectors=vectors)) for vectors in (much, 0))
    assert activations("last-n", mapped) - activations("last-n", none) >= 4 * width * much


def test_answers_of_the_untouched_model_hold_a_cache_and_logits(cost):
    cost()
    config, least = shapes().plain.config, activations()
    cached = replace(rows(), before=Before(read=0, cached=10**6, answers=1))
    each = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    assert activations(at_once=cached) > 0.9 * (each * 10**6 - least)
    more = replace(rows(), before=Before(read=0, cached=10**6, answers=1001))
    logits = activations(at_once=more) - activations(at_once=cached)
    assert logits == pytest.approx((1 + memory.PASSED) * 1000 * config.vocab_size * 8, abs=2)
    cost(evaluated=Line(0, 1e5))
    read = [replace(rows(), before=Before(read=n, cached=10**6, answers=1)) for n in (1000, 2000)]
    grown = activations(at_once=read[1]) - activations(at_once=read[0])
    assert grown == pytest.approx((1 + memory.PASSED) * 1000 * 1e5, abs=2)


def test_what_trains_is_not_there_before_the_first_step(cost):
    """Full fine-tuning has gradients and an optimizer's state later, and more room for answers before that."""
    cost()
    before = Before(cached=10**6, answers=1)
    lora, full = (
        forecast(shapes(name), replace(rows(), before=before), KNOBS, PROCESS, None, always=True)
        for name in ("lora", "full")
    )
    assert lora.gradients + lora.adapter + lora.optimizer != full.gradients + full.optimizer
    assert lora.peak_memory_bytes == pytest.approx(full.peak_memory_bytes, abs=10)


def test_above_a_boundary_all_of_a_block_trains(monkeypatch):
    tried = []
    monkeypatch.setattr(
        memory, "block_cost", lambda fields, size, method, *how: tried.append(method.name) or BlockCost()
    )
    for how in (("lora",), ("last-n", 1)):
        forecast(shapes(*how), rows(), KNOBS, PROCESS, None, always=True)
    assert tried == ["lora", "full"]


def test_small_blocks_are_not_tried(monkeypatch):
    monkeypatch.setattr(memory, "block_cost", lambda *how: pytest.fail("tried"))
    found = forecast(shapes(), rows(), KNOBS, PROCESS, RATES)
    assert found.activations > 0
    assert found.seconds_per_1000_tokens is None


def test_time_is_of_blocks_head_and_optimizer(cost):
    cost(seconds=1e-4)
    found = forecast(shapes(), rows(), KNOBS, PROCESS, RATES, always=True)
    head = 500 * 4 * 97 * 32 / 1e11
    optimizer = 0.5 * 28 * found.trainable / 1e10
    assert found.seconds_per_1000_tokens == pytest.approx(0.2 + head + optimizer)
    assert forecast(shapes(), rows(), KNOBS, PROCESS, None, always=True).seconds_per_1000_tokens is None


def test_the_peak_is_the_sum_of_its_parts():
    assert Forecast(1, 10, 20, 30, 40, 50, 60, 70).peak_memory_bytes == 210


@pytest.mark.parametrize(("optimizer", "state"), [("adamw", 8), ("adamw_8bit", 2), ("adafactor", 0)])
def test_what_weights_that_train_bring_with_them(optimizer, state):
    """In the folder: the adapter, and two checkpoints, each with the optimizer's state."""
    beside, own = (TrainingBytes.of(make_method({"name": name}), 1000, optimizer) for name in ("lora", "full"))
    assert beside == TrainingBytes(4000, 4000, 1000 * state, 4000 + 2 * (4000 + 1000 * state))
    assert own == replace(beside, added=0)


def test_the_gradient_of_a_table_that_trains_is_there_twice():
    """Of a tied one, as head and as embedding, before the two are added up."""
    full, lora = (memory._table(shapes(name)) for name in ("full", "lora"))
    assert full - lora == 4 * LLAMA["vocab_size"] * LLAMA["hidden_size"]


def test_passes_do_not_change_a_step_and_a_validation_is_bounded_by_its_knob():
    lengths = np.array([50] * 16, dtype=np.int32)
    once, thrice = (TrainKnobs(batch_size=8, epochs=epochs) for epochs in (1, 3))
    found = [AtOnce.of(BatchPlan.of(lengths, knobs), [lengths], 1.0, knobs, 64) for knobs in (once, thrice)]
    assert [one.step for one in found] == [400, 400]
    assert [one.evaluated for one in found] == [64, 64]


def test_the_largest_micro_batch_is_found():
    lengths = np.array([10] * 30 + [400, 380], dtype=np.int32)
    knobs = TrainKnobs(batch_size=4, micro_tokens=500)
    found = AtOnce.of(BatchPlan.of(lengths, knobs), [lengths[:10]], 0.25, knobs, 8192)
    assert 400 <= found.tokens <= 500
    assert found.row > 300  # rows weigh by their length
    assert found.trained == -(-found.tokens // 4)
    assert found.evaluated == 10  # a tenth of the validation
    assert found.step == pytest.approx(lengths.mean() * 4)


def test_all_of_a_batch_is_computed_at_once_where_it_fits():
    lengths = np.array([50] * 16, dtype=np.int32)
    for knobs, tokens in ((TrainKnobs(batch_size=8), 400), (TrainKnobs(batch_size=8, micro_tokens=100), 100)):
        assert AtOnce.of(BatchPlan.of(lengths, knobs), [lengths], 1.0, knobs, 8192).tokens == tokens


@pytest.mark.parametrize(("sets", "tokens"), [([10, 10], 60), ([10, 200], 500), ([900, 10], 900)])
def test_what_is_measured_of_each_set_counts(sets, tokens):
    """A tenth of its tokens at once, what the knob allows at most, and a long row alone: whichever is the largest."""
    lengths, knobs = np.array([50] * 16, dtype=np.int32), TrainKnobs()
    measured = [np.array([one] * (60 if one < 900 else 1), dtype=np.int32) for one in sets]
    assert AtOnce.of(BatchPlan.of(lengths, knobs), measured, 1.0, knobs, 500).evaluated == tokens


def test_of_how_many_micro_batches_a_step_is():
    lengths = np.array([50] * 16, dtype=np.int32)
    for micro, parts in ((400, 1), (200, 2), (100, 4)):
        knobs = TrainKnobs(batch_size=8, micro_tokens=micro)
        assert AtOnce.of(BatchPlan.of(lengths, knobs), [lengths], 1.0, knobs, 8192).parts == parts
        assert AtOnce.of_rows(50, knobs, 8192).parts == parts


def test_gradients_of_the_micro_batch_before_are_there(cost):
    """And at the end of a backward pass a tensor's new gradient stands beside the one that it is added to."""
    large, small = Line(1e6, 0), Line(1e3, 0)
    gradients = forecast(shapes("full"), rows(), KNOBS, PROCESS, None, always=True).gradients
    for kept, more in ((large, gradients), (small, 4 * shapes("full").largest)):
        cost(kept=kept)
        one, two = (activations("full", replace(rows(), parts=parts)) for parts in (1, 2))
        assert two - one == pytest.approx(more, abs=1)


@pytest.mark.parametrize(("name", "numbers"), [("adamw", 0), ("adafactor", 1 << 22), ("adamw_8bit", PART)])
def test_what_an_optimizer_works_with(name, numbers):
    """Of what its step makes, whatever else it holds: seen on a tensor that 8 bits go through in parts."""
    weight = torch.nn.Parameter(torch.zeros(2048, 2048))
    kinds = {"adamw": partial(AdamW, fused=True), "adafactor": Adafactor, "adamw_8bit": AdamW8bit}
    optimizer = kinds[name]([weight], lr=1e-3)
    for _ in range(2):  # in the first its state is made
        weight.grad = torch.randn_like(weight)
        with Held([weight, weight.grad, *optimizer.state[weight].values()]) as held:
            optimizer.step()
        seen = held.peak  # in the last step, where all of the state is there
    told = memory._stepping(name, weight.numel())
    assert told == memory.WORKING[name] * numbers
    assert seen == pytest.approx(told, rel=0.1, abs=1e5)


@pytest.mark.parametrize(("mapped", "more"), [(1 << 30, 0), (1, 4 * 97 * 32)])
def test_a_large_piece_of_the_optimizer_stands_beside_all_that_the_heap_had(cost, monkeypatch, mapped, more):
    """A small one takes the room of what was kept."""
    cost(kept=Line(1e6, 0))
    monkeypatch.setattr(memory, "MAPPED", mapped)
    monkeypatch.setattr(memory, "_table", lambda *how: 0)  # of a head over the vocabulary, which takes as much
    adamw, adafactor = (
        forecast(shapes("full"), rows(), TrainKnobs(optimizer=name), PROCESS, None, always=True).activations
        for name in ("adamw", "adafactor")
    )
    assert adafactor - adamw == pytest.approx(more)


def test_rows_that_are_assumed():
    found = AtOnce.of_rows(256, TrainKnobs(), 8192)
    assert (found.tokens, found.row, found.trained, found.step) == (2048, 256, 2048, 2048)


@pytest.mark.parametrize(
    ("recompute", "loaded", "more"),
    [("none", False, 0), ("cheap", False, 0), ("blocks", False, 1), ("blocks", True, 0)],
)
def test_torchs_compiler_counts_where_the_process_does_not_have_it_yet(cost, recompute, loaded, more):
    """Whatever the trial of a block imports: a run that found its blocks in the cache imports it later."""
    cost()

    def held(compiler: bool) -> int:
        knobs = TrainKnobs(recompute=recompute)
        return forecast(shapes(), rows(), knobs, Process(GB, compiler), None, always=True).activations

    assert held(loaded) - held(True) == more * memory.COMPILER


@pytest.mark.parametrize("there", [False, True])
def test_of_this_process_it_is_known_whether_the_compiler_is_there(monkeypatch, there):
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)
    if not there:
        monkeypatch.delitem(sys.modules, "torch._dynamo")
    assert Process.now().compiler is there
