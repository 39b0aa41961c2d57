#!/usr/bin/env bash
# Guess: BitsAndBytesConfig(load_in_4bit=True) brings a mixture of experts to about a quarter of its bfloat16 size, like any model;
#   prepare_model_for_kbit_training then makes norms and the embedding float32, a small part.
# What happens: since transformers 5 the experts of a layer are one tensor of three dimensions and no nn.Linear, and only modules of
#   that very class become 4-bit. Attention is quantised; the experts, nine tenths of the weights, stay as wide as they were.
#   peft's preparation then makes float32 of all that is not 4-bit, and so of the experts: QLoRA ends at more than the model took
#   before it. Nothing is said; print(model) shows Linear4bit in every layer.
# Why it matters to people who fine-tune: 4 bits were chosen because the model did not fit. Memory runs out while it loads or at the
#   preparation, and the method, the batch or the offloading is blamed; who has the memory pays for it and quantises nothing that counts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 bitsandbytes==0.50.2 \
  accelerate==1.15.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import sys
from importlib.metadata import version

import peft
import torch
import transformers as t

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("transformers", "bitsandbytes", "peft", "torch")))
usual = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, head_dim=16, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
experts = dict(num_experts_per_tok=2, moe_intermediate_size=128)
families = {
    "Llama": t.LlamaConfig(**usual),
    "Qwen3-MoE": t.Qwen3MoeConfig(**usual, num_experts=8, **experts),
    "Mixtral": t.MixtralConfig(**usual, num_local_experts=8, num_experts_per_tok=2),
    "OLMoE": t.OlmoeConfig(**{key: value for key, value in usual.items() if key != "head_dim"}, num_experts=8, num_experts_per_tok=2),
    "GLM-4-MoE": t.Glm4MoeConfig(**usual, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=0, **experts),
}
four = t.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
for name, config in families.items():
    torch.manual_seed(0)
    wide = t.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    wide.save_pretrained(f"{sys.argv[1]}/{name}")
    model = t.AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}", quantization_config=four, dtype="bfloat16")
    sizes = [wide.get_memory_footprint(), model.get_memory_footprint()]
    kinds = {str(weight.dtype) for key, weight in model.named_parameters() if ".experts." in key}
    attention = {str(weight.dtype) for key, weight in model.named_parameters() if ".q_proj.weight" in key}
    assert attention == {"torch.uint8"}
    prepared = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    sizes.append(prepared.get_memory_footprint())
    after = {str(weight.dtype) for key, weight in prepared.named_parameters() if ".experts." in key}
    shares = [size / sizes[0] for size in sizes]
    print(f"{name}: in bfloat16 1, in 4 bits {shares[1]:.2f}, prepared {shares[2]:.2f}; experts {kinds or '-'} then {after or '-'}")
    if name == "Llama":
        assert shares[1] < 0.4 and shares[2] < 0.6, shares
    else:
        assert kinds == {"torch.bfloat16"} and after == {"torch.float32"}, (kinds, after)
        assert shares[1] > 0.8 and shares[2] > 1.6, shares

with torch.device("meta"):  # a published shape: 30 thousand million weights, of which a token meets 3
    large = t.AutoModelForCausalLM.from_config(t.Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8))
every = sum(weight.numel() for weight in large.parameters())
inside = sum(weight.numel() for key, weight in large.named_parameters() if ".experts." in key)
print(f"48 layers of 128 experts: {inside / every:.0%} of {every / 1e9:.1f}e9 weights are experts, "
      f"{inside * 2 / 1e9:.0f} GB as loaded 'in 4 bits', {inside * 4 / 1e9:.0f} GB prepared")
assert inside > 0.9 * every
PYTHON
if grep -i expert "$folder/said"; then echo "it is said now" >&2; exit 1; fi
