"""What a trained run leaves says in transformers' pipelines, and in peft, what it says here: the same labels with the
same scores, the same text, the same stop. Through the commands `train`, `merge`, `convert` and `generate`.

One method of each way out, of every family and kind of row; `test_ways_out.py` has all methods, not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers

from microplane.checkpoints.adapter import read_method
from microplane.inference.pipeline import Pipeline, load
from microplane.objectives.head import Text
from tests.adapters import trained
from tests.adapters.test_leaving import settings
from tests.adapters.there import AUTO, first_tokens
from tests.adapters.trained import MOST, PROMPTS, TEXTS, USUAL_TEXTS, Scores, done
from tests.foreign.folders import CAUSAL
from tests.tiny import CONFIGS, ENCODER_CONFIGS, PAIR_CONFIGS

DECODERS, PAIRS, ENCODERS = list(CONFIGS), list(PAIR_CONFIGS), list(ENCODER_CONFIGS)
WRITERS, ALL = DECODERS + PAIRS, DECODERS + PAIRS + ENCODERS
THEIR_WRITERS = [f"its {name}" for name in (*CAUSAL, "plbart")]
THEIR_ENCODERS = [f"its {name}" for name in ("camembert", "deberta", "esm", "roformer", "xlnet", "funnel", "xlm")]
OPENS, CONVERTS, WHOLE, STAYS = "lora", "nb-lora", "full", "prompt"  # one method of each way out
Case = tuple[str, str, str, str]  # family, rows, method, pooling

EVERY: list[Case] = [
    *((family, "answers", method, "auto") for family in WRITERS for method in (OPENS, CONVERTS, WHOLE)),
    *((family, "answers", STAYS, "auto") for family in WRITERS if family != "starcoder2"),  # of windows of four tokens
    *((family, "classification", method, "auto") for family in ALL for method in (OPENS, WHOLE, "head-only")),
    *((family, "classification", CONVERTS, "auto") for family in ENCODERS),
    *((family, rows, OPENS, "auto") for family in ALL for rows in ("pairs", "multilabel")),
    *((family, "regression", WHOLE, "auto") for family in ALL),
    *((family, "tokens", method, "auto") for family in DECODERS + ENCODERS for method in (OPENS, CONVERTS, WHOLE)),
    *((family, "classification", OPENS, "mean") for family in ALL),
    *((family, "classification", OPENS, pooling) for family in ENCODERS for pooling in ("cls", "last")),
    *((family, "answers", method, "auto") for family in THEIR_WRITERS for method in (OPENS, CONVERTS, WHOLE)),
    *((family, rows, OPENS, "auto") for family in THEIR_ENCODERS for rows in ("classification", "pairs", "tokens")),
]
QUICK: list[Case] = [
    ("llama-untied", "answers", "lora", "auto"),
    ("t5-v1.0", "answers", "full", "auto"),
    ("bert", "tokens", "lora", "auto"),
    ("modernbert", "classification", "nb-lora", "auto"),
    ("qwen2", "pairs", "lora", "auto"),
]


def cases() -> list[Any]:
    return [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(case)) for case in EVERY]


@pytest.mark.parametrize("case", cases())
def test_a_run_says_there_what_it_says_here(case: Case, tmp_path):
    family, rows, method, pooling = case
    base = trained.base_of(family, tmp_path / family)
    told = settings(base)
    sets = {} if rows == "answers" else {"model.pooling": pooling}
    run = trained.train(base, rows, method, sets)
    merged = tmp_path / "merged"
    if method == STAYS:
        assert "cannot be merged" in str(trained.command("merge", run, merged).exception)
    else:
        said = done("merge", run, merged)
        assert ("give this model one row at a time" in said) is alone(family, rows, pooling)
        assert settings(merged) == told
    ours = load(run, dtype="float32")
    if rows == "answers":
        assert_written(ours, base, run, merged, method)
    else:
        assert_labels(ours, base, run, merged, rows, method)


def alone(family: str, rows: str, pooling: str) -> bool:
    """Whether transformers says something else of a row that is padded."""
    if family.startswith("t5gemma"):
        return rows != "answers" and pooling != "mean"
    return (family == "its funnel") is (rows == "tokens") and family in ("its funnel", "its xlnet")


def assert_written(ours: Pipeline, base: Path, run: Path, merged: Path, method: str) -> None:
    wanted = trained.written(ours)
    assert method == STAYS or any(stopped for _, stopped in wanted), wanted
    kind = ours.model.KIND
    chat = kind == "decoder"
    if method != STAYS:
        there, tokenizer = trained.opened(merged, AUTO[kind]), transformers.AutoTokenizer.from_pretrained(merged)
        assert trained.written_there(there, tokenizer, chat) == wanted
        text = done("generate", run, PROMPTS[0], "--set", f"max_new_tokens={MOST}").rstrip("\n")
        assert text == ours.generate(PROMPTS[0], max_new_tokens=MOST)
        if chat:
            pipe = transformers.pipeline("text-generation", str(merged), device="cpu")
            made = pipe([{"role": "user", "content": PROMPTS[0]}], max_new_tokens=MOST, do_sample=False)
            assert made[0]["generated_text"][-1]["content"] == text
    for adapter in in_peft(run, method):
        there, tokenizer = trained.adapted(base, adapter, AUTO[kind]), transformers.AutoTokenizer.from_pretrained(base)
        assert trained.written_there(there, tokenizer, chat, together=method != STAYS) == wanted


def in_peft(run: Path, method: str) -> list[Path]:
    if method == OPENS:
        assert (run / "adapter" / "adapter_config.json").is_file()
    if (run / "adapter" / "adapter_config.json").is_file():
        return [run / "adapter"]
    if method == CONVERTS:
        done("convert", run)
        return [run.with_name(f"{run.name}-lora")]
    return []


def assert_labels(ours: Pipeline, base: Path, run: Path, merged: Path, rows: str, method: str) -> None:
    head, texts = ours.model.task_head.config, TEXTS.get(rows, USUAL_TEXTS)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (base, merged)]
    if head.form is None:
        weights = trained.head_weights(merged / "model.safetensors")
        there = trained.by_the_notice(trained.opened(merged, "AutoModel"), tokenizers[1], ours.model, weights)
        assert_scores(there, ours, rows, texts)
    elif rows == "tokens":
        assert_tags(merged, ours, texts)
    else:
        together = not alone(base.name, rows, head.pooling)
        for found, said in zip(trained.in_pipeline(merged, texts, together), ours.classify(list(texts)), strict=True):
            expected = said.probabilities or dict(zip(head.labels, said.values, strict=True))
            assert found == pytest.approx(expected, abs=1e-4)
    for adapter in in_peft(run, method):
        told = dict(read_method(adapter)[1].get("opened_by", {}))
        assert ("class" in told) is (head.form is not None)
        model = trained.adapted(base, adapter, told.pop("class", AUTO[ours.model.KIND]), **told)
        if head.form is None:
            weights = trained.head_weights(adapter / "adapter_model.safetensors")
            there = trained.by_the_notice(model, tokenizers[0], ours.model, weights)
        else:
            there = trained.of_its_class(model, tokenizers[0])
        assert_scores(there, ours, rows, texts)


def assert_tags(merged: Path, ours: Pipeline, texts: Sequence[Text]) -> None:
    pipe = transformers.pipeline("token-classification", str(merged), device="cpu", ignore_labels=[])
    for text, said in zip(texts, ours.classify(list(texts)), strict=True):
        tokens = pipe(text)
        places = [(one["start"], one["end"]) for one in tokens]
        for at, (_, wanted) in zip(first_tokens(text, places, said), said.words, strict=True):
            assert tokens[at]["entity"] == wanted.label
            assert tokens[at]["score"] == pytest.approx(wanted.probabilities[wanted.label], abs=1e-4)


def assert_scores(there: Scores, ours: Pipeline, rows: str, texts: Sequence[Text]) -> None:
    for text, said in zip(texts, ours.classify(list(texts)), strict=True):
        found = trained.as_probabilities(there(text), rows)
        if rows != "tokens":
            assert found.tolist() == pytest.approx([*(said.probabilities or {}).values(), *said.values], abs=1e-4)
            continue
        places = ours.tokenizer.encode_pair(text).offsets
        for at, (_, wanted) in zip(first_tokens(text, places, said), said.words, strict=True):
            assert found[at].tolist() == pytest.approx([*wanted.probabilities.values()], abs=1e-4)
