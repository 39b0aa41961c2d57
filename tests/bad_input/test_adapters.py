"""Adapters that do not fit, are damaged, or are of a kind that is not known; and merging them."""

from __future__ import annotations

import pytest

from tests.bad_input.kit import (
    BASE,
    GENERATE,
    MERGE,
    Case,
    both,
    cut,
    edit,
    edit_tensors,
    evaluate,
    folder,
    generate,
    remove,
    rename,
    write,
)
from tests.tiny import save_tiny_folder

ADAPTER = f"{BASE}/adapter"
WEIGHTS, METHOD, PEFT = (
    f"{ADAPTER}/adapter_model.safetensors",
    f"{ADAPTER}/method.json",
    f"{ADAPTER}/adapter_config.json",
)


def adapter(kind: str, *says: str, spoil) -> Case:
    return Case(kind, GENERATE, says, spoil)


def peft(kind: str, *says: str, without: tuple[str, ...] = (), **fields) -> Case:
    """An adapter as peft leaves it: without our method.json."""
    return Case(kind, GENERATE, says, both(remove(METHOD), edit(PEFT, without, **fields)))


def other_base(**changes):
    """Another model in the base's place."""
    return both(remove("model"), lambda here: save_tiny_folder(here / "model", **changes))


def unnoticed(here):
    """As an adapter that does not say which files it was trained on."""
    import json

    told = json.loads((here / METHOD).read_text())
    del told["about"]["base_weights"]
    (here / METHOD).write_text(json.dumps(told))


CASES = [
    adapter("truncated weights", WEIGHTS, "truncated", spoil=cut(WEIGHTS, 99)),
    adapter("no weights", "no adapter_model.safetensors", spoil=remove(WEIGHTS)),
    adapter(
        "weights that are not numbers",
        WEIGHTS,
        "1 of 28 tensors",
        "NaN",
        spoil=edit_tensors(WEIGHTS, lambda t: next(iter(t.values())).fill_(float("nan"))),
    ),
    adapter(
        "a tensor too few",
        "1 tensors",
        "missing: base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
        spoil=edit_tensors(WEIGHTS, lambda t: t.pop("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")),
    ),
    adapter(
        "another rank than it says",
        "does not fit",
        "(2, 32) in the adapter, (4, 32) in the model",
        spoil=edit(METHOD, rank=4),
    ),
    adapter("fewer targets than it has", "does not fit", "unexpected: ", spoil=edit(METHOD, targets=["q"])),
    adapter("targets that the model has not", ADAPTER, "'qq'", "down, gate, k", spoil=edit(METHOD, targets=["qq"])),
    adapter("a broken method.json", f"{METHOD} is not valid JSON", spoil=cut(METHOD, 10)),
    adapter("a method.json that is a list", METHOD, "a JSON object", "a list", spoil=write(METHOD, "[]")),
    adapter("a method of a later version", METHOD, "'later'", "there are lora, ", spoil=edit(METHOD, name="later")),
    adapter("a method's name that is a list", f"{METHOD} is damaged", spoil=edit(METHOD, name=["lora"])),
    adapter("a knob of a later version", METHOD, "method.rnk", "'method.rank'", spoil=edit(METHOD, rnk=2)),
    adapter("about that is text", f"{METHOD} is damaged", spoil=edit(METHOD, about="x")),
    adapter("no base", "does not name the model", spoil=edit(METHOD, about={})),
    adapter("a base that is a number", "does not name the model", spoil=edit(METHOD, about={"base": 3})),
    adapter("a base that vanished", ADAPTER, "is not to be had", "/model'", spoil=remove("model")),
    adapter(
        "a base of another shape", ADAPTER, "other files than those now at", "/model", spoil=other_base(hidden_size=64)
    ),
    adapter(
        "the same unnoticed",
        "does not fit",
        "(2, 32) in the adapter, (2, 64) in the model",
        spoil=both(unnoticed, other_base(hidden_size=64)),
    ),
    adapter(
        "a base of other weights",
        ADAPTER,
        "other files than those now at",
        "train again",
        spoil=edit_tensors("model/model.safetensors", lambda t: t["model.norm.weight"].add_(1)),
    ),
    adapter("a run without an adapter", f"{BASE} has no adapter yet", f"--resume {BASE}", spoil=remove(ADAPTER)),
    Case(
        "the same for eval", evaluate(model=BASE), (f"{BASE} has no adapter yet", f"--resume {BASE}"), remove(ADAPTER)
    ),
    Case("the same for merge", MERGE, (f"{BASE} has no adapter yet", f"--resume {BASE}"), remove(ADAPTER)),
    peft("DoRA of peft without magnitudes", "missing", "lora_magnitude_vector", use_dora=True),
    peft("another type of peft", "'LOHA'", "IA3, LORA, PREFIX_TUNING", peft_type="LOHA"),
    peft("trained biases of peft", "bias = 'all'", "only 'none'", bias="all"),
    peft("whole modules of peft", "modules_to_save = 'lm_head'", "no such weights", modules_to_save=["lm_head"]),
    peft("several ranks of peft", "rank_pattern", rank_pattern={"q_proj": 3}),
    peft("a damaged table of ranks of peft", "rank_pattern", rank_pattern=[3]),
    peft("activated LoRA of peft", "alora_invocation_tokens = [1, 2]", alora_invocation_tokens=[1, 2]),
    peft("a start that changed the base", "'pissa' changed the base", "path_initial_model", init_lora_weights="pissa"),
    peft("no rank of peft", "does not fit", "(2, 32) in the adapter, (8, 32) in the model", without=("r",)),
    peft("no virtual tokens", f"{PEFT}: damaged", "does not say num_virtual_tokens", peft_type="PREFIX_TUNING"),
    peft("a rank of peft that is text", PEFT, "method.rank = 'x'", r="x"),
    peft("tokens of peft", "trainable_token_indices = [3]", "only None", trainable_token_indices=[3]),
    peft("targets of peft that are numbers", "target_modules = [3]", "a list", target_modules=[3]),
    peft("targets of peft that the model has not", ADAPTER, "'c_attn'", "down, gate, k", target_modules=["c_attn"]),
    peft("no base of peft", "does not name the model", base_model_name_or_path=None),
    peft("a base of peft that is not here", ADAPTER, "nowhere/else", base_model_name_or_path="nowhere/else"),
    Case(
        "pickled weights of peft",
        GENERATE,
        ("adapter_model.bin are a pickle", "peft converts them"),
        both(remove(METHOD), rename(WEIGHTS, f"{ADAPTER}/adapter_model.bin")),
    ),
    Case("a model to begin from", ["train", "--from", "model", "rows.jsonl"], ("a model is given as MODEL",)),
    Case("merging a base model", ["merge", "model", "out"], ("model has no adapter", "a run's folder")),
    Case("merging what is not there", ["merge", "runs/bas", "out"], ("runs/bas does not exist", "a run's folder")),
    Case("merging into a full folder", MERGE, ("out exists", "choose another"), write("out/x", "")),
    Case("merging into a file", MERGE, ("out exists", "choose another"), write("out", "")),
    Case(
        "merging below a file",
        ["merge", BASE, "out/x"],
        ("out/x cannot be made", "out is no folder"),
        write("out", ""),
    ),
    Case(
        "merging into a link to nothing",
        MERGE,
        ("out is a link to nowhere", "choose another name"),
        lambda here: (here / "out").symlink_to("nowhere"),
    ),
    Case("merging into the run itself", ["merge", BASE, BASE], (f"{BASE} exists", "choose another")),
    Case("merging to an unknown number format", [*MERGE, "--dtype", "int4"], ("--dtype int4", "bfloat16")),
    Case("merging a damaged adapter", MERGE, (WEIGHTS, "truncated"), both(folder("out"), cut(WEIGHTS, 99))),
    Case("an adapter's folder alone, damaged", generate("hi", model=ADAPTER), (WEIGHTS, "truncated"), cut(WEIGHTS, 0)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_adapters(microplane, case):
    microplane.check(case)


def test_what_is_left_right_is_read(microplane, here):
    """The cases above differ from this in one thing each."""
    ours = microplane.run(*GENERATE)
    assert ours[0] == 0, ours
    remove(METHOD)(here)
    assert microplane.run(*GENERATE) == ours


def test_a_damaged_probe_does_not_keep_a_run_from_being_merged(microplane, here):
    cut(f"{BASE}/resume/probe.safetensors", 9)(here)
    code, out, err = microplane.run(*MERGE)
    assert code == 0, err
    assert "on 3 stored rows" in out
