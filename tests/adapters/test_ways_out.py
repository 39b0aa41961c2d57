"""What every method leaves, of every family and with every head, is what was trained in other tools too.

Merged it opens in transformers, and in sentence-transformers where it embeds; as an adapter it opens in peft, by itself
or converted to LoRA. What has no such way is refused, and the way that there is is named.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from microplane.adapters.convert import convert
from microplane.adapters.merge import merge
from microplane.errors import AdapterError
from microplane.exports.export import export
from microplane.inference.pipeline import load
from microplane.methods import METHODS
from microplane.models.files.load import load_model
from tests.adapters.test_leaving import folder_of, settings
from tests.adapters.there import AUTO, There, ours, saved
from tests.contract.test_methods import REFUSED
from tests.tiny import CONFIGS, ENCODER_CONFIGS, PAIR_CONFIGS

OPENS, CONVERTS, MERGES, STAYS = "opens in peft", "converts to LoRA", "is merged", "stays here"
WAYS = {
    **dict.fromkeys(("lora", "rslora", "lora+", "lora-fa", "qlora", "dora", "lora-auto", "ia3", "vera"), OPENS),
    **dict.fromkeys(("adalora", "scalora", "nb-lora", "paca"), CONVERTS),
    **dict.fromkeys(("full", "head-only", "last-n", "bitfit", "norms"), MERGES),
    **dict.fromkeys(("bottleneck", "prompt", "prefix"), STAYS),  # the last two in peft's format where it has one
}
UNMERGED = ("bottleneck", "prompt", "prefix")
SCALED_APART = ("marian", "marian-apart", "pegasus", "t5gemma")  # where peft asks with embeddings of another size
PREFIX_IN_PEFT = ("llama-tied", "llama-untied", "qwen2", "qwen3", "granite", "olmo2", "gpt_neox", "phi3")
ONE_MATRIX = ("gpt2", "gpt_neox", "phi3", "modernbert")  # of q, k and v
DECODERS, PAIRS, ENCODERS = list(CONFIGS), list(PAIR_CONFIGS), list(ENCODER_CONFIGS)
EVERY_METHOD = [
    *((family, task) for family in DECODERS for task in (None, "classification", "tokens")),
    *((family, task) for family in PAIRS for task in (None, "classification")),
    *((family, task) for family in ENCODERS for task in (None, "classification", "tokens")),
]
SOME = [(family, task) for family in DECODERS + PAIRS + ENCODERS for task in ("multilabel", "regression")]
QUICK = [("qwen2", None), ("t5", None), ("bert", "tokens")]
Case = tuple[str, str | None, str]


def refused(family: str, task: str | None, method: str) -> bool:
    """Whether the method has nothing to train there."""
    if method == "head-only":
        untied = family in ("llama-untied", "gpt_neox", "phi3", "t5")  # those with a head for words of its own
        return task is None and not untied
    return method == "bitfit" and (
        family.startswith(("llama", "qwen3", "gemma2", "t5", "modernbert")) or (method, family) in REFUSED
    )


def cases() -> list[Any]:
    every = [(*one, method) for one in EVERY_METHOD for method in METHODS]
    every += [(*one, method) for one in SOME for method in ("lora", "full")]
    every = [case for case in every if not refused(*case)]
    return [case if case[:2] in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in every]


def knobs(family: str, method: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {"name": method, "n": 1} if method == "last-n" else {"name": method}
    return chosen | ({"targets": ["qkv"]} if method == "ia3" and family in ONE_MATRIX else {})


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Of each family one folder, and its tokenizer's settings."""
    made: dict[str, Any] = {}

    def base(family: str) -> Any:
        if family not in made:
            folder = folder_of(family, tmp_path_factory.mktemp(family) / "base")
            if family in PAIRS:  # whose classes for rows look for the end that config.json names: here the tokenizer's
                config = json.loads((folder / "config.json").read_text())
                (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 1}))
            made[family] = folder, settings(folder)
        return made[family]

    return base


def assert_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_every_method_has_its_way():
    assert WAYS.keys() == METHODS.keys()


@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
def test_what_leaves_says_there_what_it_says_here(case: Case, bases, tmp_path):
    family, task, method = case
    base, told = bases(family)
    path = saved(base, tmp_path / "adapter", knobs(family, method), task)
    opened = load(path, dtype="float32")
    there = There(base, path, opened.model)
    wanted = ours(opened.model, there.rows)
    if task is None:
        moved = zip(wanted, ours(load_model(base), there.rows), strict=True)
        assert max(float((one - other).abs().max()) for one, other in moved) > 1e-2
    assert_merged(there, wanted, told, opened, method, tmp_path / "merged")
    assert_in_peft(there, wanted, in_peft(there, family, method), tmp_path)


def assert_merged(there, wanted, told, opened, method, folder) -> None:
    if method in UNMERGED:
        with pytest.raises(AdapterError, match=r"cannot be merged .* microplane\.load in Python"):
            merge(there.adapter, folder)
        return
    done = merge(there.adapter, folder)
    assert_equal(there.merged(folder), wanted)
    assert any("transformers has no class for this head" in line for line in done.notices) is there.own_head
    assert settings(folder) == told
    if there.model.task_head is None and there.model.KIND != "encoder":
        said = there.open(folder, AUTO[there.model.KIND]).generation_config.eos_token_id
        assert set(said if isinstance(said, list) else [said]) == set(opened.stop_ids)


def in_peft(there: There, family: str, method: str) -> str:
    """The way that is expected of this method on this model."""
    by_class = there.opened_by.get("class", "").endswith("SequenceClassification") and there.model.KIND != "decoder"
    if method == "prompt":
        return STAYS if family in SCALED_APART or by_class else OPENS
    if method == "prefix":
        return OPENS if family in PREFIX_IN_PEFT else STAYS
    return WAYS[method]


def assert_in_peft(there: There, wanted, way: str, place) -> None:
    assert (there.adapter / "adapter_config.json").is_file() is (way == OPENS)
    if way == OPENS:
        assert_equal(there.adapted(there.adapter), wanted)
        return
    told = {CONVERTS: "microplane convert", MERGES: "merge it instead|--to hf writes it", STAYS: r"microplane\.load"}
    with pytest.raises(AdapterError, match=told[way]):
        export(there.adapter, place / "out", "peft")
    if way == CONVERTS:
        converted = convert(there.adapter, place / "lora")
        assert converted.error < 1e-5
        assert_equal(there.adapted(place / "lora"), wanted)
        about = json.loads((place / "lora" / "method.json").read_text())["about"]
        assert about.get("opened_by", {}) == there.opened_by


def test_an_adapter_of_what_embeds_is_merged_and_converted(bases, tmp_path):
    base, _ = bases("bert")
    path = saved(base, tmp_path / "adapter", {"name": "nb-lora"})
    opened = load(path, dtype="float32")
    there, wanted = There(base, path, opened.model), ours(opened.model)  # an encoder's rows have no end
    assert merge(path, tmp_path / "merged").difference < 1e-4
    assert convert(path, tmp_path / "lora").difference < 1e-4
    assert_equal(there.merged(tmp_path / "merged"), wanted)
    assert_equal(there.adapted(tmp_path / "lora"), wanted)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="pip install sentence-transformers")
@pytest.mark.parametrize("method", [name for name in METHODS if name not in UNMERGED])
@pytest.mark.parametrize("family", ENCODERS)
def test_what_embeds_embeds_the_same_in_sentence_transformers(family, method, bases, tmp_path):
    if refused(family, None, method):
        return
    path = saved(bases(family)[0], tmp_path / "adapter", knobs(family, method))
    export(path, tmp_path / "out", "sentence-transformers")
    [one] = json.loads((tmp_path / "out" / "export.json").read_text())["checked"]
    assert one["engine"].startswith("sentence-transformers")
    assert one["measure"] == "embedding"
    assert one["difference"] < 1e-4
