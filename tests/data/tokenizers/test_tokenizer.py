"""The tokenizer: folders, SentencePiece models, GGUF metadata, saving, streaming, and what it says of damage."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.sentencepiece import read_model
from microplane.data.tokenizers.text_stream import TextStream
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import ModelError
from tests.gguf_files import write_gguf

WORDS = "the cat sat on mat über größe мир привет 你好 世界 print(x) = 42 café naïve :-) hello world नमस्ते 😀".split()
TEXTS = [
    "hello world", "", " ", "  two  spaces ", "Über 42 größe\n\n\tnaïve", "<s>the cat</s> sat", "<|end|>x<|end|> y",
    "你好世界 😀😀", "नमस्ते", "a<tool>b <tool> c", "\x00\x7f�", "ﬀ①½ ² ٣", "e\u0301 vs é",
]  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"


def sentences(count: int = 600, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=12)) for _ in range(count)]


def byte_level(special: tuple[str, ...] = ("<s>", "</s>", "<|end|>")) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences(), trainer)
    return backend


def write(folder: Path, name: str, fields: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A model folder with a byte-level tokenizer.json that puts <s> before a text."""
    path = tmp_path / "model"
    path.mkdir()
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(5)
    backend.enable_padding(length=20, pad_token="<s>")
    backend.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}, "chat_template": TEMPLATE}
    write(path, "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    return path


def test_a_folder_gives_the_ids_of_transformers(folder):
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids, text
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs) == 360
    assert (ours.bos_id, ours.eos_ids, ours.unk_id) == (0, (1,), None)
    assert ours.chat_template == TEMPLATE


def test_bos_is_put_only_where_asked_and_special_tokens_in_a_text_are_always_seen(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("<s>x<|end|>")[:2] == [0, 0]
    assert tokenizer.encode("<s>x<|end|>", special=False)[0] == 0
    assert tokenizer.encode("<s>x<|end|>", special=False)[-1] == 2
    assert tokenizer.decode([0, *tokenizer.encode("x", special=False), 2]) == "x"
    assert tokenizer.decode([0, *tokenizer.encode("x", special=False), 2], skip_special=False) == "<s>x<|end|>"


def test_special_tokens_that_a_folder_splits_are_text_like_other(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    whole = load_tokenizer(folder)
    write(folder, "tokenizer_config.json", config | {"split_special_tokens": True})
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids, text
    assert ours.encode("<s>x")[1:] != whole.encode("<s>x")[1:]
    assert ours.fingerprint != whole.fingerprint
    ours.save(folder / "saved")
    assert load_tokenizer(folder / "saved").encode("<s>x") == ours.encode("<s>x")


@pytest.mark.parametrize("switch", [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_tokenizer_json_decides_what_is_put_around_a_text(folder, switch):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, "tokenizer_config.json", config | switch)
    assert load_tokenizer(folder).encode("") == AutoTokenizer.from_pretrained(folder)("").input_ids == [0]


def test_a_token_that_is_added_as_a_single_word_is_not_cut_out_of_longer_ones(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    flags = {
        "content": "tool",
        "single_word": True,
        **dict.fromkeys(("lstrip", "rstrip", "normalized", "special"), False),
    }
    write(folder, "tokenizer_config.json", config | {"added_tokens_decoder": {"360": flags}})
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "tool toolbox a tool"
    assert ours.encode(text) == theirs(text).input_ids
    assert ours.encode(text).count(360) == 2


def test_offsets_are_characters(folder):
    text = "über 你好 hello"
    ids, offsets = load_tokenizer(folder).encode_with_offsets(text)
    assert ids == load_tokenizer(folder).encode(text, special=False)
    assert len(offsets) == len(ids)
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(text)
    with_bos, _ = load_tokenizer(folder).encode_with_offsets(text, special=True)
    assert with_bos == [0, *ids]


def test_all_ids_that_stop_are_gathered(folder):
    write(folder, "generation_config.json", {"eos_token_id": [1, 2]})
    write(folder, "config.json", {"text_config": {"eos_token_id": 7}})
    assert load_tokenizer(folder).eos_ids == (1, 2, 7)
    write(folder, "config.json", {"eos_token_id": 2})
    assert load_tokenizer(folder).eos_ids == (1, 2)


def test_where_the_chat_template_stands(folder):
    write(folder, "tokenizer_config.json", {"chat_template": [{"name": "tool", "template": "T"}]})
    assert load_tokenizer(folder).chat_template == "T"
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    assert load_tokenizer(folder).chat_template == "D"
    write(folder, "chat_template.jinja", "J")
    assert load_tokenizer(folder).chat_template == "J"
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    write(folder, "additional_chat_templates/tool_use.jinja", "T")
    write(folder, "chat_template.json", {"chat_template": "P"})
    assert load_tokenizer(folder).chat_template == "D"
    write(folder, "additional_chat_templates/default.jinja", "A")
    assert load_tokenizer(folder).chat_template == "A"
    (folder / "additional_chat_templates" / "default.jinja").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).chat_template == "P"
    (folder / "chat_template.json").unlink()
    assert load_tokenizer(folder).chat_template is None


def test_special_tokens_that_only_the_config_names(folder):
    told = {"eos_token": "hello", "pad_token": "[none]", "extra_special_tokens": ["Ġcat"], "added_tokens_decoder": {}}
    write(folder, "tokenizer_config.json", told)
    write(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})  # is of older folders
    write(folder, "config.json", {"vocab_size": 360})  # no row for another token
    tokenizer = load_tokenizer(folder)
    named = {"bos_token": None, "eos_token": "hello", "unk_token": None, "pad_token": None}
    assert tokenizer.special_tokens == named
    hello = tokenizer.eos_ids[0]
    assert tokenizer.encode("xhellox", special=False)[1] == hello
    assert tokenizer.decode([hello]) == ""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"eos_token": "</s>", "pad_token": "</s>"}, "<|endoftext|>"),
        ({"eos_token": "</s>"}, "<|endoftext|>"),
        ({"eos_token": "</s>", "pad_token": "<s>"}, "<s>"),
        ({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "<|endoftext|>"),
    ],
)
def test_the_pad_is_not_the_stop_token_if_there_is_another(told, expected):
    tokenizer = Tokenizer(byte_level(("<s>", "</s>", "<|endoftext|>")), told)
    assert tokenizer.special_tokens["pad_token"] == expected


def test_pieces_are_shown_as_text(folder):
    tokenizer = load_tokenizer(folder)
    shown = [tokenizer.piece(token) for token in tokenizer.encode(" hello cat 你")]
    assert shown[:3] == ["<s>", " hello", " cat"]
    lone = tokenizer.backend.token_to_id("ä")  # the spelling of one byte, 0xE4
    assert tokenizer.piece(lone) == "ä"
    assert tokenizer.piece(10**6) == "<1000000>"


def test_the_fingerprint_is_of_what_decides_ids_and_template(folder):
    first = load_tokenizer(folder)
    assert first.fingerprint == load_tokenizer(folder).fingerprint
    config = json.loads((folder / "tokenizer_config.json").read_text())
    changes: list[dict[str, Any]] = [{"chat_template": "other"}, {"eos_token": "<|end|>"}, {"pad_token": "<|end|>"}]
    seen = {first.fingerprint}
    for change in changes:
        write(folder, "tokenizer_config.json", config | change)
        seen.add(load_tokenizer(folder).fingerprint)
    assert len(seen) == 4


def same_in_transformers(ours: Tokenizer, saved: Path) -> None:
    ours.save(saved)
    theirs = AutoTokenizer.from_pretrained(saved)
    for text in TEXTS + sentences(20, seed=1):
        assert theirs(text).input_ids == ours.encode(text), text
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "cat"}]
    if ours.chat_template:
        expected = "user: hello</s>\nassistant: cat</s>\n"
        assert theirs.apply_chat_template(messages, tokenize=False) == expected
    again = load_tokenizer(saved)
    assert again.fingerprint == ours.fingerprint
    assert again.special_tokens == ours.special_tokens
    assert again.eos_ids == ours.eos_ids


def test_a_saved_tokenizer_opens_in_transformers_with_equal_ids_and_template(folder, tmp_path):
    same_in_transformers(load_tokenizer(folder), tmp_path / "saved")
    bare = replace(load_tokenizer(folder), source=None)  # as that of a GGUF file
    bare.backend.post_processor = processors.ByteLevel()
    same_in_transformers(bare, tmp_path / "bare")


def test_a_saved_tokenizer_keeps_every_file_and_setting_but_those_that_were_chosen(folder, tmp_path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"model_max_length": 77, "padding_side": "left", "cls_token": "<s>", "mask_token": "cat"}
    config |= {"model_input_names": ["input_ids"], "tokenizer_class": "GPT2Tokenizer", "pad_token": "</s>"}
    write(folder, "tokenizer_config.json", config)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "additional_chat_templates").mkdir()
    write(folder, "additional_chat_templates/tool_use.jinja", "TOOLS")
    write(folder, "notes.txt", "not the tokenizer's")
    load_tokenizer(folder).save(tmp_path / "saved")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    saved = {
        str(f.relative_to(tmp_path / "saved")): f.read_bytes() for f in (tmp_path / "saved").rglob("*.*") if f.is_file()
    }
    assert files.pop("notes.txt")
    assert saved == files
    ended = load_tokenizer(folder).ending_with(2)
    ended.save(tmp_path / "ended")  # <s> is put before a text, and no end token behind it
    told = json.loads((tmp_path / "ended" / "tokenizer_config.json").read_text())
    assert told == config  # the template writes the old one


def behind_special(library: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """llama.cpp's ids: a space is put before a text, and before what follows a special token."""
    special = {name: library.piece_to_id(name) for name in ("<s>", "</s>", "<unk>", "<tool>", "<|end|>")}
    parts = [part for part in re.split("(" + "|".join(map(re.escape, special)) + ")", text) if part]
    return [token for part in parts for token in ([special[part]] if part in special else library.encode(part))]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": {"360": {"content": "<tool>", "special": True}}}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"360": {"content": "<tool>", "special": False}}}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"0": {"content": "<s>", "special": True, "lstrip": True}}}},
        {"tokenizer_config.json": {"extra_special_tokens": ["<tool>", "cat"]}},
        {"tokenizer_config.json": {"extra_special_tokens": {"tool_token": "<tool>"}}},
        {"tokenizer_config.json": {"eos_token": "<tool>"}},
        {"tokenizer_config.json": {"mask_token": "<tool>"}},
        {"special_tokens_map.json": {"additional_special_tokens": ["<tool>"]}},
        {"special_tokens_map.json": {"eos_token": "<tool>"}, "tokenizer_config.json": {"eos_token": "cat"}},
        {"special_tokens_map.json": {"eos_token": "<tool>"}, "added_tokens.json": {"<tool>": 360}},
        {"added_tokens.json": {"<tool>": 360}},
        {"tokenizer_config.json": {"image_token": "<tool>", "boi_token": "cat"}},
        {"special_tokens_map.json": {"image_token": "<tool>"}},
        {
            "tokenizer_config.json": {"additional_special_tokens": ["cat"]},
            "special_tokens_map.json": {"additional_special_tokens": ["<tool>"]},
        },
        {
            "tokenizer_config.json": {"extra_special_tokens": ["cat"]},
            "special_tokens_map.json": {"extra_special_tokens": ["<tool>"]},
        },
        {
            "tokenizer_config.json": {"extra_special_tokens": ["cat"], "additional_special_tokens": ["<tool>"]},
        },
        {"added_tokens.json": {"<no>": 360}, "tokenizer_config.json": {"added_tokens_decoder": {}}},
    ],
    ids=str,
)
def test_tokens_that_only_the_json_files_know_are_those_of_transformers(files, folder):
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    write(folder, "tokenizer_config.json", base)
    for name, told in files.items():
        write(folder, name, base | told if name == "tokenizer_config.json" else told)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("hello<tool>cat", "cat <s> hello", "a<no>b", " <tool> "):
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens["eos_token"] == theirs.eos_token


def test_saving_beside_a_model_of_a_known_type_keeps_the_ids(folder, tmp_path):
    saved = tmp_path / "saved"
    for kind in ("llama", "mistral", "smollm3", "qwen3", "gemma2", "gemma3_text"):
        write(saved, "config.json", {"model_type": kind})
        same_in_transformers(load_tokenizer(folder), saved)


# Streaming


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_a_stream_adds_up_to_the_text(streamed, text):
    for tokenizer in streamed:
        ids = tokenizer.encode(text, special=False)
        stream = TextStream(tokenizer)
        parts = [stream.feed(token) for token in ids]
        assert all("�" not in part for part in parts) or "�" in text
        assert "".join(parts) + stream.flush() == tokenizer.decode(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_stream_of_any_ids_adds_up_too(streamed, data):
    tokenizer = streamed[0]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    stream = TextStream(tokenizer, skip_special=False)
    assert "".join(map(stream.feed, ids)) + stream.flush() == tokenizer.decode(ids, skip_special=False)


def test_a_stream_waits_for_whole_characters():
    tokenizer = Tokenizer(byte_level())
    stream = TextStream(tokenizer)
    ids = [tokenizer.backend.token_to_id(letter) for letter in ("h", "ð", "Ł", "ĺ", "Ģ", "i", "ð")]
    assert [stream.feed(token) for token in ids] == ["h", "", "", "", "😀", "i", ""]
    assert stream.flush() == "�"
    assert stream.flush() == ""


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_sentencepiece(folder)
    return Tokenizer(byte_level()), load_tokenizer(folder)


# SentencePiece


def train_sentencepiece(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A model of Llama 2's kind."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["<tool>"],
        "control_symbols": ["<|end|>"],
        "character_coverage": 0.99,
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_prefix=str(folder / "tokenizer"), **settings
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


UNIGRAM = {"model_type": "unigram", "vocab_size": 320}
PLAIN = [text for text in TEXTS if "<" not in text]  # the library itself does not look for control tokens in a text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"byte_fallback": False, "vocab_size": 180, "unk_id": 3, "pad_id": 0},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        UNIGRAM | {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        UNIGRAM,
    ],
    ids=["llama", "no prefix", "no bytes", "nfkc", "unigram nfkc", "unigram"],
)
def test_a_sentencepiece_model_gives_the_ids_of_its_own_library(options, tmp_path):
    library = train_sentencepiece(tmp_path, **options)
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == library.vocab_size()
    prefixed = options.get("add_dummy_prefix", True) and not options.get("remove_extra_whitespaces")
    for text in PLAIN + sentences(100, seed=1):
        if not (prefixed and text.startswith(" ")):  # there transformers, and so we, put no second space
            assert ours.encode(text) == library.encode(text), text


def test_what_a_sentencepiece_model_says_of_itself(tmp_path):
    train_sentencepiece(tmp_path, pad_id=3)
    pieces, ids = read_model(tmp_path / "tokenizer.model")
    assert ids == {"unk": 0, "bos": 1, "eos": 2, "pad": 3}
    assert (pieces.unigram, pieces.prefix, pieces.squeeze, pieces.charsmap) == (False, "always", False, b"")
    tokenizer = load_tokenizer(tmp_path)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    assert tokenizer.special_tokens == named
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.unk_id) == (1, (2,), 0)
    assert tokenizer.decode(tokenizer.encode("hello  cat 😀<|end|>")) == "hello  cat 😀"
    assert tokenizer.piece(tokenizer.encode("hello cat")[1]) == " cat"


def test_switches_and_added_tokens_of_a_sentencepiece_folder(tmp_path):
    train_sentencepiece(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"add_bos_token": True})
    assert load_tokenizer(tmp_path).encode("the")[0] == 1
    plain = load_tokenizer(tmp_path).encode("the cat", special=False)
    write(tmp_path, "tokenizer_config.json", {"add_prefix_space": False})
    assert load_tokenizer(tmp_path).encode("the cat") != plain
    added = {"420": {"content": "<pad>", "special": True}, "421": {"content": "<think>", "special": False}}
    added |= {"422": {"content": "<more>"}}
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": added, "pad_token": "<pad>"})
    write(tmp_path, "added_tokens.json", {"<other>": 422})  # is of older folders
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<pad><think><more>") == [420, 421, 422]
    assert tokenizer.special_tokens["pad_token"] == "<pad>"
    added = {"420": {"content": "<pad>"}, "500": {"content": "<more>"}}
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": added})
    with pytest.raises(
        ModelError, match=r"gives '<more>' the id 500, but behind the pieces of tokenizer.model it is 421"
    ):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_tokenizer_saved_for_transformers(tmp_path):
    train_sentencepiece(tmp_path / "model")
    write(tmp_path / "model", "tokenizer_config.json", {"add_bos_token": True, "chat_template": TEMPLATE})
    same_in_transformers(load_tokenizer(tmp_path / "model"), tmp_path / "saved")


# GGUF

NOTHING: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 8,
    "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
}  # fmt: skip


def gguf_vocabulary(folder: Path, architecture: str = "llama", **tokens: Any) -> Path:
    named = {key.replace("__", "."): value for key, value in tokens.items() if value is not None}
    return write_gguf(folder / "m.gguf", NOTHING, {}, metadata={"general.architecture": architecture}, tokens=named)


def byte_level_fields(**changes: Any) -> dict[str, Any]:
    told = json.loads(byte_level().to_str())["model"]
    vocab = sorted(told["vocab"], key=told["vocab"].get)
    fields = {
        "ggml__model": "gpt2",
        "ggml__pre": "smollm",
        "ggml__tokens": vocab,
        "ggml__token_type": [3 if token.startswith("<") and len(token) > 1 else 1 for token in vocab],
        "ggml__merges": [" ".join(merge) for merge in told["merges"]],
        "ggml__bos_token_id": 0,
        "ggml__eos_token_id": 1,
        "chat_template": TEMPLATE,
    }
    return fields | {f"ggml__{key}": value for key, value in changes.items()}


def test_a_byte_level_vocabulary_out_of_gguf(tmp_path):
    ours, original = (
        load_tokenizer(gguf_vocabulary(tmp_path, **byte_level_fields(eot_token_id=2, pre="gpt-2"))),
        byte_level(),
    )
    for text in TEXTS + sentences(50, seed=1):
        assert ours.encode(text) == original.encode(text).ids, text
        assert ours.decode(ours.encode(text), skip_special=False) == text
    assert (ours.bos_id, ours.eos_ids, ours.chat_template) == (0, (1, 2), TEMPLATE)
    same_in_transformers(Tokenizer(ours.backend, ours.special_tokens, (1,), TEMPLATE), tmp_path / "saved")


def test_what_gguf_says_is_put_around_a_text(tmp_path):
    fields = byte_level_fields(add_bos_token=True, add_eos_token=True)
    assert load_tokenizer(gguf_vocabulary(tmp_path, **fields)).encode("") == [0, 1]
    assert load_tokenizer(gguf_vocabulary(tmp_path, **byte_level_fields())).encode("") == []


def test_tokens_that_are_marked_are_found_whole_also_where_they_are_no_byte_spelling(tmp_path):
    fields = byte_level_fields()
    fields["ggml__tokens"] += ["<｜User｜>", "two words", "日本"]
    fields["ggml__token_type"] += [3, 4, 1]
    tokenizer = load_tokenizer(gguf_vocabulary(tmp_path, **fields))
    assert tokenizer.encode("x<｜User｜>two wordsx")[1:3] == [360, 361]
    assert tokenizer.decode([360, 361, 362]) == "two words日本"
    assert tokenizer.vocab_size == 363


def sentencepiece_fields(folder: Path, **changes: Any) -> dict[str, Any]:
    train_sentencepiece(folder)
    pieces, _ = read_model(folder / "tokenizer.model")
    return {
        "ggml__model": "llama",
        "ggml__tokens": pieces.texts,
        "ggml__scores": pieces.scores,
        "ggml__token_type": pieces.types,
        "ggml__bos_token_id": 1,
        "ggml__eos_token_id": 2,
        "ggml__unknown_token_id": 0,
    } | {f"ggml__{key}": value for key, value in changes.items()}


def test_a_sentencepiece_vocabulary_out_of_gguf(tmp_path):
    fields = sentencepiece_fields(tmp_path / "model")
    original = load_tokenizer(tmp_path / "model")
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model" / "tokenizer.model"))
    ours = load_tokenizer(gguf_vocabulary(tmp_path, **fields))
    joined = ["<s>a cat</s> the<tool>dog<|end|>  two", "</s>\n", " <s> ", "<s><s>the"]
    for text in PLAIN + sentences(100, seed=1) + joined:
        assert ours.encode(text, special=False) == behind_special(library, text), text
    assert ours.encode("the")[0] == 1  # without a word about BOS it wants one
    bare = load_tokenizer(gguf_vocabulary(tmp_path, **fields, ggml__add_bos_token=False, ggml__add_space_prefix=False))
    assert bare.encode("the cat")[0] != original.encode("the cat")[0]
    assert bare.decode(bare.encode(" the")) == " the"


@pytest.mark.parametrize("cut", ["llama-bpe", "llama3", "falcon3", "tekken", "pixtral", "qwen2", "smollm", "smaug-bpe"])
def test_whole_words_and_bos_of_a_gguf_are_as_llama_cpp_has_them(cut, tmp_path):
    fields = byte_level_fields()
    fields["ggml__tokens"] = [*fields["ggml__tokens"], "Ġunmerged"]  # no merge leads there
    fields["ggml__token_type"] = [*fields["ggml__token_type"], 1]
    fields |= {"ggml__pre": cut, "ggml__bos_token_id": 0}
    ours = load_tokenizer(gguf_vocabulary(tmp_path, **fields))
    whole = cut not in ("qwen2", "smollm", "smaug-bpe")
    word = len(fields["ggml__tokens"]) - 1
    assert (word in ours.encode("a unmerged b")) == whole
    assert (ours.encode("a")[0] == 0) == whole
    told = load_tokenizer(gguf_vocabulary(tmp_path, **fields, ggml__add_bos_token=not whole))
    assert (told.encode("a")[0] == 0) != whole


@pytest.mark.parametrize("scored", [True, False])
def test_a_gemma_vocabulary_out_of_gguf(scored, tmp_path):
    fields = sentencepiece_fields(tmp_path / "model")
    library = train_sentencepiece(
        tmp_path / "model", add_dummy_prefix=False, user_defined_symbols=["<tool>", "▁▁", "▁▁▁"]
    )
    pieces, _ = read_model(tmp_path / "model" / "tokenizer.model")
    fields |= {
        "ggml__tokens": [
            text.replace("▁", " ") if set(text) == {"▁"} and len(text) > 1 else text for text in pieces.texts
        ]
    }
    fields |= {"ggml__scores": pieces.scores if scored else None, "ggml__token_type": pieces.types}
    fields |= {"ggml__add_space_prefix": False}
    ours = load_tokenizer(gguf_vocabulary(tmp_path, "gemma2", **fields))
    for text in PLAIN + sentences(100, seed=1) + ["a  b   c", "   x"]:
        assert ours.encode(text, special=False) == library.encode(text), text
        assert ours.decode(ours.encode(text)) == text


# What cannot be used


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "bert"}, "a tokenizer of type 'bert'; supported are gpt2, llama"),
        ({"model": None}, "a tokenizer of type None"),
        (
            {"pre": "kimi-k2"},
            r"cuts text by 'kimi-k2' \(tokenizer.ggml.pre\), which is not known; known are default, gpt-2",
        ),
        ({"tokens": None}, "has no tokenizer.ggml.tokens: its tokenizer is incomplete"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"merges": ["the nothing"]}, "its merges do not fit its tokens"),
        ({"token_type": [1, 1]}, "damaged: it has 360 tokens and 2 types"),
        ({"eos_token_id": 4000}, "it names 4000 as a special token, and has the tokens 0 to 359"),
        ({"model": "llama", "scores": [0.5]}, "damaged: it has 360 tokens and 1 scores"),
    ],
)
def test_gguf_vocabularies_that_cannot_be_used(changes, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        load_tokenizer(gguf_vocabulary(tmp_path, **byte_level_fields(**changes)))


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer: expected tokenizer.json, tokenizer.model or spiece.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="there is no tokenizer at .*absent: give a model folder or a .gguf file"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", r"tokenizer.json is damaged or not a tokenizer.json \(.*\). Fetch it again"),
        ("tokenizer.json", "{}", "is damaged or not a tokenizer.json"),
        ("tokenizer_config.json", "{'a'}", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, but holds a list"),
        ("generation_config.json", "\udcff", "generation_config.json is not valid JSON"),
        ("chat_template.jinja", "\udcff", "cannot read the chat template .*chat_template.jinja"),
    ],
)
def test_damaged_files_of_a_folder(folder, file, content, said):
    (folder / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=said):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("tokenizer_config.json", {"eos_token": 3}, "has eos_token = 3: expected the text of a token"),
        ("tokenizer_config.json", {"pad_token": {"content": [1]}}, "has pad_token = .*: expected the text of a token"),
        ("tokenizer_config.json", {"extra_special_tokens": 5}, "has extra_special_tokens = 5: expected the text"),
        ("tokenizer_config.json", {"additional_special_tokens": [1]}, "has additional_special_tokens = 1: expected"),
        (
            "tokenizer_config.json",
            {"chat_template": 7},
            "has chat_template = 7: expected a template, or a list of them",
        ),
        ("tokenizer_config.json", {"chat_template": ["x"]}, r"has chat_template = \['x'\]: expected a template"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "a", "template": 1}]},
            "has chat_template = .*: expected",
        ),
        ("generation_config.json", {"eos_token_id": "2"}, "has eos_token_id = 2: expected the id of a token"),
        ("config.json", {"eos_token_id": [2, None]}, r"has eos_token_id = \[2, None\]: expected the id of a token"),
    ],
)
def test_fields_of_the_wrong_type(folder, name, fields, said):
    write(folder, name, fields)
    with pytest.raises(ModelError, match=f"{name} {said}"):
        load_tokenizer(folder)


def test_added_tokens_of_the_wrong_type(tmp_path):
    train_sentencepiece(tmp_path)
    write(tmp_path, "added_tokens.json", {"<x>": "420"})
    with pytest.raises(ModelError, match=r"added_tokens.json must hold tokens and their ids, but has {'<x>': '420'}"):
        load_tokenizer(tmp_path)
    wrongs: list[Any] = [[1], {"x": {"content": "y"}}, {"420": "y"}, {"420": {}}]
    for wrong in wrongs:
        write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": wrong})
        with pytest.raises(ModelError, match=r"tokenizer_config.json has added_tokens_decoder = .*: expected ids, and"):
            load_tokenizer(tmp_path)


def test_a_file_that_cannot_be_read_is_said_so(folder):
    (folder / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"cannot read .*config.json: Is a directory"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", b"\x0a\x05", b"\x0a\x02\x08\x01", bytes(range(256))])
def test_files_that_are_no_sentencepiece_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)  # the second line is how tiktoken's files begin
    with pytest.raises(
        ModelError, match=r"is not a SentencePiece model, or is damaged. Fetch it again, or use a folder"
    ):
        load_tokenizer(tmp_path)


def test_sentencepiece_models_of_other_kinds_and_unreadable_ones(tmp_path):
    train_sentencepiece(tmp_path, model_type="char", vocab_size=300)
    with pytest.raises(ModelError, match=r"of type 4; supported are unigram \(1\) and BPE \(2\)"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="cannot read .*: No such file"):
        read_model(tmp_path / "absent.model")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_as_a_sentencepiece_model_end_in_one_clear_error_or_load(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "tokenizer.model"
    path.write_bytes(content)
    try:
        read_model(path)
    except ModelError as error:
        assert str(path) in str(error)
