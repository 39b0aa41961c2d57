#!/usr/bin/env bash
# Guess: prompts of a decoder are padded on the left to be answered together, as everybody does, and a soft prompt (prompt tuning) that
#   peft trained stands before each of them, so that a batch is answered as its rows are one by one.
# What happens: peft puts the vectors before the padding. The attention mask leaves the padding out, but its places are counted, and
#   the text stands as far behind the vectors as it was padded. The base alone, and with a LoRA, does not mind left padding; with a
#   soft prompt the scores are quite other ones, and most rows of a batch are answered otherwise than alone. A forward pass with a
#   prefix has the same fault, and `generate` does not. Padded on the right, as in training, all agree.
# Why it matters to people who fine-tune: training pads on the right and is right; accuracy is then measured by answers in batches,
#   padded on the left, and a soft prompt looks worse than it is, by more the more the lengths of the rows differ. Ask one row at a
#   time, or rows of one length.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import peft
import torch
import transformers as t

t.logging.set_verbosity_error()
torch.set_num_threads(1)
warnings.simplefilter("ignore")
print("transformers", t.__version__, "peft", peft.__version__)
torch.manual_seed(0)
config = t.LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                       intermediate_size=48, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2)
rows = [torch.randint(5, 50, (length,)).tolist() for length in (3, 6, 11)]
longest = max(map(len, rows))


def padded(side):
    ids = torch.tensor([[0] * (longest - len(row)) + row if side == "left" else row + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@torch.no_grad()
def apart(model, side):
    """How far the scores behind a row's last token are, in a padded batch, from those of the row alone."""
    model.eval()
    together, most = model(**padded(side)).logits, 0.0
    for number, row in enumerate(rows):
        alone = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0, -1]
        place = -1 if side == "left" else len(row) - longest - 1
        most = max(most, float((together[number, place] - alone).abs().max()))
    return most


@torch.no_grad()
def written(model):
    """How many of the rows get the same six tokens in a batch that is padded on the left as they get alone."""
    model.eval()
    given = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    together = model.generate(**padded("left"), **given)[:, -6:].tolist()
    alone = []
    for row in rows:
        mask = torch.ones(1, len(row), dtype=torch.long)
        alone.append(model.generate(input_ids=torch.tensor([row]), attention_mask=mask, **given)[0, -6:].tolist())
    return sum(one == other for one, other in zip(together, alone))


def made(kind):
    torch.manual_seed(0)
    base = t.LlamaForCausalLM(config)
    if kind == "base":
        return base
    more = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "lora": peft.LoraConfig}[kind]
    own = {"target_modules": ["q_proj"], "init_lora_weights": False} if kind == "lora" else {"num_virtual_tokens": 4}
    torch.manual_seed(1)
    return peft.get_peft_model(base, more(task_type="CAUSAL_LM", **own))


found = {}
for kind in ("base", "lora", "prompt", "prefix"):
    found[kind] = apart(made(kind), "left"), apart(made(kind), "right"), written(made(kind))
for kind, (left, right, same) in found.items():
    print(f"{kind:7} padded left {left:.1e}, padded right {right:.1e}, written alike {same} of {len(rows)}")
for kind in ("base", "lora"):
    assert max(found[kind][:2]) < 1e-4 and found[kind][2] == len(rows), f"{kind} minds padding now"
for kind in ("prompt", "prefix"):
    assert found[kind][0] > 0.5, f"a {kind} does not mind left padding any more"
    assert found[kind][1] < 1e-4, f"a {kind} minds right padding now"
assert found["prompt"][2] < len(rows), "a batch with a soft prompt is answered as its rows are"
assert found["prefix"][2] == len(rows), "a batch with a prefix is answered otherwise than its rows are"
PYTHON
