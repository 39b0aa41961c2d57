"""The same text, with letters and marks as one character or apart, is the same run, the same answer, the same score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import microplane
from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.sentencepiece import read_model
from microplane.models.encoder import Encoder
from microplane.models.files.load import save_model
from tests.cases import some
from tests.labels import write
from tests.tiny import CONFIGS, ENCODER_CONFIGS, PAIR_CONFIGS, family_of, save_tiny_folder
from tests.vietnamese import LETTERS, WORDS, apart, save_spiece, tone_apart

SETS = {
    "train.steps": 3,
    "train.threads": 1,
    "train.patience": 0,
    "model.dtype": "float32",
    "data.max_unknown": 1.0,
}
ANSWERS = {"eval.rows": 4, "eval.max_new_tokens": 6}
FORMS = {"apart": apart, "tone apart": tone_apart}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def pairs(form: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": form(f"{WORDS[n % 9]} {WORDS[n % 7]} {WORDS[n % 11]}"),
            "completion": form(" ".join(WORDS[n % 5 : n % 5 + 3])),
        }
        for n in range(40)
    ]


def labelled(form: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {"text": form(f"{WORDS[n % 9]} {WORDS[n % 7]} {WORDS[n % 11]}"), "label": form("đẹp" if n % 2 else "quá")}
        for n in range(40)
    ]


def tagged(form: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {"tokens": [form(WORDS[n % 9]), form(WORDS[n % 7])], "tags": ["O", form("đẹp" if n % 2 else "quá")]}
        for n in range(40)
    ]


def spiece_t5(folder: Path) -> None:
    save_spiece(folder)
    _pair_weights(folder)


def unigram_json(folder: Path) -> int:
    """As transformers converts the vocabularies of mT5 and XLM-R."""
    save_spiece(folder, name="source")
    pieces, _ = read_model(folder / "source.model")
    (folder / "source.model").unlink()
    backend = Tokenizer(models.Unigram([*zip(pieces.texts, pieces.scores, strict=True)], unk_id=2))
    backend.normalizer = normalizers.Precompiled(pieces.charsmap)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", special_tokens=[("</s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return len(pieces.texts)


def _pair_weights(folder: Path) -> None:
    fields = PAIR_CONFIGS["t5"] | {"vocab_size": load_tokenizer(folder).vocab_size, "decoder_start_token_id": 0}
    save_model(family_of(fields).from_hf(fields).init_weights(0), folder)


def mt5(folder: Path) -> None:
    unigram_json(folder)
    _pair_weights(folder)


def xlm_r(folder: Path) -> None:
    fields = ENCODER_CONFIGS["roberta"] | {"vocab_size": unigram_json(folder)}
    save_model(Encoder.from_hf(fields).init_weights(0), folder)


def bert(strip_accents: bool) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        marks = sorted(set(apart("".join(LETTERS))) - set("aeiouy"))
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyzđ0123456789", *LETTERS]
        pieces += [f"##{piece}" for piece in [*pieces[5:], *marks]] + WORDS
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(strip_accents=strip_accents)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = [("[CLS]", 2), ("[SEP]", 3)]
        backend.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
        )
        backend.add_special_tokens(pieces[:5])
        backend.save(str(folder / "tokenizer.json"))
        names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **names}))
        fields = ENCODER_CONFIGS["bert"] | {"vocab_size": len(vocabulary)}
        save_model(Encoder.from_hf(fields).init_weights(0), folder)

    return save


def llama(folder: Path) -> None:
    options = {"remove_extra_whitespaces": False, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    save_spiece(folder, name="tokenizer", model_type="bpe", normalization_rule_name="identity", **options)
    told = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    fields = CONFIGS["llama-tied"] | {"vocab_size": load_tokenizer(folder).vocab_size}
    save_model(family_of(fields).from_hf(fields).init_weights(0), folder)


KINDS: dict[str, tuple[Callable[[Path], object], list[Callable[..., list[dict[str, Any]]]]]] = {
    "T5": (spiece_t5, [pairs]),
    "mT5": (mt5, [pairs]),
    "XLM-R": (xlm_r, [labelled, tagged]),
    "BERT, accents stripped": (bert(True), [labelled, tagged]),
    "BERT": (bert(False), [labelled, tagged]),
    "Llama": (llama, [pairs]),
    "byte-level": (save_tiny_folder, [pairs]),
}


def train(folder: Path, name: str, rows: list[dict[str, Any]], **sets: Any) -> microplane.Run:
    data = write(folder / f"{name}.jsonl", rows)
    changes = (ANSWERS if "completion" in rows[0] else {}) | {k.replace("__", "."): v for k, v in sets.items()}
    return microplane.train(folder / "model", data, set=SETS | {"runs": str(folder / "runs")} | changes)


def losses(run: microplane.Run) -> list[float]:
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [value for line in lines for key, value in line.items() if key.endswith("loss")]


def same(one: microplane.Run, other: microplane.Run) -> None:
    assert losses(one) == losses(other)
    assert len(losses(one)) > 2
    assert one.metrics["before"] == other.metrics["before"]
    assert one.metrics["after"] == other.metrics["after"]
    assert one.result["data"]["labels"] == other.result["data"]["labels"]


@pytest.mark.parametrize("kind", some(KINDS, ("T5",)))
def test_the_same_sentence_in_every_form_is_the_same_run_answer_and_score(kind, tmp_path):
    save, tasks = KINDS[kind]
    (tmp_path / "model").mkdir()
    save(tmp_path / "model")
    for task in tasks:
        composed = train(tmp_path, task.__name__, task(str))
        assert composed.result["data"]["rewritten"] == 0
        for name, form in FORMS.items():
            other = train(tmp_path, f"{task.__name__} {name}", task(form))
            assert other.result["data"]["rewritten"] == 40
            same(composed, other)
        loaded, asked = other.load(), ["hôm nay trời đẹp", *(form("hôm nay trời đẹp") for form in FORMS.values())]
        measured = [microplane.evaluate(other.folder, task(form))["scores"] for form in (str, *FORMS.values())]
        assert measured[0] == measured[1] == measured[2]
        if task is pairs:
            assert len({loaded.generate(text, max_new_tokens=6) for text in asked}) == 1
            answer = loaded.generate(asked[0], max_new_tokens=6)
            for stop in [letter for letter in answer if letter != apart(letter)][:1]:  # in any form
                assert loaded.generate(asked[0], max_new_tokens=6, stop=[apart(stop)]) == answer.split(stop)[0]
            continue
        found = [loaded.classify([text])[0] for text in asked]
        assert found[0].probabilities == found[1].probabilities == found[2].probabilities
        for text, one in zip(asked, found, strict=True):
            assert [word for word, _ in one.words] == (text.split() if task is tagged else [])
            assert [p.probabilities for _, p in one.words] == [p.probabilities for _, p in found[0].words]


def test_as_is_leaves_text_alone_and_a_resumed_run_keeps_its_form(tmp_path):
    (tmp_path / "model").mkdir()
    spiece_t5(tmp_path / "model")
    left = train(tmp_path, "left", pairs(apart), data__unicode="as-is")
    assert left.result["data"]["rewritten"] == 0
    assert left.load().tokenizer.unicode == "as-is"
    assert train(tmp_path, "formed", pairs(apart)).load().tokenizer.unicode == "nfc"
