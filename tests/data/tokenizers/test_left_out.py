"""Tokenizers of merges that have no token for a character, and none for the unknown: it vanishes, and that is said."""

from __future__ import annotations

import json
import warnings

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import MicroplaneWarning
from microplane.objectives.select import LabelCandidates

BYTES = [f"<0x{number:02X}>" for number in range(256)]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz"]


def of_marks(pieces, **model):
    """Merges over pieces with a mark for the space, as Llama 2's and Gemma's."""
    backend = Backend(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], **model))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def of_bytes():
    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(letters, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return backend


def of_words():
    backend = Backend(models.WordLevel({"<unk>": 0, "meter": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def loaded(backend, folder):
    """The tokenizer of a folder, and what is said when it is read."""
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", MicroplaneWarning)
        tokenizer = load_tokenizer(folder)
    return tokenizer, [str(one.message) for one in said if "left out of every text" in str(one.message)]


@pytest.mark.parametrize("fallback", [True, False])
def test_characters_that_vanish_are_named(fallback, tmp_path):
    tokenizer, said = loaded(of_marks(LETTERS, byte_fallback=fallback), tmp_path / "mute")
    assert tokenizer.decode(tokenizer.encode("meter 7b")).strip() == "meter b"  # what the folder does to a text
    (line,) = said
    assert ("falls back to bytes" in line) == fallback
    gone = line.rpartition(": ")[2]
    assert "7" in gone
    assert "A" in gone
    assert "b" not in gone
    assert tokenizer.leaves_out("7")
    assert not tokenizer.leaves_out("b")


@pytest.mark.parametrize(
    ("name", "make"),
    {
        "bytes to fall back to": lambda: of_marks([*BYTES, *LETTERS], byte_fallback=True),
        "a token for the unknown": lambda: of_marks(["<unk>", *LETTERS], unk_token="<unk>"),
        "bytes from the first": of_bytes,
        "whole words": of_words,
    }.items(),
)
def test_nothing_is_said_where_every_character_leaves_a_trace(name, make, tmp_path):
    tokenizer, said = loaded(make(), tmp_path / "whole")
    assert said == [], name
    assert not tokenizer.leaves_out("7")
    assert tokenizer.encode("7 7", special=False)


@pytest.mark.parametrize(("make", "knows"), [(lambda: of_marks(LETTERS), False), (of_bytes, True)])
def test_a_text_is_not_called_known_where_characters_vanish(make, knows, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    tokenizer, _ = loaded(make(), tmp_path / "folder")
    assert tokenizer.unk_id is None
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"meter {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20)))
    splits = load_splits(DataKnobs(train=str(rows)), tokenizer, LabelCandidates(None))
    assert splits.summary.knows_all == knows
