#!/usr/bin/env bash
# Guess: pooling with include_prompt=False averages over the tokens of the text, without those of the prompt before it: for
#   "query: " and "cat sat" over `cat`, `sat` and the end token.
# What happens: sentence-transformers counts the prompt's tokens by cutting the prompt alone. With a tokenizer of bytes (RoBERTa,
#   ModernBERT, Qwen, Llama 3) the space at its end is a token there, and in the text it belongs to the word behind it: one more is
#   left out than the prompt has, and that is the first word. A text of one word is pooled from its end token alone. With "query:"
#   all is right, and with WordPiece too. Nothing is said; the trainer counts in the same way.
# Why it matters to people who fine-tune: prompts are usually given with a space at their end, and the first word of a query (what, who,
#   a name) is often what tells it from others: of questions that differ in it no difference is left but what attention carries
#   over. Training adapts to it and hides it, until another program counts rightly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 sentence-transformers==6.2.0 tokenizers==0.23.3 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore::FutureWarning - 2>"$folder/said" <<'PYTHON' || { cat "$folder/said" >&2; exit 1; }
from importlib.metadata import version

import torch
import transformers as t
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

t.logging.disable_progress_bar()
torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("sentence-transformers", "transformers", "tokenizers", "torch")))
WORDS = "query who what wrote the letter cat sat on a mat far away".split()
lines = [" ".join(WORDS[start:] + WORDS[:start]) + ": " for start in range(len(WORDS))] * 20
special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
names = ["<pad>", "<s>", "</s>", "<unk>"]


def of_bytes():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=500, special_tokens=names, initial_alphabet=letters, show_progress=False))
    return backend


def of_word_pieces():
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False))
    return backend


def encoder(kind, backend):
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    t.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=60, **special).save_pretrained(kind)
    torch.manual_seed(0)
    t.RobertaModel(t.RobertaConfig(vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
                                   max_position_embeddings=70, pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(kind)
    return SentenceTransformer(modules=[Transformer(kind), Pooling(32, "mean", include_prompt=False)], device="cpu")


def pooled(model, prompt, text):
    """The tokens that its vector is the mean of, found from the vector and the tokens' states."""
    given = model[0].preprocess([text], prompt=prompt)
    states = model[0](dict(given))["token_embeddings"][0]
    tokens = model.tokenizer.convert_ids_to_tokens(given["input_ids"][0].tolist())
    vector = torch.from_numpy(model.encode(text, prompt=prompt))
    first = min(range(len(tokens)), key=lambda at: float((states[at:].mean(0) - vector).norm()))
    assert torch.allclose(states[first:].mean(0), vector, atol=1e-5)
    return tokens[first:]


found = {}
for kind, backend in (("bytes", of_bytes()), ("word pieces", of_word_pieces())):
    model = encoder(kind, backend).eval()
    with torch.no_grad():
        for prompt, text in [("query:", " cat sat"), ("query: ", "cat sat"), ("query: ", "cat")]:
            found[kind, prompt, text] = [token.strip("Ġ") for token in pooled(model, prompt, text)]
            print(f"{kind}: prompt {prompt!r}, text {text!r}: the mean is over {found[kind, prompt, text]}")
        asked = [model.encode(text, prompt="query: ", convert_to_tensor=True) for text in ("who wrote the letter", "what wrote the letter")]
        print(f"{kind}: 'who wrote the letter' and 'what wrote the letter': cosine {torch.cosine_similarity(*asked, dim=0):.4f}")
whole, one = ["cat", "sat", "</s>"], ["cat", "</s>"]
assert found["bytes", "query:", " cat sat"] == whole
assert found["bytes", "query: ", "cat sat"] == whole[1:] and found["bytes", "query: ", "cat"] == one[1:]
assert found["word pieces", "query: ", "cat sat"] == whole and found["word pieces", "query: ", "cat"] == one
PYTHON
if grep -i "prompt\|pooling" "$folder/said"; then echo "something is said of it" >&2; exit 1; fi
