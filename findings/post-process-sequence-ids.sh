#!/usr/bin/env bash
# Guess: two encodings that are put together by `post_process` know which text each token is of, as after `encode` of
#   the pair.
# What happens: with a `TemplateProcessing` the tokens of the first text have the sequence id None, like special tokens;
#   those of the second have 1. With the processors of BERT and RoBERTa both are right.
# Why it matters to people who fine-tune: whoever cuts the two texts by a rule of their own (the longer one first) and
#   puts them together afterwards aligns labels, answers' spans or masks by `sequence_ids`, and loses the first text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

backend = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3}, unk_token="[CLS]"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
special = [("[CLS]", 0), ("[SEP]", 1)]
template = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
found = {}
for name, processor in {"template": template, "bert": processors.BertProcessing(special[1], special[0])}.items():
    backend.post_processor = processor
    parts = [backend.encode(text, add_special_tokens=False) for text in ("a a", "b b")]
    found[name] = backend.post_process(*parts).sequence_ids
    assert backend.encode("a a", "b b").sequence_ids == [None, 0, 0, None, 1, 1, None]
print("tokenizers", tokenizers.__version__, found)
assert found == {"template": [None, None, None, None, 1, 1, None], "bert": [None, 0, 0, None, 1, 1, None]}
PYTHON
