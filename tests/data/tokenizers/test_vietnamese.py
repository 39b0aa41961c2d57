"""PhoBERT's, BARTpho's and ViT5's files: the ids of transformers' own classes, and runs that leave for transformers.

Vocabularies are made by the trainers of `tokenizers` and `sentencepiece`; of the lists some tokens are taken out, as
the published lists lack what their corpora never showed.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BartphoTokenizer, MBartConfig, MBartForConditionalGeneration, PhobertTokenizer, T5Tokenizer

import microplane
from microplane.adapters.merge import merge
from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.normaliser import in_words
from microplane.data.tokenizers.segmenter import joiner
from microplane.data.tokenizers.sentencepiece import read_model
from microplane.errors import ConfigError, ModelError
from microplane.models.encoder import Encoder
from microplane.models.files.load import save_model
from tests.labels import write
from tests.tiny import ENCODER_CONFIGS, PAIR_CONFIGS, family_of
from tests.vietnamese import LETTERS, WORDS, apart, save_spiece, texts

JOINED = [*WORDS, "tôi_thích", "cà_phê", "buổi_sáng", "hôm_nay"]
SETS = {"train.steps": 4, "train.threads": 1, "train.patience": 0, "model.dtype": "float32", "data.max_unknown": 1.0}


def sentences(count: int, seed: int = 0, words: list[str] = JOINED) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(words + LETTERS, k=chance.randint(1, 9))) for _ in range(count)]


def _t5(folder: Path) -> T5Tokenizer:
    """transformers reads the file itself only with protobuf, so its class is given what it would have read."""
    pieces, _ = read_model(folder / "spiece.model")
    vocabulary = [*zip(pieces.texts, pieces.scores, strict=True)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=96, _spm_precompiled_charsmap=pieces.charsmap)


def save_phobert(folder: Path, share: float = 0.8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=150, end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator(sentences(600, seed=1), trainer)
    told = json.loads(backend.to_str())["model"]
    codes = "".join(f"{first} {second} {n}\n" for n, (first, second) in enumerate(told["merges"]))
    (folder / "bpe.codes").write_text(codes)
    chance = random.Random(2)
    listed = [text[:-4] if text.endswith("</w>") else f"{text}@@" for text in sorted(told["vocab"])]
    (folder / "vocab.txt").write_text("".join(f"{text} 1\n" for text in listed if chance.random() < share))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PhobertTokenizer"}))
    return folder


def save_bartpho(folder: Path, kind: str = "unigram") -> Path:
    options = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    model = save_spiece(folder, name="sentencepiece.bpe", model_type=kind, **options)
    chance = random.Random(3)
    pieces = [model.id_to_piece(token) for token in range(3, len(model))]
    listed = [piece for piece in pieces if chance.random() < 0.8] + ["khác"]  # of another model's, never made
    chance.shuffle(listed)
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in listed))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartphoTokenizer"}))
    return folder


def theirs_of(folder: Path) -> Any:
    if (folder / "bpe.codes").exists():
        return PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))
    return BartphoTokenizer(str(folder / "sentencepiece.bpe.model"), str(folder / "dict.txt"))


MAKERS = {
    "PhoBERT": save_phobert,
    "BARTpho": save_bartpho,
    "BARTpho of byte pairs": lambda folder: save_bartpho(folder, "bpe"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_ids_are_those_of_transformers(kind, tmp_path):
    folder = MAKERS[kind](tmp_path)
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    for text in [*sentences(500), *texts(300), "a <mask> b", "x<s>y", "a\nb", "a \n\n b", "", "q", "khác", "a khác"]:
        assert ours.encode(text) == theirs(text).input_ids, text
    assert ours.encode_pair("hôm nay", "trời đẹp").ids == theirs("hôm nay", "trời đẹp").input_ids
    assert ours.vocab_size == len(theirs)
    assert ours.id_of("khác") == (theirs.convert_tokens_to_ids("khác") if "BART" in kind else None)
    if "BART" in kind:  # a token that this vocabulary's model never makes is written like any other
        assert ours.decode([ours.id_of("khác")]) == theirs.decode([ours.id_of("khác")]) == "khác"
    known = [text for text in sentences(200) if ours.unk_id not in ours.encode(text)]
    assert len(known) > 5
    assert all(ours.decode(ours.encode(text)) == text for text in known)


def test_ids_of_a_t5_of_vietnamese_are_those_of_transformers(tmp_path):
    """ViT5's kind: nmt_nfkc, and sentinels behind the pieces."""
    save_spiece(tmp_path, unk_id=2)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 96}))
    ours, theirs = load_tokenizer(tmp_path), _t5(tmp_path)
    for text in sentences(500, words=WORDS):
        assert ours.encode(text) == theirs(text).input_ids, text
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [("bpe.codes", "a\n", "bpe.codes has the line 'a'"), ("vocab.txt", b"\xff\xfe", "cannot read")],
)
def test_damaged_files_are_refused(file, text, wanted, tmp_path):
    save_phobert(tmp_path)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=wanted):
        load_tokenizer(tmp_path)


def reviews() -> list[dict[str, Any]]:
    return [{"text": text, "label": "tốt" if n % 2 else "xấu"} for n, text in enumerate(sentences(60))]


def test_phobert_from_rows_to_transformers(tmp_path):
    folder = save_phobert(tmp_path / "model")
    fields = ENCODER_CONFIGS["roberta"] | {"vocab_size": load_tokenizer(folder).vocab_size}
    save_model(Encoder.from_hf(fields).init_weights(0), folder)
    data = write(tmp_path / "rows.jsonl", reviews())
    run = microplane.train(folder, data, set=SETS | {"runs": str(tmp_path / "runs")})
    assert microplane.evaluate(run.folder, data)["scores"]["loss"] > 0
    merged = merge(run.folder, tmp_path / "merged")
    assert all("tokens" not in notice for notice in merged.notices)
    there = transformers.pipeline("text-classification", str(merged.folder), device="cpu", top_k=None)
    asked = sentences(8, seed=5)
    for found, said in zip(there(asked), run.load().classify(asked), strict=True):
        assert {one["label"]: one["score"] for one in found} == pytest.approx(said.probabilities, abs=1e-5)


def pairs() -> list[dict[str, Any]]:
    return [{"prompt": text, "completion": text.split()[0]} for text in sentences(40, words=WORDS)]


@pytest.mark.parametrize("kind", ["BARTpho", "ViT5"])
def test_encoder_decoders_from_rows_to_transformers(kind, tmp_path):
    folder = tmp_path / "model"
    if kind == "ViT5":
        save_spiece(folder)
        fields = PAIR_CONFIGS["t5"] | {"vocab_size": load_tokenizer(folder).vocab_size}
        save_model(family_of(fields).from_hf(fields).init_weights(0), folder)
    else:
        size = load_tokenizer(save_bartpho(folder)).vocab_size
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
        config = MBartConfig(vocab_size=size, forced_eos_token_id=None, **ids, **layers, **sizes)
        torch.manual_seed(0)
        MBartForConditionalGeneration(config).eval().save_pretrained(folder)
    data = write(tmp_path / "rows.jsonl", pairs())
    sets = SETS | {"runs": str(tmp_path / "runs"), "eval.rows": 2, "eval.max_new_tokens": 5, "data.max_length": 48}
    run = microplane.train(folder, data, set=sets)
    scores = microplane.evaluate(run.folder, data, set={"eval.rows": 2, "eval.max_new_tokens": 5})["scores"]
    assert scores["loss"] > 0
    merged = merge(run.folder, tmp_path / "merged")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(merged.folder).eval()
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(merged.folder), run.load()
    for text in sentences(5, seed=7, words=WORDS):
        ids = tokenizer(text).input_ids
        assert ids == ours.prompt(text)
        written = theirs.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, num_beams=1)[0, 1:].tolist()
        [answer] = ours.answers([text], microplane.config.knobs.GenerateKnobs(max_new_tokens=6))
        assert [token for token in written if token not in (*ours.stop_ids, tokenizer.pad_token_id)] == answer.ids


def test_both_forms_are_one_run_for_phobert(tmp_path):
    folder = save_phobert(tmp_path, share=1.0)
    ours = load_tokenizer(folder).with_unicode("auto")
    assert ours.unicode == "nfc"
    assert all(ours.encode(text) == ours.encode(apart(text)) for text in sentences(100))


def test_a_model_of_joined_words_is_given_them_and_asked_with_them(tmp_path):
    folder = save_phobert(tmp_path / "model")
    fields = ENCODER_CONFIGS["roberta"] | {"vocab_size": load_tokenizer(folder).vocab_size}
    save_model(Encoder.from_hf(fields).init_weights(0), folder)
    rows = [row | {"text": row["text"].replace("_", " ")} for row in reviews()]
    sets = SETS | {"runs": str(tmp_path / "runs")}
    said = microplane.train(folder, write(tmp_path / "rows.jsonl", rows), set=sets)
    assert any("data.segment=vi" in warning for warning in said.result["data"]["warnings"])
    run = microplane.train(folder, tmp_path / "rows.jsonl", set=sets | {"data.segment": "vi"})
    assert not any("data.segment=vi" in warning for warning in run.result["data"]["warnings"])
    loaded = run.load()
    plain, joined = "tôi uống cà phê buổi sáng", "tôi uống cà_phê buổi sáng"
    assert loaded.tokenizer.encode_pair(plain).ids == load_tokenizer(folder).encode(joined)
    assert loaded.classify([plain]) == loaded.classify([joined])
    assert microplane.evaluate(run.folder, tmp_path / "rows.jsonl")["scores"]["loss"] > 0


@pytest.mark.parametrize("text", ["Hôm nay trời đẹp quá, tôi thích cà phê!", "uống  cà phê\n(sáng)", " a", "học sinh "])
def test_places_of_joined_words_are_those_of_the_text(text):
    found = in_words(text, "vi")
    assert found.places is not None
    for character, (start, end) in zip(found.text, found.places, strict=True):
        assert text[start:end] == character or character in "_ "
    assert "".join(found.text.split()).replace("_", "") == "".join(text.split())


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyvi", None)
    joiner.cache_clear()
    with pytest.raises(ConfigError, match="pip install"):
        load_tokenizer(save_phobert(tmp_path)).with_segment("vi")
    joiner.cache_clear()
