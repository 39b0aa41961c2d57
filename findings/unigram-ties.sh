#!/usr/bin/env bash
# Guess: a unigram vocabulary gives the same tokens in `tokenizers` and in `sentencepiece`; both take the likeliest cut.
# What happens: where two cuts are equally likely (the same pieces in another order, as with runs of spaces or repeated
#   letters), the packages choose differently: one adds up scores in 32 bits, the other in 64, and the last bit decides.
# Why it matters to people who fine-tune: a model that was trained with one and is served with the other sees other ids
#   for the same text, without any sign; converters that compare ids on a few clean sentences do not notice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sentencepiece==0.2.3 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import math
import random
import sys

import sentencepiece
import tokenizers
from tokenizers import Tokenizer, models

chance = random.Random(0)
lines = ["   ".join(chance.choices("ab ba aab bba abab".split(), k=4)) for _ in range(1000)]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_prefix=f"{sys.argv[1]}/model",
    vocab_size=30,
    hard_vocab_limit=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    minloglevel=2,
)
one = sentencepiece.SentencePieceProcessor(model_file=f"{sys.argv[1]}/model.model")
scores = {one.id_to_piece(token): one.get_score(token) for token in range(len(one))}
other = Tokenizer(models.Unigram([*scores.items()], unk_id=0))
print("sentencepiece", sentencepiece.__version__, "tokenizers", tokenizers.__version__)
text = "b   "
first, second = one.encode(text, out_type=str), other.encode("▁" + text.replace(" ", "▁")).tokens
print(first, second)
assert first != second and sorted(first) == sorted(second)
assert math.fsum(map(scores.get, first)) == math.fsum(map(scores.get, second))
PYTHON
