"""DeBERTa's spm.model against the sentencepiece package itself, with [CLS] and [SEP] around."""

from __future__ import annotations

import json

import pytest
import sentencepiece

from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import ModelError

LINES = [
    "the red film is good and the plot is poor",
    "a lemon's skin becomes zest; a light tool, held against something large!",
    "two words, three words (and four), 12 of 345 at 6.7 percent",
    "Füße, naïve cafés and ½ of ﬁve",
]
TEXTS = [*LINES, "  two  spaces and\ta tab\n", "unseen: 漢字 ☃", "a [MASK] in the text", "[SEP]", "the"]
PIECES = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deberta")
    told = {f"{name}_piece": text for name, text in PIECES.items()}
    told |= {f"{name}_id": number for number, name in enumerate(PIECES)}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_prefix=str(folder / "spm"), vocab_size=60, minloglevel=2, **told
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2", "vocab_size": 96}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece(folder, text):
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    ids = load_tokenizer(folder).encode_pair(text, "", 100).ids
    begin, end, mask = 1, 2, 60
    inner = {"a [MASK] in the text": None, "[SEP]": [2]}.get(text, model.encode(text))
    if inner is None:  # a special token parts the text
        assert mask in ids
        assert ids[: ids.index(mask)] == [begin, *model.encode("a ")]
    else:
        assert list(ids) == [begin, *inner, end]


def test_a_second_text_has_its_own_segment(folder):
    encoded = load_tokenizer(folder).encode_pair("the film", "is good", 100)
    assert list(encoded.ids).count(2) == 2
    first = list(encoded.ids).index(2) + 1
    assert list(encoded.types) == [0] * first + [1] * (len(encoded.ids) - first)


def test_a_model_without_the_special_tokens_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_prefix=str(tmp_path / "spm"), vocab_size=60, minloglevel=2
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    with pytest.raises(ModelError, match=r"spm.model lacks the special tokens \[UNK\], \[SEP\], \[PAD\], \[CLS\]"):
        load_tokenizer(tmp_path)
