"""A T5 v1.1 without weights: its vocabulary, learned from the text, and its config.json."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from microplane.files import write_aside

SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
NAMED = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SHAPE = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 768,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def train(texts: Iterable[str], pieces: int) -> Tokenizer:
    """A unigram vocabulary (arXiv 1804.10959) with SentencePiece's mark for spaces, which keeps line breaks.

    <pad> is 0, </s> 1, <unk> 2, then the pieces and the bytes of what no piece writes, the sentinels last.
    """
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0)], 0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    breaks = pre_tokenizers.Split(Regex(r"\n"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([breaks, pre_tokenizers.Metaspace(prepend_scheme="first")])
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=["\n", *(chr(code) for code in range(33, 127)), *"éèêàçùâîôûëïœ«»’"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    learned = [(piece, score) for piece, score in state["vocab"]]
    lowest = min(score for _, score in learned)
    known = {piece for piece, _ in learned}
    learned += [(byte, lowest - 10) for byte in BYTES if byte not in known]
    tokenizer.model = models.Unigram(learned, 2, byte_fallback=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in NAMED.values()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SENTINELS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    strip = decoders.Strip(" ", 1, 0)
    replace = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> int:
    """tokenizer.json, tokenizer_config.json and config.json; returns the size of the embedding, a multiple of 64."""
    size = -(-tokenizer.get_vocab_size() // 64) * 64
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_ids": len(SENTINELS), **NAMED}
    files = {"tokenizer_config.json": about, "config.json": SHAPE | {"vocab_size": size}}
    write_aside(folder / "tokenizer.json", tokenizer.to_str().encode())
    for name, content in files.items():
        write_aside(folder / name, json.dumps(content, indent=1).encode())
    return size


def build(text_file: Path, more: list[Path], folder: Path, pieces: int, rows: int) -> dict[str, int]:
    """Learn it from some of the text and of the tasks' files, whose fields are joined as the templates join them."""
    lines = text_file.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in random.Random(0).sample(lines, min(rows, len(lines)))]
    for path in more:
        for line in path.read_text(encoding="utf-8").splitlines()[: rows // 40]:
            texts.append("\n".join(value for value in json.loads(line).values() if isinstance(value, str)))
    tokenizer = train(texts, pieces)
    return {"texts": len(texts), "vocabulary": tokenizer.get_vocab_size(), "embedding": save(tokenizer, folder)}
