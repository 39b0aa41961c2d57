#!/usr/bin/env bash
# Guess: optim="galore_adamw" or "apollo_adamw" in TrainingArguments exchanges the optimizer; weight_decay, adam_beta1, adam_beta2 and
#   adam_epsilon go on meaning what they mean for AdamW, of which these are kinds.
# What happens: the Trainer sorts its weights into two groups for these (with projection and without) in the place of the two that carry the
#   decay, and hands GaLore none of Adam's numbers at all: decay 0, betas 0.9 and 0.999, epsilon 1e-6, whatever was asked. APOLLO gets
#   betas and epsilon for the projected weights and the package's own for embeddings and norms; decay 0 for all. A run with a
#   decay of 0.1 and one of 10 end with the same weights to the bit. The arguments are logged as they were given; nothing is said.
# Why it matters to people who fine-tune: full fine-tuning in little memory is what these are chosen for, and they are compared with AdamW under
#   "the same" settings: one side of the table has no decay and another epsilon. A search over decay or betas with them measures
#   chance. Build the optimizer yourself and hand it over as `optimizers`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 bitsandbytes==0.50.2 galore-torch==1.0 apollo-torch==1.0.3 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
from importlib.metadata import version

import torch
import transformers as t

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("transformers", "accelerate", "galore-torch", "apollo-torch", "torch")))
config = t.LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=64)
rows = [{"input_ids": [(first + 3 * step) % 32 for step in range(12)]} for first in range(32)]
for row in rows:
    row["labels"] = row["input_ids"]
asked = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-4}


def trained(name, **changed):
    torch.manual_seed(0)
    low = {} if name == "adamw_torch" else {"optim_target_modules": "all-linear", "optim_args": "rank=8"}
    arguments = t.TrainingArguments(
        "run", use_cpu=True, optim=name, max_steps=20, learning_rate=1e-3, per_device_train_batch_size=16, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no", **low, **{**asked, **changed})
    trainer = t.Trainer(t.LlamaForCausalLM(config), arguments, train_dataset=rows,
                        data_collator=lambda batch: {key: torch.tensor([row[key] for row in batch]) for key in batch[0]})
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()
    groups = [(group.get("weight_decay"), group.get("betas"), group.get("eps")) for group in trainer.optimizer.optimizer.param_groups]
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]), groups


changes = {"weight_decay": 10.0, "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 1.0}
different = {}
for name in ("adamw_torch", "galore_adamw", "apollo_adamw"):
    usual, groups = trained(name)
    print(f"{name}: groups' decay, betas and epsilon, asked were 0.1, (0.8, 0.95) and 1e-4: {groups}")
    for knob, value in changes.items():
        weights, _ = trained(name, **{knob: value})
        different[name, knob] = float((weights != usual).float().mean())
    told = ", ".join(f"{knob}={value}: {100 * different[name, knob]:.0f}%" for knob, value in changes.items())
    print(f"{name}: weights that end otherwise with {told}")
for knob in changes:
    assert different["adamw_torch", knob] > 0.9, different
    assert different["galore_adamw", knob] == 0.0, different
assert different["apollo_adamw", "weight_decay"] == 0.0 and different["apollo_adamw", "adam_beta2"] > 0.5, different
PYTHON
