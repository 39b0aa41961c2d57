#!/usr/bin/env bash
# Guess: peft holds what it trains in float32 when the base is bfloat16 (autocast_adapter_dtype, on unless told otherwise), so that small
#   steps count.
# What happens: that is so for the adapter's own weights. What trains beside them stays bfloat16: modules_to_save (a classifier's new
#   head, embeddings and head for new tokens), biases with bias="all", norms of LNTuning; trainable_token_indices is float32. The
#   optimizer adds its steps to these weights in bfloat16, where what is less than half of a weight's last place is lost.
#   transformers 5 opens a base in the type of its file, mostly bfloat16.
# Why it matters to people who fine-tune: the head is the part that knows nothing at first. At the rates of full fine-tuning, and at
#   the end of every schedule, most of its weights stand still while their gradients do not; the loss stops early, silently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/base" <<'PYTHON'
import sys
import warnings

import peft
import torch
import transformers as t

t.logging.set_verbosity_error()
t.logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name of its own
warnings.simplefilter("error", UserWarning)  # a word of peft's would end this
torch.set_num_threads(1)
print("transformers", t.__version__, "peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = t.LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                       pad_token_id=0)
t.LlamaModel(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
rows, labels = torch.randint(5, 64, (64, 8)), torch.arange(64) % 4


def head_after(rate, wide):
    """Kinds of trained weights by their part, and the share of the head's weights that 50 steps of AdamW have moved."""
    torch.manual_seed(1)
    base = t.AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=4)
    assert base.dtype == torch.bfloat16
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, lora).train()
    head = model.base_model.model.score.modules_to_save["default"]
    if wide:
        head.to(torch.float32).register_forward_pre_hook(lambda module, given: (given[0].float(),))
    kinds = {("head" if "score" in name else "LoRA"): str(weight.dtype) for name, weight in model.named_parameters()
             if weight.requires_grad}
    before = head.weight.detach().clone()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate, weight_decay=0.0)
    for _ in range(50):
        model(input_ids=rows, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    step = (head.weight.detach() - before).float().abs()
    return kinds, float((step > 0).float().mean()), float(step.mean())


for rate in (1e-5, 2e-5, 1e-4):
    kinds, moved, far = head_after(rate, wide=False)
    _, all_moved, as_far = head_after(rate, wide=True)
    print(f"rate {rate:.0e}: {kinds}; {moved:.0%} of the head's weights moved ({all_moved:.0%} in float32), and on average "
          f"{far / as_far:.0%} as far")
    assert kinds == {"LoRA": "torch.float32", "head": "torch.bfloat16"} and all_moved > 0.99
    assert rate > 2e-5 or far < 0.5 * as_far, (rate, moved)
PYTHON
