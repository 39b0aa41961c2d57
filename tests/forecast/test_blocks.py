"""What is seen on one block and two tells what all blocks hold."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from microplane.forecast import blocks
from microplane.forecast.blocks import BlockCost, Line, block_cost, forget_block
from microplane.forecast.held import Held
from microplane.methods import make_method
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops.scratch import no_scratch, scratch_buffer
from tests.tiny import CONFIGS, ENCODER_CONFIGS, LLAMA, PAIR_CONFIGS

SHAPE = LLAMA | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "max_position_embeddings": 1024}
FLOAT32 = NumberFormat(torch.float32)
INT8 = FLOAT32._replace(quantised="int8")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "cache_dir", lambda: tmp_path / "cache")


def test_what_lives_is_held_and_what_is_gone_is_not():
    with Held() as held:
        x = torch.zeros(100)
        y = x + 1
        del x
        z = torch.zeros(50)
    assert (held.now, held.peak) == (y.nbytes + z.nbytes, 800)


def test_views_and_what_was_there_count_nothing():
    there = torch.zeros(100)
    with Held([there]) as held:
        views = there.view(10, 10), there[:5]
        there.add_(1)
    assert (held.now, held.peak, len(views)) == (0, 0, 2)


def test_backward_is_seen_too():
    layer, x = nn.Linear(8, 8), torch.ones(4, 8)
    with Held([*layer.parameters(), x]) as held:
        layer(x).sum().backward()
    assert held.now >= sum(p.grad.nbytes for p in layer.parameters())


def test_every_output_of_a_block_has_a_gradient_of_one():
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    layer(x).sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    blocks._backward(layer(x))
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    blocks._backward(torch.ones(3))  # nothing trains


TRIES = """
import sys
import torch
from microplane.forecast.blocks import block_cost
from microplane.methods import make_method
from microplane.nn.number_format import NumberFormat
from tests.forecast.test_blocks import SHAPE
cost = block_cost(SHAPE, 1, make_method(sys.argv[1]), NumberFormat(torch.float32), 8)
assert cost.kept.token > 0
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""


@pytest.mark.parametrize("method", ["lora", "full", "dora", "ia3"])
def test_to_try_blocks_imports_neither_sympy_nor_torchs_compiler(tmp_path, method):
    """A second or three of a process, for nothing that it uses."""
    folder = {"MICROPLANE_CACHE": str(tmp_path), "MICROPLANE_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", TRIES, method], capture_output=True, text=True, timeout=300, env=os.environ | folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]"]


def test_scratch_memory_is_made_anew_and_comes_back():
    before = scratch_buffer("a test's", (10,), torch.float32, torch.device("cpu"))
    with no_scratch():
        assert scratch_buffer("a test's", (10,), torch.float32, torch.device("cpu")).data_ptr() != before.data_ptr()
    assert scratch_buffer("a test's", (10,), torch.float32, torch.device("cpu")).data_ptr() == before.data_ptr()


def test_a_line_through_two_numbers_of_tokens():
    line = Line.through((10, 20), 50.0, 80.0)
    assert (line.fixed, line.token, line(100)) == (20.0, 3.0, 320.0)
    assert Line.through((10, 20), 80.0, 50.0) == Line(80.0, 0.0)
    assert Line.through((10, 40), 10.0, 100.0) == Line(0.0, 2.5)  # it grows faster than a line: through the many


@pytest.mark.parametrize("method", ["lora", "full", "dora", "prefix"])
@pytest.mark.parametrize("recompute", ["none", "blocks"])
@pytest.mark.parametrize(("row", "rows"), [(48, 8), (900, 1)])
def test_what_all_blocks_hold_is_what_two_tell(method, recompute, row, rows):
    """Of six blocks, seen as a whole."""
    made = make_method({"name": method})
    cost = block_cost(SHAPE, 1, made, FLOAT32, row, recompute)
    whole = blocks._Try.of(blocks._model(blocks._smaller(SHAPE, 6, 1), made, FLOAT32), row, rows, recompute)
    tokens = row * rows
    assert 0.97 * whole.peak < 6 * cost.kept(tokens) + cost.once(tokens) < 1.4 * whole.peak
    assert cost.evaluated(tokens) == pytest.approx(whole.evaluated, rel=0.1)


@pytest.mark.parametrize(
    ("row", "most"), [(1, 512), (200, 400), (512, 1024), (513, 513), (990, 990), (1024, 1024), (9000, 1024)]
)
def test_a_long_row_is_tried_once(monkeypatch, row, most):
    seen = []

    def tried(model: nn.Module, row: int, rows: int, recompute: str) -> blocks._Try:
        seen.append(row * rows)
        return blocks._Try(0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(blocks._Try, "of", tried)
    block_cost(SHAPE, 1, make_method({"name": "lora"}), FLOAT32, row)
    assert max(seen) == most
    assert min(seen) < most


def test_recomputed_blocks_keep_less():
    made = make_method({"name": "lora"})
    every, none = (block_cost(SHAPE, 1, made, FLOAT32, 48, what) for what in ("none", "blocks"))
    assert none.kept.token < every.kept.token / 4


def test_narrower_blocks_tell_of_wide_ones():
    wide = SHAPE | {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 16, "num_key_value_heads": 8}
    made = make_method({"name": "lora", "rank": 1})
    as_it_is = block_cost(wide, 1, made, FLOAT32, 64)
    narrower = block_cost(wide, 200_000_000, made, FLOAT32, 64)
    assert narrower.kept.token == pytest.approx(as_it_is.kept.token, rel=0.15)


@pytest.mark.parametrize(
    ("family", "odd"),
    [
        ("gpt2", {"n_embd": 100, "n_head": 25}),
        ("llama-tied", {"hidden_size": 60, "num_attention_heads": 15, "num_key_value_heads": 5}),
        ("llama-tied", {"hidden_size": 72, "num_attention_heads": 36, "num_key_value_heads": 4}),
        ("bert", {"hidden_size": 84, "num_attention_heads": 7}),
    ],
)
def test_heads_that_cannot_be_halved_are_made_fewer_all_the_same(family, odd):
    """gpt2-xl has 25 of them."""
    fields = (CONFIGS | ENCODER_CONFIGS)[family] | odd
    for factor in (2, 4):
        model = blocks._model(blocks._smaller(fields, 1, factor), make_method({"name": "lora"}), FLOAT32)
        assert model.config.hidden_size <= next(iter(odd.values())) / factor


def test_the_parts_of_a_model_are_made_smaller_one_by_one():
    """T5Gemma's config.json describes its two sides each in an object of its own."""
    sides = {name: PAIR_CONFIGS["t5gemma"][name] | {"num_hidden_layers": 6} for name in ("encoder", "decoder")}
    smaller = blocks._smaller(PAIR_CONFIGS["t5gemma"] | sides, 1, 2)
    assert [smaller[name]["num_hidden_layers"] for name in sides] == [1, 1]
    assert [smaller[name]["hidden_size"] for name in sides] == [20, 16]
    cost = block_cost(PAIR_CONFIGS["t5gemma"] | sides, 1, make_method({"name": "lora"}), FLOAT32, 16)
    assert cost.kept.token > 0


def test_blocks_are_tried_once(monkeypatch):
    made = make_method({"name": "lora"})
    first = block_cost(SHAPE, 1, made, FLOAT32, 16)
    monkeypatch.setattr(blocks, "_tried", lambda *how: pytest.fail("tried again"))
    assert block_cost(SHAPE, 1, made, FLOAT32, 16) == first
    monkeypatch.setattr(blocks, "_tried", lambda *how: BlockCost(seconds=7.0))
    assert block_cost(SHAPE, 1, make_method({"name": "lora", "rank": 2}), FLOAT32, 16).seconds == 7.0


@pytest.mark.parametrize(
    "other",
    [{"row": 32}, {"recompute": "blocks"}, {"fields": LLAMA}, {"method": make_method({"name": "dora"})},
     {"form": FLOAT32}, {"form": INT8._replace(in_8_bits=True)}, {"form": INT8._replace(dtype=torch.bfloat16)}],
)  # fmt: skip
def test_blocks_are_kept_by_all_that_decides_them(monkeypatch, other):
    how = {"fields": SHAPE, "weights": 1, "method": make_method({"name": "lora"}), "form": INT8, "row": 16}
    monkeypatch.setattr(blocks, "_tried", lambda *how: BlockCost(seconds=1.0))
    block_cost(**how)
    monkeypatch.setattr(blocks, "_tried", lambda *how: BlockCost(seconds=7.0))
    assert block_cost(**how).seconds == 1.0
    assert block_cost(**how | other).seconds == 7.0


def test_what_was_forgotten_is_tried_again(monkeypatch):
    """And nothing else is forgotten."""
    tried, given = [], (SHAPE, 1, make_method("ia3"), FLOAT32)
    monkeypatch.setattr(blocks, "_tried", lambda *how: tried.append(how) or BlockCost())
    for row in (23, 29):
        block_cost(*given, row)
    forget_block(*given, 23)
    block_cost(*given, 29, "blocks")
    forget_block(*given, 29, "cheap")  # which was never tried
    for row in (23, 29):
        block_cost(*given, row)
    forget_block(*given, 29, "blocks")
    block_cost(*given, 29)
    assert [how[4] for how in tried] == [23, 29, 29, 23]


def test_of_narrower_blocks_each_part_is_widened_by_how_it_grows(monkeypatch):
    """Weights and products with the square of the width, what is held of a token with the width."""

    def tried(model: nn.Module, row: int, rows: int, recompute: str) -> blocks._Try:
        depth, tokens = len(model.layers), row * rows
        kept = depth * (10 + 3 * tokens)
        return blocks._Try(kept, kept + 7 + 2 * tokens, 5 + 4 * tokens, depth * 1e-3 * tokens)

    monkeypatch.setattr(blocks._Try, "of", tried)
    cost = blocks._tried(SHAPE, 2, make_method({"name": "lora"}), FLOAT32, 64, "none")
    assert (cost.kept, cost.once, cost.evaluated) == (Line(4 * 10, 2 * 3), Line(4 * 7, 2 * 2), Line(4 * 5, 2 * 4))
    assert cost.seconds == pytest.approx(4 * 1e-3)


def test_heads_keep_their_width_in_narrower_blocks():
    fields = {name: value for name, value in SHAPE.items() if name != "head_dim"} | {"num_attention_heads": 4}
    narrower = blocks._smaller(fields, 1, 2)
    assert (narrower["hidden_size"], narrower["num_attention_heads"], narrower["head_dim"]) == (32, 2, 16)


def test_a_damaged_entry_is_made_anew(tmp_path):
    made = make_method({"name": "lora"})
    first = block_cost(SHAPE, 1, made, FLOAT32, 16)
    (entry,) = (tmp_path / "cache" / "blocks").iterdir()
    entry.write_text("{")
    assert block_cost(SHAPE, 1, made, FLOAT32, 16).kept == first.kept


def test_random_numbers_stay_as_they_were():
    state = torch.get_rng_state()
    block_cost(SHAPE, 1, make_method({"name": "lora"}), FLOAT32, 16)
    assert torch.equal(state, torch.get_rng_state())
