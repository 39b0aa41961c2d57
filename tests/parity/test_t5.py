"""T5, FLAN-T5, mT5, umT5 and ByT5 against transformers: logits, loss, gradients, caches, files and what is written.

The published shapes themselves are run by the slow tests, narrower twins of theirs by all others.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from microplane.config.knobs import GenerateKnobs
from microplane.inference.generate import generate
from microplane.models.files.load import load_model, save_model
from microplane.nn.rows import Pairs, Rows
from tests.parity.t5_configs import PUBLISHED, TWINS, build, padded, rows_of, write
from tests.parity.test_decoder import off
from tests.parity.test_generate import Numbers

ALL = [pytest.param(fields, id=f"{name} twin") for name, fields in TWINS.items()]
EXACT = [pytest.param(fields, id=name, marks=pytest.mark.slow) for name, fields in PUBLISHED.items()]
# with sources beyond the distance at which the last bucket begins
BATCHES = {"one pair": ((19,), (7,)), "five pairs": ((150, 3, 40, 1, 16), (4, 1, 140, 9, 6))}


def pairs_of(batch: str, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    sources, targets = BATCHES[batch]
    return rows_of(sources, vocabulary), rows_of(targets, vocabulary, seed=8)


def as_pairs(sources: list[list[int]], targets: list[list[int]]) -> Pairs:
    """Pairs as they are trained: the target begins with the start token, and its last token is only predicted."""
    return Pairs(Rows.of(sources), Rows.of([[0, *target[:-1]] for target in targets]))


@pytest.mark.parametrize("fields", ALL + EXACT)
def test_logits_loss_and_gradients_are_those_of_transformers(fields, tmp_path):
    theirs = build(fields)
    folder = write(theirs, fields, tmp_path)
    ours = load_model(folder).requires_grad_(True)
    names = ours.hf_names()
    assert names.keys() == {name for name, _ in ours.named_parameters()}
    assert sorted(names.values()) == sorted(dict(theirs.named_parameters()))
    assert ours.config.tied == fields.get("tie_word_embeddings", True)
    if ours.config.activation != "relu":
        return agree(ours, theirs, fields["vocab_size"])
    # Its slope jumps at 0: of millions of units some lie so near that the last bit decides, in one batch and the next.
    with torch.no_grad():
        agree(ours, theirs, fields["vocab_size"])
    del ours
    return agree(load_model(folder, torch.float64).requires_grad_(True), in_float64(theirs), fields["vocab_size"])


def agree(ours, theirs, vocabulary: int) -> None:
    names, their_parameters = ours.hf_names(), dict(theirs.named_parameters())
    for batch in BATCHES:
        sources, targets = pairs_of(batch, vocabulary)
        logits = ours.logits(ours(as_pairs(sources, targets)))
        wanted = torch.tensor([token for target in targets for token in target])
        loss = F.cross_entropy(logits, wanted)
        if loss.requires_grad:
            ours.zero_grad()
            loss.backward()
        for side in ("left", "right"):
            ids, mask = padded(sources, side)
            begun, begun_mask = padded([[0, *target[:-1]] for target in targets], side)
            out = theirs(ids, mask, decoder_input_ids=begun, decoder_attention_mask=begun_mask).logits
            expected = out[begun_mask.bool()]
            assert off(logits, expected) < 1e-4, (batch, side)
            their_loss = F.cross_entropy(expected, wanted)
            if side == "right":  # as its own training does, with labels
                labels, kept = padded(targets, side)
                own = theirs(ids, mask, labels=labels.masked_fill(kept == 0, -100)).loss
                assert own.item() == pytest.approx(their_loss.item(), rel=1e-5)
            assert loss.item() == pytest.approx(their_loss.item(), rel=1e-4)
            if not loss.requires_grad:
                continue
            theirs.zero_grad()
            their_loss.backward()
            for name, parameter in ours.named_parameters():
                assert off(parameter.grad, their_parameters[names[name]].grad) < 1e-4, (name, batch, side)


def in_float64(model):
    """Also its norms, which round to float32 in between whatever the format."""

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = norm.__get__(module)
    return model.double()


@pytest.mark.parametrize("fields", ALL + EXACT)
def test_cached_steps_are_the_whole_forward(fields, tmp_path):
    model = load_model(write(build(fields), fields, tmp_path))
    sources, targets = rows_of((20, 3, 150), fields["vocab_size"]), rows_of((30, 22, 24), fields["vocab_size"], seed=9)
    whole = model(Pairs(Rows.of(sources), Rows.of(targets))).split([len(row) for row in targets])

    cache, first = model.start_generation(sources)
    assert first == [[0]] * 3
    pieces: list[list[torch.Tensor]] = [[], [], []]
    for lengths in ((9, 2, 5), (3, 3, 3), *[(1, 1, 1)] * 8):  # unequal beginnings, a few at once, then token by token
        new = [row[start : start + n] for row, start, n in zip(targets, cache.lengths, lengths, strict=True)]
        hidden = model(Rows.of(new, starts=cache.lengths), cache)
        for piece, part in zip(pieces, hidden.split(lengths), strict=True):
            piece.append(part)
    for piece, expected in zip(pieces, whole, strict=True):
        seen = torch.cat(piece)
        assert off(seen, expected[: len(seen)]) < 1e-5


def their_answers(model, prompts: list[list[int]], stops: list[int], **settings) -> list[list[int]]:
    """In one batch, padded on the left."""
    ids, mask = padded(prompts, "left")
    made = model.generate(ids, attention_mask=mask, do_sample=False, eos_token_id=stops, pad_token_id=0, **settings)
    rows = [row[1:] for row in made.tolist()]  # without the start token
    return [row[: next((place for place, token in enumerate(row) if token in stops), None)] for row in rows]


WAYS = {
    "greedy": ({}, {}),
    "greedy with a penalty": ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    "beams": ({"beams": 4}, {"num_beams": 4, "length_penalty": 1.0, "early_stopping": False}),
    "short beams": (
        {"beams": 3, "length_penalty": 0.3, "repetition_penalty": 1.2},
        {"num_beams": 3, "length_penalty": 0.3, "repetition_penalty": 1.2, "early_stopping": False},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", ALL + EXACT)
def test_50_answers_are_those_of_transformers(fields, way, tmp_path):
    theirs = build(fields, decisive=4.0)
    ours = load_model(write(theirs, fields, tmp_path))
    V = fields["vocab_size"]
    stops = [1, *range(5, V, V // 8)]
    prompts = rows_of(tuple(1 + (7 * number) % 23 for number in range(50)), V)
    settings, their_settings = WAYS[way]
    answers = generate(ours, Numbers(), prompts, GenerateKnobs(max_new_tokens=12, **settings), stops)
    got, expected = (
        [one.ids for one in answers],
        their_answers(theirs, prompts, stops, max_new_tokens=12, **their_settings),
    )
    assert got == expected
    assert len({str(ids) for ids in got}) > 10
    if V < 1000:
        assert any(one.stopped for one in answers)


@pytest.mark.parametrize("way", WAYS)
def test_answers_do_not_depend_on_the_prompts_beside_them(way, tmp_path):
    fields = TWINS["flan-t5-small"]
    model = load_model(write(build(fields, decisive=4.0), fields, tmp_path), torch.float64)
    prompts, knobs = rows_of((1, 17, 5, 40, 2, 9), 101), GenerateKnobs(max_new_tokens=12, **WAYS[way][0])
    together = [one.ids for one in generate(model, Numbers(), prompts, knobs, [1, 50])]
    assert together == [generate(model, Numbers(), [prompt], knobs, [1, 50])[0].ids for prompt in prompts]
    assert together == [one.ids for one in generate(model, Numbers(), prompts, knobs, [1, 50], batch_tokens=60)]


@pytest.mark.parametrize("fields", ALL + EXACT)
def test_folders_are_opened_by_each_other(fields, tmp_path):
    theirs = build(fields)
    theirs.save_pretrained(tmp_path / "theirs")
    sources, targets = pairs_of("five pairs", fields["vocab_size"])
    (ids, mask), (begun, begun_mask) = padded(sources, "right"), padded([[0, *row[:-1]] for row in targets], "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": begun}
    with torch.no_grad():
        expected = theirs(**inputs).logits[begun_mask.bool()]

    for name, folder in {"saved by theirs": tmp_path / "theirs", "published": write(theirs, fields, tmp_path)}.items():
        ours = load_model(folder)
        got = ours.logits(ours(as_pairs(sources, targets)))
        assert off(got, expected) < 1e-4, name
        again = tmp_path / f"ours {name}"
        save_model(ours, again)
        assert load_model(again).config == ours.config
        reopened, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(again, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(reopened) is type(theirs)
        with torch.no_grad():
            theirs_again = reopened(**inputs).logits[begun_mask.bool()]
        if theirs.config.model_type == "umt5":  # version 5 scales what it opens, whatever the file says
            theirs_again = theirs_again * fields["d_model"] ** 0.5
        assert off(theirs_again, expected) < 1e-4, name


@pytest.mark.parametrize("fields", ALL)
def test_random_models_of_transformers_5_are_tied(fields, tmp_path):
    """Which it then says of every file it writes; whether the output is scaled stands apart from it."""
    torch.manual_seed(0)
    kind = build(fields)
    theirs = type(kind)(type(kind.config).from_dict(fields)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.tied
    sources, targets = pairs_of("one pair", fields["vocab_size"])
    expected = theirs(torch.tensor(sources), decoder_input_ids=torch.tensor([[0, *targets[0][:-1]]])).logits[0]
    assert off(ours.logits(ours(as_pairs(sources, targets))), expected) < 1e-4


@pytest.mark.parametrize("fields", ALL)
def test_bfloat16_is_finite_and_close(fields, tmp_path):
    folder = write(build(fields), fields, tmp_path)
    pairs = as_pairs(*pairs_of("five pairs", fields["vocab_size"]))
    wide, narrow, mixed = load_model(folder), load_model(folder, torch.bfloat16), load_model(folder)
    mixed.compute = torch.bfloat16  # weights in float32, activations in bfloat16
    expected = wide.logits(wide(pairs))
    for model in (narrow, mixed):
        hidden = model(pairs)
        assert hidden.dtype == torch.bfloat16
        logits = model.logits(hidden).float()
        assert logits.isfinite().all()
        assert (logits - expected).norm() < 0.05 * expected.norm()


def test_dropout_falls_where_it_falls_in_transformers(tmp_path):
    """By its effect on the mean and the spread of the loss over many draws."""
    fields = TWINS["flan-t5-small"] | {"dropout_rate": 0.3}
    theirs = build(fields).train()
    ours = load_model(write(theirs, fields, tmp_path)).train()
    sources, targets = rows_of((9, 5), 101), rows_of((6, 6), 101, seed=8)
    (ids, mask), (labels, _) = padded(sources, "right"), padded(targets, "right")
    with torch.no_grad():
        got = [F.cross_entropy(ours.logits(ours(as_pairs(sources, targets))), labels.flatten()) for _ in range(150)]
        expected = [theirs(ids, mask, labels=labels).loss for _ in range(150)]
    got, expected = torch.stack(got), torch.stack(expected)
    error = (got.var() / 150 + expected.var() / 150).sqrt()
    assert (got.mean() - expected.mean()).abs() < 4 * error
    assert 0.7 < got.std() / expected.std() < 1.4
    assert got.std() > 0.01
