#!/usr/bin/env bash
# Guess: `train_new_from_iterator` makes a tokenizer of the same kind for other text: one that falls back to bytes, as those of Llama 2,
#   Mistral and Gemma do, still writes every character that its training text lacked, as bytes.
# What happens: byte_fallback is still on in the new tokenizer, but the 256 byte tokens are no part of what the trainer makes, so there
#   is nothing to fall back to: one unknown token stands in their place, or, with LlamaTokenizer's own class, nothing at all: the
#   character is gone, and decoding gives the text without it. A tokenizer of bytes from the first (GPT-2's kind) keeps its letters.
# Why it matters to people who fine-tune: a vocabulary is retrained for a language or a domain, and the sample that is looked at is of
#   the text it was trained on. What is rare there (a name, a sign, a digit) is lost from rows and answers, and no count of unknown
#   tokens shows it. To name the 256 byte tokens in `new_special_tokens` is half a way round: encoding finds them, and decoding
#   with skip_special_tokens leaves them out. Try before training whether every character comes back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
import tokenizers
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

print("transformers", t.__version__, "tokenizers", tokenizers.__version__)
ALL = [f"<0x{number:02X}>" for number in range(256)]
pieces = ["<unk>", "<s>", "</s>", *ALL, "▁", *"abcdefghijklmnopqrstuvwxyz"]
numbers = {piece: at for at, piece in enumerate(pieces)}
named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
backend = Tokenizer(models.BPE(numbers, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
of_bytes = Tokenizer(models.BPE())
of_bytes.pre_tokenizer, of_bytes.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
of_bytes.train_from_iterator(["a cat"], trainers.BpeTrainer(show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
kinds = {
    "LlamaTokenizer": t.LlamaTokenizer(vocab=numbers, merges=[]),
    "GemmaTokenizer": t.GemmaTokenizer(vocab=numbers | {"<pad>": len(numbers), "<bos>": len(numbers) + 1, "<eos>": len(numbers) + 2,
                                                        "<mask>": len(numbers) + 3}, merges=[]),
    "a file of its own": t.PreTrainedTokenizerFast(tokenizer_object=backend, **named),
    "bytes from the first": t.PreTrainedTokenizerFast(tokenizer_object=of_bytes),
}
lines = ["the meter reads well", "read the meter well"] * 50
TEXT = "read meter 7 at 21°"


def back(tokenizer):
    return tokenizer.decode(tokenizer(TEXT, add_special_tokens=False)["input_ids"], skip_special_tokens=True)


for name, old in kinds.items():
    new = old.train_new_from_iterator(lines, vocab_size=400, show_progress=False)
    whole = old.train_new_from_iterator(lines, vocab_size=400, new_special_tokens=ALL, show_progress=False)
    print(f"{name}: {back(old)!r} before, {back(new)!r} trained anew ({new.tokenize(TEXT)})")
    print(f"  with the byte tokens named {whole.tokenize(TEXT)}, decoded {back(whole)!r}")
    assert back(old) == TEXT, name
    assert (back(new) == TEXT) == (name == "bytes from the first"), name
    if name != "bytes from the first":
        assert new.backend_tokenizer.model.byte_fallback and not any(byte in new.get_vocab() for byte in ALL)
PYTHON
if grep -i byte "$folder/said"; then echo "it is said now" >&2; exit 1; fi
