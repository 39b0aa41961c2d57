#!/usr/bin/env bash
# Guess: a server that reads its model on one thread and answers on another pays nothing for it; torch's workers are one
#   pool for the whole process, and Python's threads take turns anyway.
# What happens: with GNU's OpenMP, which torch's Linux builds ship, every thread that computes has workers of its own, and
#   keeps them as long as it lives, however idle. Once all pools together are more than the processors, a worker no longer
#   waits by spinning for a moment but goes to sleep, and every small product ends with a call into the kernel to wake it.
# Why it matters to people who fine-tune: a step that writes one token is hundreds of small products (twice that many
#   with adapters), so the same model answers much slower from a web server's thread than from the script that tried it;
#   profiles show the time inside the products. The way round: let the thread that reads the model end, or let it answer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import os
import statistics
import sys
import threading
import time

import torch

processors = len(os.sched_getaffinity(0))
if processors < 2:
    sys.exit("one processor has nothing to wait for")
torch.set_num_threads(processors)
x, weights = torch.randn(16, 512), [torch.randn(512, 512) for _ in range(20)]


def step():
    """Some milliseconds of small products, each with both workers."""
    began = time.perf_counter()
    for _ in range(50):
        for weight in weights:
            torch.mm(x, weight)
    return time.perf_counter() - began


def on_another_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def median():
    return statistics.median(step() for _ in range(9))


alone = on_another_thread(median)  # that thread has ended, and its workers with it
first = median()
beside = on_another_thread(median)  # the first thread waits, and its workers with it
print(f"torch {torch.__version__}, {processors} processors: {1e3 * alone:.0f} ms on a thread that computes alone,")
print(f"{1e3 * first:.0f} ms on the first thread, {1e3 * beside:.0f} ms on another while the first one waits")
assert beside > 1.3 * max(alone, first), "a second pool of workers costs nothing any more"
PYTHON
