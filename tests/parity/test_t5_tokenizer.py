"""T5's, mT5's and ByT5's token ids against transformers and the sentencepiece library."""

from __future__ import annotations

import json
import shutil

import pytest
import sentencepiece
from transformers import AutoTokenizer, ByT5Tokenizer

from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ModelError
from tests.parity.test_tokenizer import texts

MARKED = ["a <extra_id_0> b<extra_id_99>.", "</s> x", "<pad><unk>y", " two  spaces ", "<extra_id_100>", "", " "]


@pytest.fixture(params=["tokenizer.json", "spiece.model"])
def t5_folder(request, t5_tokenizer, tmp_path):
    """T5's vocabulary from one of the two files alone."""
    for name in (request.param, "tokenizer_config.json"):
        shutil.copy(t5_tokenizer / name, tmp_path / name)
    return tmp_path


def agree(ours, theirs, corpus, clean=False):
    for text in corpus:
        ids = ours.encode(text)
        assert ids == theirs(text).input_ids, text
        kept = theirs.decode(ids, clean_up_tokenization_spaces=clean)
        assert ours.decode(ids, skip_special=False) == kept, text
        shown = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=clean)
        assert ours.decode(ids) == shown, text


def test_t5_gives_the_ids_of_transformers_on_500_texts(t5_tokenizer, t5_folder):
    theirs, ours = AutoTokenizer.from_pretrained(t5_tokenizer), load_tokenizer(t5_folder)
    agree(ours, theirs, texts(500) + MARKED)
    assert ours.vocab_size == len(theirs) == 32_100
    assert ours.special_tokens == {"bos_token": None, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    assert ours.eos_ids == (1,)


def test_t5_ids_that_are_known(t5_folder):
    ours = load_tokenizer(t5_folder)
    assert ours.encode("translate English to French:") == [13959, 1566, 12, 2379, 10, 1]
    assert ours.encode("<extra_id_0><extra_id_99>", special=False) == [32099, 32000]
    assert ours.unk_id == 2
    assert 2 in ours.encode('{"a": 1}')  # there are no braces in its vocabulary


@pytest.mark.parametrize("form", ["t5", "bytes"])
def test_transformers_opens_what_is_saved(form, t5_tokenizer, tmp_path):
    folder = t5_tokenizer
    if form == "bytes":
        folder = tmp_path / "bytes"
        ByT5Tokenizer().save_pretrained(folder)
    ours = load_tokenizer(folder)
    ours.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    theirs, again = AutoTokenizer.from_pretrained(tmp_path / "saved"), load_tokenizer(tmp_path / "saved")
    for text in texts(100, seed=3) + MARKED[:1]:
        assert ours.encode(text) == again.encode(text), text
        if form == "t5" or not text.rstrip().endswith("</s>"):  # to which ByT5's own puts no second one
            assert ours.encode(text) == theirs(text).input_ids, text
    assert again.special_tokens == ours.special_tokens
    assert theirs.eos_token_id == 1
    assert theirs.pad_token_id == 0


def test_mt5_gives_the_ids_of_sentencepiece(mt5_tokenizer):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(mt5_tokenizer / "spiece.model"))
    ours = load_tokenizer(mt5_tokenizer)
    assert ours.vocab_size == theirs.vocab_size() == 250_100
    for text in [text for text in texts(500) if "</s>" not in text]:  # which the library does not look for in a text
        ids = theirs.encode(text)
        assert ours.encode(text) == [*ids, 1], text
        assert ours.decode(ids) == theirs.decode(ids), text
    text = "a <extra_id_0> b <extra_id_99> c"
    assert ours.encode(text, special=False) == theirs.encode(text)
    assert ours.encode("<extra_id_0>", special=False) == [250_099]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json", "saved by transformers"])
def test_byt5_gives_the_ids_of_transformers_on_500_texts(file, tmp_path):
    theirs = ByT5Tokenizer()
    if file == "saved by transformers":
        theirs.save_pretrained(tmp_path)
    else:
        (tmp_path / file).write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    ours = load_tokenizer(tmp_path)
    # transformers puts no second </s> behind a text that ends with one
    agree(ours, theirs, [text for text in texts(500) + MARKED if not text.rstrip().endswith("</s>")])
    assert ours.vocab_size == len(theirs) == 384
    assert ours.encode("é\n") == [0xC3 + 3, 0xA9 + 3, 10 + 3, 1]
    assert [ours.piece(token) for token in (0, 100, 0xC3 + 3, 383)] == ["<pad>", "a", "Ã", "<extra_id_124>"]


def test_a_spiece_model_of_another_family(t5_tokenizer, tmp_path):
    shutil.copy(t5_tokenizer / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLNetTokenizer"}')
    with pytest.raises(
        ModelError, match=r"files of the XLNetTokenizer kind, and no tokenizer.json; transformers cannot"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("count", ["many", -1, True, 1.5])
def test_a_number_of_sentinels_that_is_none(count, t5_tokenizer, tmp_path):
    shutil.copy(t5_tokenizer / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": count}))
    with pytest.raises(ModelError, match=r"has extra_ids = .*: expected how many sentinels there are"):
        load_tokenizer(tmp_path)
