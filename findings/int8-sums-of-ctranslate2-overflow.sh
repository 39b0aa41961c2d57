#!/usr/bin/env bash
# Guess: a model in CTranslate2's int8 is as far from the model as its weights were rounded, on any processor.
# What happens: on a processor without VNNI (AVX2 alone, say) activations are shifted to bytes of 0 to 255, and two products with
#   weights of 8 bits are added in 16 bits, which cut off at 32,767. Where weights of a row are near the largest of it, as in narrow
#   layers, that happens often: the same folder opened with compute_type="float32" is near the model, and with "int8" it is far.
# Why it matters to people who fine-tune: int8 is tried on one machine and served on another, and nothing says that the answers are
#   others there. Microplane compares both, and says it where the sums are further away than the rounding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - "$folder/t5" <<'PROGRAM' 
import sys
from importlib.metadata import version
from pathlib import Path

import ctranslate2
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

vnni = "vnni" in Path("/proc/cpuinfo").read_text()
kind = "with" if vnni else "without"
print("transformers", version("transformers"), "ctranslate2", version("ctranslate2"), kind, "VNNI")
folder = sys.argv[1]
words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghij"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
torch.manual_seed(0)
config = transformers.T5Config(
    vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="relu",
    decoder_start_token_id=0,
)
model = transformers.T5ForConditionalGeneration(config).eval()
model.save_pretrained(folder)
transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
ctranslate2.converters.TransformersConverter(folder).convert(folder + "-int8", quantization="int8")

read, wanted = torch.tensor([[3, 4, 5, 6, 7, 8, 1]]), torch.tensor([[9, 10, 11, 12, 3, 4, 5, 6]])
with torch.no_grad():
    right = torch.log_softmax(model(input_ids=read, labels=wanted).logits[0], -1).gather(1, wanted[0][:, None])[:, 0]
names = {number: word for word, number in words.items()}
given, said = ([names[number] for number in row[0].tolist()] for row in (read, wanted))
away = {}
for kind in ("float32", "int8"):
    engine = ctranslate2.Translator(folder + "-int8", compute_type=kind)
    there = torch.tensor(engine.score_batch([given], [said])[0].log_probs[: len(said)])
    away[kind] = float((there - right).abs().max())
print(f"log p of a token, at most from transformers: {away['float32']:.4f} of the int8 folder in float32, {away['int8']:.4f} in int8")
assert vnni or away["int8"] > 5 * away["float32"]  # with VNNI this was not tried
PROGRAM
