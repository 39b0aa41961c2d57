#!/usr/bin/env bash
# Guess: gradient_accumulation_steps only cuts a batch into parts: sixteen rows at once, or four times four, are the same step, and
#   the loss that is logged is the same number. So it has been said since transformers divides by the tokens of the whole step.
# What happens: that is so for models whose forward takes keyword arguments without end (Llama and its like). The forward of T5 and
#   BERT takes none, so each part divides by its own tokens, and Trainer adds the parts up: loss and gradient of four parts are four
#   times as large. Adam hardly sees it, but weight decay, clipping by max_grad_norm and the curve do.
# Why it matters to people who fine-tune: whoever takes smaller parts for lack of memory trains otherwise, and compares curves that
#   differ by a factor. In Microplane a step is divided once by all its trained tokens, however it is cut.
set -euo pipefail
if [ -z "${PYTHON:-}" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - <<'PROGRAM' 2>/dev/null
import tempfile
from importlib.metadata import version

import torch
import transformers

print("transformers", version("transformers"), "accelerate", version("accelerate"))
ROWS = [{"input_ids": [5 + n % 7, 6, 7], "attention_mask": [1, 1, 1], "labels": [8, 9, 1]} for n in range(16)]
SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
MODELS = {
    "T5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
    "BERT": lambda: transformers.BertForTokenClassification(transformers.BertConfig(**SMALL, **STILL, num_labels=10)),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
}


def together(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def step(name, rows, parts):
    """Loss and norm of the gradient that Trainer logs of one step."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=rows, gradient_accumulation_steps=parts, max_steps=1, logging_steps=1,
            report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, max_grad_norm=1e9, log_level="error",
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=ROWS, data_collator=together)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]


for name in MODELS:
    whole, cut = step(name, 16, 1), step(name, 4, 4)
    times = [there / here for here, there in zip(whole, cut)]
    print(f"{name}: loss {whole[0]:.3f} at once, {cut[0]:.3f} in four parts; gradient {whole[1]:.3f} and {cut[1]:.3f}")
    expected = 1 if name == "Llama" else 4
    assert all(abs(one - expected) < 0.02 for one in times), times
PROGRAM
