#!/usr/bin/env bash
# Guess: lm-eval's use_cache keeps a model's answers in a file, so that a run that broke off goes on; another model, another adapter or
#   another precision is another evaluation, and gets answers of its own.
# What happens: an answer is looked up by its question alone. Neither the model nor its arguments are part of the key, nor of the
#   file's name, which is the one that was given and the number of the process. The tuned model, evaluated with the same file
#   as its base, is never asked: it gets the base's figures to the last digit, in seconds. The other way round the base gets
#   those of the tuned one. Told is how many answers came out of the file, as for any run that goes on.
# Why it matters to people who fine-tune: before and after are measured by the same command with another path in it, and a cache is switched
#   on there because the questions are the same. Training then "changes nothing", or a checkpoint is as good as the one that was
#   measured before it, and also a merged model or one in 4 bits that is broken equals its original. Give each model a file of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 lm-eval==0.4.13 accelerate==1.15.0 peft==0.21.2 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$PYTHON" -W ignore - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import json
import os
from importlib.metadata import version

import lm_eval
import peft
import torch
import transformers as t
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("lm-eval", "transformers", "peft", "torch")))
words = ["<pad>", "<s>", "</s>", "<unk>", "yes", "no", "is", "even", "?", *map(str, range(40))]
backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = t.PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
questions = [{"question": f"is {number} even ?", "choices": ["yes", "no"], "answer": number % 2} for number in range(40)]
os.mkdir("tasks")
with open("tasks/rows.jsonl", "w") as file:
    file.writelines(json.dumps(question) + "\n" for question in questions)
with open("tasks/even.yaml", "w") as file:  # JSON is YAML
    json.dump({
        "task": "even", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": os.path.abspath("tasks/rows.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}, file)
torch.manual_seed(0)
model = t.LlamaForCausalLM(t.LlamaConfig(
    vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2))
model.save_pretrained("base")
tokenizer.save_pretrained("base")
model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=16, task_type="CAUSAL_LM"))
ids = tokenizer([f"{row['question']} {row['choices'][row['answer']]}" for row in questions], return_tensors="pt").input_ids
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
for _ in range(150):
    loss = model(input_ids=ids, labels=torch.where(torch.arange(ids.shape[1]) == ids.shape[1] - 1, ids, -100)).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.save_pretrained("adapter")
tasks = TaskManager(include_path="tasks", include_defaults=False)


def accuracy(cache=None, **more):
    found = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": "base", "device": "cpu", **more}, tasks=["even"], task_manager=tasks, use_cache=cache, bootstrap_iters=0)
    return found["results"]["even"]["acc,none"]


alone = accuracy(), accuracy(peft="adapter")
print(f"without a cache: base {alone[0]:.3f}, base and adapter {alone[1]:.3f}")
shared = accuracy("answers"), accuracy("answers", peft="adapter")
print(f"with one cache, in this order: base {shared[0]:.3f}, base and adapter {shared[1]:.3f}")
turned = accuracy("others", peft="adapter"), accuracy("others")
print(f"with one cache, in this order: base and adapter {turned[0]:.3f}, base {turned[1]:.3f}")
print("files:", sorted(name for name in os.listdir() if name.endswith(".db")))
assert alone[1] > 0.95 and alone[0] < 0.7, alone
assert shared == (alone[0], alone[0]) and turned == (alone[1], alone[1]), (shared, turned)
PYTHON
