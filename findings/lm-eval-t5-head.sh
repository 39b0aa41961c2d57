#!/usr/bin/env bash
# Guess: lm-eval's `hf` model computes what transformers' from_pretrained gave it, so that a FLAN-T5 (whose head is a matrix of its
#   own: config.json says tie_word_embeddings false) is scored with that head.
# What happens: with transformers 5 its T5Config says that the two are one whatever the file says; from_pretrained finds two
#   different tensors and keeps both; then lm-eval calls tie_weights() itself, which puts the embedding in the head's place.
#   Every log-likelihood and every answer is of a model that nobody has trained; nothing is said.
# Why it matters to people who fine-tune: figures of a T5 1.1, FLAN-T5 or mT5 from such an environment are those of a broken head, low
#   for every method alike, and differ from published ones for a reason that is not in the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 lm-eval==0.4.13 accelerate numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/t5" <<'PYTHON' 2>/dev/null
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers

print("transformers", version("transformers"), "lm-eval", version("lm_eval"))
folder = Path(sys.argv[1])
words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghij"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)
torch.manual_seed(0)
config = transformers.T5Config(
    vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
)
made = transformers.T5ForConditionalGeneration(config)
made.lm_head.weight = torch.nn.Parameter(torch.randn(len(words), 16))
made.save_pretrained(folder)
tokenizer.save_pretrained(folder)
written = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False, "scale_decoder_outputs": False}
(folder / "config.json").write_text(json.dumps(written))

plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
read, wanted = torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7]])
with torch.no_grad():
    log_probs = torch.log_softmax(plain(input_ids=read, labels=wanted).logits[0], -1)
right = float(log_probs.gather(1, wanted[0][:, None]).sum())
asked = HFLM(pretrained=str(folder), device="cpu", dtype="float32")
((there, _),) = asked._loglikelihood_tokens([(("a b c", "d e"), read[0].tolist(), wanted[0].tolist())], disable_tqdm=True)
one = asked.model.lm_head.weight is asked.model.shared.weight
print(f"log p by from_pretrained {right:.4f}, by lm-eval {there:.4f}; its head is the embedding: {one}")
assert plain.lm_head.weight is not plain.shared.weight
assert one and abs(there - right) > 0.1
PYTHON
