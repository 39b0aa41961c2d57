#!/usr/bin/env bash
# Guess: DPOTrainer(model) without a reference takes the model as it is handed over: "the model state before DPO training starts", as
#   its own description says. The first step of a run then has rewards of 0 and a loss of log 2.
# What happens: with full fine-tuning the reference is read anew from the place that the model's config names. What was trained in
#   the same program, or merged from an adapter, is not in it: the reference is the model as published. KTOTrainer does the same.
#   Nothing is said. With precompute_ref_log_probs=True the very same call measures the model that was handed over.
# Why it matters to people who fine-tune: supervised training followed by preferences in one script is the usual way, and so is merging
#   an adapter first. The penalty then pulls back to the model before all training, and the loss counts as learnt from preferences what
#   supervised training has done: in the pairs below it starts at 0.12 with a fifth of the gradient, and the accuracies are 1 at
#   once. That looks fine. Save the model and open it again before, or hand over a copy as ref_model; a first loss that is not
#   log 2 gives it away.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 \
  numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" -W ignore::FutureWarning - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import copy
import math
from importlib.metadata import version

import datasets
import peft
import torch
import transformers as t
import trl
from tokenizers import Tokenizer, models, pre_tokenizers

t.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("trl", "transformers", "peft", "torch")))
words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
torch.manual_seed(0)
config = t.LlamaConfig(vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
t.LlamaForCausalLM(config).save_pretrained("base")
answers = [{"prompt": "a b c", "completion": " d e f"}] * 8
pairs = [{"prompt": "a b c", "chosen": " d e f", "rejected": " g h"}] * 8
single = [{"prompt": "a b c", "completion": " d e f", "label": True}, {"prompt": "a b c", "completion": " g h", "label": False}] * 4
usual = dict(output_dir="run", use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4, disable_tqdm=True,
             save_strategy="no", logging_steps=1, gradient_checkpointing=False)


def opened(place="base"):
    return t.AutoModelForCausalLM.from_pretrained(place)


def supervised(model, **more):
    arguments = trl.SFTConfig(**usual, max_steps=20, learning_rate=1e-2)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=datasets.Dataset.from_list(answers), processing_class=tokenizer, **more)
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()
    return trainer.model


def first_step(model, kind="DPO", rows=pairs, reference=None, **more):
    arguments = getattr(trl, f"{kind}Config")(**usual, max_steps=1, learning_rate=1e-6, **more)
    trainer = getattr(trl, f"{kind}Trainer")(
        model, reference, arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0]


def told(text, found):
    print(f"{text}: loss {found['loss']:.3f}, reward of the chosen {found['rewards/chosen']:.3f}, gradient {found['grad_norm']:.2f}")
    return found["loss"], found["rewards/chosen"]


tuned = supervised(opened())
merged = supervised(opened(), peft_config=peft.LoraConfig(target_modules="all-linear", r=8)).merge_and_unload().requires_grad_(True)
copied = copy.deepcopy
right = [
    told("as published", first_step(opened())),
    told("tuned before, reference precomputed", first_step(copied(tuned), precompute_ref_log_probs=True)),
    told("tuned before, a copy as reference", first_step(copied(tuned), reference=copied(tuned))),
]
tuned.save_pretrained("tuned")
right.append(told("tuned before, saved and opened", first_step(opened("tuned"))))
wrong = [
    told("tuned before", first_step(copied(tuned))),
    told("adapter merged before", first_step(merged)),
]
kto = [
    told("KTO, as published", first_step(opened(), "KTO", single)),
    told("KTO, tuned before", first_step(copied(tuned), "KTO", single)),
]
assert all(abs(loss - math.log(2)) < 1e-3 and abs(reward) < 1e-3 for loss, reward in right), right
assert all(loss < 0.6 and reward > 0.2 for loss, reward in wrong), wrong
assert abs(kto[0][1]) < 1e-3 and kto[1][1] > 0.2, kto
PYTHON
if grep -i "reference\|ref_model" "$folder/said"; then echo "something is said of the reference" >&2; exit 1; fi
