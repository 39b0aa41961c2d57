"""Vocabularies of GGUF files as llama.cpp reads them; what is expected is what llama-cpp-python 0.3.36 gave."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from tokenizers import pre_tokenizers

from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.text_stream import TextStream
from microplane.errors import MicroplaneWarning, ModelError
from tests.gguf_files import write_gguf
from tests.tiny import CONFIGS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
GEMMA = CONFIGS["gemma2"]
LLAMA = CONFIGS["llama-tied"]
MERGES = ["Ġ 1", "1 2", "Ġ1 2", "12 3", "' t", "Ġ Â", "( Â", "Ġ (", "% )"]
PIECES = ["▁", "▁h", "el", "lo", "▁hel", "▁hello", "▁w", "▁▁", "▁b", "▁a", *"abdehlorwx"]
SPECIAL = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]


def byte_level(more=(), **told):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = [merge.replace(" ", "") for merge in MERGES]
    marked = [*((text, NORMAL) for text in [*letters, *made]), *more]
    return vocabulary("gpt2", marked, told) | {"ggml.merges": MERGES}


def spm(more=(), best=(), **told):
    in_bytes = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    marked = [*SPECIAL, *in_bytes, *((piece, NORMAL) for piece in [*PIECES, *best]), *more]
    scores = {piece: -float(place) for place, piece in enumerate([*best, *PIECES])}
    found = vocabulary("llama", marked, told)
    return found | {"ggml.scores": [scores.get(text, 0.0) for text in found["ggml.tokens"]]}


def vocabulary(model, marked, told):
    texts = [text for text, _ in marked]
    ids = {f"ggml.{key}": texts.index(x) if isinstance(x, str) and key != "pre" else x for key, x in told.items()}
    return {"ggml.model": model, "ggml.tokens": texts, "ggml.token_type": [kind for _, kind in marked]} | ids


def opened(folder, tokens, config=LLAMA, **metadata):
    return load_tokenizer(write_gguf(folder / "model.gguf", config, {}, tokens=tokens, metadata=metadata))


def pieces(tokenizer, text):
    return [tokenizer.backend.id_to_token(token) for token in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("gpt-2", "n|'t|Ġ12|3|4|Ġ(|Â|½|%)|Ġ(|3|Ġ|Ġ|Ġ1"),
        ("default", "n|'|t|Ġ|123|4|Ġ|(|Â|½|%)|Ġ|(|3|Ġ|Ġ|Ġ|1"),
        (None, "n|'|t|Ġ|123|4|Ġ|(|Â|½|%)|Ġ|(|3|Ġ|Ġ|Ġ|1"),
        ("smollm", "n|'t|Ġ|1|2|3|4|Ġ(|Â|½|%)|Ġ(|3|Ġ|Ġ|Ġ|1"),
    ],
)
def test_each_cut_is_llama_cpps(cut, expected, tmp_path):
    tokenizer = opened(tmp_path, byte_level(**({"pre": cut} if cut else {})))
    assert "|".join(pieces(tokenizer, "n't 1234 (½%) (3   1")) == expected


@pytest.mark.parametrize(("text", "kind"), [("<|im_end|>", NORMAL), ("<unk>", UNKNOWN), ("</s>", 5)])
def test_what_ends_an_answer_and_what_is_unknown_is_found_in_a_text(text, kind, tmp_path):
    tokenizer = opened(tmp_path, byte_level([(text, kind)], pre="gpt-2"))
    assert pieces(tokenizer, f"a{text}b") == ["a", text, "b"]


def test_special_tokens_that_are_not_named(tmp_path):
    """SentencePiece's are 1, 2 and 0; of other vocabularies those end an answer that are called so."""
    tokenizer = opened(tmp_path, spm())
    assert pieces(tokenizer, "hello") == ["<s>", "▁hello"]
    assert (tokenizer.eos_ids, tokenizer.unk_id) == ((2,), 0)
    more = [("<s>", CONTROL), ("<|eot_id|>", CONTROL)]
    tokenizer = opened(tmp_path, byte_level(more, pre="gpt-2"))
    assert tokenizer.eos_ids == (tokenizer.id_of("<|eot_id|>"),)
    assert pieces(tokenizer, "a") == ["a"]
    tokenizer = opened(tmp_path, byte_level([*more, ("<end>", CONTROL)], pre="gpt-2", eos_token_id="<end>"))
    assert tokenizer.eos_ids == (tokenizer.id_of("<end>"),)


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize("prefix", [True, False, None])
def test_gemma_is_read_as_any_other_of_its_kind(config, prefix, tmp_path):
    """Its scores say what is merged first, a space stands before a text unless the file denies it, and runs of spaces
    that are tokens of the user are taken out first, the longest before the others."""
    runs = [("  ", USER_DEFINED), ("   ", USER_DEFINED)]
    told = {} if prefix is None else {"add_space_prefix": prefix}
    tokenizer = opened(tmp_path, spm(runs, ["he"], **told), config)
    space = "" if prefix is False else "▁"
    assert pieces(tokenizer, "axhello a") == ["<s>", f"{space}a", "x", "he", "l", "lo", "▁a"]
    assert pieces(tokenizer, "a     b") == ["<s>", f"{space}a", "   ", "  ", f"{space}b"]


def test_white_space_behind_special_tokens_of_phi_3_is_left_out(tmp_path):
    more = [("<|end|>", CONTROL), ("<tool>", USER_DEFINED), ("<|endoftext|>", CONTROL)]
    named = opened(tmp_path, spm(more, add_bos_token=False), **{"general.name": "Phi-3 Mini"})
    other = opened(tmp_path, spm(more, add_bos_token=False), **{"general.name": "Llama 2"})
    assert pieces(named, "a<|end|> b<s> b<tool> b") == ["▁a", "<|end|>", "▁b", "<s>", "▁▁", "b", "<tool>", "▁b"]
    assert pieces(other, "a<|end|> b") == ["▁a", "<|end|>", "▁▁", "b"]


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_whose_letters_could_stand_for_bytes_are_written_as_they_are(special, tmp_path):
    """The library's decoder makes bytes of them that are no text."""
    more = [("<début>", CONTROL if special else USER_DEFINED), ("<日>", USER_DEFINED)]
    tokenizer = opened(tmp_path, byte_level(more, pre="gpt-2"))
    ids = tokenizer.encode("é<début>12<日>é")
    assert tokenizer.decode(ids) == f"é{'' if special else '<début>'}12<日>é"
    assert tokenizer.decode(ids, skip_special=False) == "é<début>12<日>é"
    stream = TextStream(tokenizer, skip_special=False)
    assert "".join([*map(stream.feed, ids), stream.flush()]) == "é<début>12<日>é"


def test_an_added_token_that_merges_make_of_bytes_stays_bytes(tmp_path):
    """`é` stands for the byte E9, with which other characters begin."""
    made = byte_level([("éŃ", USER_DEFINED), ("é", USER_DEFINED)], pre="gpt-2")
    made["ggml.merges"] = [*MERGES, "é Ń"]
    tokenizer = opened(tmp_path, made)
    assert tokenizer.decode(tokenizer.encode("魚鱼")) == "魚鱼"


@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token", "add_space_prefix"])
@pytest.mark.parametrize("value", ["false", 1])
def test_switches_that_are_neither_true_nor_false_are_refused(key, value, tmp_path):
    with pytest.raises(ModelError, match=rf"tokenizer\.ggml\.{key} is {value!r}, expected true or false"):
        opened(tmp_path, spm() | {f"ggml.{key}": value})


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_token_that_is_to_be_put_and_is_not_named_is_refused(name, tmp_path):
    told = {f"add_{name}_token": True}
    with pytest.raises(ModelError, match=rf"says tokenizer\.ggml\.add_{name}_token, and has no .*{name}_token_id"):
        opened(tmp_path, byte_level(pre="gpt-2", **told))
    named = opened(tmp_path, byte_level([("<x>", CONTROL)], pre="gpt-2", **told, **{f"{name}_token_id": "<x>"}))
    assert pieces(named, "a") == (["<x>", "a"] if name == "bos" else ["a", "<x>"])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(score, tmp_path):
    tokens = spm()
    tokens["ggml.scores"][-1] = score
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.scores hold NaN or infinity"):
        opened(tmp_path, tokens)


def test_characters_that_are_left_out_of_every_text_are_told(tmp_path):
    """Of a vocabulary that says no types, and so no unknown, and has no bytes."""
    tokens = spm()
    kept = [place for place, kind in enumerate(tokens["ggml.token_type"]) if kind != BYTE]
    tokens |= {name: [tokens[name][place] for place in kept] for name in ("ggml.tokens", "ggml.scores")}
    del tokens["ggml.token_type"]
    with pytest.warns(MicroplaneWarning, match=r"model\.gguf: characters .* left out of every text"):
        assert pieces(opened(tmp_path, tokens), "helloé") == ["<s>", "▁hello"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_of_drawn_vocabularies_are_merged_by_their_scores(seed, prefix, tmp_path):
    """As llama.cpp does it: of all neighbours whose join is a piece those with the highest score, again and again."""
    draw = random.Random(seed)
    made = {piece: -50.0 - place for place, piece in enumerate("▁abcd")}
    while len(made) < 20:
        made.setdefault("".join(draw.choices([*made], k=2)), -draw.random())
    marked = [*SPECIAL, *((f"<0x{byte:02X}>", BYTE) for byte in range(256)), *((piece, NORMAL) for piece in made)]
    told = {"add_bos_token": False, "add_space_prefix": prefix}
    tokens = vocabulary("llama", marked, told) | {"ggml.scores": [made.get(text, 0.0) for text, _ in marked]}
    tokenizer = opened(tmp_path, tokens)
    for _ in range(40):
        text = "".join(draw.choices("abcd é", k=draw.randrange(1, 12)))
        assert pieces(tokenizer, text) == merged(("▁" if prefix else "") + text.replace(" ", "▁"), made), text


def merged(text, scores):
    parts = list(text)
    while True:
        joins = [(-scores.get(one + two, -math.inf), at) for at, (one, two) in enumerate(pairwise(parts))]
        if not joins or (best := min(joins))[0] == math.inf:
            break
        parts[best[1] : best[1] + 2] = ["".join(parts[best[1] : best[1] + 2])]
    spelled = ([part] if part in scores else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts)
    return [piece for pieces in spelled for piece in pieces]
