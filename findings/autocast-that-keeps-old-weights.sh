#!/usr/bin/env bash
# Guess: inside `with torch.autocast(...)` a product is computed with the weight as it is now, made narrower; whether the block holds one
#   step or a loop makes a difference to speed at most.
# What happens: the narrow copy of each weight that trains is kept until the outermost block ends. A step of the optimizer, load_state_dict,
#   or an adapter's weights put in within it change the weight and not the copy. A loop in one block trains on the weights of
#   its beginning: with an epoch in each block the model that is computed changes once an epoch, while the optimizer adds up
#   steps along gradients of a place that it has left long ago. Blocks within, such as accelerate puts around every
#   forward pass, do not help, as only the outermost counts. What does not train has no copy, nor what is bfloat16 already.
# Why it matters to people who fine-tune: the block is written around the loop when a script is made to run in bfloat16. Within an epoch the
#   loss stands still, from one to the next it falls and then rises: it looks like a rate that is too high. A checkpoint that is
#   read in such a block to be measured gets the figures of the weights before it. Close the block before optimizer.step(), or give
#   it cache_enabled=False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
"$PYTHON" - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import contextlib
import copy
from importlib.metadata import version

import accelerate
import torch

torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("torch", "accelerate")))
draw = torch.Generator().manual_seed(0)
inputs = torch.randn(512, 16, generator=draw)
classes = (inputs @ torch.randn(16, 4, generator=draw)).argmax(-1)


def narrow(**more):
    return torch.autocast("cpu", dtype=torch.bfloat16, **more)


def fresh():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))


def right_answers(model):
    with torch.no_grad():
        return float((model(inputs).argmax(-1) == classes).float().mean())


def trained(around_epoch, around_step, epochs=3, steps=150, model=None):
    """Three epochs of 150 steps of 32 rows; returns the mean loss of each epoch's first and last ten steps, and the right answers at the end."""
    model = model or fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(1)
    told = []
    for _ in range(epochs):
        losses = []
        with around_epoch():
            for _ in range(steps):
                rows = torch.randint(0, 512, (32,), generator=order)
                with around_step():
                    loss = torch.nn.functional.cross_entropy(model(inputs[rows]).float(), classes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        told += [float(sum(losses[:10]) / 10), float(sum(losses[-10:]) / 10)]
    return told, right_answers(model)


prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare_model(fresh())
cases = {
    "float32": (contextlib.nullcontext, contextlib.nullcontext, None),
    "a block around each step's forward pass": (contextlib.nullcontext, narrow, None),
    "a block around each epoch": (narrow, contextlib.nullcontext, None),
    "the same without a cache": (lambda: narrow(cache_enabled=False), contextlib.nullcontext, None),
    "a block around each epoch, accelerate's in it": (narrow, contextlib.nullcontext, prepared),
}
found = {}
for text, (around_epoch, around_step, model) in cases.items():
    found[text] = trained(around_epoch, around_step, model=model)
    told, right = found[text]
    print(f"{text}: loss at the beginning and end of each epoch {' '.join(f'{value:.2f}' for value in told)}; right at the end {right:.2f}")
for text, (told, right) in found.items():
    if "around each epoch" in text:
        assert abs(told[0] - told[1]) < 0.15 and told[4] > 1 and right < found["float32"][1] - 0.1, (text, told, right)
    else:
        assert told[0] > told[1] + 0.3 and abs(right - found["float32"][1]) < 0.05, (text, told, right)
other = fresh()
trained(contextlib.nullcontext, contextlib.nullcontext, model=other)
model = fresh()
with narrow():
    before = right_answers(model)
    loss = torch.nn.functional.cross_entropy(model(inputs).float(), classes)  # with gradients: now the copies are kept
    model.load_state_dict(copy.deepcopy(other.state_dict()))
    behind = right_answers(model)
print(f"right in one block: before reading a checkpoint {before:.2f}, behind it {behind:.2f}, outside {right_answers(model):.2f}")
assert behind == before < right_answers(model) - 0.3
PYTHON
