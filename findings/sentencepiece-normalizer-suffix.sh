#!/usr/bin/env bash
# Guess: `SentencePieceNormalizer(model_file=...)` does to a text what the model's processor does before it cuts it.
# What happens: of a model with `treat_whitespace_as_suffix` the normaliser puts the space before the words, the
#   processor behind them; and what the processor decodes has a space at its end that the text did not have.
# Why it matters to people who fine-tune: who prepares text with the normaliser, to keep the places of characters or to
#   use another package for the cutting, gets other tokens; and answers of such a model never equal their references.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sentencepiece==0.2.3
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import random
import sys

import sentencepiece

chance = random.Random(0)
lines = [" ".join(chance.choices("the cat sat on a mat".split(), k=5)) for _ in range(500)]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_prefix=f"{sys.argv[1]}/model",
    vocab_size=40,
    hard_vocab_limit=False,
    treat_whitespace_as_suffix=True,
    minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_file=f"{sys.argv[1]}/model.model")
normalizer = sentencepiece.SentencePieceNormalizer(model_file=f"{sys.argv[1]}/model.model")
found = normalizer.normalize("the cat"), processor.normalize("the cat"), processor.decode(processor.encode("the cat"))
print("sentencepiece", sentencepiece.__version__, found)
assert found == ("▁the▁cat", "the▁cat▁", "the cat ")
PYTHON
