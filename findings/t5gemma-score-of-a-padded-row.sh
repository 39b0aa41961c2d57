#!/usr/bin/env bash
# Guess: the score that T5GemmaForSequenceClassification gives a text does not depend on what else is in its batch, padding being
#   masked and the last real token being looked up.
# What happens: the decoder gets the text shifted right, and the class reads the state one place behind the last real token, or
#   the last place where the row has none behind it. A row that was padded has one more place, so another token is read than of
#   the same row alone (or of the longest row of a batch); the scores differ, in float32 and with every mask given.
# Why it matters to people who fine-tune: accuracy changes with the batch size and with sorting by length, a row of a batch is not the
#   row that an API scores later, and two runs cannot be compared; a difference that looks like noise is a place that is off by one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
from importlib.metadata import version

import torch
from transformers import BertConfig, BertForSequenceClassification, T5GemmaConfig, T5GemmaForSequenceClassification

print("transformers", version("transformers"))
torch.manual_seed(0)
side = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
config = T5GemmaConfig(encoder=dict(side), decoder=dict(side), vocab_size=64, num_labels=3, pad_token_id=0,
                       bos_token_id=2, eos_token_id=1, attn_implementation="eager")
t5gemma = T5GemmaForSequenceClassification(config).eval()
bert = BertForSequenceClassification(BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                intermediate_size=32, num_labels=3)).eval()
row = [2, 10, 11, 12, 13, 1]


@torch.no_grad()
def scores(model, padding):
    ids = torch.tensor([row + [0] * padding])
    return model(input_ids=ids, attention_mask=(ids != 0).long()).logits[0]


off = {}
for name, model in (("BERT", bert), ("T5Gemma", t5gemma)):
    alone, one, many = (scores(model, padding) for padding in (0, 1, 5))
    off[name] = float((alone - one).abs().max())
    print(f"{name}: the row alone {alone.tolist()}, padded by one {one.tolist()}; by five, differs from that by "
          f"{float((one - many).abs().max()):.1e}")
    assert float((one - many).abs().max()) < 1e-5
assert off["BERT"] < 1e-5 and off["T5Gemma"] > 1e-3, off
PYTHON
