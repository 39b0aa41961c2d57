#!/usr/bin/env bash
# Guess: torch.utils.checkpoint trades time for memory and nothing else; a process in which nothing is compiled, and a model that is
#   only laid out on the meta device, never load torch's compiler.
# What happens: the first call of `checkpoint` imports torch._dynamo (and with it sympy), whatever is recomputed, and so does a
#   square root of a tensor on the meta device. That is tens of megabytes that stay and seconds that a step does not explain.
# Why it matters to people who fine-tune: recomputing is switched on where memory is short, and a small model then takes more with it than
#   without; the first step's time is no step's time; and sizes that are read on the meta device before a run, in order to be quick, cost
#   more than the run's own start.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 psutil==7.2.2
run() { "$folder/venv/bin/python" - "$1"; }
for way in layer recomputed meta; do
  run "$way" <<'PYTHON' 2>/dev/null
import sys
import time

import psutil
import torch
from torch.utils.checkpoint import checkpoint

way = sys.argv[1]
layer, x = torch.nn.Linear(8, 8), torch.ones(2, 8, requires_grad=True)
layer(x).sum().backward()
before, began = psutil.Process().memory_info().rss, time.perf_counter()
if way == "layer":
    layer(x).sum().backward()
elif way == "recomputed":
    checkpoint(layer, x, use_reentrant=False).sum().backward()
else:
    torch.empty(8, device="meta").sqrt()
seconds, more = time.perf_counter() - began, psutil.Process().memory_info().rss - before
there = "torch._dynamo" in sys.modules
print(f"torch {torch.__version__}, {way}: {seconds:.2f} s, {more / 1e6:.0f} MB more, the compiler is imported: {there}")
assert there == (way != "layer"), way
assert (more > 20e6) == there, more
PYTHON
done
