"""A folder of sentence-transformers says how many tokens of a sentence are read."""

from __future__ import annotations

import json

import pytest
import torch

import microplane
from tests import labels

WORDS = "the red film is good"


@pytest.mark.parametrize(("told", "read"), [(5, 3), (6, 4), (100, 5), (None, 5), ("5", 5)])
def test_no_more_of_a_sentence_is_read_than_the_folder_says(told, read, tmp_path):
    folder = labels.encoder_folder(tmp_path / "model", "mpnet")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": told}))
    opened = microplane.load(folder, "float32")
    begun = " ".join(WORDS.split()[:read])
    assert torch.equal(opened.embed([WORDS]), opened.embed([begun]))
    shorter = " ".join(WORDS.split()[: read - 1])
    assert not torch.equal(opened.embed([WORDS]), opened.embed([shorter]))
