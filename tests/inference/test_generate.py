"""Generation: cached against uncached, rows independent of each other, where answers end, and what is drawn."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from microplane.config.knobs import GenerateKnobs
from microplane.errors import ConfigError, DataError
from microplane.inference.generate import Answer, batches, common_beginning, confine, draw, generate, narrow, penalise
from microplane.models.decoder import Decoder, DecoderConfig
from microplane.models.generation_rules import GenerationRules
from microplane.nn.position import Rope
from microplane.nn.rows import Rows
from tests.tiny import tiny_pairs

EOS = 256


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8, and one special token."""

    def encode(self, text, special=True):
        return [EOS] if text == "<eos>" else list(text.encode())

    def decode(self, ids, skip_special=True):
        return bytes(token for token in ids if token != EOS).decode(errors="replace")


@dataclass
class ScriptedCache:
    rows: list = field(default_factory=list)

    @property
    def lengths(self):
        return [len(row) for row in self.rows]

    def select(self, indices):
        self.rows = [list(self.rows[index]) for index in indices]


class Scripted:
    """A model that answers the prompt [n] with script n, and then stops. It counts the tokens it computes."""

    KIND = "decoder"
    training = False
    generation_rules = GenerationRules()
    config = SimpleNamespace(context=1000)
    max_row_tokens = 1000
    device = torch.device("cpu")

    def __init__(self, *scripts):
        self.scripts = [[*script.encode(), EOS] for script in scripts]
        self.computed = []

    def start_generation(self, prompts):
        return ScriptedCache([[] for _ in prompts]), prompts

    def __call__(self, rows, cache):
        self.computed.append(len(rows.ids))
        hidden = torch.zeros(len(rows.ids), EOS + 1)
        for new, last, held in zip(rows.ids.split(rows.lengths), rows.last, cache.rows, strict=True):
            held += new.tolist()
            hidden[last, self.scripts[held[0]][len(held) - 1]] = 1.0
        return hidden

    def logits(self, hidden):
        return hidden


def tiny(**changes):
    settings = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": EOS + 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "windows": (None, 5),
        "ropes": (Rope(10_000.0),) * 2,
        "context": 64,
        "init_std": 0.5,
    }
    return Decoder(DecoderConfig(**settings | changes)).init_weights(1).eval()


MODEL = tiny()
PROMPTS = [list(range(10 * n, 11 * n + 1)) for n in (3, 0, 12, 7, 7, 20)]
SAMPLING = GenerateKnobs(max_new_tokens=12, temperature=1.5, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.2)


def answer(*texts, **knobs):
    model, told = Scripted(*texts), [""] * len(texts)

    def on_text(row, piece):
        assert piece
        told[row] += piece

    settings = GenerateKnobs(**knobs)
    answers = generate(model, Bytes(), [[n] for n in range(len(texts))], settings, [EOS], on_text=on_text)
    assert told == [one.text for one in answers]
    return answers


def greedy_without_cache(prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(MODEL.logits(MODEL(Rows.of([ids]))[-1:]).argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_argmax_without_a_cache():
    answers = generate(MODEL, Bytes(), PROMPTS, GenerateKnobs(max_new_tokens=12), [])
    assert [one.ids for one in answers] == [greedy_without_cache(prompt, 12) for prompt in PROMPTS]
    assert not any(one.stopped for one in answers)


@pytest.mark.parametrize(
    "knobs", [GenerateKnobs(max_new_tokens=12), SAMPLING, GenerateKnobs(max_new_tokens=12, beams=3)]
)
@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_an_answer_does_not_depend_on_its_batch(knobs, batch_tokens):
    stops = [token for token in range(200) if token % 7 == 0]  # so that rows end at different steps
    together = generate(MODEL, Bytes(), PROMPTS, knobs, stops, batch_tokens=100_000)
    assert len({len(one.ids) for one in together}) > 2
    assert generate(MODEL, Bytes(), PROMPTS, knobs, stops, batch_tokens=batch_tokens) == together
    assert generate(MODEL, Bytes(), PROMPTS[:1], knobs, stops) == together[:1]


def test_the_seed_and_the_row_decide_what_is_drawn():
    prompts = [PROMPTS[2]] * 3
    first = generate(MODEL, Bytes(), prompts, SAMPLING, [])
    assert first == generate(MODEL, Bytes(), prompts, SAMPLING, [])
    assert len({tuple(one.ids) for one in first}) == 3
    assert first != generate(MODEL, Bytes(), prompts, SAMPLING.model_copy(update={"seed": 1}), [])


def test_batches_are_bounded_by_the_budget():
    model = Scripted(*["abc"] * 7)
    generate(model, Bytes(), [[n] for n in range(7)], GenerateKnobs(max_new_tokens=4), [EOS], batch_tokens=15)
    assert model.computed == [3] * 4 + [3] * 4 + [1] * 4  # 3 rows of 1 + 4 tokens fit


def test_the_longest_prompt_of_a_batch_counts_for_all_of_it():
    """Each row of the cache has as many cells as the longest one needs."""
    knobs = GenerateKnobs(max_new_tokens=1)
    assert list(batches([1, 9, 5], knobs, 20)) == [[1, 2], [0]]
    assert list(batches([1, 9, 5], knobs.model_copy(update={"beams": 2}), 20)) == [[1], [2], [0]]
    assert list(batches([50, 1], knobs, 20)) == [[0], [1]], "one at least"


def test_rows_that_have_stopped_cost_nothing():
    model = Scripted("abcdef", "a", "abc")
    generate(model, Bytes(), [[0], [1], [2]], GenerateKnobs(), [EOS])
    assert model.computed == [3, 3, 2, 2, 1, 1, 1]


def test_stop_tokens_and_the_limit():
    assert answer("hello", "", "hi", max_new_tokens=3) == [
        Answer([*b"hel"], "hel", False),
        Answer([], "", True),
        Answer([*b"hi"], "hi", True),
    ]


def test_a_stop_text_is_found_across_tokens_and_cut_off():
    assert answer("one\n\ntwo", "one\n", stop=("\n\n",)) == [
        Answer([*b"one"], "one", True),
        Answer([*b"one\n"], "one\n", True),
    ]


def test_the_earliest_of_several_stop_texts_counts():
    assert answer("a<<b>>c", stop=(">>", "<<b>"))[0].text == "a"
    assert answer("abc", stop=("b", "ab"))[0].text == ""
    assert answer("ENDless", stop=("END",)) == [Answer([], "", True)]


def test_a_stop_text_inside_a_token():
    class Syllables(Bytes):
        def decode(self, ids, skip_special=True):
            return super().decode(ids).replace("X", "la. Do")

    one = generate(Scripted("laXre"), Syllables(), [[0]], GenerateKnobs(stop=(". ",)), [EOS])[0]
    assert one == Answer([*b"laX"], "lala", True)  # the last token holds the end of the text, so it stays


def test_a_special_token_as_stop_text():
    model = Scripted("ab")
    assert generate(model, Bytes(), [[0]], GenerateKnobs(stop=("<eos>",)), [])[0] == Answer([*b"ab"], "ab", True)


def test_a_stop_text_ends_a_beam():
    assert answer("one. two", beams=2, stop=(". ",))[0] == Answer([*b"one"], "one", True)


def test_streamed_pieces_are_whole_characters():
    pieces = []
    text = "né 你好 🙂!"
    generate(Scripted(text), Bytes(), [[0]], GenerateKnobs(), [EOS], on_text=lambda row, piece: pieces.append(piece))
    assert pieces == list(text)


def test_an_unfinished_character_is_told_at_the_end():
    pieces = []
    knobs = GenerateKnobs(max_new_tokens=2)
    generate(Scripted("a🙂"), Bytes(), [[0]], knobs, [EOS], on_text=lambda row, piece: pieces.append(piece))
    assert pieces == ["a", "\ufffd"]


def test_text_that_may_begin_a_stop_text_is_held_back():
    pieces = []
    knobs = GenerateKnobs(stop=("\n\nUser:",))
    generate(
        Scripted("a\n\nUb\n\nUser: c"), Bytes(), [[0]], knobs, [EOS], on_text=lambda row, piece: pieces.append(piece)
    )
    assert pieces == ["a", "\n\nUb"]


@given(
    st.lists(st.text("ab\né", max_size=8), min_size=1, max_size=4),
    st.sets(st.text("ab\né", min_size=1, max_size=3), max_size=2),
)
@example(["\naa"], {"a", "\naa"})
def test_the_stop_text_that_is_complete_first_cuts(texts, stops):
    for text, one in zip(texts, answer(*texts, stop=tuple(sorted(stops))), strict=True):
        written = text[: min((text.index(stop) + len(stop) for stop in stops if stop in text), default=None)]
        places = [written.index(stop) for stop in stops if stop in written]
        assert one == Answer([*text[: min(places, default=None)].encode()], text[: min(places, default=None)], True)


def test_progress_counts_finished_answers():
    seen = []
    model = Scripted("a", "bcd")
    generate(model, Bytes(), [[0], [1]], GenerateKnobs(), [EOS], progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]


def test_an_interrupt_passes_through():
    def interrupt(row, piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(Scripted("abc"), Bytes(), [[0]], GenerateKnobs(), [EOS], on_text=interrupt)


def test_training_goes_on_after_generation():
    model = tiny()
    generate(model, Bytes(), PROMPTS, GenerateKnobs(max_new_tokens=3), [])
    model(Rows.of(PROMPTS)).sum().backward()
    assert model.embed.weight.grad.abs().sum() > 0


def test_no_prompts_no_answers():
    assert generate(MODEL, Bytes(), [], GenerateKnobs(), []) == []


@pytest.mark.parametrize("knobs", [SAMPLING, GenerateKnobs(max_new_tokens=12, beams=3)])
def test_a_bfloat16_model_is_sampled_in_float32(knobs):
    model = tiny().to(torch.bfloat16)
    answers = generate(model, Bytes(), PROMPTS, knobs, [])
    model.logits = lambda hidden: Decoder.logits(model, hidden).float()
    assert generate(model, Bytes(), PROMPTS, knobs, []) == answers


# What is drawn.


def test_filters_by_hand():
    scores = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    left = {
        "top_k": (GenerateKnobs(temperature=1, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        "top_p": (GenerateKnobs(temperature=1, top_p=0.74), [2 / 3, 1 / 3, 0, 0]),
        "top_p, less than the likeliest": (GenerateKnobs(temperature=1, top_p=0.1), [1, 0, 0, 0]),
        "min_p": (GenerateKnobs(temperature=1, min_p=0.25), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        "temperature": (GenerateKnobs(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        "top_k above V": (GenerateKnobs(temperature=1, top_k=9), [0.5, 0.25, 0.15, 0.1]),
    }
    for name, (knobs, expected) in left.items():
        torch.testing.assert_close(
            narrow(scores, knobs).softmax(-1), torch.tensor([expected], dtype=torch.float32), msg=name
        )


def test_penalise_by_hand():
    scores = torch.tensor([[2.0, -1.0, 3.0], [2.0, -1.0, 3.0]])
    expected = torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, 1.5]])
    assert torch.equal(penalise(scores, [[0, 1, 0], [2]], 2.0), expected)  # a token seen twice is penalised once
    assert scores[0, 0] == 2.0


def test_draw_by_hand():
    scores = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, 4)
    assert draw(scores, [0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53]) == [0, 0, 2, 2, 3, 3]


def test_draw_never_takes_what_was_filtered_out():
    scores = torch.tensor([0.0, 0.5, 0.0, 0.5]).log().expand(2, 4)
    assert draw(scores, [0.0, 0.5]) == [1, 3]  # right at the borders


def test_draw_reaches_the_last_of_many_tokens():
    scores = torch.zeros(1, 50_000)
    assert draw(scores, [(49_999 + 0.5) / 50_000]) == [49_999]
    assert draw(scores, [0.5 / 50_000]) == [0]


def test_drawn_tokens_are_distributed_as_told():
    model, prompts = Scripted(*["a"] * 4000), [[n] for n in range(4000)]
    model.scripts = [[0]] * 4000  # one token, of score 1, among 256 of score 0
    knobs = GenerateKnobs(temperature=1, max_new_tokens=1)
    counts = Counter(one.ids[0] for one in generate(model, Bytes(), prompts, knobs, [], batch_tokens=2000))
    share = math.e / (math.e + 256)
    assert abs(counts[0] - 4000 * share) < 4 * math.sqrt(4000 * share)
    assert len(counts) > 250


# What is refused.

REFUSED = [
    (
        {"beams": 4, "temperature": 0.7},
        "beams = 4 and temperature = 0.7 exclude each other: beam search draws nothing."
        " Set beams to 1 or temperature to 0",
    ),
    ({"top_k": 5}, "top_k = 5 changes nothing with temperature = 0. Set temperature above 0"),
    ({"top_p": 0.9}, "top_p = 0.9 changes nothing with temperature = 0. Set temperature above 0"),
    ({"min_p": 0.1}, "min_p = 0.1 changes nothing with temperature = 0. Set temperature above 0"),
    ({"length_penalty": 2.0}, "length_penalty = 2.0 changes nothing with beams = 1. Set beams above 1"),
    ({"stop": ("",)}, "stop = '' would end every answer before it begins. Give a text, as in '\\n'"),
    (
        {"max_new_tokens": 44},
        "prompt 6 has 21 tokens, and max_new_tokens = 44: together more than the model's context of 64."
        " Set max_new_tokens to 43 or less",
    ),
]


@pytest.mark.parametrize(("knobs", "message"), REFUSED)
def test_settings_that_cannot_work(knobs, message):
    with pytest.raises(ConfigError) as error:
        generate(MODEL, Bytes(), PROMPTS, GenerateKnobs(**{"max_new_tokens": 4} | knobs), [])
    assert str(error.value) == message


def test_a_prompt_that_fills_the_context():
    with pytest.raises(ConfigError, match=r"model's context of 64\. Shorten the prompt$"):
        generate(MODEL, Bytes(), [[1] * 64], GenerateKnobs(max_new_tokens=1), [])
    assert len(generate(MODEL, Bytes(), [[1] * 63], GenerateKnobs(max_new_tokens=1), [])[0].ids) == 1


def test_a_prompt_without_tokens():
    with pytest.raises(DataError) as error:
        generate(MODEL, Bytes(), [[1], []], GenerateKnobs(max_new_tokens=1), [])
    assert str(error.value) == "prompt 2 has no tokens, so there is nothing to continue. Give it some text"


@pytest.mark.parametrize("beams", [1, 2])
def test_a_beginning_that_all_prompts_share_is_computed_once(beams, monkeypatch):
    prompts = [[*range(40, 60), *range(n, 2 * n)] for n in (3, 1, 7)]
    knobs = GenerateKnobs(max_new_tokens=6, beams=beams, repetition_penalty=1.3)
    apart = [answer.ids for answer in generate(MODEL, Bytes(), prompts, knobs, [])]
    counts, forward = [], Decoder.forward

    def counted(self, rows, cache):
        counts.append(len(rows.ids))
        return forward(self, rows, cache)

    monkeypatch.setattr(Decoder, "forward", counted)
    monkeypatch.setattr("microplane.inference.generate.WORTH_SHARING", 40)
    assert [answer.ids for answer in generate(MODEL, Bytes(), prompts, knobs, [])] == apart
    assert counts[:2] == [20, 11]


def test_what_prompts_share():
    assert common_beginning([[1, 2, 3, 4], [1, 2, 3, 9], [1, 2, 3, 4, 5]]) == 3
    assert common_beginning([[1, 2], [1, 2, 3]]) == 1, "one token is left to be computed"
    assert common_beginning([[1], [2]]) == common_beginning([[5, 6]]) == 0


# Where nobody says how long an answer may be, it ends with the context.


@pytest.mark.parametrize("beams", [1, 2])
def test_by_default_each_answer_ends_where_the_context_does_and_that_is_said(beams, recwarn):
    prompts = [[1] * 3, list(range(60)), [2] * 63]
    answers = generate(MODEL, Bytes(), prompts, GenerateKnobs(beams=beams), [])
    assert [len(answer.ids) for answer in answers] == [61, 4, 1]
    assert not any(answer.stopped for answer in answers)
    alone = [generate(MODEL, Bytes(), [prompt], GenerateKnobs(beams=beams), [])[0].ids for prompt in prompts]
    assert [answer.ids for answer in answers] == alone
    said = "3 of 3 prompts leave less room for an answer than max_new_tokens = 256, prompt 3 the least: 1 tokens"
    told = "the prompt leaves less room for an answer than max_new_tokens = 256: 61 tokens"
    assert [str(one.message) for one in recwarn][:2] == [said, told]


def test_where_there_is_room_nothing_is_said_and_a_full_context_is_refused(recwarn):
    generate(tiny(context=300), Bytes(), [[1] * 44], GenerateKnobs(), [])
    assert not list(recwarn)
    with pytest.raises(ConfigError, match=r"has 64 tokens: it leaves no room for an answer in .*64\. Shorten"):
        generate(MODEL, Bytes(), [[1] * 64], GenerateKnobs(), [])


def test_a_number_that_is_given_is_refused_as_ever_though_it_is_the_default():
    with pytest.raises(ConfigError, match=r"max_new_tokens = 256: .* Set max_new_tokens to 61 or less"):
        generate(MODEL, Bytes(), [[1] * 3], GenerateKnobs(max_new_tokens=256), [])


def test_a_model_without_a_bound_writes_what_is_asked(monkeypatch):
    monkeypatch.setattr(Decoder, "max_row_tokens", None)
    assert len(generate(MODEL, Bytes(), [[1] * 3], GenerateKnobs(max_new_tokens=5), [])[0].ids) == 5


@pytest.mark.parametrize("fits", [None, True])
def test_an_encoder_decoder_writes_as_much_as_its_context_by_default(fits, recwarn):
    model = tiny_pairs("marian")
    model.config = replace(model.config, context=12)
    knobs = GenerateKnobs() if fits is None else GenerateKnobs(max_new_tokens=99)
    [answer] = generate(model.eval(), Bytes(), [[5, 6, 7]], knobs, [], fits=fits)
    assert len(answer.ids) == 12
    assert len(list(recwarn)) == (fits is None)


def test_a_forced_last_token_comes_at_the_end_of_each_rows_own_room():
    rules = GenerationRules(forced_bos=1, forced_eos=4)
    confined = confine(torch.zeros(4, 5), [1, 3, 8, 0], [2, 9, 9, 9], rules)
    free = [0.0] * 5
    alone = [[0.0 if token == only else -math.inf for token in range(5)] for only in range(5)]
    assert confined.tolist() == [alone[4], free, alone[4], alone[1]]
