#!/usr/bin/env bash
# Guess: DPOTrainer with an adapter that was trained before (a PeftModel and no reference) measures against that adapter as it was: it
#   makes a second one, `ref`, and copies the weights. The first step has rewards of 0 and a loss of log 2.
# What happens: it copies the weights whose names hold `.default.`, with a dot behind. That is so where peft keeps a layer for each
#   adapter; where it keeps a bare tensor the name ends with `.default`, and the new adapter's stays as it was made: of LoRA on
#   embeddings, of trainable_token_indices (the usual way to new tokens), of IA3, VeRA, LoHa, LoKr. The reference then is half the
#   adapter, or the base alone. KTOTrainer does the same. Nothing is said.
# Why it matters to people who fine-tune: a model that was taught new tokens, such as those of its chat template, is measured against one
#   that has never seen them; each answer with such a token has a reward far from 0 before anything is learnt, the penalty pulls towards
#   untrained rows, and the curves look like progress. The way round: merge, save, open again and take a new adapter; or look
#   whether the first loss is log 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 \
  numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" -W ignore::FutureWarning - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
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
print(*(f"{name} {version(name)}" for name in ("trl", "peft", "transformers", "torch")))
words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
torch.manual_seed(0)
config = t.LlamaConfig(vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
t.LlamaForCausalLM(config).save_pretrained("base")
pairs = datasets.Dataset.from_list([{"prompt": "a b c", "chosen": " d e f", "rejected": " g h"}] * 4)
single = datasets.Dataset.from_list([{"prompt": "a b c", "completion": " d e f", "label": True},
                                     {"prompt": "a b c", "completion": " g h", "label": False}] * 2)
usual = dict(output_dir="run", use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4, disable_tqdm=True,
             save_strategy="no", logging_steps=1, gradient_checkpointing=False, max_steps=1)
task = {"task_type": "CAUSAL_LM"}
new_tokens = {"target_modules": ["q_proj", "v_proj"], "trainable_token_indices": [words[one] for one in "defgh"]}
kinds = {  # and whether the copy is the adapter
    "LoRA": (peft.LoraConfig(**task, target_modules=["q_proj", "v_proj"]), True),
    "DoRA": (peft.LoraConfig(**task, target_modules=["q_proj", "v_proj"], use_dora=True), True),
    "LoRA and lm_head in modules_to_save": (
        peft.LoraConfig(**task, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]), True),
    "LoRA and embed_tokens": (peft.LoraConfig(**task, target_modules=["q_proj", "v_proj", "embed_tokens"]), False),
    "LoRA and trainable_token_indices": (peft.LoraConfig(**task, **new_tokens), False),
    "IA3": (peft.IA3Config(**task), False),
    "VeRA": (peft.VeraConfig(**task), False),
    "LoHa": (peft.LoHaConfig(**task, target_modules=["q_proj", "v_proj"]), False),
    "LoKr": (peft.LoKrConfig(**task, target_modules=["q_proj", "v_proj"]), False),
}


def trained_before(config):
    """An adapter whose weights are no longer those it was made with, saved and opened for more training."""
    torch.manual_seed(1)
    model = peft.get_peft_model(t.AutoModelForCausalLM.from_pretrained("base"), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained("adapter")
    return peft.PeftModel.from_pretrained(t.AutoModelForCausalLM.from_pretrained("base"), "adapter", is_trainable=True)


def first_step(model, kind, rows):
    arguments = getattr(trl, f"{kind}Config")(**usual, learning_rate=1e-6)
    trainer = getattr(trl, f"{kind}Trainer")(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(t.trainer_callback.PrinterCallback)
    trainer.train()
    found = trainer.state.log_history[0]
    return found["loss"], found["rewards/chosen"], found["rewards/rejected"]


for name, (config, copied) in kinds.items():
    loss, *rewards = first_step(trained_before(config), "DPO", pairs)
    _, *of_kto = first_step(trained_before(config), "KTO", single)
    print(f"{name}: first loss {loss:.4f}, rewards {rewards[0]:.3f} and {rewards[1]:.3f}; KTO's {of_kto[0]:.3f} and {of_kto[1]:.3f}")
    at_zero = abs(loss - math.log(2)) < 1e-4 and max(map(abs, rewards + of_kto)) < 1e-4
    assert at_zero if copied else min(max(map(abs, rewards)), max(map(abs, of_kto))) > 2e-3, name
PYTHON
if grep -i "reference\|ref_model\|copied" "$folder/said"; then echo "something is said of the reference" >&2; exit 1; fi
