#!/usr/bin/env bash
# Guess: rows that lie in one batch row behind each other, with position_ids that begin anew for each, are computed by transformers
#   as if each were alone; with its plain attention too, since its masks are made from these positions.
# What happens: positions are looked at only where there is neither an attention mask nor a cache, and a model whose config says
#   use_cache (all do) makes itself a cache in every forward pass, in training too: each row sees those before it. Recomputing
#   (gradient checkpointing) switches the cache off, so the same batch has another loss with it than without. An attention mask
#   of ones does as much harm as the cache. And with use_cache=False, as the Trainer sets it, some families leak all the same:
#   GPT-OSS does not hand the positions to the mask, and the linear attention of Qwen3.5 runs on from row to row.
# Why it matters to people who fine-tune: losses look better, as rows are read with others before them; a model answers otherwise
#   alone than it was trained, and a difference between two set-ups is put down to recomputing. All that is said is that this
#   switches the cache off.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import torch
import transformers as t

print("transformers", t.__version__, "torch", torch.__version__)
torch.set_num_threads(1)
usual = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
linear = dict(layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=4,
              linear_key_head_dim=8, linear_value_head_dim=8)
families = {
    "Llama": t.LlamaConfig(**usual),
    "Qwen3": t.Qwen3Config(**usual),
    "Gemma 3": t.Gemma3TextConfig(**usual),
    "GPT-OSS": t.GptOssConfig(**usual, num_local_experts=4, num_experts_per_tok=2),
    "Qwen3.5": t.Qwen3_5TextConfig(**usual, **linear),
}
first, second = torch.arange(5, 10)[None], torch.arange(20, 32)[None]
packed = torch.cat([first, second], 1)
positions = torch.tensor([[*range(5), *range(12)]])
ones = torch.ones_like(packed)
for name, config in families.items():
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config).train()  # without dropout: all of these have none
    with torch.no_grad():
        alone = torch.cat([model(first, use_cache=False).logits, model(second, use_cache=False).logits], 1)
        off = {
            "as it comes": model(packed, position_ids=positions),
            "use_cache=False": model(packed, position_ids=positions, use_cache=False),
            "and a mask of ones": model(packed, position_ids=positions, attention_mask=ones, use_cache=False),
        }
    off = {way: float((found.logits - alone).abs().max()) for way, found in off.items()}
    print(f"{name}: logits are off by", ", ".join(f"{value:.0e} ({way})" for way, value in off.items()))
    assert off["as it comes"] > 0.1 and off["and a mask of ones"] > 0.1, off
    assert (off["use_cache=False"] > 0.1) == (name in ("GPT-OSS", "Qwen3.5")), off

torch.manual_seed(0)
model = t.AutoModelForCausalLM.from_config(families["Llama"]).train()
labels = packed.clone()
labels[:, [0, 5]] = -100
plain = float(model(packed, position_ids=positions, labels=labels).loss.detach())
model.gradient_checkpointing_enable()
again = float(model(packed, position_ids=positions, labels=labels).loss.detach())
print(f"Llama, the loss of the same step: {plain:.4f}, and {again:.4f} with recomputing")
assert abs(plain - again) > 1e-2
PYTHON
if grep -iwE 'packed|packing' "$folder/said"; then echo "it is said now" >&2; exit 1; fi
