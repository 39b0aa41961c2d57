"""The embedded model out of its GGUF file against transformers' own dequantised load: logits and greedy answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from microplane.data.tokenizers.load import load_tokenizer
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows

# Wikipedia-like facts, mails, dialogue, commands, code, lists and other languages: 20 texts of 15 to 120 tokens.
TEXTS = [
    "The Seine rises near Dijon and flows through Paris, where most of its bridges stand, before it reaches the sea at "
    "Le Havre. Ships can go up the river as far as Rouen.",
    "Water boils at 100 degrees Celsius at sea level. On a mountain the air presses less, so it boils sooner and food"
    " takes longer to cook.",
    "Dear Ms. Okafor,\n\nthank you for your letter of 3 May. We have looked into the matter and will refund the full "
    "amount of $149.90 within ten days.\n\nYours sincerely,\nT. Lindqvist",
    "def median(numbers):\n    ordered = sorted(numbers)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris."
    "<|im_end|>\n",
    "<|im_start|>system\nYou answer in JSON.<|im_end|>\n<|im_start|>user\nturn on the kitchen lights<|im_end|>\n"
    '<|im_start|>assistant\n{"intent": "HassTurnOn", "name": "kitchen lights"}<|im_end|>\n',
    "Shopping list:\n- 2 kg potatoes\n- 500 g flour\n- 6 eggs\n- a bunch of parsley\n- olive oil (the good one)\n",
    "They should have called it Gutterball.",
    "Once there was a miller who had three sons. When he died he left the mill to the eldest, the donkey to the "
    "second, and to the youngest nothing but the cat.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen: 6 CO2 + 6 H2O -> C6H12O6 + 6 O2. The energy "
    "for it comes from light, which chlorophyll takes up mostly in the red and the blue.",
    "SELECT name, COUNT(*) AS orders FROM customers JOIN orders USING (customer_id) WHERE placed > '2024-01-01' GROUP "
    "BY name HAVING orders > 3 ORDER BY orders DESC;",
    "La bibliothèque ouvre à neuf heures du matin, sauf le lundi, et ferme à dix-neuf heures.",
    "Der Zug nach München fährt heute von Gleis 7 ab und hat ungefähr zwanzig Minuten Verspätung.",
    "Đặt hẹn giờ mười lăm phút cho món mì, rồi tắt đèn phòng khách.",
    "A: Did you see the game?\nB: Only the second half. I was stuck in traffic.\nA: Then you missed the best part!",
    "To reset the router, hold the small button on its back for ten seconds, until the light blinks red. Wait two "
    "minutes before you connect again.",
    "x^2 - 5x + 6 = 0 has the roots x = 2 and x = 3, because (x - 2)(x - 3) = x^2 - 5x + 6.",
    "BREAKING: City council votes 7-4 to close Main Street to cars on Sundays, starting June 1st #cycling 🚲🎉",
    "In 1815 the volcano Tambora erupted. The ash cooled the air so much that 1816 became known in Europe and North "
    "America as the year without a summer; crops failed, and bread grew dear.",
    '{"name": "microplane", "version": "0.1.0", "private": true, "scripts": {"test": "pytest -q"}, "tags": ["a", "b"]}',
]
PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The three primary colours are",
    "Dear Sir or Madam,",
    "Water is made of",
    "In 1969, the first man",
    "To make an omelette, you need",
    "The opposite of hot is",
    "import numpy as np\n",
    "Q: What is 2 + 2?\nA:",
    "La Tour Eiffel est",
    "The largest planet in the solar system is",
    "My favourite book is",
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a short poem about rain.<|im_end|>\n<|im_start|>assistant\n",
    "1, 2, 3, 4,",
    "Breaking news:",
    "The recipe calls for two cups of",
]
ANSWER, STOP = 16, 2  # tokens to generate; the id of <|im_end|>


@pytest.fixture(scope="module")
def ours(smollm2):
    return load_model(smollm2), load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2):
    """Loading takes transformers 20 s."""
    return AutoModelForCausalLM.from_pretrained(
        smollm2.parent,
        gguf_file=smollm2.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()


def test_every_weight_is_the_same(ours, theirs):
    model, _ = ours
    names, expected = model.hf_names(), theirs.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[names[name]]), name
    assert set(expected) == {*names.values(), "lm_head.weight"}


@torch.no_grad()
def test_logits_on_20_real_texts(ours, theirs):
    model, tokenizer = ours
    rows = [tokenizer.encode(text) for text in TEXTS]
    assert len(rows) == 20
    logits = model.logits(model(Rows.of(rows))).split([len(row) for row in rows])
    for row, mine in zip(rows, logits, strict=True):
        difference = (mine - theirs(torch.tensor([row])).logits[0]).abs().max().item()
        assert difference < 2e-3, tokenizer.decode(row)


@torch.no_grad()
def test_the_same_greedy_continuation_of_20_prompts(ours, theirs):
    model, tokenizer = ours
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert len(prompts) == 20
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": ANSWER, "min_new_tokens": ANSWER}
    expected = theirs.generate(padded, attention_mask=mask, **options)[:, longest:].tolist()
    for prompt, mine, answer in zip(PROMPTS, greedy(model, prompts), expected, strict=True):
        assert mine == answer, prompt


def greedy(model, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts side by side through the cache, never taking the stop token (transformers: min_new_tokens)."""
    cache, _ = model.start_generation(prompts)
    rows, answers = Rows.of(prompts), [[] for _ in prompts]
    for _ in range(ANSWER):
        logits = model.logits(model(rows, cache)[rows.last])
        logits[:, STOP] = -torch.inf
        for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
            answer.append(token)
        rows = Rows.of([[answer[-1]] for answer in answers], starts=cache.lengths)
    return answers
