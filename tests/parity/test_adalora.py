"""AdaLoRA against peft's, over a whole schedule: outputs, gradients, and which directions are pruned."""

from __future__ import annotations

import peft
import torch
import transformers
from torch.nn import functional as F

from microplane.methods import make_method
from microplane.methods.adalora import TENSORS, AdaLoRALinear
from microplane.methods.adapted_linear import saved_sites
from microplane.methods.method import PREFIX
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows
from tests.tiny import save_tiny_folder

STEPS = 20
ROWS = torch.randint(0, 200, (STEPS, 24), generator=torch.Generator().manual_seed(1))


def test_twenty_steps_with_their_schedule(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", init_r=4, target_r=2, tinit=3, tfinal=6, deltaT=2,
        total_step=STEPS, lora_alpha=8, orth_reg_weight=0.5, beta1=0.85, beta2=0.8,
    )  # fmt: skip
    theirs = peft.get_peft_model(reference, config).train()
    method = make_method(
        {"name": "adalora", "initial_rank": 4, "rank": 2, "warm_share": 0.15, "final_share": 0.3, "interval": 2,
         "alpha": 8, "orthogonality": 0.5, "beta2": 0.8}
    )  # fmt: skip
    ours = load_model(base)
    method.attach(ours)
    twins = [
        (module.get_parameter(name), theirs.get_parameter(f"{PREFIX}{path}.{name}.default"))
        for path, module in saved_sites(ours, AdaLoRALinear)
        for name in TENSORS
    ]
    for mine, its in twins:
        mine.data.copy_(its)
    # With a large epsilon Adam does not blow the last bit of a gradient up to a whole step.
    my, its = (torch.optim.AdamW([pair[i] for pair in twins], lr=3e-2, eps=1e-4) for i in (0, 1))
    for step, row in enumerate(ROWS):
        ids = row[None]
        output = theirs(input_ids=ids, labels=ids)
        output.loss.backward()
        logits = ours.logits(ours.train()(Rows.of([row.tolist()])))
        F.cross_entropy(logits[:-1], row[1:]).backward()
        method.penalty(ours).backward()
        torch.testing.assert_close(logits, output.logits[0], atol=1e-5, rtol=1e-5)
        for mine, other in twins:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)
        its.step()
        theirs.base_model.update_and_allocate(step + 1)
        method.step(ours, my, step, STEPS)
        my.zero_grad()
        its.zero_grad()
        for mine, other in twins[1::3]:
            assert torch.equal(mine == 0, other == 0), step
    assert sum(int((values != 0).sum()) for values, _ in twins[1::3]) == 2 * 14
