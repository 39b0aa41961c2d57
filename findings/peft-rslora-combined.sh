#!/usr/bin/env bash
# Guess: `add_weighted_adapter` makes of LoRA adapters one that changes the weights by their weighted sum: of one adapter with the
#   weight 1.0 it makes a copy, and `cat`, which only puts pairs side by side, is exact.
# What happens: with use_rslora each part is taken at its own scale, which is right, and the new adapter gets alpha = rank, so that
#   its scale would be 1. It inherits use_rslora, though, and there alpha = rank is a scale of the root of the rank: the sum is
#   multiplied by it, 2.8 at rank 8, 16 at 256 (`cat` adds the ranks up). `add_weighted_adapter` says nothing, whatever the
#   combination.
# Why it matters to people who fine-tune: rsLoRA is chosen for high ranks, where the factor is largest. A model of combined skills
#   that talks nonsense is put down to the adapters not getting along, and weights are then searched that undo a wrong factor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import math
import warnings

import peft
import torch

print("peft", peft.__version__, "torch", torch.__version__)
torch.set_num_threads(1)
warnings.simplefilter("error", UserWarning)  # a word about it would end this
RANK = 8


def adapted(use_rslora):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=16, target_modules=["0"], use_rslora=use_rslora, init_lora_weights=False
    )
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 32)), config, adapter_name="first")
    model.add_adapter("second", config)
    return model, model.base_model.model[0]


@torch.no_grad()
def factor(use_rslora, names, weights, combination):
    """How often the weighted sum of changes the new adapter's change is (their best fit), and what is left."""
    model, layer = adapted(use_rslora)
    wanted = sum(weight * layer.get_delta_weight(name) for name, weight in zip(names, weights, strict=True))
    model.add_weighted_adapter(names, weights, "new", combination_type=combination)
    found = layer.get_delta_weight("new")
    times = float((found * wanted).sum() / wanted.square().sum())
    return times, float((found - times * wanted).norm() / found.norm()), layer.r["new"]


for names, weights, combination in (
    (["first"], [1.0], "linear"),
    (["first"], [1.0], "svd"),
    (["first"], [1.0], "cat"),
    (["first", "second"], [0.5, 0.5], "cat"),
):
    plain, left, _ = factor(False, names, weights, combination)
    rooted, beside, rank = factor(True, names, weights, combination)
    print(f"{combination} of {len(names)}: LoRA {plain:.3f} times the weighted sum, rsLoRA {rooted:.3f} (rank {rank})")
    assert left < 1e-4 and beside < 1e-4
    assert math.isclose(plain, 1.0, rel_tol=1e-4) and math.isclose(rooted, math.sqrt(rank), rel_tol=1e-4)
PYTHON
