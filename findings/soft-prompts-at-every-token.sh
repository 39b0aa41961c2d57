#!/usr/bin/env bash
# Guess: a soft prompt (prompt tuning, p-tuning) stands before the text once, and a prefix before all of it, in `generate` as in
#   training; with a cache the answer is the one that is computed without.
# What happens: transformers 5.24 calls the argument `cache` that was `past_key_values`, and the newest peft looks for the old name in
#   what generation hands it. It finds none and takes every token for the first: the soft prompt is put before each new token
#   again, and the cache grows by it each time. A prefix goes the other way: it is handed over under the old name beside an
#   empty cache under the new one, and the empty one wins, so that the answers are those of the base. Both are right with
#   use_cache=False, and prompt tuning is right with 5.23. What peft says of position ids it says with 5.23 too; of the prefix there
#   is a warning that two names are set. The loss is right, as training has no cache.
# Why it matters to people who fine-tune: the loss falls as it should, validation by loss is good, and answers are poor: soft prompts,
#   which are known to be weak, are given up for what an update of another package did.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --no-deps --target "$folder/before" transformers==5.23.0
cat >"$folder/program.py" <<'PYTHON'
import sys

import peft
import torch
import transformers as t

t.logging.disable_progress_bar()
t.logging.set_verbosity_error()
torch.set_num_threads(1)
print("transformers", t.__version__, "peft", peft.__version__, "torch", torch.__version__)
before = sys.argv[1] == "before"
PROMPT, ANSWER = [5, 6, 7, 8], [30, 41, 22, 53, 14, 35, 46, 27]
config = t.LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                       max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
soft = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
    "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
}


def fresh():
    torch.manual_seed(0)
    return t.LlamaForCausalLM(config).eval()


def by_hand(model):
    """The likeliest next token of a whole pass, again and again: what the model computes in training."""
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in ANSWER:
            scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            ids = torch.cat([ids, scores[:, -1:].argmax(-1)], 1)
    return ids[0, len(PROMPT):].tolist()


def generated(model, **more):
    ids = torch.tensor([PROMPT])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(ANSWER),
                          min_new_tokens=len(ANSWER), return_dict_in_generate=True, **more)
    cache = made.cache if "cache" in made else made.past_key_values
    return made.sequences[0, len(PROMPT):].tolist(), cache.get_seq_length() if cache is not None else None


base, _ = generated(fresh())
assert base == by_hand(fresh())
for name, adapter in soft.items():
    if before and name == "prefix tuning":
        continue
    model = peft.get_peft_model(fresh(), adapter).eval()
    ids = torch.tensor([PROMPT + ANSWER])
    labels = torch.tensor([[-100] * len(PROMPT) + ANSWER])
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.03)
    for _ in range(400):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hand, (made, length), (plain, _) = by_hand(model), generated(model), generated(model, use_cache=False)
    right = [sum(one == two for one, two in zip(found, ANSWER)) for found in (hand, made, plain)]
    print(f"{name}: loss {loss:.4f}; tokens of the answer by hand {right[0]}, generated {right[1]}, without a cache {right[2]} of 8;",
          f"places in the cache {length}" + (", the base's own answer" if made == base else ""))
    assert right[0] == right[2] == 8, (name, right)
    once = 16 + len(PROMPT) + len(ANSWER) - 1
    if before:
        assert (right[1], length) == (8, once)
    elif name == "prefix tuning":
        assert made == base and length == once - 16
    else:
        assert right[1] < 8 and length == once + 16 * (len(ANSWER) - 1), (right, length)
PYTHON
for when in now before; do
  PYTHONPATH=$([ $when = before ] && echo "$folder/before" || true) HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore \
    "$folder/program.py" $when 2>"$folder/said" || { cat "$folder/said" >&2; exit 1; }
done
