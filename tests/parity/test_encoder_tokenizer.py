"""BERT's and RoBERTa's tokenizers from their plain vocabularies, against transformers: ids, pairs, offsets."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ModelError

TEXTS = [
    "A man is eating food.",
    "  Two  spaces, unaffable  cafés and 北京!",
    "the [MASK] of <mask> and </s>",
    "",
    "x" * 120,
    "tabs\tand\nlines \u0000 \N{PILE OF POO}",
]
PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] a man is eat ##ing food . , ! un ##aff ##able cafe café ##s and two The the of"


def bert(folder: Path, **config: object) -> Path:
    letters = [text for letter in "bcdefghijklmnopqrstuvwxyz" for text in (letter, f"##{letter}")]
    (folder / "vocab.txt").write_text("\n".join([*PIECES.split(), *letters, "北", "京"]) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    return folder


def roberta(folder: Path, **config: object) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("Ġ", "an")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *("".join(pair) for pair in merges), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "__type": "AddedToken"}  # as in roberta-base
    told = {"tokenizer_class": "RobertaTokenizer", "mask_token": mask, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def bart(folder: Path) -> Path:
    roberta(folder, tokenizer_class="BartTokenizer")
    (folder / "config.json").write_text('{"model_type": "bart"}')
    return folder


KINDS = {
    "bert": (bert, {}),
    "bert cased": (bert, {"do_lower_case": False}),
    "bert keeps accents": (bert, {"strip_accents": False}),
    "bert other chinese": (bert, {"tokenize_chinese_chars": False}),
    "roberta": (roberta, {}),
    "bart": (bart, {}),
    "roberta with a space": (roberta, {"add_prefix_space": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, tmp_path):
    make, config = KINDS[kind]
    make(tmp_path, **config)
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.encode_pair(text, "the food")[0] == theirs(text, "the food")["input_ids"], text
    ours.save(tmp_path / "saved")
    if (tmp_path / "config.json").is_file():  # says whose vocabulary a vocab.txt is
        shutil.copy(tmp_path / "config.json", tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == ours.fingerprint
    assert again.encode(TEXTS[1]) == ours.encode(TEXTS[1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_each_token_stands_for_its_characters(kind, tmp_path):
    tokenizer = load_tokenizer(KINDS[kind][0](tmp_path))
    text = "the man and the food"
    ids, offsets = tokenizer.encode_with_offsets(text, special=True)
    assert ids == tokenizer.encode(text)
    assert offsets[0] == offsets[-1] == (0, 0)
    spans = [text[start:end] for start, end in offsets[1:-1]]
    assert "".join(spans) == text.replace(" ", "")


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path):
    bert(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\nb\n")
    with pytest.raises(ModelError, match=r"vocab.txt lacks the special tokens \[SEP\], \[PAD\], \[CLS\], \[MASK\]"):
        load_tokenizer(tmp_path)
    roberta(tmp_path)
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(ModelError, match=r"vocab.json and merges.txt are damaged or not the vocabulary of a RoBERTa"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_of_another_model_is_read_as_transformers_reads_it(tmp_path, monkeypatch):
    roberta(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ["hello world", " two  spaces", "don't", "é 12 \n"]:
        assert ours.encode(text) == theirs(text).input_ids, text
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"RobertaTokenizer kind, and no tokenizer.json; transformers may read it"):
        load_tokenizer(tmp_path)


BERT_LIKE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FUNNEL = ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>"]
MPNET = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]


@pytest.mark.parametrize(
    ("family", "special"),
    [(name, BERT_LIKE) for name in ("distilbert", "electra", "mobilebert", "convbert", "squeezebert", "layoutlm")]
    + [("funnel", FUNNEL), ("mpnet", MPNET)],
)
def test_a_plain_vocabulary_of_a_relative_of_bert(family, special, tmp_path):
    pieces = [*special, *"abcdefghijklmnopqrstuvwxyz.,", *(f"##{one}" for one in "abcdefghijklmnopqrstuvwxyz"), "the"]
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ["the cat", "The Cat, é.", "a  b\tc", "x!"]:
        assert ours.encode(text) == theirs(text).input_ids, text
    assert ours.encode_pair("the cat", "a dog").ids == theirs("the cat", "a dog").input_ids
    ours.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": family}))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("the cat").input_ids == ours.encode("the cat")


def test_a_special_token_of_a_bare_vocabulary_may_be_told_with_its_flags(tmp_path):
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "__type": "AddedToken"}
    tokenizer = load_tokenizer(bert(tmp_path, cls_token={"content": "food", **flags}, sep_token="eat"))
    assert [tokenizer.backend.id_to_token(token) for token in tokenizer.encode("a man")] == ["food", "a", "man", "eat"]
