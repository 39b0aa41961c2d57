#!/usr/bin/env bash
# Guess: a Gemma 3 that CTranslate2 converts without a word computes what the model computes, whatever its settings.
# What happens: the two bases by which its positions turn (rope_theta of the layers with a window and of those without) are
#   taken to be those of the smallest published model; another base in config.json changes nothing in the converted folder.
# Why it matters to people who fine-tune: whoever stretched the context, or trained a small Gemma 3 of their own shape, gets
#   a folder that loads, runs and is wrong, the more the longer the prompt; nothing tells it from bad training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import logging
import sys

import ctranslate2
import numpy
import tokenizers
import torch
import transformers
from ctranslate2.converters import TransformersConverter

logging.disable(logging.WARNING)
transformers.utils.logging.disable_progress_bar()
WORDS = [f"w{number}" for number in range(64)]
IDS = [number * 7 % 60 + 4 for number in range(100)]
print("ctranslate2", ctranslate2.__version__, "transformers", transformers.__version__)


def gemma(everywhere, in_window):
    torch.manual_seed(0)
    turns = {"full_attention": everywhere, "sliding_attention": in_window}
    config = transformers.Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, max_position_embeddings=512, sliding_window=256,
        layer_types=["sliding_attention", "full_attention"], bos_token_id=2, eos_token_id=1, pad_token_id=0,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in turns.items()},
    )
    model = transformers.Gemma3ForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def by_transformers(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def by_ctranslate2(model, folder):
    model.save_pretrained(folder)
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, "w3"))
    names = {"pad_token": "w0", "eos_token": "w1", "bos_token": "w2", "unk_token": "w3"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(folder)
    TransformersConverter(folder).convert(f"{folder}-converted")
    tokens = [[WORDS[token] for token in IDS]]
    return numpy.array(ctranslate2.Generator(f"{folder}-converted").forward_batch(tokens))[0]


usual = by_transformers(gemma(1e6, 1e4))
for name, bases in {"usual": (1e6, 1e4), "other-window": (1e6, 5e2), "other-rest": (1e4, 1e4)}.items():
    model = gemma(*bases)
    converted = by_ctranslate2(model, f"{sys.argv[1]}/{name}")
    own, other = abs(converted - by_transformers(model)).max(), abs(converted - usual).max()
    print(f"bases {bases}: {own:.1e} from the model, {other:.1e} from the same weights with the usual bases")
    assert other < 1e-3 and (name == "usual") == (own < 1e-3)
PYTHON
