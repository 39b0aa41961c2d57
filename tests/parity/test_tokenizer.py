"""Token ids against transformers, on the embedded model and on small GGUF vocabularies of every kind."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

from microplane.data.tokenizers.gguf import CUTS
from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.sentencepiece import read_model
from tests.data.tokenizers.test_tokenizer import (
    NOTHING,
    TEMPLATE,
    byte_level_fields,
    gguf_vocabulary,
    sentences,
    train_sentencepiece,
)
from tests.gguf_files import write_gguf

SCRIPTS = {
    "Latin": [
        "The quick brown fox can't jump over 13 lazy dogs, can it?",
        "Zażółć gęślą jaźń — «voilà» l'été à 7h30 !",
    ],
    "Cyrillic": ["Съешь же ещё этих мягких французских булок, да выпей чаю.", "Щось українське: її ґанок № 5"],
    "Greek": ["Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "άλφα ΒΉΤΑ γάμμα; 3,14"],
    "Arabic": ["صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت", "عام ٢٠٢٤، الساعة ٧:٣٠ مساءً"],
    "Hebrew": ["דג סקרן שט בים מאוכזב ולפתע מצא חברה", "שָׁלוֹם עוֹלָם 42"],
    "Devanagari": ["ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण", "मूल्य ₹१२३ है।"],
    "Han": ["天地玄黄，宇宙洪荒。日月盈昃", "價格：￥１２３．４５元（含稅）"],
    "Kana": ["いろはにほへと ちりぬるを", "コンピュータで100%のテスト。"],
    "Hangul": ["키스의 고유조건은 입술끼리 만나야 하고", "가격은 1,000원입니다!"],
    "Thai": ["เป็นมนุษย์สุดประเสริฐเลิศคุณค่า", "ราคา ๑๒๓ บาท"],
    "emoji": ["😀👍🏽 👩‍👩‍👧‍👦🏳️‍🌈 ❤️‍🔥 1️⃣🇫🇷", "✨→★½²③Ⅷ ¼ kg ²"],
    "code": [
        "def f(x: int) -> None:\n\treturn {'a': [x**2, 0x1F]}  # ok\n",
        "<a href=\"#\">&nbsp;</a> if(!a&&b){c+=1e-9;}\r\n",
    ],
    "space": ["  \t\n\n\r\n   ", "\u00a0\u2003\u3000\u200b\ufeff \x0b\x0c"],
    "special": [
        "<|im_start|>user\nhi<|im_end|>\n",
        "<|endoftext|><|im_start|> <|im_end|>x<repo_name>",
        "<|im_",
        "[INST]<s></s>",
    ],
}  # fmt: skip


def texts(count: int, seed: int = 0) -> list[str]:
    """Every snippet, then snippets cut and put together at random, then random characters of all of Unicode."""
    rng = random.Random(seed)
    snippets = [snippet for group in SCRIPTS.values() for snippet in group]
    made = list(snippets)
    while len(made) < count * 3 // 4:
        parts = []
        for snippet in rng.choices(snippets, k=rng.randint(1, 5)):
            start = rng.randrange(len(snippet))
            parts.append(snippet[start : start + rng.randint(1, 30)])
        made.append(rng.choice(["", " ", "\n", "  "]).join(parts))
    while len(made) < count:
        made.append("".join(_character(rng) for _ in range(rng.randint(1, 20))))
    return made


def _character(rng: random.Random) -> str:
    while True:
        letter = chr(rng.randrange(rng.choice([0x80, 0x3000, 0x20000])))
        if unicodedata.category(letter) != "Cs":
            return letter


def test_smollm2_gives_the_ids_of_transformers_on_2000_texts(smollm2, tmp_path):
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    digits = pre_tokenizers.Digits(individual_digits=True)  # as the model's own tokenizer.json and llama.cpp have it
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    ours = load_tokenizer(smollm2)
    corpus = texts(2000)
    assert len(corpus) == 2000
    wrong = [text for text in corpus if ours.encode(text) != theirs(text).input_ids]
    assert not wrong, f"{len(wrong)} texts differ, first {wrong[0]!r}"
    for text in corpus[::20]:
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)  # not all control characters have a token
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs) == 49_152
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    ours.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert [saved(text).input_ids for text in corpus[::10]] == [ours.encode(text) for text in corpus[::10]]
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert saved.apply_chat_template(messages, tokenize=False) == rendered
    assert saved.pad_token == "<|endoftext|>"  # in the file it is the stop token


def agree_on(path, corpus: list[str]) -> None:
    """Our ids of a .gguf file's tokenizer are those of transformers."""
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = load_tokenizer(path)
    for text in corpus:
        assert ours.encode(text) == theirs(text).input_ids, text


AS_LLAMA_CPP = ("default", "smollm", "starcoder", "refact")  # which transformers cuts as GPT-2 does, whatever they say


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut not in (*AS_LLAMA_CPP, "dbrx", "stablelm2")])
def test_byte_level_gguf_vocabularies_with_every_cut(cut, tmp_path):
    fields = byte_level_fields() | trained_on_all_scripts()
    fields |= {"ggml__pre": cut, "ggml__add_bos_token": False}  # where it is not said, transformers reads it otherwise
    agree_on(gguf_vocabulary(tmp_path, **fields), texts(150))


def test_the_cuts_differ_on_these_texts(tmp_path):
    fields = byte_level_fields() | trained_on_all_scripts()
    seen = set()
    for cut in ("gpt-2", "llama-bpe", "qwen2", "tekken"):
        tokenizer = load_tokenizer(gguf_vocabulary(tmp_path, **fields | {"ggml__pre": cut}))
        seen.add(json.dumps([tokenizer.encode(text) for text in texts(150)]))
    assert len(seen) == 4


def trained_on_all_scripts() -> dict[str, object]:
    """A vocabulary whose merges cross what the cuts keep apart: words of several kinds of characters, and digits."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*texts(200, seed=5), *(f"{n} don't HAVE iPhone's{n}" for n in range(200))], trainer)
    told = json.loads(backend.to_str())["model"]
    vocab = sorted(told["vocab"], key=told["vocab"].get)
    return {
        "ggml__tokens": vocab,
        "ggml__token_type": [3 if token in special else 1 for token in vocab],
        "ggml__merges": [" ".join(merge) for merge in told["merges"]],
    }


def test_gemma_gguf_vocabularies(tmp_path):
    special = ["<eos>", "<bos>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    options = {"add_dummy_prefix": False, "control_symbols": special, "user_defined_symbols": ["▁▁", "▁▁▁", "\n\n"]}
    train_sentencepiece(tmp_path / "model", **options, bos_id=-1, eos_id=-1, pad_id=-1)
    pieces, _ = read_model(tmp_path / "model" / "tokenizer.model")
    fields = {
        "ggml__model": "llama",
        "ggml__tokens": [text.replace("▁", " ") if text in ("▁▁", "▁▁▁") else text for text in pieces.texts],
        "ggml__scores": [-1000.0] * len(pieces.texts),
        "ggml__token_type": pieces.types,
        "ggml__bos_token_id": pieces.texts.index("<bos>"),
        "ggml__eos_token_id": pieces.texts.index("<eos>"),
        "ggml__unknown_token_id": 0,
        "ggml__add_bos_token": True,
        "ggml__add_space_prefix": False,
    }
    corpus = texts(150) + sentences(50, seed=2) + ["a  b   c\n\n\nd", "<start_of_turn>user\n  x<end_of_turn>\n"]
    corpus = [text for text in corpus if " " * 4 not in text]  # a run that no one token is: see test_gguf.py
    for architecture in ("gemma2", "gemma3"):
        named = {key.replace("__", "."): value for key, value in fields.items()}
        config = NOTHING | {"model_type": architecture, "head_dim": 8, "sliding_window": 8}
        agree_on(write_gguf(tmp_path / f"{architecture}.gguf", config, {}, tokens=named), corpus)


@pytest.mark.parametrize("options", [{}, {"split_digits": False, "vocab_size": 380}])
def test_sentencepiece_models_of_llama_folders(options, tmp_path):
    """transformers reads the file itself only with protobuf, so its class is given what it would have read."""
    train_sentencepiece(tmp_path, **options)
    pieces, _ = read_model(tmp_path / "tokenizer.model")
    vocab = {text: token for token, text in enumerate(pieces.texts)}
    theirs = LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab), add_bos_token=True)
    theirs.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    theirs.add_tokens(["<tool>"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": TEMPLATE}))
    ours = load_tokenizer(tmp_path)
    for text in texts(300) + sentences(100, seed=2) + ["<s>a</s> b<tool> c<unk>", "a<|end|>b <|end|> c"]:
        assert ours.encode(text) == theirs(text).input_ids, text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)
