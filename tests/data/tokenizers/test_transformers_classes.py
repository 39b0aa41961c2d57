"""A tokenizer.json under the name of a class that builds its own pipeline, with transformers as the judge."""

from __future__ import annotations

import json
import string
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.transformers_classes import PIPELINES
from microplane.errors import MicroplaneWarning

CHARACTERS = sorted(set(string.printable.strip()))
TEXTS = ["Hello  World, don't  stop", "a_b-c.d 12", "ALL CAPS"]


def unigram() -> Tokenizer:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *CHARACTERS]
    return Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))


def t5_unigram() -> Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *CHARACTERS]
    return Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))


def word_pieces() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{one}" for one in CHARACTERS)]
    return Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))


def byte_pairs() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.decoder = decoders.ByteLevel()
    return backend


WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUT = pre_tokenizers.Split(Regex(r"\s+"), "isolated")
QWEN = pre_tokenizers.Sequence([CUT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
USUAL: dict[str, tuple[Any, Any, Any]] = {
    "T5Tokenizer": (t5_unigram, None, WORDS),
    "XLMRobertaTokenizer": (unigram, None, WORDS),
    "BertTokenizerFast": (word_pieces, normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "GPT2Tokenizer": (byte_pairs, None, BYTES),
    "RobertaTokenizer": (byte_pairs, None, BYTES),
    "Qwen2Tokenizer": (byte_pairs, normalizers.NFC(), QWEN),
}


def save(folder: Path, kind: str, normalizer: Any, **told: Any) -> Path:
    make, _, pre_tokenizer = USUAL[kind]
    backend = make()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **told}))
    return folder


def differs(folder: Path) -> bool:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    return any(ours.encode(text, special=False) != theirs(text, add_special_tokens=False).input_ids for text in TEXTS)


def test_all_classes_are_tried():
    tried = {kind.removesuffix("Fast").removesuffix("Tokenizer") for kind in USUAL}
    assert tried == set(PIPELINES) - {"Gemma"}  # whose vocabulary is BPE with spaces: below the same way


@pytest.mark.parametrize("kind", USUAL)
def test_the_usual_pipeline_is_read_without_a_word(kind, tmp_path):
    folder = save(tmp_path, kind, USUAL[kind][1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", MicroplaneWarning)
        assert not differs(folder)


@pytest.mark.parametrize("kind", USUAL)
def test_a_pipeline_of_ones_own_is_said_and_differs_there(kind, tmp_path):
    folder = save(tmp_path, kind, normalizers.Replace("o", "0"))
    with pytest.warns(MicroplaneWarning, match=f"{kind}.*replace the normaliser.*PreTrainedTokenizerFast"):
        assert differs(folder)


def test_switches_of_bert_that_only_the_file_knows_are_said(tmp_path):
    folder = save(tmp_path, "BertTokenizerFast", normalizers.BertNormalizer(lowercase=False))
    with pytest.warns(MicroplaneWarning, match="lowercase"):
        assert differs(folder)
    told = save(tmp_path, "BertTokenizerFast", normalizers.BertNormalizer(lowercase=False), do_lower_case=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MicroplaneWarning)
        assert not differs(told)


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_classes_that_take_the_file_as_it_is(kind, tmp_path):
    save(tmp_path, "GPT2Tokenizer", normalizers.Replace("o", "0"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MicroplaneWarning)
        assert not differs(tmp_path)
