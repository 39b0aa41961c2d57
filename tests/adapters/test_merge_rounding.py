"""A merged model is measured with its weights as they are written."""

from __future__ import annotations

import pytest
import torch

from microplane.adapters.merge import SENTENCES, merge
from microplane.inference.pipeline import load
from microplane.nn.rows import Rows
from tests.adapters.test_convert import adapter
from tests.tiny import save_tiny_folder


def logits(loaded):
    ids = [loaded.tokenizer.encode(text) for text in SENTENCES]
    with torch.no_grad():
        return [loaded.model.logits(loaded.model(Rows.of([row])))[-64:] for row in ids]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_difference_told_is_that_of_the_folder_written(tmp_path, dtype):
    base = save_tiny_folder(tmp_path / "base")
    adapter(base, tmp_path / "adapter", name="lora", rank=4)
    before = logits(load(tmp_path / "adapter", "float32"))
    merged = merge(tmp_path / "adapter", tmp_path / "merged", dtype)
    after = logits(load(tmp_path / "merged", "float32"))
    apart = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    assert merged.rounded == pytest.approx(apart, rel=1e-4)
    assert merged.rounded > 10 * merged.difference
