#!/usr/bin/env bash
# Guess: unload() of peft gives back the base ("the base model by removing all the PEFT modules", "without merging"); merge_and_unload() gives
#   the tuned model. Either has all of it or nothing of it.
# What happens: of what trains beside the adapter as a copy (modules_to_save: a classifier's head, embeddings and head for new tokens) unload()
#   puts the trained copy in the base's place. LoRA's pairs are gone, the head stays: a mixture that was never trained. With
#   disable_adapter() the same model answers as the base does, and rows of trainable_token_indices are taken out rightly.
#   Nothing is said.
# Why it matters to people who fine-tune: unload() is called to measure the base after training, or to put the next adapter on it. The first
#   row of the table is then no base; embeddings of one task lie below the adapter of the next, in its whole training, and what is
#   saved of that is put on the published base. Open the base anew.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
from importlib.metadata import version

import peft
import torch
import transformers as t

torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("peft", "transformers", "torch")))
shape = dict(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, pad_token_id=0)
ids = torch.randint(1, 32, (16, 10), generator=torch.Generator().manual_seed(0))


def classifier():
    return t.LlamaForSequenceClassification(t.LlamaConfig(**shape, num_labels=3)), ids[:, 0] % 3


def decoder():
    return t.LlamaForCausalLM(t.LlamaConfig(**shape)), ids


def difference(model, scores):
    with torch.no_grad():
        return float((model(input_ids=ids).logits - scores).abs().max())


cases = [
    ("a classifier, pairs alone", classifier, {}, False),
    ("a classifier, its head in modules_to_save", classifier, {"modules_to_save": ["score"]}, True),
    ("a classifier, task type SEQ_CLS", classifier, {"task_type": "SEQ_CLS"}, True),
    ("a decoder, embeddings and head in modules_to_save", decoder, {"modules_to_save": ["embed_tokens", "lm_head"]}, True),
    ("a decoder, rows of trainable_token_indices", decoder, {"trainable_token_indices": [3, 4]}, False),
]
for text, make, more, wrong in cases:
    torch.manual_seed(0)
    model, labels = make()
    with torch.no_grad():
        scores = model.eval()(input_ids=ids).logits
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], **more))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(30):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    tuned = difference(model, scores)
    with model.disable_adapter():
        disabled = difference(model, scores)
    unloaded = difference(model.unload(), scores)
    print(f"{text}: the logits are from the base's: tuned {tuned:.3f}, disabled {disabled:.3f}, unloaded {unloaded:.3f}")
    assert tuned > 0.1 and disabled == 0.0, (text, tuned, disabled)
    assert unloaded > 0.1 if wrong else unloaded == 0.0, (text, unloaded)
PYTHON
