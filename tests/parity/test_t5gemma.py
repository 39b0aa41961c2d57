"""T5Gemma and T5Gemma 2 against transformers: states, logits, loss, gradients, caches, files and what is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from microplane.config.knobs import GenerateKnobs
from microplane.errors import ModelError
from microplane.inference.generate import generate
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.files.load import load_model, save_model
from microplane.models.t5gemma import T5Gemma
from microplane.nn.rows import Pairs, Rows
from tests.parity.t5_configs import padded, rows_of
from tests.parity.t5gemma_shapes import SHAPES, SHAPES_2, build, build_2
from tests.parity.test_decoder import off
from tests.parity.test_generate import Numbers
from tests.tiny import T5GEMMA, tiny_pairs

START = 2
BATCHES = {"one pair": ((19,), (7,)), "five pairs": ((50, 3, 40, 1, 16), (4, 1, 40, 9, 6))}
BATCHES["long pairs"] = ((1100, 6), (1050, 3))
QUICK = (2,)
EACH = [("t5gemma", n) for n in range(len(SHAPES))] + [("t5gemma2", n) for n in range(len(SHAPES_2))]
NUMBERS = [
    pytest.param(case, id=f"{case[0]}-{case[1]}", marks=[] if case[1] in QUICK else pytest.mark.slow) for case in EACH
]
TOWER = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")


def opened(case, tmp_path, **more):
    family, number = case
    theirs = (build if family == "t5gemma" else build_2)(number, **more)
    theirs.save_pretrained(tmp_path)
    return theirs, load_model(tmp_path)


def pairs_of(batch):
    return [rows_of(lengths, 67, seed) for lengths, seed in zip(BATCHES[batch], (7, 8), strict=True)]


def as_pairs(sources, targets):
    return Pairs(Rows.of(sources), Rows.of([[START, *target[:-1]] for target in targets]))


@pytest.mark.parametrize("number", NUMBERS)
def test_states_logits_loss_and_gradients_are_those_of_transformers(number, tmp_path):
    agree(number, tmp_path, ("one pair", "five pairs"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5gemma", "t5gemma2"])
def test_long_rows_agree_too(family, tmp_path):
    """Their scores are made in other ways: not kept, or by torch's own attention."""
    agree((family, 1), tmp_path, ("long pairs",))


def agree(number, tmp_path, batches):
    theirs, ours = opened(number, tmp_path)
    ours.requires_grad_(True)
    names, their_parameters = ours.hf_names(), dict(theirs.named_parameters())
    assert names.keys() == dict(ours.named_parameters()).keys()
    assert sorted(names.values()) == sorted(name for name in their_parameters if not name.startswith(TOWER))
    for batch in batches:
        sources, targets = pairs_of(batch)
        (ids, mask), (labels, kept) = padded(sources, "right"), padded(targets, "right")
        out = theirs(ids, attention_mask=mask, labels=labels.masked_fill(kept == 0, -100))
        assert off(ours.encode(Rows.of(sources)), out.encoder_last_hidden_state[mask.bool()]) < 1e-5
        logits = ours.logits(ours(as_pairs(sources, targets)))
        assert off(logits, out.logits[kept.bool()]) < 1e-5
        loss = F.cross_entropy(logits, torch.tensor([token for target in targets for token in target]))
        assert loss.item() == pytest.approx(out.loss.item(), rel=1e-5)
        ours.zero_grad()
        theirs.zero_grad()
        loss.backward()
        out.loss.backward()
        largest = max(x.grad.abs().max() for x in theirs.parameters() if x.grad is not None)
        for name, parameter in ours.named_parameters():
            theirs_of_it = their_parameters[names[name]].grad
            if name.endswith(".k.bias"):  # what all keys have in common is close to nothing in shares of attention
                assert (parameter.grad - theirs_of_it).abs().max() < 1e-5 * largest, (name, batch)
            else:
                assert off(parameter.grad, theirs_of_it) < 1e-5, (name, batch)


@pytest.mark.parametrize("number", NUMBERS)
def test_cached_steps_are_the_whole_forward(number, tmp_path):
    _, model = opened(number, tmp_path)
    sources, targets = rows_of((20, 3, 50), 67), rows_of((30, 22, 24), 67, seed=9)
    whole = model(Pairs(Rows.of(sources), Rows.of(targets))).split([len(row) for row in targets])
    cache, first = model.start_generation(sources)
    assert first == [[START]] * 3
    pieces: list[list[torch.Tensor]] = [[], [], []]
    for lengths in ((9, 2, 5), (3, 3, 3), *[(1, 1, 1)] * 8):  # unequal beginnings, a few at once, then token by token
        new = [row[start : start + n] for row, start, n in zip(targets, cache.lengths, lengths, strict=True)]
        hidden = model(Rows.of(new, starts=cache.lengths), cache)
        for piece, part in zip(pieces, hidden.split(lengths), strict=True):
            piece.append(part)
    for piece, expected in zip(pieces, whole, strict=True):
        seen = torch.cat(piece)
        assert off(seen, expected[: len(seen)]) < 1e-5


CASES = [(name, method) for name in ("t5gemma", "t5gemma2") for method in ("prefix", "prompt", "bottleneck", "lora")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), CASES)
@torch.inference_mode()
def test_caches_of_adapted_models_are_joined_and_let_go(family, method):
    model = tiny_pairs(family)
    torch.manual_seed(0)
    attach_method(make_method({"name": method}), model)
    for parameter in trainable(model.eval()).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    sources, targets = [[5, 6, 7, 8], [9], [10, 11, 3]], [[2, 4, 5], [2, 9, 9], [2, 8, 1]]
    first, second, third = model(Pairs(Rows.of(sources), Rows.of(targets))).split(3)

    def step(cache, *tokens):
        return model(Rows.of([[token] for token in tokens], starts=cache.lengths), cache)

    cache, _ = model.start_generation(sources[:1])
    torch.testing.assert_close(torch.cat([step(cache, 2), step(cache, 4)]), first[:2], atol=1e-5, rtol=1e-4)
    others, _ = model.start_generation(sources[1:])
    cache.join(others)
    torch.testing.assert_close(step(cache, 5, 2, 2), torch.stack([first[2], second[0], third[0]]), atol=1e-5, rtol=1e-4)
    assert cache.drop([0]) == [2, 1]
    torch.testing.assert_close(step(cache, 8, 9), torch.stack([third[1], second[1]]), atol=1e-5, rtol=1e-4)


WAYS = {
    "greedy": ({}, {}),
    "beams": ({"beams": 3}, {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", NUMBERS)
def test_answers_are_those_of_transformers(number, way, tmp_path):
    theirs, ours = opened(number, tmp_path, decisive=True)
    stops, prompts = [1, 30, 60], rows_of(tuple(1 + (7 * n) % 23 for n in range(12)), 67)
    settings, their_settings = WAYS[way]
    with torch.inference_mode():
        answers = generate(ours, Numbers(), prompts, GenerateKnobs(max_new_tokens=10, **settings), stops)
    ids, mask = padded(prompts, "left")
    told = {"do_sample": False, "eos_token_id": stops, "pad_token_id": 0, "max_new_tokens": 10} | their_settings
    made = theirs.generate(ids, attention_mask=mask, **told)
    rows = [row[1:] for row in made.tolist()]
    expected = [row[: next((place for place, token in enumerate(row) if token in stops), None)] for row in rows]
    assert [one.ids for one in answers] == expected
    assert len({str(ids) for ids in expected}) > 5


def told(side):
    """Fields of a config.json that change numbers; rotary settings are those of the kinds of layers that are there."""
    return {key: x for key, x in (side | side.get("text_config", {})).items() if key not in IDLE}


IDLE = ("rope_parameters", "dtype", "text_config", "vision_config", "_name_or_path", "architectures")


@pytest.mark.parametrize("number", NUMBERS)
def test_folders_are_opened_by_each_other(number, tmp_path):
    theirs, ours = opened(number, tmp_path)
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config
    peer, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    kept, stored = theirs.state_dict(), peer.state_dict()
    assert all(torch.equal(stored[name], x) for name, x in kept.items() if name.startswith(TOWER))
    for name in ("encoder", "decoder"):
        mine, other = (told(model.config.to_dict()[name]) for model in (theirs, peer))
        assert {key: x for key, x in mine.items() if other.get(key) != x} == {}
    ids = torch.tensor(rows_of((13,), 67))
    with torch.no_grad():
        wanted, found = (model(ids, decoder_input_ids=ids[:, :5]).logits for model in (theirs, peer.eval()))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_dropout_falls_where_it_falls_in_transformers(tmp_path):
    """By its effect on the mean and the spread of the loss over many draws."""
    theirs, ours = opened(("t5gemma", 1), tmp_path, dropout_rate=0.2, attention_dropout=0.2)
    sources, targets = rows_of((9, 5), 67), rows_of((6, 6), 67, seed=8)
    (ids, mask), (labels, _) = padded(sources, "right"), padded(targets, "right")
    theirs.train(), ours.train()
    with torch.no_grad():
        got = [F.cross_entropy(ours.logits(ours(as_pairs(sources, targets))), labels.flatten()) for _ in range(150)]
        expected = [theirs(ids, attention_mask=mask, labels=labels).loss for _ in range(150)]
    got, expected = torch.stack(got), torch.stack(expected)
    error = (got.var() / 150 + expected.var() / 150).sqrt()
    assert (got.mean() - expected.mean()).abs() < 4 * error
    assert 0.7 < got.std() / expected.std() < 1.4
    assert got.std() > 0.01


def test_bfloat16_is_finite_and_close(tmp_path):
    _, wide = opened(("t5gemma", 1), tmp_path)
    pairs = as_pairs(*pairs_of("five pairs"))
    expected = wide.logits(wide(pairs))
    narrow, mixed = load_model(tmp_path, torch.bfloat16), load_model(tmp_path)
    mixed.compute = torch.bfloat16
    for model in (narrow, mixed):
        hidden = model(pairs)
        assert hidden.dtype == torch.bfloat16
        assert (model.logits(hidden).float() - expected).norm() < 0.1 * expected.norm()


WRONG = {
    "encoder alone": ({"is_encoder_decoder": False}, "is_encoder_decoder = false .* encoder is there alone"),
    "no decoder": ({"decoder": None}, "decoder = None: expected an object"),
    "two vocabularies": ({"decoder": {"vocab_size": 66}}, "vocab_size = 97 of the encoder and 66 of the decoder"),
    "a start that is no token": ({"decoder": {"bos_token_id": 97}}, "bos_token_id = 97 of the decoder"),
    "a side with a wrong field": ({"encoder": {"hidden_size": "wide"}}, "the encoder of config.json: .*\n.*'wide'"),
    "both directions": ({"decoder": {"use_bidirectional_attention": True}}, "the decoder of config.json: use_bidirect"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_supported_is_refused_by_name(case):
    changes, message = WRONG[case]
    changes = {name: T5GEMMA[name] | change if isinstance(change, dict) else change for name, change in changes.items()}
    with pytest.raises(ModelError, match=message):
        T5Gemma.from_hf(T5GEMMA | changes)
