"""What goes wrong with T5 elsewhere: half precision, start and pad tokens, packing, prefixes, decoded masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from microplane.adapters.merge import merge
from microplane.config.knobs import EvalKnobs, GenerateKnobs
from microplane.errors import ModelError
from microplane.evaluation.evaluate import evaluate_answers
from microplane.inference.generate import generate
from microplane.methods import make_method
from microplane.models.configs.t5 import T5Config
from microplane.models.contract import linears
from microplane.models.files.load import load_model, save_model
from microplane.nn.number_format import NumberFormat
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.seq2seq import Seq2Seq
from microplane.objectives.text import TokenBatch, token_loss
from tests.runs.test_seq2seq import SET, pair_folder, shout
from tests.tiny import PAIR_CONFIGS, tiny_pairs

FAMILIES = ["t5", "t5-v1.0"]


def pairs(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Sources and targets, both with the end token."""
    rng = np.random.default_rng(seed)
    lengths = [(rng.integers(1, 30), rng.integers(1, 9)) for _ in range(count)]
    made = [tuple([*rng.integers(2, 97, n).tolist(), 1] for n in both) for both in lengths]
    return [(read, written) for read, written in made]


def batch_of(rows: list[tuple[list[int], list[int]]], start: int = 0) -> TokenBatch:
    target = Rows.of([[start, *written[:-1]] for _, written in rows])
    wanted = torch.tensor([token for _, written in rows for token in written])
    return TokenBatch(Pairs(Rows.of([read for read, _ in rows]), target), torch.arange(len(wanted)), wanted)


# Half precision


def half_folder(folder, family="t5"):
    """A folder whose weights are stored in float16, as some publish them."""
    from safetensors.torch import load_file, save_file

    pair_folder(folder, family)
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float16", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_a_float16_checkpoint_is_computed_in_another_format(tmp_path):
    folder = half_folder(tmp_path / "half")
    assert {parameter.dtype for parameter in load_model(folder).parameters()} == {torch.float32}
    with pytest.raises(ModelError, match=r"half: T5 is never kept in float16: its activations grow .* NaN. Choose b"):
        load_model(folder, torch.float16)
    for form in (
        NumberFormat(torch.float16, weights=torch.float32),
        NumberFormat(torch.float32, weights=torch.float16),
    ):
        with pytest.raises(ModelError, match=r"never kept in float16"):
            load_model(folder, form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_beyond_what_float16_holds_stays_finite(dtype):
    """As in the large ones, where the feed-forward layers of the encoder add tens of thousands."""
    model = tiny_pairs()
    for block in model.encoder.layers:
        block.mlp.down.weight.mul_(1e5)
    model.to(dtype)
    seen = []
    model.encoder.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batch_of(pairs(4))
    loss = token_loss(model.requires_grad_(True), batch)
    loss.backward()
    assert seen[0].abs().max() > 65504
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_saving_and_merging_in_float16_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"T5 is never kept in float16"):
        save_model(tiny_pairs(), tmp_path / "saved", torch.float16)
    assert not (tmp_path / "saved").exists()

    import microplane

    model, data = half_folder(tmp_path / "model"), shout(tmp_path)
    run = microplane.train(str(model), str(data), method="lora", set=SET | {"runs": str(tmp_path / "runs")})
    with pytest.raises(ModelError, match=r"T5 is never kept in float16"):
        merge(run.folder, tmp_path / "merged", torch.float16)
    assert not (tmp_path / "merged").exists()
    assert merge(run.folder, tmp_path / "merged").dtype == torch.float32  # though the base is stored in float16


# Start token and pad


@pytest.mark.parametrize("start", [0, 5])
def test_answers_begin_with_the_start_token_of_the_config(start):
    fields = PAIR_CONFIGS["t5"] | {"decoder_start_token_id": start}
    config = T5Config.from_hf(fields)
    assert config.decoder_start == config.to_hf()["decoder_start_token_id"] == start
    model = type(tiny_pairs()).from_hf(fields).init_weights(0).eval()
    assert model.start_generation([[4, 1], [7, 8, 1]])[1] == [[start]] * 2


def test_without_a_start_token_it_is_the_pad():
    fields = {name: x for name, x in PAIR_CONFIGS["t5"].items() if name != "decoder_start_token_id"}
    assert T5Config.from_hf(fields | {"pad_token_id": 3}).decoder_start == 3
    assert T5Config.from_hf({name: x for name, x in fields.items() if name != "pad_token_id"}).decoder_start == 0


class Stored:
    """Two pairs as the data cache holds them: one row each, and where it is cut."""

    features = None

    rows = ([7, 8, 1, 9, 1], 3), ([5, 1, 6, 6, 6, 1], 2)

    def pair(self, index):
        ids, cut = self.rows[index]
        return np.array(ids[:cut]), np.array(ids[cut:])

    def prompt_and_target(self, index):
        ids, cut = self.rows[index]
        return ids[:cut], ids[cut:]


def test_pads_never_count_and_the_end_token_always_does():
    batch = Seq2Seq().collate(Stored(), [0, 1])
    assert batch.rows.source.ids.tolist() == [7, 8, 1, 5, 1]  # no pad in any of them, whatever their lengths
    assert batch.rows.target.ids.tolist() == [0, 9, 0, 6, 6, 6]
    assert batch.targets.tolist() == [9, 1, 6, 6, 6, 1]
    model = tiny_pairs()
    alone = [token_loss(model, Seq2Seq().collate(Stored(), [index])) for index in (0, 1)]
    torch.testing.assert_close(token_loss(model, batch), sum(alone))


# Packing


@pytest.mark.parametrize("family", FAMILIES)
def test_64_pairs_in_one_batch_are_64_pairs_one_by_one(family):
    """No pair sees another: the same loss and gradients, with the short and the long together."""
    rows = pairs(64)
    losses, gradients = [], []
    for batches in ([rows], [[row] for row in rows]):
        model = tiny_pairs(family).requires_grad_(True)
        model = model if family == "t5" else model.double()  # else what a ReLU gets near 0 may fall to either side
        loss = sum(token_loss(model, batch_of(batch)) for batch in batches)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    for name, grad in gradients[0].items():
        assert (grad - gradients[1][name]).abs().max() < 1e-5 * grad.abs().max(), name


class Keys(nn.Module):
    """Keys and values that every row sees before its own, as a method of prefixes puts them."""

    def __init__(self, heads: int, length: int, width: int):
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.randn(heads, length, width)) for _ in range(2))

    def forward(self):
        return self.keys, self.values


PLACES = ("encoder.layers.0.attention", "decoder.layers.1.attention", "decoder.layers.0.cross_attention")


@pytest.mark.parametrize("place", [*PLACES, "all"])
def test_a_prefix_reaches_encoder_decoder_and_the_attention_between_them(place):
    """In every pair of a packed batch, in training and from the cache."""
    model, rows = tiny_pairs(), pairs(6)
    before = model(batch_of(rows).rows)
    for name in PLACES if place == "all" else [place]:
        model.get_submodule(name).prefix = Keys(3, 4, 8)
    packed = model(batch_of(rows).rows)
    assert (packed - before).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(packed, torch.cat([model(batch_of([row]).rows) for row in rows]))
    packed.square().sum().backward()
    trained = [parameter for name, parameter in model.named_parameters() if ".prefix." in name]
    assert trained
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)

    with torch.no_grad():
        cache, tokens = model.start_generation([read for read, _ in rows])
        steps = [model(Rows.of(tokens, starts=cache.lengths), cache)]
        steps.append(model(Rows.of([row[1][:1] for row in rows], starts=cache.lengths), cache))
    lengths = [len(written) for _, written in rows]
    firsts = np.cumsum([0, *lengths[:-1]])
    torch.testing.assert_close(steps[0], packed[firsts])
    long = [at for at, length in enumerate(lengths) if length > 1]
    torch.testing.assert_close(steps[1][long], packed[firsts[long] + 1])


# Decoding


class Decoder:
    """A tokenizer that refuses what is no token."""

    eos_ids = (1,)

    def encode(self, text, special=True):
        return [int(word) for word in text.split()]

    def decode(self, ids, skip_special=True):
        assert all(0 <= token < 97 for token in ids), ids
        return " ".join(map(str, ids))

    @property
    def for_targets(self):
        return self


def test_no_mask_is_ever_decoded():
    """Elsewhere targets are padded with -100, which no tokenizer can decode, at the very end of a run."""
    answers = evaluate_answers(tiny_pairs(), Decoder(), Stored(), [0, 1], EvalKnobs(metrics=("exact_match",)), [1])
    assert answers.targets == ["9 1", "6 6 6 1"]
    assert min(Seq2Seq().collate(Stored(), [0, 1]).targets) >= 0


def test_dropout_does_not_fall_on_answers():
    model = tiny_pairs().train()
    with pytest.raises(AssertionError, match="dropout would fall on the answers"):
        generate(model, Decoder(), [[5, 1]], GenerateKnobs(max_new_tokens=2), [1])


# What adapters reach


def test_all_linears_are_found_in_the_gated_kind_too():
    """Where a list of names ends in `wi`, the gated kind's wi_0 and wi_1 are left out without a word."""
    found = linears(tiny_pairs())
    roles = {name.removeprefix("encoder.layers.0.") for name in found if name.startswith("encoder.layers.0.")}
    assert roles == {f"attention.{role}" for role in "qkvo"} | {f"mlp.{role}" for role in ("gate", "up", "down")}
    across = {name for name in found if name.startswith("decoder.layers.1.cross_attention.")}
    assert {name[-1] for name in across} == set("qkvo")


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_on_all_linears_of_a_frozen_base(family):
    model = tiny_pairs(family)
    method = make_method({"name": "lora"})
    method.attach(model)
    with torch.no_grad():
        token_loss(model, batch_of(pairs(3)))
    token_loss(model, batch_of(pairs(3))).backward()
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in adapters.values())
    assert any(".k." in name and "cross_attention" in name for name in adapters)
