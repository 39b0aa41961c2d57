#!/usr/bin/env bash
# Guess: `map` takes rows from its cache only where data and function are the same; who edits the function gets new rows, as the
#   description of the fingerprint says ("a hash of the function").
# What happens: a function of the script itself is hashed by its code, one of an imported module by its name. Edit prepare.py, where
#   prompts are rendered or rows tokenized, run train.py again, and the rows are those of the edition before. A lambda around the
#   imported function changes nothing. Nothing is said; the progress bar, which does not appear, is all that tells. Other
#   arguments of the run, such as the model or the seed, are followed as they should be.
# Why it matters to people who fine-tune: preprocessing lives in a module as soon as training and evaluation share it. A mended template, mask
#   or length has no effect, the experiment says that it makes no difference, and the served prompt is not the trained one.
#   Evaluation in another folder or on another machine reads the new rows. Put a version of your own in fn_kwargs, or pass
#   load_from_cache_file=False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 numpy==2.4.6
cd "$folder"
printf '{"question": "two and two", "answer": "four"}\n{"question": "two and three", "answer": "five"}\n' >rows.jsonl
cat >train.py <<'PYTHON'
import warnings
from importlib.metadata import version

import datasets
import prepare

warnings.simplefilter("error")
EDITION = 1


def of_the_script(row):
    return {"text": "Question: " + row["question"]}


datasets.disable_progress_bars()
rows = datasets.load_dataset("json", data_files="rows.jsonl", split="train", cache_dir="cache")
print("datasets", version("datasets"), end=": ")
print(rows.map(of_the_script)["text"][0], rows.map(prepare.rendered)["text"][0],
      rows.map(lambda row: prepare.rendered(row))["text"][0], rows.map(prepare.rendered, fn_kwargs={"edition": EDITION})["text"][0],
      rows.map(prepare.rendered, load_from_cache_file=False)["text"][0], sep=" | ")
PYTHON
cat >prepare.py <<'PYTHON'
def rendered(row, edition=None):
    return {"text": "Question: " + row["question"]}
PYTHON
trained() { HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -B train.py 2>>said; }
first=$(trained)
sed -i 's/Question/Asked/' prepare.py
sed -i 's/"Question/"Asked/; s/EDITION = 1/EDITION = 2/' train.py
second=$(trained)
echo "function of the script | imported | imported, in a lambda | imported, with an edition | without the cache"
echo "$first"
echo "both edited: $second"
old="Question: two and two" new="Asked: two and two"
[ "$first" = "datasets 5.2.0: $old | $old | $old | $old | $old" ]
[ "$second" = "datasets 5.2.0: $new | $old | $old | $new | $new" ]
[ ! -s said ] || { cat said >&2; exit 1; }
