"""Files both ways: what a run leaves opens in transformers and in peft with equal logits, and what peft saves here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForSeq2SeqLM

import microplane
from microplane.adapters.merge import merge
from microplane.models.files.load import load_model
from microplane.nn.rows import Pairs, Rows
from microplane.runs.train import Run
from tests import labels
from tests.parity import peft_kit
from tests.parity.peft_kit import assert_equal, named

FEW_STEPS = {
    "train.steps": 6,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "train.eval_every": 3,
    "model.dtype": "float32",
}
FEW_ANSWERS = FEW_STEPS | {"eval.rows": 1, "eval.max_new_tokens": 2}
KINDS = ["lora", "rslora", "dora", "ia3", "vera"]  # of peft's adapters


@dataclass(frozen=True)
class Peer:
    """How a kind of model is opened in transformers, and the logits of the same rows on both sides."""

    open: Callable[[Path], Any]
    theirs: Callable[[Any], list[torch.Tensor]]
    ours: Callable[[Any], list[torch.Tensor]]
    task: str  # as peft calls it


DECODERS = Peer(peft_kit.reference, peft_kit.theirs, peft_kit.ours, "CAUSAL_LM")


def pairs(sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Peer:
    """Of encoder-decoders, each row alone."""
    rows = list(zip(sources, targets, strict=True))

    def reference(folder: Path) -> Any:
        return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.no_grad()
    def theirs(model: Any) -> list[torch.Tensor]:
        return [model(torch.tensor([read]), decoder_input_ids=torch.tensor([begun])).logits[0] for read, begun in rows]

    @torch.no_grad()
    def ours(model: Any) -> list[torch.Tensor]:
        return [model.logits(model(Pairs(Rows.of([read]), Rows.of([begun])))) for read, begun in rows]

    return Peer(reference, theirs, ours, "SEQ_2_SEQ_LM")


def write_letters(path: Path) -> None:
    """Rows that ask for one of seven letters."""
    labels.write(path, [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(28)])


def assert_a_run_opens_there(peer: Peer, base: Path, run: Run) -> Path:
    """As an adapter of peft, which peft may save again, and merged. Gives the merged folder."""
    wanted = peer.ours(microplane.load(run.folder, "float32").model)
    adapted = peft.PeftModel.from_pretrained(peer.open(base), run.folder / "adapter").eval()
    assert_equal(wanted, peer.theirs(adapted))
    adapted.save_pretrained(run.folder / "theirs")
    assert_equal(peer.ours(microplane.load(run.folder / "theirs", "float32").model), wanted)
    merged = merge(run.folder, run.folder / "merged").folder
    assert_equal(peer.theirs(peer.open(merged)), wanted)
    assert not torch.allclose(peer.ours(load_model(base))[0], wanted[0], atol=1e-2)
    return merged


def config_of(kind: str, task: str, linears: list[str], *, fed: list[str], scaled: list[str], alike: list[str]) -> Any:
    """peft's configuration of one of `KINDS`.

    Args:
        linears: those of the blocks, as transformers calls them.
        fed: those of which (IA)^3 scales the input.
        scaled: those of which it scales the output.
        alike: those that VeRA adapts; they have one width.
    """
    if kind == "ia3":
        return peft.IA3Config(task_type=task, target_modules=scaled + fed, feedforward_modules=fed)
    if kind == "vera":
        return peft.VeraConfig(task_type=task, target_modules=alike, r=6)
    how = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    return peft.LoraConfig(task_type=task, target_modules=linears, r=3, **how)


def saved_by_peft(peer: Peer, base: Path, config: Any, folder: Path) -> list[torch.Tensor]:
    """Save an adapter with random weights there; gives its logits."""
    torch.manual_seed(0)
    model = peft.get_peft_model(peer.open(base), config).eval()
    for parameter in named(model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return peer.theirs(model)


def assert_peft_opens_here(peer: Peer, base: Path, config: Any, folder: Path) -> None:
    wanted = saved_by_peft(peer, base, config, folder)
    found = peer.ours(microplane.load(folder, "float32").model)
    assert_equal(found, wanted)
    assert not torch.allclose(peer.ours(load_model(base))[0], found[0], atol=1e-2)
