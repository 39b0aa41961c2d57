"""LoRA+ against peft's optimizer: the same tensors at the same rates."""

from __future__ import annotations

import peft
import torch
from peft.optimizers import create_loraplus_optimizer

from microplane.config.knobs import TrainKnobs
from microplane.methods import make_method
from microplane.models.files.load import load_model
from microplane.training.optim import make_optimizer
from tests.parity.peft_kit import PEFT_NAMES, adapted_reference, named
from tests.tiny import save_tiny_folder


def rates(optimizer, names):
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_groups_are_those_of_pefts_optimizer(tmp_path):
    base = save_tiny_folder(tmp_path / "base", "qwen2")
    method = make_method({"name": "lora+", "rank": 4, "ratio": 10})
    model = load_model(base)
    method.attach(model)
    mine = make_optimizer(method, model, TrainKnobs(lr=3e-4, weight_decay=0.1))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(PEFT_NAMES.values()))
    reference = adapted_reference(base, config)
    its = create_loraplus_optimizer(
        reference, torch.optim.AdamW, lr=3e-4, loraplus_lr_ratio=10, loraplus_weight_decay=0.1
    )
    assert rates(mine, {id(p): name for name, p in method.state(model).items()}) == rates(
        its, {id(p): name for name, p in named(reference).items()}
    )
