"""Both sides of a comparison with peft: the same tiny folder opened by us, and by transformers + peft."""

from __future__ import annotations

import peft
import torch
import transformers

from microplane.nn.rows import Rows

IDS = [[5, 9, 77, 31, 40, 2, 8], [200, 3, 90], [17] * 20]
PEFT_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
PEFT_NAMES |= {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def reference(base):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def adapted_reference(base, config):
    return peft.get_peft_model(reference(base), config).eval()


def ours(model, ids=IDS):
    return [model.logits(model(Rows.of([row]))) for row in ids]


def theirs(model, ids=IDS):
    return [model(torch.tensor([row])).logits[0] for row in ids]


def assert_equal(one, other, tolerance=1e-5):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def named(model):
    """The trainable tensors of a peft model under the names that it saves them by."""
    return {
        name.replace(".default.weight", "" if "magnitude" in name else ".weight").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def gradients(logits):
    """Backward from the same scalar on both sides."""
    generator = torch.Generator().manual_seed(3)
    sum((row * torch.randn(row.shape, generator=generator)).sum() for row in logits).backward()
