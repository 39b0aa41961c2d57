"""Encoder-decoders as they are trained: where dropout falls, and what new weights are."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from microplane.models import decoder, encoder_decoder, t5gemma, t5gemma2
from microplane.models.families import family_of
from microplane.nn.rows import Pairs, Rows
from tests.tiny import PAIR_CONFIGS, T5GEMMA, tiny_pairs

PAIRS = Pairs(Rows.of([[5, 9, 66, 31], [7]]), Rows.of([[2, 40, 41], [2]]))
P = 0.25
DROPPED = {"dropout": P, "attention_dropout": P, "activation_dropout": P, "dropout_rate": P}
ATTENTION = [(encoder_decoder, "attend"), (encoder_decoder, "attend_to"), (t5gemma, "attend_to"),
             (t5gemma2, "attend_merged"), (decoder, "attend")]  # fmt: skip


def with_dropout(family: str) -> Any:
    fields = PAIR_CONFIGS[family] | DROPPED
    sides = {name: fields[name] | DROPPED for name in ("encoder", "decoder") if family == "t5gemma"}
    sides |= {"decoder": fields["decoder"] | DROPPED} if family == "t5gemma2" else {}
    if family == "t5gemma2":
        sides["encoder"] = fields["encoder"] | {"text_config": fields["encoder"]["text_config"] | DROPPED}
    return family_of(fields).from_hf(fields | sides).init_weights(0)


@pytest.mark.parametrize("family", ["marian", "bart", "t5gemma", "t5gemma2"])
def test_shares_of_attention_are_dropped_on_both_sides_and_between_them_in_training_alone(family, monkeypatch):
    seen: list[float] = []

    def listening(function: Any) -> Any:
        def heard(*given: Any, **named: Any) -> Any:
            seen.append(inspect.signature(function).bind(*given, **named).arguments.get("dropout", 0.0))
            return function(*given, **named)

        return heard

    for module, name in ATTENTION:
        monkeypatch.setattr(module, name, listening(getattr(module, name)))
    model = with_dropout(family)
    for mode in (True, False):
        seen.clear()
        model.train(mode)(PAIRS)
        assert len(seen) >= 2 * model.config.num_layers
        assert set(seen) == {P if mode else 0.0}


@pytest.mark.parametrize("family", ["t5gemma", "t5gemma2"])
def test_each_side_drops_of_its_embeddings_and_behind_its_last_norm(family):
    model, calls = with_dropout(family).train(), []
    for stack in (model.encoder, model.decoder):
        stack.dropout.register_forward_hook(lambda *_, stack=stack: calls.append(stack))
    model(PAIRS)
    assert calls == 2 * [model.encoder] + 2 * [model.decoder]


def test_new_weights_of_a_head_are_as_small_as_its_vocabulary_is_large():
    fields = T5GEMMA | {"tie_word_embeddings": False}
    model = family_of(fields).from_hf(fields).init_weights(0)
    spread = model.head.weight.std() / model.target_embed.weight.std()
    assert spread.item() == pytest.approx(97**-0.5, rel=0.1)


def test_what_stands_behind_pictures_begins_at_nothing_and_may_stay_there():
    model = tiny_pairs("t5gemma2")
    model.end_of_image.data.fill_(3.0)
    model.init_weights(1)
    assert not model.end_of_image.any()
    assert [id(parameter) for parameter in model.idle()] == [id(model.end_of_image)]
    parts = model.reader(model.decoder_blocks[0]).source_parts
    made = {id(part) for part in parts}  # all by which the source's keys and values are made
    assert made == {id(part) for part in (parts[0], parts[1], model.decoder_blocks[0].attention.k_norm)}
    assert torch.equal(parts[0].weight, model.decoder_blocks[0].attention.k.weight)
