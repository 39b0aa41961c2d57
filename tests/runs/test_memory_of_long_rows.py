"""One long row among short ones: what it takes, and that a run with such rows is not gone on with in other numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import microplane
from microplane.errors import CheckpointError
from microplane.models.families import family_of
from microplane.models.files.load import save_model
from microplane.nn.head_attention import large_scores, rounds_otherwise
from microplane.runs import prepare, room
from tests.tiny import CONFIGS, LLAMA, PAIR_CONFIGS, save_byte_tokenizer

ONE_RUN = """
import resource, sys, microplane
more = {"model.dtype": sys.argv[3], "train.threads": 1, "train.steps": 40, "eval.rows": 4}
microplane.train(sys.argv[1], sys.argv[2], set=more)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
WIDE = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 16}
MODELS = {
    "llama": LLAMA | WIDE | {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 2048},
    "gpt2": CONFIGS["gpt2"] | {"n_embd": 256, "n_head": 8, "n_positions": 2048, "attn_pdrop": 0.1, "resid_pdrop": 0.1},
    "t5": PAIR_CONFIGS["t5"] | {"d_model": 256, "d_ff": 1024, "d_kv": 32, "num_heads": 8, "dropout_rate": 0.1},
}


@pytest.mark.parametrize(
    ("longest", "dtype", "large", "otherwise"),
    [
        (256, torch.float32, False, False),
        (257, torch.float32, False, True),
        (512, torch.float32, False, True),
        (513, torch.float32, True, True),
        (512, torch.bfloat16, False, False),
        (513, torch.bfloat16, True, False),
        (1025, torch.bfloat16, True, True),
    ],
)
def test_which_rows_are_long(longest, dtype, large, otherwise):
    assert (large_scores(longest), rounds_otherwise(longest, dtype)) == (large, otherwise)


@pytest.mark.parametrize(
    ("longest", "dtype", "recompute", "caches", "asked"),
    [
        (512, torch.float32, "cheap", False, []),
        (513, torch.float32, "none", False, [room.LARGE]),
        (513, torch.float32, "none", True, []),
        (20, torch.float32, "blocks", False, [room.LARGE]),
        (4000, torch.bfloat16, "blocks", False, []),
    ],
)
def test_long_rows_and_blocks_computed_again_leave_no_holes(monkeypatch, longest, dtype, recompute, caches, asked):
    """Without the caching allocator, in which large tensors leave none."""
    seen = []
    monkeypatch.setattr(room, "can_cache", lambda: caches)
    monkeypatch.setattr(room, "keep_no_large_pieces", seen.append)
    splits = SimpleNamespace(train=SimpleNamespace(lengths=np.array([7, longest, 3])))
    config = SimpleNamespace(train=SimpleNamespace(recompute=recompute))
    prepared = SimpleNamespace(form=SimpleNamespace(dtype=dtype), splits=splits, config=config)
    assert room.without_holes(prepared) is prepared
    assert seen == asked


@pytest.mark.parametrize("longest", [300, 600])
def test_long_rows_that_were_packed_otherwise_are_not_gone_on_with(tmp_path, monkeypatch, longest):
    """By an earlier version: other micro-batches draw other masks."""
    base = tmp_path / "base"
    base.mkdir()
    fields = LLAMA | {"max_position_embeddings": 1024, "vocab_size": save_byte_tokenizer(base, ends=True)}
    fields |= {"eos_token_id": 1, "pad_token_id": 0}
    save_model(family_of(fields).from_hf(fields).init_weights(0), base)
    rows = [{"prompt": f"{n} " + "a lot " * (longest // 6 if n % 3 == 0 else 3), "completion": "so"} for n in range(12)]
    knobs = {"runs": str(tmp_path), "name": "one", "train.steps": 2, "eval.rows": 0, "data.validation_share": 0.25}
    knobs |= {"model.dtype": "float32", "train.threads": 1, "data.max_length": 1024}
    with monkeypatch.context() as before:
        before.setattr(prepare, "MICRO_BATCHES", "by what is kept of a row")
        done = microplane.train(base, rows, set=knobs)
    if longest < 512:
        assert microplane.resume(done.folder, set={"train.steps": 3}).result["train"]["steps"] == 3
        return
    with pytest.raises(CheckpointError, match="above 512 tokens: .by what is kept of a row. then"):
        microplane.resume(done.folder, set={"train.steps": 3})


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_long_row_takes_at_most_1_3_times_the_memory(tmp_path, family, dtype):
    """Whole processes, each with an empty cache, from the first import on."""
    base = tmp_path / "base"
    base.mkdir()
    fields = MODELS[family] | {"vocab_size": save_byte_tokenizer(base, ends=True), "eos_token_id": 1, "pad_token_id": 0}
    save_model(family_of(fields).from_hf(fields).init_weights(0), base)
    taken = []
    for longest in (70, 980):
        rows = [{"prompt": "a lot " * 12, "completion": "so"} for n in range(400)]
        rows = [row | {"prompt": row["prompt"][: 20 + n % 50]} for n, row in enumerate(rows)]
        rows[37]["prompt"] = ("a lot " * 200)[:longest]
        folder = tmp_path / str(longest)
        folder.mkdir()
        for name, part in (("train", rows), ("test", rows[:9])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        env = os.environ | {"MICROPLANE_CACHE": str(tmp_path / f"cache{longest}"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", ONE_RUN, str(base), str(folder), dtype]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        taken.append(int(done.stdout.split()[-1]))
    assert taken[1] < 1.3 * taken[0]
