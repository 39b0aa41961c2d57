"""Prompt tuning in rows without padding: labels do not move, pooling does not see it, generation has it once."""

from __future__ import annotations

import pytest
import torch

from microplane.config.knobs import GenerateKnobs
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.method import trainable_parameters
from microplane.models.heads import embed
from microplane.models.task_head import pooled
from microplane.nn.rows import Pairs, Rows
from tests.methods.test_families import IDS, hidden
from tests.tiny import CONFIGS, ENCODER_CONFIGS, PAIR_CONFIGS, tiny, tiny_encoder, tiny_pairs

MAKERS = {
    **{name: (lambda name=name: tiny(name)) for name in CONFIGS},
    **{name: (lambda name=name: tiny_pairs(name)) for name in PAIR_CONFIGS},
    **{name: (lambda name=name: tiny_encoder(name)) for name in ENCODER_CONFIGS},
}
WORDS = [7, 8, 9]


def attached(make, **knobs):
    method, model = make_method({"name": "prompt", "length": 3, **knobs}), make()
    torch.manual_seed(0)
    method.attach(model)
    return method, model.eval()


@pytest.mark.parametrize("name", MAKERS)
def test_a_prompt_of_words_is_those_words_before_every_row(name):
    """Against the untouched model on longer rows: the formula, positions and segments at once."""
    _, model = attached(MAKERS[name], start="text", text_ids=WORDS)
    longer = Rows.of([WORDS + row for row in IDS])
    if model.KIND == "encoder-decoder":
        target = Rows.of([row[:4] for row in IDS])
        wanted = MAKERS[name]()(Pairs(longer, target))
        torch.testing.assert_close(hidden(model), wanted, atol=1e-5, rtol=1e-5)
        read = model.encode(Rows.of(IDS)), MAKERS[name]().encode(longer)
    else:
        read = hidden(model), MAKERS[name]()(longer)
    own = torch.cat([row[len(WORDS) :] for row in read[1].split(longer.lengths)])
    assert read[0].shape == own.shape  # (T, D): no label position moves
    torch.testing.assert_close(read[0], own, atol=1e-5, rtol=1e-5)


def test_segments_of_the_rows_stay_theirs():
    _, model = attached(tiny_encoder, start="text", text_ids=WORDS)
    rows = Rows.of([[5, 6, 7]], types=[[0, 1, 1]])
    longer = Rows.of([[*WORDS, 5, 6, 7]], types=[[0, 0, 0, 0, 1, 1]])
    torch.testing.assert_close(model(rows), tiny_encoder()(longer)[3:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_does_not_see_the_prompt(pooling):
    _, model = attached(tiny_encoder, start="text", text_ids=WORDS)
    rows = Rows.of(IDS)
    longer = tiny_encoder()(Rows.of([WORDS + row for row in IDS])).split([len(row) + 3 for row in IDS])
    own = pooled(torch.cat([row[3:] for row in longer]), rows, pooling)
    torch.testing.assert_close(embed(model, rows, pooling), torch.nn.functional.normalize(own, dim=-1))


@pytest.mark.parametrize("name", ["llama-tied", "gemma2", "t5", "marian"])
def test_step_by_step_with_a_cache_is_all_at_once(name):
    _, model = attached(MAKERS[name])
    prompts, more = [row[:5] for row in IDS], [[11, 12], [13, 14], [15, 16]]
    with torch.no_grad():
        cache, begun = model.start_generation(prompts)
        first = model(Rows.of(begun, starts=cache.lengths), cache)
        steps = [model(Rows.of([row[i : i + 1] for row in more], starts=cache.lengths), cache) for i in range(2)]
        whole = Rows.of([b + m for b, m in zip(begun, more, strict=True)])
        at_once = model(whole if model.KIND == "decoder" else Pairs(Rows.of(prompts), whole))
    rows = at_once.split(whole.lengths)
    torch.testing.assert_close(first, torch.cat([row[:-2] for row in rows]), atol=1e-5, rtol=1e-5)
    for place, step in zip((-2, -1), steps, strict=True):
        torch.testing.assert_close(step, torch.stack([row[place] for row in rows]), atol=1e-5, rtol=1e-5)


def test_generation_is_that_of_the_words():
    from microplane.inference.generate import generate
    from tests.inference.test_generate import Bytes

    _, model = attached(tiny, start="text", text_ids=WORDS)
    knobs = GenerateKnobs(max_new_tokens=6)
    for beams in (1, 3):
        chosen = knobs.model_copy(update={"beams": beams})
        ours = generate(model, Bytes(), IDS, chosen, ())
        theirs = generate(tiny(), Bytes(), [WORDS + row for row in IDS], chosen, ())
        assert [answer.ids for answer in ours] == [answer.ids for answer in theirs]


def test_it_counts_length_times_width_and_takes_room_of_the_context():
    method, model = attached(tiny)
    assert trainable_parameters(model) == 3 * 32
    assert (method.num_virtual_tokens, model.max_row_tokens, tiny().max_row_tokens) == (3, 128 - 3, 128)
    with pytest.raises(ConfigError, match=r"method.length = 128: the model's context is 128 in all"):
        attached(tiny, length=128)


def test_it_starts_from_words_the_vocabulary_or_noise():
    table = tiny().embed.weight
    _, model = attached(tiny)
    assert all((table == vector).all(1).any() for vector in model.prompt_socket.vectors)
    torch.manual_seed(0)
    _, model = attached(tiny, start="random", length=40)
    assert 0.7 < model.prompt_socket.vectors.std() / table.std() < 1.4  # as large as words
    assert not any((table == vector).all(1).any() for vector in model.prompt_socket.vectors)
    _, model = attached(tiny, start="text", text_ids=[5, 6], length=5)
    assert torch.equal(model.prompt_socket.vectors, table[[5, 6, 5, 6, 5]])  # repeated, and cut
    _, gemma = attached(lambda: tiny("gemma2"), start="text", text_ids=[5])
    torch.testing.assert_close(gemma.prompt_socket.vectors[0], tiny("gemma2").embed.weight[5] * 32**0.5)


def test_a_text_is_read_by_the_models_tokenizer():
    method = make_method({"name": "prompt", "start": "text", "text": "ab"})
    assert method.with_tokens(lambda text: [ord(letter) for letter in text]).text_ids == (97, 98)
    assert make_method("prompt").with_tokens(lambda text: [1]).text_ids == ()
    with pytest.raises(ConfigError, match="method.text = 'ab' has no tokens"):
        method.with_tokens(lambda text: [])
    read_otherwise = make_method({"name": "prompt", "start": "text", "text": "ab", "text_ids": [1]})
    with pytest.raises(ConfigError, match="are not the tokens of"):
        read_otherwise.with_tokens(lambda text: [97, 98])
    with pytest.raises(ConfigError, match="needs the text's tokens"):
        method.attach(tiny())
    for knobs in ({"start": "text"}, {"text": "ab"}):
        with pytest.raises(ConfigError, match="start=text and a text belong together"):
            make_method({"name": "prompt", **knobs})
