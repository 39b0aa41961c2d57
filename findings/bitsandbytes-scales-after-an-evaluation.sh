#!/usr/bin/env bash
# Guess: a model in 4 bits can be measured and then saved; what is written does not depend on whether it has computed something before.
# What happens: on a processor with AVX512-BF16 bitsandbytes lays each weight out anew for its kernel at the first evaluation, and
#   undoes that when it saves: the codes come back to the byte, the scales as a matrix of another order, and in bfloat16. A weight that
#   is read from this folder is the old one with its blocks' scales exchanged.
# Why it matters to people who fine-tune: the figures are measured first and the folder is written last, so that is the usual order. The
#   damage is without an error on the machine that wrote it. Microplane reads such a folder's scales in their places and says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if ! grep -qw avx512_bf16 /proc/cpuinfo; then
    echo "this processor has no AVX512-BF16, and so not this fault"
    exit 0
fi
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 bitsandbytes==0.50.2 accelerate==1.15.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
HF_HUB_OFFLINE=1 "$PYTHON" -W ignore - "$folder" <<'PROGRAM' 2>/dev/null
import sys
from importlib.metadata import version

import torch
import transformers
from safetensors.torch import load_file

print("transformers", version("transformers"), "bitsandbytes", version("bitsandbytes"), "torch", version("torch"))
folder = sys.argv[1]
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
)
transformers.LlamaForCausalLM(config).save_pretrained(f"{folder}/wide")
four = transformers.BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
model = transformers.AutoModelForCausalLM.from_pretrained(
    f"{folder}/wide", quantization_config=four, dtype=torch.bfloat16
).eval()
model.save_pretrained(f"{folder}/before")
with torch.no_grad():
    model(input_ids=torch.arange(8)[None])
model.save_pretrained(f"{folder}/after")
before, after = (load_file(f"{folder}/{name}/model.safetensors") for name in ("before", "after"))
weight = "model.layers.0.mlp.down_proj.weight"
scales = [tensors[f"{weight}.absmax"] for tensors in (before, after)]
print("codes equal:", torch.equal(before[weight], after[weight]))
for when, tensor in zip(("before", "after"), scales, strict=True):
    print(f"scales saved {when} an evaluation: {tuple(tensor.shape)}, {tensor.dtype}, {tensor.flatten()[:4].tolist()}")
put_back = scales[1].T.flatten().float()
print("of the latter, turned round, the largest difference:", float((put_back - scales[0]).abs().max()))
assert torch.equal(before[weight], after[weight])
assert scales[1].dtype == torch.bfloat16 and scales[1].dim() == 2
assert (scales[1].flatten().float() - scales[0]).abs().max() > 0.002
assert (put_back - scales[0]).abs().max() < 0.001
PROGRAM
