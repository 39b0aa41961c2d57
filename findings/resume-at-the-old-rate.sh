#!/usr/bin/env bash
# Guess: a Trainer with other settings that resumes from a checkpoint goes on with these settings, or says which it does not take.
# What happens: the rate, the weight decay and the betas are those of the checkpoint: they come with the optimizer's state, and the
#   schedule's own state holds the rate it multiplies. The form of the schedule and its number of steps are the new ones. So with
#   a tenth of the rate and twice the steps the run goes on at the old rate, and one step later the rate *rises*. Compared with
#   the checkpoint, and told, are the batch size and the steps of logging, evaluating and saving.
# Why it matters to people who fine-tune: a run that diverged is resumed with a smaller rate, and diverges again at the larger one; one
#   that is extended sees its rate jump. Both are read as what the data does; the arguments that are logged say the new rate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/run" 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import math
import sys

import torch
import transformers as t

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print("transformers", t.__version__, "torch", torch.__version__)
said = []
for level in ("warning", "warning_once"):
    setattr(t.trainer_utils.logger, level, said.append)
    setattr(t.trainer.logger, level, said.append)
rows = [{"input_ids": [5 + number % 9, 6, 7], "labels": [5 + number % 9, 6, 7]} for number in range(32)]


class Rates(t.TrainerCallback):
    """Notes the rate with which each step is taken."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, arguments, state, control, optimizer=None, **more):
        self.found[state.global_step + 1] = optimizer.param_groups[0]["lr"]


def run(steps, rate, resume=None, **more):
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                             intermediate_size=16))
    arguments = t.TrainingArguments(
        sys.argv[1], use_cpu=True, report_to=[], disable_tqdm=True, per_device_train_batch_size=4, save_steps=4, logging_steps=100,
        max_steps=steps, learning_rate=rate, **more)
    rates = Rates()
    trainer = t.Trainer(model, arguments, train_dataset=rows, callbacks=[rates])
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    group = trainer.optimizer.param_groups[0]
    return rates.found, group["weight_decay"], group["betas"]


def shown(found):
    return " ".join(f"{step}:{rate:.2e}" for step, rate in found.items())


first, _, _ = run(8, 1e-3, weight_decay=0.1)
there = f"{sys.argv[1]}/checkpoint-4"
lower, decay, betas = run(8, 1e-4, resume=there, weight_decay=0.0, adam_beta2=0.95)
longer, _, _ = run(16, 1e-4, resume=there)
print("at 1e-3, decay 0.1:                    ", shown(first))
print("resumed at 1e-4, decay 0, beta2 0.95:  ", shown(lower), "decay", decay, "betas", betas)
print("resumed at 1e-4, 16 steps in place of 8:", shown(longer))
print("said:", said)
assert list(lower) == [5, 6, 7, 8] and all(math.isclose(lower[step], first[step]) for step in lower)
assert (decay, betas) == (0.1, (0.9, 0.999))
assert longer[6] > 1.3 * longer[5] and longer[6] > 6 * 1e-4
assert not [one for one in said if "rate" in one or "decay" in one], said
PYTHON
