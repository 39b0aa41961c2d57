#!/usr/bin/env bash
# Guess: `with model.disable_adapter():` of peft shows the base for a moment, and leaves the model as it found it: what was frozen before is
#   frozen behind it.
# What happens: behind the block all weights of the active adapters want gradients, whatever they wanted before: an adapter that was
#   opened to be used only (from_pretrained freezes it unless told is_trainable=True), one that was frozen by hand under a second
#   one, the A of a LoRA of which B alone is to be trained. Within the block none does, so that one entered for a reference inside a
#   training step is right, and the damage is done where it ends. Nothing is said; the numbers of the forward pass are
#   the same before and behind.
# Why it matters to people who fine-tune: the base is measured first, for the table's first row, and the optimizer is made afterwards from all
#   that wants gradients; transformers' Trainer does just that. The adapter that was to be kept is trained away with the new one,
#   its memory is held for it, and saving it under its old name writes another. Count what trains right before train().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
from importlib.metadata import version

import peft
import torch
import transformers as t

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("peft", "transformers", "accelerate", "torch")))
config = t.LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, task_type="CAUSAL_LM")
rows = [{"input_ids": [(first + 3 * step) % 32 for step in range(12)], "attention_mask": [1] * 12} for first in range(32)]
for row in rows:
    row["labels"] = row["input_ids"]


def base():
    torch.manual_seed(0)
    return t.LlamaForCausalLM(config)


def together(batch):
    return {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}


def loss_of_the_base(model):
    with torch.no_grad(), model.disable_adapter():
        return float(model(**together(rows)).loss)


def trained(model):
    arguments = t.TrainingArguments("run", use_cpu=True, max_steps=20, learning_rate=1e-2, per_device_train_batch_size=16, report_to=[],
                                    disable_tqdm=True, save_strategy="no", logging_strategy="no")
    trainer = t.Trainer(model, arguments, train_dataset=rows, data_collator=together)
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()


def wants(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def used_only():
    """An adapter opened as it is opened for answers."""
    return peft.PeftModel.from_pretrained(base(), "kept")


def on_top():
    """A kept adapter below, a new one above it that is to be trained."""
    model = peft.PeftModel.from_pretrained(base(), "kept", adapter_name="kept")
    model.add_adapter("new", lora)
    model.base_model.set_adapter(["kept", "new"])
    for name, weight in model.named_parameters():
        weight.requires_grad_(".new." in name)
    return model


def b_alone():
    model = peft.get_peft_model(base(), lora)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_B" in name)
    return model


first = peft.get_peft_model(base(), lora)
trained(first)
first.save_pretrained("kept")
for text, make in {"opened for answers": used_only, "frozen under a new one": on_top, "B alone": b_alone}.items():
    model = make()
    before = wants(model)
    loss_of_the_base(model)
    behind = wants(model)
    print(f"{text}: weights that want a gradient: {len(before)}, behind a look at the base {len(behind)}")
    assert before < behind, text
kept = {}
for look in (False, True):
    model = on_top()
    if look:
        loss_of_the_base(model)
    old = {name: weight.clone() for name, weight in model.named_parameters() if ".kept." in name}
    trained(model)
    new = dict(model.named_parameters())
    kept[look] = sum(float((new[name] - weight).norm()) for name, weight in old.items()) / sum(float(weight.norm()) for weight in old.values())
    print(f"a new adapter trained over the kept one, {'the base looked at before' if look else 'as it is'}: the kept one moves by {100 * kept[look]:.1f}% of its norm")
assert kept[False] == 0.0 and kept[True] > 0.05, kept
PYTHON
