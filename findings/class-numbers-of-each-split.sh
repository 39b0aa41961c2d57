#!/usr/bin/env bash
# Guess: DatasetDict.class_encode_column("label") makes one list of classes for the whole set, so that a number means the same label in
#   each of its splits.
# What happens: each split gets a list of its own, made of the labels that are in it, in the order of the alphabet. Where a rare label is
#   missing in a split, all labels behind it have another number there. To cast that split to the training split's classes
#   afterwards keeps the numbers and changes the names: `thanks` is then called `refund`. Nothing is said; to join the splits raises.
# Why it matters to people who fine-tune: rare labels are missing from small validation and test sets as a rule. A classifier that is
#   right on each row is scored as wrong, or a wrong one as right; the best checkpoint is chosen by it. Make the list from the
#   training split and cast all of them to it while they are still text (cast_column raises on a label that it does not have).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 numpy==2.4.6 scikit-learn==1.9.1
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import logging
import warnings
from importlib.metadata import version

import datasets
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

warnings.simplefilter("error")
said = []
datasets.logging.get_logger("datasets").addHandler(type("Kept", (logging.Handler,), {"emit": lambda self, one: said.append(one)})())
datasets.disable_progress_bars()
print("datasets", version("datasets"))
topic = {"billing": "the invoice is wrong", "complaint": "nobody has answered me", "delivery": "the parcel has not come",
         "refund": "send my money back", "thanks": "that was kind of you"}
rows = [{"text": f"{text} {number}", "label": label} for number in range(20) for label, text in topic.items()]
both = datasets.DatasetDict(
    train=datasets.Dataset.from_list(rows),
    test=datasets.Dataset.from_list([row for row in rows if row["label"] != "complaint"]))


def accuracy(splits):
    words = CountVectorizer().fit(splits["train"]["text"])
    model = LogisticRegression().fit(words.transform(splits["train"]["text"]), splits["train"]["label"])
    return model.score(words.transform(splits["test"]["text"]), splits["test"]["label"])


coded = both.class_encode_column("label")
names = {split: coded[split].features["label"].names for split in coded}
print(names)
one = coded["train"].features["label"]
cast = both.cast_column("label", one)
right, wrong = accuracy(cast), accuracy(coded)
late = coded["test"].cast_column("label", one)
renamed = {is_now: was for is_now, was in zip(map(one.int2str, late["label"]), both["test"]["label"])}
print("cast afterwards, what is called so and what it was:", renamed)
print(f"accuracy on the test split (the model has seen its rows): {wrong:.2f}; with the classes of the training split {right:.2f}")
assert names["train"] == sorted(topic) and names["test"] == [name for name in sorted(topic) if name != "complaint"]
assert renamed == {"billing": "billing", "complaint": "delivery", "delivery": "refund", "refund": "thanks"}, renamed
assert right == 1.0 and wrong == 0.25 and not said, (right, wrong, said)
PYTHON
