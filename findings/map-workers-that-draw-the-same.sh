#!/usr/bin/env bash
# Guess: a function that draws at random (which template, which tokens to mask, which answer as the wrong one) gives each row a draw of its
#   own in `map` of datasets, with num_proc as without; and with the seeds of set_seed the rows are the same in every run.
# What happens: the workers are copies of the process (fork, as on Linux), the state of NumPy's and torch's generators with it, and nothing seeds them anew. The
#   first row of each worker's share gets the same draw, the second the next, and so on: with eight workers each draw is used
#   eight times. Python's own `random` is seeded anew by Python in every copy, so that its rows differ, but in each run too,
#   whatever seed was set. Nothing is said; torch's DataLoader, which is known to seed its workers, is why one trusts in it.
# Why it matters to people who fine-tune: an epoch of 80,000 rows has 10,000 draws in it; masks and templates come in the same order again, so a
#   sample that was drawn to be even is not, and with one worker the figures are others than with eight. Rows that `random` drew
#   cannot be made again once their cache is gone. Draw from the row's number: numpy.random.default_rng([seed, index]), with
#   with_indices=True.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 datasets==5.2.0 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
cat > program.py <<'PYTHON'
import json
import random
import sys
from importlib.metadata import version

import datasets
import numpy
import torch
import transformers

datasets.disable_progress_bars()
if sys.argv[1] == "versions":
    print(*(f"{name} {version(name)}" for name in ("datasets", "numpy", "torch", "transformers")))
    sys.exit()


def drawn(row, index):
    """Five draws of one of a million, one of each kind."""
    return {
        "numpy": int(numpy.random.randint(1_000_000)), "torch": int(torch.randint(1_000_000, ())), "random": random.randrange(1_000_000),
        "by the row's number": int(numpy.random.default_rng([7, index]).integers(1_000_000)),
    }


transformers.set_seed(7)
rows = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(4000)]})
made = rows.map(drawn, with_indices=True, num_proc=int(sys.argv[1]), remove_columns="text", load_from_cache_file=False)
print(json.dumps(made.to_dict()))
PYTHON
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
for run in versions 1 4; do "$PYTHON" -W ignore program.py $run > "$run.json" 2>"said.$run" || { cat "said.$run" >&2; exit 1; }; done
"$PYTHON" -W ignore program.py 4 > again.json 2>said.again || { cat said.again >&2; exit 1; }
cat versions.json
python3 - <<'PYTHON'
import json

one, four, again = (json.load(open(f"{name}.json")) for name in ("1", "4", "again"))
different = {kind: [len(set(made[kind])) for made in (one, four)] for kind in one}
same = {kind: sum(a == b for a, b in zip(four[kind], again[kind], strict=True)) for kind in one}
for kind in one:
    print(f"{kind}: different draws in 4,000 rows: {different[kind][0]} with one process, {different[kind][1]} with four;",
          f"the same in a second run of four with this seed: {same[kind]}")
for kind in ("numpy", "torch"):
    share = four[kind][:1000]
    assert different[kind][0] > 3950 and different[kind][1] <= 1000 and same[kind] == 4000, kind
    assert all(four[kind][first : first + 1000] == share for first in (1000, 2000, 3000)), kind
assert min(different["random"]) > 3950 and same["random"] < 40
assert one["by the row's number"] == four["by the row's number"] == again["by the row's number"]
assert min(different["by the row's number"]) > 3950
PYTHON
