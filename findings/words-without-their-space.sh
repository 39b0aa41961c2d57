#!/usr/bin/env bash
# Guess: tokenizer(words, is_split_into_words=True) gives the tokens of these words as they stand in a text; where it cannot, as with
#   RoBERTa and GPT-2 without add_prefix_space, it raises, as it did for years.
# What happens: in transformers 5 nothing raises. With a tokenizer of bytes (Qwen, Llama 3, ModernBERT, GPT-2, RoBERTa, NeoX) every
#   word is cut as if the text began with it, without the space before it: `man` and not `Ġman`, another id, often more pieces.
#   word_ids() and labels fit. Tokenizers of WordPiece and of SentencePiece's kind have the same ids both ways.
# Why it matters to people who fine-tune: taggers (names, parts of speech) are trained from lists of words, and used on text: by
#   pipeline("token-classification"), say. Training reads tokens as they stand in no text, so what the base has learnt of words is
#   lost, and in use there are tokens that training never met. Validation, cut in the same way, stays good. add_prefix_space=True
#   mends it for classes that take it; for the others, cut the joined text and align by its offsets.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

warnings.simplefilter("error")
said = []
t.logging.get_logger("transformers").warning = said.append
WORDS = "the doctor from Lisbon met an old friend in Oslo".split()
lines = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))] * 20
special = ["<unk>", "<pad>", "<s>", "</s>"]
named = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def trained(model, before, trainer, **more):
    backend = Tokenizer(model)
    backend.pre_tokenizer = before
    backend.train_from_iterator(lines, trainer(special_tokens=special, show_progress=False, **more))
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


letters = pre_tokenizers.ByteLevel.alphabet()
of_bytes = trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer, vocab_size=400,
                   initial_alphabet=letters)
of_bytes.save_pretrained(f"{sys.argv[1]}/bytes")
found = {
    "WordPiece": trained(models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), trainers.WordPieceTrainer),
    "spaces as marks": trained(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(), trainers.BpeTrainer, vocab_size=400),
    "bytes, no class of its own": t.AutoTokenizer.from_pretrained(f"{sys.argv[1]}/bytes"),
}
for name in ("Qwen2Tokenizer", "GPT2Tokenizer", "RobertaTokenizer", "GPTNeoXTokenizer"):
    found[name] = getattr(t, name).from_pretrained(f"{sys.argv[1]}/bytes")
print("transformers", t.__version__)
for name, tokenizer in found.items():
    of_words = tokenizer(WORDS, is_split_into_words=True, add_special_tokens=False)
    of_text = tokenizer(" ".join(WORDS), add_special_tokens=False)
    known = len(set(of_words["input_ids"]) & set(of_text["input_ids"]))
    print(f"{name}: words {of_words.tokens()[:4]}, text {of_text.tokens()[:4]}; {len(of_words['input_ids'])} and "
          f"{len(of_text['input_ids'])} tokens, {known} ids in both")
    right = name in ("WordPiece", "spaces as marks")
    assert right == (of_words["input_ids"] == of_text["input_ids"]), name
    assert right or known < len(WORDS) / 2, name
    assert [number for number in range(len(WORDS)) if number not in of_words.word_ids()] == []
for name in ("GPT2Tokenizer", "RobertaTokenizer"):
    mended = getattr(t, name).from_pretrained(f"{sys.argv[1]}/bytes", add_prefix_space=True)
    same = mended(WORDS, is_split_into_words=True)["input_ids"] == mended(" ".join(WORDS))["input_ids"]
    print(f"{name} with add_prefix_space=True: the same ids both ways: {same}")
    assert same
assert not said, said
PYTHON
