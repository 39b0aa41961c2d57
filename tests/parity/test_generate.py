"""Generation against transformers: the same tokens, greedy and by beam search, and the same filters for sampling."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as theirs

from microplane.config.knobs import GenerateKnobs
from microplane.inference.generate import generate, narrow, penalise
from microplane.models.files.load import load_model

VOCABULARY, STOPS = 40, [0, 1, 36]
PROMPTS = [[2, 3, 4], [5], [30, 20, 10, 9, 8, 7, 6, 7, 6, 9], [11, 12, 13, 2], [33, 34], [17, 18], [21] * 7, [9, 39]]


class Numbers:
    def encode(self, text, special=True):
        return []

    def decode(self, ids, skip_special=True):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same tiny random Llama, theirs and ours. Its weights are large enough for uneven probabilities."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.35,
        bos_token_id=None,
        eos_token_id=STOPS,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, load_model(folder)


def their_answer(model, prompt, **settings):
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, early_stopping=False, **settings)
    made = made[0, len(prompt) :].tolist()
    return made[: next((place for place, token in enumerate(made) if token in STOPS), None)]


def same(pair, ours, **settings):
    model, decoder = pair
    answers = generate(decoder, Numbers(), PROMPTS, GenerateKnobs(**ours), STOPS)
    expected = [their_answer(model, prompt, **settings) for prompt in PROMPTS]
    assert [one.ids for one in answers] == expected
    return [len(one.ids) for one in answers]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy(pair, penalty):
    lengths = same(
        pair,
        {"max_new_tokens": 24, "repetition_penalty": penalty},
        max_new_tokens=24,
        repetition_penalty=penalty,
    )
    assert len(set(lengths)) > 1  # some stop, some are cut


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_beams(pair, beams, length_penalty, penalty):
    settings = {"max_new_tokens": 20, "length_penalty": length_penalty, "repetition_penalty": penalty}
    same(pair, settings | {"beams": beams}, num_beams=beams, **settings)


def test_beams_differ_from_greedy(pair):
    """Or the parity above would show nothing."""
    _, decoder = pair
    kinds = ({}, {"beams": 2}, {"beams": 2, "length_penalty": 2.0}, {"beams": 4}, {"beams": 4, "length_penalty": 0.5})
    found = [
        [one.ids for one in generate(decoder, Numbers(), PROMPTS, GenerateKnobs(max_new_tokens=20, **kind), STOPS)]
        for kind in kinds
    ]
    assert len({str(answers) for answers in found}) == len(kinds)
    assert len({len(ids) for answers in found for ids in answers}) > 5


@pytest.mark.parametrize("case", range(20))
def test_filters(case):
    torch.manual_seed(case)
    scores = torch.randn(5, VOCABULARY) * 3
    seen = torch.randint(VOCABULARY, (5, 12))
    knobs = GenerateKnobs(
        temperature=0.3 + 0.1 * case,
        top_k=[0, 1, 7, 25, 99][case % 5],
        top_p=[1.0, 0.9, 0.4, 0.05][case % 4],
        min_p=[0.0, 0.02, 0.3][case % 3],
        repetition_penalty=[1.0, 1.4, 0.7][(case + 1) % 3],
    )
    chain = [theirs.RepetitionPenaltyLogitsProcessor(knobs.repetition_penalty)]
    chain += [theirs.TemperatureLogitsWarper(knobs.temperature)]
    chain += [theirs.TopKLogitsWarper(knobs.top_k)] if knobs.top_k else []
    chain += [theirs.TopPLogitsWarper(knobs.top_p)] if knobs.top_p < 1 else []
    chain += [theirs.MinPLogitsWarper(knobs.min_p)]
    expected = scores.clone()
    for step in chain:
        expected = step(seen, expected)
    ours = narrow(penalise(scores, seen.tolist(), knobs.repetition_penalty), knobs)
    assert torch.equal(ours, expected)
