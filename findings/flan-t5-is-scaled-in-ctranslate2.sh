#!/usr/bin/env bash
# Guess: T5Config(tie_word_embeddings=False) makes a T5 with a head of its own, as FLAN-T5 has, and a folder of such a model that
#   CTranslate2 converts without a word computes what the model computes.
# What happens: with transformers 5 T5Config says that the two are one, whatever it is given: a new model is tied, and config.json says so.
#   from_pretrained finds two tensors and keeps both. CTranslate2's converter asks the config, and so divides the states before the head
#   by the root of the width, as the first T5 wants it and FLAN-T5 does not: all probabilities are far too even.
# Why it matters to people who fine-tune: a greedy answer stays the same, so that nothing is seen; beams, sampling, scores and anything
#   that asks how sure the model is are those of another model. Microplane goes by the tensors, and repairs the converted folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - "$folder/t5" <<'PROGRAM' 2>/dev/null
import json
import sys
from importlib.metadata import version
from pathlib import Path

import ctranslate2
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

print("transformers", version("transformers"), "ctranslate2", version("ctranslate2"))
folder, width = Path(sys.argv[1]), 16
words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghij"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
torch.manual_seed(0)
config = transformers.T5Config(
    vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
    decoder_start_token_id=0, tie_word_embeddings=False,
)
made = transformers.T5ForConditionalGeneration(config)
one = made.lm_head.weight is made.shared.weight
print(f"asked for a head of its own: the config says tied = {config.tie_word_embeddings}, the two are one = {one}")
assert config.tie_word_embeddings and one
made.lm_head.weight = torch.nn.Parameter(torch.randn(len(words), width))
made.save_pretrained(folder)
transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
written = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
(folder / "config.json").write_text(json.dumps(written))  # as published FLAN-T5s have it

model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
read, wanted = torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7]])
with torch.no_grad():
    logits = model(input_ids=read, labels=wanted).logits[0]
right, scaled = (
    float(torch.log_softmax(logits * factor, -1).gather(1, wanted[0][:, None]).sum()) for factor in (1, width**-0.5)
)
ctranslate2.converters.TransformersConverter(str(folder)).convert(str(folder) + "-converted")
said = ctranslate2.Translator(str(folder) + "-converted").score_batch([["a", "b", "c"]], [["d", "e"]])[0]
there = sum(said.log_probs[:2])
print(f"log p of an answer: {right:.4f} in transformers, {there:.4f} in CTranslate2, {scaled:.4f} if logits are divided by 4")
assert abs(there - scaled) < 1e-3 < abs(there - right)
PROGRAM
