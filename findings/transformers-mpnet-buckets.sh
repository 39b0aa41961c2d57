#!/usr/bin/env bash
# Guess: `relative_attention_num_buckets` in an MPNet's config.json says how many buckets its distances have, as in T5.
# What happens: the table of biases gets that many rows, and transformers looks distances up as if there were 32: with more,
#   the rest never has a part in the result, and a larger number of buckets changes nothing (a smaller one is not taken).
# Why it matters to people who fine-tune: an MPNet that was trained from new weights with another number has the positions of
#   32 buckets, and one that is moved to a library that believes the config computes other numbers from the same weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers

print("transformers", transformers.__version__)
IDS = torch.arange(5, 65)[None]


def mpnet(buckets):
    torch.manual_seed(0)
    config = transformers.MPNetConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=80, relative_attention_num_buckets=buckets, initializer_range=0.2,
    )
    return transformers.MPNetModel(config).eval()


usual, wide = mpnet(32), mpnet(64)
state = usual.state_dict()
name = "encoder.relative_attention_bias.weight"
wide.load_state_dict(state | {name: torch.cat([state[name], torch.full((32, 4), 1e6)])})
with torch.no_grad():
    same = torch.equal(usual(IDS).last_hidden_state, wide(IDS).last_hidden_state)
print(f"64 buckets, of which the upper 32 hold a million: equal to 32 buckets: {same}")
assert same
PYTHON
