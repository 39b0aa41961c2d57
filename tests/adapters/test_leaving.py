"""What leaves the tool is what was trained: merged folders and adapters, opened by transformers and peft."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from microplane.adapters.card import card_of
from microplane.adapters.export import export
from microplane.adapters.merge import merge
from microplane.checkpoints.adapter import save_adapter
from microplane.checkpoints.attach_saved import weights_fingerprint
from microplane.cli import app as cli
from microplane.errors import AdapterError
from microplane.exports.export import export as export_any
from microplane.inference.pipeline import load
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.files.load import load_model
from microplane.models.heads import add_head, head_metadata
from tests.adapters.there import first_tokens
from tests.labels import encoder_folder
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import CONFIGS, ENCODER_CONFIGS, save_tiny_folder

METHODS = ("lora", "dora", "full")
TEXTS = ["the red film is good", "bad", "a plot it was not three"]
SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "cls_token", "sep_token")
SETTINGS += ("mask_token", "unk_token", "bos_token", "chat_template", "extra_special_tokens", "init_kwargs.extra")
LABELS = {
    "classification": ("no", "yes", "perhaps"),
    "multilabel": ("red", "blue"),
    "regression": ("value",),
    "tokens": ("O", "THING"),
}


def folder_of(family: str, path: Path) -> Path:
    make = save_tiny_folder if family in CONFIGS else encoder_folder if family in ENCODER_CONFIGS else pair_folder
    return make(path, family)


def adapter(
    base: Path, folder: Path, method: str, task: str | None = None, pooling: str | None = None, **about: str
) -> Path:
    """A saved adapter (or whole model) whose trainable tensors have moved, with a head for `task`."""
    made, model = make_method(method), load_model(base)
    if task:
        add_head(model, task, LABELS[task], pooling)
    attach_method(made, model)
    for number, tensor in enumerate(trainable(model).values()):
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    folder.mkdir()
    if made.whole_model:
        load(base).tokenizer.save(folder)
    save_adapter(folder, model, made, {"base": str(base), **about} | head_metadata(model))
    return folder


def settings(folder: Path) -> dict[str, object]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in TEXTS] + [tokenizer(*TEXTS[:2]).input_ids]
    return {name: getattr(tokenizer, name, None) for name in SETTINGS} | {"class": type(tokenizer), "ids": ids}


# Text


@pytest.mark.parametrize(("family", "method"), itertools.product([*CONFIGS, "t5", "t5-v1.0"], METHODS))
def test_text_is_the_same_in_transformers_and_ends_there(family, method, tmp_path):
    base = folder_of(family, tmp_path / "base")
    merge(adapter(base, tmp_path / "adapter", method), tmp_path / "merged")
    assert settings(tmp_path / "merged") == settings(base)
    ours = load(tmp_path / "adapter", dtype="float32")
    pairs = ours.model.KIND == "encoder-decoder"
    kind = transformers.AutoModelForSeq2SeqLM if pairs else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(tmp_path / "merged").eval()
    stops = theirs.generation_config.eos_token_id
    assert set(stops if isinstance(stops, list) else [stops]) == set(ours.stop_ids)
    assert theirs.config.eos_token_id == stops
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.eos_token_id == ours.stop_ids[0]
    prompt = torch.tensor([ours.prompt("say it")])
    written = theirs.generate(prompt, max_new_tokens=12, do_sample=False)[0, 0 if pairs else prompt.shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == ours.generate("say it", max_new_tokens=12)
    if method != "full":
        opened = peft.PeftModel.from_pretrained(kind.from_pretrained(base), tmp_path / "adapter").eval()
        given = {"input_ids": prompt} | ({"decoder_input_ids": prompt[:, :3]} if pairs else {})
        with torch.no_grad():
            torch.testing.assert_close(opened(**given).logits, theirs(**given).logits, atol=1e-4, rtol=1e-4)


OTHER_END = "{% for m in messages %}{{ m.role + ' ' + m.content + '<|endoftext|>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("files", "named", "stops"),
    [
        ({}, "<|endoftext|>", {0, 2}),
        ({"generation_config.json": {"eos_token_id": [2, 1], "temperature": 0.3}}, "<|endoftext|>", {0, 1, 2}),
        ({"template": OTHER_END + "{{ eos_token if add_generation_prompt }}"}, "<|im_end|>", {0, 2}),
        ({"template": "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"}, "<|im_end|>", {2}),
        ({"template": None}, "<|im_end|>", {2}),
    ],
    ids=["template's own", "several", "the template writes the old one, too", "template's variable", "none"],
)
def test_a_merged_model_stops_where_the_template_ends_an_answer(files, named, stops, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = files.get("template", OTHER_END)
    (base / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    told = files.get("generation_config.json")
    if told:
        (base / "generation_config.json").write_text(json.dumps(told))
    merge(adapter(base, tmp_path / "adapter", "lora"), tmp_path / "merged")
    written, model = (
        json.loads((tmp_path / "merged" / f"{n}.json").read_text()) for n in ("generation_config", "config")
    )
    for one in (written, model):
        found = one["eos_token_id"]
        assert set(found if isinstance(found, list) else [found]) == stops
        assert one["pad_token_id"] == 0  # the base's own is its end token, and whoever masks it would never stop
    assert written.get("temperature") == (told or {}).get("temperature")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == named
    assert load(tmp_path / "merged").stop_ids[0] == load(tmp_path / "adapter").stop_ids[0]


# Labels


def heads() -> list[tuple[str, str, str]]:
    families = ("bert", "roberta", "modernbert", "llama-untied", "qwen3", "t5")
    tasks = [*itertools.product(families, ("classification",), METHODS)]
    tasks += [*itertools.product(families, ("multilabel", "regression"), ("lora",))]
    return [*tasks, *((family, "tokens", "lora") for family in families if family != "t5")]


@pytest.mark.parametrize(("family", "task", "method"), heads())
def test_labels_are_the_same_in_a_pipeline_of_transformers(family, task, method, tmp_path):
    base = folder_of(family, tmp_path / "base")
    pooling = "cls" if family in ENCODER_CONFIGS else "last"
    path = adapter(base, tmp_path / "adapter", method, task, None if task == "tokens" else pooling)
    merged = merge(path, tmp_path / "merged")
    assert merged.notices == ()
    assert settings(tmp_path / "merged") == settings(base)
    ours = load(path, dtype="float32")
    if task == "tokens":
        pipe = transformers.pipeline("token-classification", str(tmp_path / "merged"), device="cpu", ignore_labels=[])
        [said] = ours.classify(["red film"])
        tokens = pipe("red film")
        places = [(one["start"], one["end"]) for one in tokens]
        found = [(tokens[at]["entity"], tokens[at]["score"]) for at in first_tokens("red film", places, said)]
        assert found == [(one.label, pytest.approx(one.probabilities[one.label], abs=1e-4)) for _, one in said.words]
        assert len(found) == 2
    else:
        options = {"device": "cpu", "top_k": None, "batch_size": 3}
        found = transformers.pipeline("text-classification", str(tmp_path / "merged"), **options)(TEXTS)
        for one, said in zip(found, ours.classify(TEXTS), strict=True):
            expected = said.probabilities if task != "regression" else dict(zip(LABELS[task], said.values, strict=True))
            assert {entry["label"]: entry["score"] for entry in one} == pytest.approx(expected, abs=1e-4)
    if method != "full":
        kind = "AutoModelForTokenClassification" if task == "tokens" else "AutoModelForSequenceClassification"
        fresh = getattr(transformers, kind).from_pretrained(base, num_labels=len(LABELS[task]))
        opened = peft.PeftModel.from_pretrained(fresh, path).eval()
        whole = getattr(transformers, kind).from_pretrained(tmp_path / "merged").eval()
        ids = torch.tensor([ours.tokenizer.encode_pair(TEXTS[0]).ids])
        with torch.no_grad():
            torch.testing.assert_close(opened(ids).logits, whole(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("told", ["cls", "mean"])
def test_peft_opens_a_head_on_the_base_that_the_adapter_tells(told, pooling, tmp_path):
    base = encoder_folder(tmp_path / "base", "modernbert", classifier_pooling=told)
    path = adapter(base, tmp_path / "adapter", "lora", "classification", pooling)
    opened = json.loads((path / "method.json").read_text())["about"]["opened_by"]
    fresh = getattr(transformers, opened.pop("class")).from_pretrained(base, **opened)
    theirs, ours = peft.PeftModel.from_pretrained(fresh, path).eval(), load(path, dtype="float32")
    ids = torch.tensor([ours.tokenizer.encode_pair(TEXTS[0]).ids])
    with torch.no_grad():
        found = theirs(ids).logits.softmax(-1)[0].tolist()
    assert found == pytest.approx([*ours.classify(TEXTS[:1])[0].probabilities.values()], abs=1e-4)


def test_a_head_that_transformers_has_no_class_for_is_said_and_how_it_is_read(tmp_path):
    base = encoder_folder(tmp_path / "base")
    merged = merge(adapter(base, tmp_path / "adapter", "lora", "classification", "mean"), tmp_path / "merged")
    [line] = merged.notices
    assert "transformers has no class for this head" in line
    assert "the mean of its tokens that are no pad, times task_head.out.weight plus task_head.out.bias" in line


@pytest.mark.parametrize(
    ("pad", "end"), [("<|im_end|>", "<|im_end|>"), (None, "<|im_end|>"), ("<|endoftext|>", "<|endoftext|>")]
)
def test_a_classifier_whose_texts_end_with_the_pad_is_padded_with_another_token(pad, end, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    base = save_tiny_folder(tmp_path / "base", "qwen3")
    backend = Tokenizer.from_file(str(base / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(f"$A {end}", special_tokens=[(end, backend.token_to_id(end))])
    backend.save(str(base / "tokenizer.json"))
    config = json.loads((base / "tokenizer_config.json").read_text()) | {"pad_token": pad}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    path = adapter(base, tmp_path / "adapter", "lora", "classification")
    merge(path, tmp_path / "merged")
    found = transformers.pipeline("text-classification", str(tmp_path / "merged"), top_k=None, batch_size=3)(TEXTS)
    for one, said in zip(found, load(path, dtype="float32").classify(TEXTS), strict=True):
        assert {entry["label"]: entry["score"] for entry in one} == pytest.approx(said.probabilities, abs=1e-4)


@pytest.mark.parametrize("family", ["bart", "t5", "t5-v1.0"])
@pytest.mark.parametrize("told", [None, 7])
def test_a_class_that_looks_for_the_end_of_a_text_is_told_the_tokenizers(family, told, tmp_path):
    """Whatever the base's config.json says. Where it says none, the class has a number of its own."""
    base = folder_of(family, tmp_path / "base")
    config = {k: v for k, v in json.loads((base / "config.json").read_text()).items() if k != "eos_token_id"}
    (base / "config.json").write_text(json.dumps(config | ({} if told is None else {"eos_token_id": told})))
    path = adapter(base, tmp_path / "adapter", "lora", "classification", "last")
    assert merge(path, tmp_path / "merged").notices == ()
    found = transformers.pipeline("text-classification", str(tmp_path / "merged"), top_k=None, batch_size=3)(TEXTS)
    for one, said in zip(found, load(path, dtype="float32").classify(TEXTS), strict=True):
        assert {entry["label"]: entry["score"] for entry in one} == pytest.approx(said.probabilities, abs=1e-4)


@pytest.mark.parametrize("family", ["t5gemma", "t5gemma2", "t5", "qwen2"])
def test_a_class_that_scores_a_padded_row_otherwise_is_said(family, tmp_path):
    """T5Gemma's reads one token further on: findings/t5gemma-score-of-a-padded-row.sh."""
    base = folder_of(family, tmp_path / "base")
    path = adapter(base, tmp_path / "adapter", "lora", "classification", "last")
    line = "says something else of a row that is padded: there, give this model one row at a time"
    minds = family.startswith("t5gemma")
    assert any(line in told for told in merge(path, tmp_path / "merged").notices) is minds
    assert any(line in told for told in export_any(path, tmp_path / "peft", "peft").lines) is minds
    about = json.loads((path / "method.json").read_text())["about"]
    assert (line in card_of(path, "peft", about, "lora")) is minds  # as a run writes it, which knows no more
    wanted, same = [said.probabilities for said in load(path, dtype="float32").classify(TEXTS)], []
    for size in (1, 3):
        pipe = transformers.pipeline("text-classification", str(tmp_path / "merged"), top_k=None, batch_size=size)
        found = [{entry["label"]: entry["score"] for entry in one} for one in pipe(TEXTS)]
        same.append(all(one == pytest.approx(other, abs=1e-4) for one, other in zip(found, wanted, strict=True)))
    assert same == [True, not minds]


# Bases


def test_a_base_is_written_as_a_folder(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    exported = export(base, tmp_path / "out", torch.bfloat16)
    assert exported.dtype == torch.bfloat16
    assert settings(tmp_path / "out") == settings(base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([[5, 9, 77]])
        torch.testing.assert_close(
            theirs(ids).logits,
            transformers.AutoModelForCausalLM.from_pretrained(base)(ids).logits,
            atol=0.05,
            rtol=0.05,
        )
    assert export(tmp_path / "out", tmp_path / "again").dtype == torch.bfloat16  # as it is stored
    assert export(base, tmp_path / "half", torch.float16).dtype == torch.float16
    assert export(tmp_path / "half", tmp_path / "again, too").dtype == torch.float16
    path = adapter(base, tmp_path / "adapter", "lora")
    with pytest.raises(AdapterError, match="has an adapter: microplane merge .* writes it with its base"):
        export(path, tmp_path / "other")


@pytest.mark.parametrize(("told", "written"), [({"bos_token_id": 5}, 5), ({}, 1)])
def test_the_first_token_is_the_bases_own_where_it_has_one(told, written, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "bos_token_id"} | told))
    assert load(base).tokenizer.bos_id == 1
    export(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] == written


def test_a_quantised_base_that_moved_is_compared_where_it_lies(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    path = adapter(base, tmp_path / "adapter", "lora", base_dtype="int8")
    merged = merge(path, tmp_path / "merged", base=base.rename(tmp_path / "elsewhere"))
    assert merged.trained_base == "int8"
    assert 0 < merged.from_trained < 1


def test_a_base_that_moved_is_named_and_its_weights_decide(tmp_path, capsys, monkeypatch):
    base = save_tiny_folder(tmp_path / "base")
    path = adapter(base, tmp_path / "adapter", "lora")
    about = json.loads((path / "method.json").read_text())
    about["about"]["base_weights"] = weights_fingerprint(base)
    (path / "method.json").write_text(json.dumps(about))
    before = load(path).prompt("a")
    (base / "notes.json").write_text("{}")
    assert load(path).prompt("a") == before
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="If it lies elsewhere now, name that place with --base"):
        load(path)
    assert load(path, base=moved).prompt("a") == before
    monkeypatch.setattr("sys.argv", ["microplane", "merge", str(path), str(tmp_path / "merged"), "--base", str(moved)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "merged into" in capsys.readouterr().out
    other = save_tiny_folder(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(
        AdapterError, match="was trained on other files than those now at .*other: their contents differ"
    ):
        load(path, base=other)


def test_the_adapter_of_a_short_name_names_the_hubs(tmp_path):
    model, method = load_model(save_tiny_folder(tmp_path / "base")), make_method("lora")
    attach_method(method, model)
    save_adapter(tmp_path / "adapter", model, method, {"base": "smollm2"})
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert json.loads((tmp_path / "adapter" / "method.json").read_text())["about"]["base"] == "smollm2"


@pytest.mark.parametrize(
    ("about", "name", "revision"),
    [
        ({"base": "org/tiny", "revision": "v2"}, "org/tiny", "v2"),
        ({"base": "org/tiny"}, "org/tiny", None),
        ({"base": "/cache/hub/models--org--tiny-1.0/snapshots/0a1b"}, "org/tiny-1.0", "0a1b"),
        ({"base": "/cache/hub/models--tiny/snapshots/0a1b/"}, "tiny", "0a1b"),
        ({"base": "/cache/models--org--tiny/other/0a1b"}, "/cache/models--org--tiny/other/0a1b", None),
    ],
)
def test_an_adapter_names_its_base_and_its_version_as_others_find_them(about, name, revision, tmp_path):
    """peft opens the base at `revision`, and without one what is newest there."""
    model, method = load_model(save_tiny_folder(tmp_path / "base")), make_method("lora")
    attach_method(method, model)
    save_adapter(tmp_path / "adapter", model, method, about)
    told = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert (told.base_model_name_or_path, told.revision) == (name, revision)


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_beside_the_models_own_are_no_other_base(sharded, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    if sharded:
        weights = load_file(base / "model.safetensors")
        (base / "model.safetensors").unlink()
        parts = {"a.safetensors": dict(list(weights.items())[:3]), "b.safetensors": dict(list(weights.items())[3:])}
        for file, tensors in parts.items():
            save_file(tensors, base / file, {"format": "pt"})
        index = {name: file for file, tensors in parts.items() for name in tensors}
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    before = weights_fingerprint(base)
    save_file({"w": torch.zeros(2)}, base / "consolidated.safetensors")
    assert weights_fingerprint(base) == before
    file = base / ("b.safetensors" if sharded else "model.safetensors")
    changed = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(changed, file, {"format": "pt"})
    assert weights_fingerprint(base) != before


# Adapters with a tokenizer of their own


@pytest.mark.parametrize("whole", [True, False], ids=["tokenizer", "template alone"])
def test_what_was_saved_beside_an_adapter_is_what_it_is_asked_and_merged_with(whole, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    path = adapter(base, tmp_path / "adapter", "lora")
    theirs = transformers.AutoTokenizer.from_pretrained(base)
    theirs.chat_template, theirs.eos_token = OTHER_END, "<|endoftext|>"
    theirs.save_pretrained(path)
    if not whole:
        (path / "tokenizer.json").unlink()
    ours = load(path)
    messages = [{"role": "user", "content": "hi"}]
    assert ours.prompt("hi") == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.stop_ids == (0, 2)
    merge(path, tmp_path / "merged")
    merged = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert (merged.chat_template, merged.eos_token) == (OTHER_END, "<|endoftext|>")
