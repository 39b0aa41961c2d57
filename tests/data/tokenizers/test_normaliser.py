"""Unicode forms and SentencePiece's rules, against the package and against Python's own tables."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.normaliser import in_form, in_form_with_places
from microplane.data.tokenizers.sentencepiece import read_model
from tests.vietnamese import LETTERS, WORDS, apart, save_spiece, texts, tone_apart

SETTINGS = {
    "as usual": {},
    "spaces kept": {"remove_extra_whitespaces": False, "between": "  "},
    "no space before": {"add_dummy_prefix": False},
    "neither": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "between": "  "},
    "space behind the word": {"treat_whitespace_as_suffix": True},
    "behind, and kept": {
        "treat_whitespace_as_suffix": True,
        "remove_extra_whitespaces": False,
        "between": "  ",
    },
    "behind, none at the end": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": False},
    "bytes": {"byte_fallback": True, "vocab_size": 600},
    "pieces across words": {"split_by_whitespace": False},
    "pieces of spaces": {
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "between": "   ",
    },
    "words of one's own": {"user_defined_symbols": ["<sep>", "nay"]},
    "unknown first": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    "end at 3": {"unk_id": 1, "bos_id": 0, "eos_id": 3, "pad_id": 2},
}
RULES = ["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"]


def agrees(folder, kind: str, rule: str, count: int, **options) -> None:
    theirs = save_spiece(folder, model_type=kind, normalization_rule_name=rule, **options)
    ours = load_tokenizer(folder)
    for text in texts(count):
        found, wanted = ours.encode(text, special=False), theirs.encode(text)
        if "allow_whitespace_only_pieces" in options:  # of two equally good ways to cut spaces, rounding takes one
            found, wanted = sorted(found), sorted(wanted)
        assert found == wanted, text
    for text in (" ".join(WORDS), "đẹp quá"):
        assert ours.decode(ours.encode(text, special=False)) == theirs.decode(theirs.encode(text)).rstrip(" ") == text


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_are_those_of_the_sentencepiece_package(kind, settings, tmp_path):
    agrees(tmp_path, kind, "nmt_nfkc", 300, **SETTINGS[settings])


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_are_those_of_the_sentencepiece_package_by_each_rule(kind, rule, tmp_path):
    agrees(tmp_path, kind, rule, 300)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_every_rule_with_every_setting_on_2000_texts(kind, rule, settings, tmp_path):
    agrees(tmp_path, kind, rule, 2_000, **SETTINGS[settings])


@pytest.mark.parametrize("kind", ["XLM-R", "mT5"])
def test_the_table_of_a_tokenizer_json_is_followed_as_the_package_does(kind, tmp_path):
    """As transformers converts these models, whose pipelines differ."""
    theirs = save_spiece(tmp_path / "model")
    pieces, _ = read_model(tmp_path / "model" / "spiece.model")
    vocabulary = [*zip(pieces.texts, pieces.scores, strict=True)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    table = normalizers.Precompiled(pieces.charsmap)
    if kind == "XLM-R":
        backend.normalizer = normalizers.Sequence([table, normalizers.Replace(" {2,}", " ")])
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
    else:
        backend.normalizer = table
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
    backend.decoder = decoders.Metaspace()
    (tmp_path / "json").mkdir()
    backend.save(str(tmp_path / "json" / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "json")
    for text in texts(400, seed=3):
        if not text.strip() or "▁" in text:  # a piece of its own there, and white space in these pipelines
            continue
        assert ours.encode(text, special=False) == theirs.encode(text), text


def test_both_forms_of_every_toned_letter_are_one_id_where_the_form_is_nfc(tmp_path):
    theirs = save_spiece(tmp_path)
    ours = load_tokenizer(tmp_path).with_unicode("auto")
    assert ours.unicode == "nfc"
    for letter in LETTERS:
        for form in (apart(letter), tone_apart(letter)):
            assert ours.encode(form, special=False) == theirs.encode(letter), letter


@given(st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from(["nfc", "nfkc"]))
def test_the_form_is_pythons_and_every_character_has_its_place(text, form):
    found = in_form_with_places(text, form)
    assert found.text == in_form(text, form) == unicodedata.normalize(form.upper(), text)
    if found.places is None:
        assert found.text == text
        return
    assert len(found.places) == len(found.text)
    assert all(0 <= start < end <= len(text) for start, end in found.places)
    for start, end in {*found.places}:  # what became what
        assert unicodedata.normalize(form.upper(), text[start:end]) in found.text


@pytest.mark.parametrize("form", ["as-is", "nfc", "nfkc"])
def test_offsets_are_those_of_the_text_as_it_was_given(form, tmp_path):
    save_spiece(tmp_path)
    ours = load_tokenizer(tmp_path).with_unicode(form)
    for text in [apart("trời đẹp quá"), tone_apart("uống cà phê"), "ﬁne  Ａbc", apart("mỗi ngày mỗi ngày")]:
        ids, offsets = ours.encode_with_offsets(text)
        words = [found.span() for found in re.finditer(r"\S+", text)]
        for start, end in offsets:
            assert text[start:end].strip() == "" or any(start - 1 <= b and a <= end for a, b in words)
        assert offsets[-1][1] == len(text)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(offsets))
        assert len(ids) == len(offsets)


def test_a_word_that_was_written_apart_keeps_its_place(tmp_path):
    save_spiece(tmp_path)
    ours = load_tokenizer(tmp_path).with_unicode("nfc")
    text = apart("hôm nay trời đẹp")
    encoded = ours.encode_pair(text, apart("cà phê"))
    pieces = [text[start:end] for start, end in encoded.offsets[: len(ours.encode(text, special=False))]]
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def special_tokenizer(folder):
    """A vocabulary with a special token that compatibility normalisation would rewrite."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<｜end｜>", special=True, normalized=False), "<|stop|>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<｜end｜>"}))
    return load_tokenizer(folder).with_unicode("nfkc")


def test_special_tokens_stay_as_they_are_and_no_text_becomes_one(tmp_path):
    ours = special_tokenizer(tmp_path)
    end, stop = ours.id_of("<｜end｜>"), ours.id_of("<|stop|>")
    assert ours.encode("ﬁ<｜end｜>ﬁ", special=False).count(end) == 1
    assert ours.decode(ours.encode("ﬁ<｜end｜>ﬁ", special=False), skip_special=False) == "fi<｜end｜>fi"
    assert stop not in ours.encode("<｜stop｜>", special=False)
    assert stop in ours.encode("<|stop|>", special=False)


def test_auto_leaves_a_vocabulary_that_knows_letters_and_marks_only_apart(tmp_path):
    pieces = ["[UNK]", *dict.fromkeys(apart("éüñåčźơưếộỷёйがぱ한"))]
    backend = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    assert load_tokenizer(tmp_path).with_unicode("auto").unicode == "as-is"


def test_what_is_as_it_was_has_the_fingerprint_that_earlier_versions_gave(tmp_path):
    save_spiece(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.with_unicode("as-is").fingerprint == ours.fingerprint
    assert ours.with_unicode("nfc").fingerprint != ours.fingerprint
