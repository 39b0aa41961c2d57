"""Adapters as peft and other writers leave them, opened by us: the same outputs, or a refusal that says why."""

from __future__ import annotations

import json
from contextlib import nullcontext

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import microplane
from microplane.adapters.merge import merge
from microplane.errors import AdapterError
from microplane.inference.pipeline import load
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows
from tests.labels import encoder_folder
from tests.parity.peft_kit import IDS, adapted_reference, assert_equal, ours, reference, theirs
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import save_tiny_folder

UP = r".*\.layers\.1\.(mlp\.up_proj|self_attn\.k_proj)"
FORMS = {
    "a regular expression": {"target_modules": UP},
    "some layers": {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    "one layer": {"target_modules": ["k_proj"], "layers_to_transform": 1},
    "all but some": {"target_modules": ["up_proj", "k_proj"], "exclude_modules": ["layers.1.mlp.up_proj"]},
    "all but a pattern": {"target_modules": ["up_proj", "k_proj"], "exclude_modules": r".*\.0\.mlp.*"},
    "layers that are not there": {"target_modules": ["c_attn", "down_proj", "Wqkv"]},
    "nothing else saved": {"target_modules": ["k_proj"], "modules_to_save": []},
    "ranks": {"target_modules": ["k_proj", "up_proj"], "rank_pattern": {"up_proj": 7, "layers.0.self_attn.k_proj": 1}},
    "alphas": {"target_modules": ["k_proj", "up_proj"], "alpha_pattern": {r"layers\.1\..*": 29, "^k_proj": 5}},
    "both": {
        "target_modules": ["k_proj", "up_proj"],
        "rank_pattern": {r"\d\.mlp\.up_proj": 8},
        "alpha_pattern": {"up_proj": 3},
    },
    "head and norms in full": {"target_modules": ["k_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    "a layer in full": {"target_modules": ["k_proj"], "modules_to_save": ["down_proj"]},
    "the head": {"target_modules": ["lm_head", "k_proj"]},
}
SCALES = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
SCALES["dora with rslora"] = SCALES["dora"] | SCALES["rslora"]


def save(base, folder, task="CAUSAL_LM", **options):
    model = adapted_reference(
        base, peft.LoraConfig(task_type=task, r=4, lora_alpha=6, init_lora_weights=False, **options)
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += (0.3 if "lora_" in name and "magnitude" not in name else 0.05) * torch.randn_like(
                parameter
            )
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_peft_computes_what_peft_computes(form, scale, tmp_path):
    if "lm_head" in FORMS[form]["target_modules"] and "dora" in scale:
        pytest.skip("peft itself refuses")
    torch.manual_seed(5)
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    model = save(base, tmp_path / "adapter", **FORMS[form], **SCALES[scale])
    untouched = theirs(reference(base))
    mine = ours(load(tmp_path / "adapter", dtype="float32").model)
    assert_equal(mine, theirs(model), 3e-5)
    assert not torch.allclose(mine[0], untouched[0], atol=1e-2)


def vectors(base, folder, config):
    """A peft model whose vectors are away from where they start, saved."""
    model = adapted_reference(base, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += (0.5 if "ia3" in name else 1.0) * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


EVERY = r".*\.(k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)"
IA3 = {
    "a pattern of both": {
        "target_modules": r".*\.[01]\..*(k_proj|down_proj)",
        "feedforward_modules": r".*down_proj",
    },
    "a pattern and names": {"target_modules": r".*\.1\..*(v_proj|up_proj)", "feedforward_modules": ["up_proj"]},
    "all layers": {"target_modules": EVERY, "feedforward_modules": r".*\.layers\.1\..*"},
    "all but some": {
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "exclude_modules": ["layers.0.mlp.down_proj", "layers.1.self_attn.k_proj"],
    },
    "layers that are not there": {"target_modules": ["c_attn", "v_proj", "Wo"], "feedforward_modules": ["Wo"]},
}
VERA = {
    "a pattern": {"target_modules": r".*\.1\..*(k_proj|down_proj)"},
    "every layer": {"target_modules": EVERY},
    "some layers": {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
    "one layer": {"target_modules": ["up_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
}


@pytest.mark.parametrize(("kind", "form"), [*(("ia3", form) for form in IA3), *(("vera", form) for form in VERA)])
def test_every_form_of_vectors_computes_what_peft_computes(kind, form, tmp_path):
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    options = {"task_type": "CAUSAL_LM", **(IA3 if kind == "ia3" else VERA)[form]}
    config = peft.IA3Config(**options) if kind == "ia3" else peft.VeraConfig(r=8, **options)
    model = vectors(base, tmp_path / "adapter", config)
    mine = ours(load(tmp_path / "adapter", dtype="float32").model)
    assert_equal(mine, theirs(model), 3e-5)
    assert not torch.allclose(mine[0], theirs(reference(base))[0], atol=1e-2)


def test_vectors_of_a_pattern_are_put_on_a_model_of_transformers(tmp_path):
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    model = vectors(base, tmp_path / "adapter", peft.IA3Config(task_type="CAUSAL_LM", **IA3["a pattern of both"]))
    plain = reference(base)
    microplane.attach_saved(plain, tmp_path / "adapter")
    assert_equal(theirs(plain), theirs(model), 3e-5)


WRITERS = {
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "distributed": lambda name: f"module.{name}",
    "the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "without peft's prefix": lambda name: name.removeprefix("base_model.model."),
    "of a model without a head": lambda name: name.replace("base_model.model.model.", "base_model.model."),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_names_of_other_writers_are_understood(writer, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    model = save(base, tmp_path / "adapter", target_modules=["q_proj", "gate_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({WRITERS[writer](name): tensor for name, tensor in load_file(file).items()}, file)
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(model))


def test_base_weights_saved_beside_an_adapter_of_the_head_and_added_tokens(tmp_path):
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    bare = reference(base)
    rows = bare.config.vocab_size
    bare.resize_token_embeddings(rows + 3)
    config = peft.LoraConfig(r=4, target_modules=["k_proj"], modules_to_save=["embed_tokens", "lm_head"])
    model = peft.get_peft_model(bare, config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    model.save_pretrained(tmp_path / "adapter")
    opened = load(tmp_path / "adapter", dtype="float32").model
    assert opened.config.vocab_size == rows + 3
    ids = [[5, rows + 2, 31]]
    assert_equal(ours(opened, ids), theirs(model, ids), 3e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_a_tied_embedding_that_comes_with_an_adapter(trained, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    options = {"modules_to_save": ["embed_tokens"]} if trained else {}
    model = save(base, tmp_path / "adapter", target_modules=["k_proj"], **options)
    if not trained:
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter").eval()
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(opened), 3e-5)


@pytest.mark.parametrize("parts", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids="+".join)
def test_an_embedding_and_a_head_that_peft_trained_as_one_stay_one(parts, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    model = save(base, tmp_path / "adapter", target_modules=["k_proj"], modules_to_save=parts, ensure_weight_tying=True)
    opened = load(tmp_path / "adapter", dtype="float32").model
    assert opened.config.tied
    assert_equal(ours(opened), theirs(model), 3e-5)


KEPT = {"base_model_name_or_path", "peft_type", "target_modules", "feedforward_modules", "num_virtual_tokens"}
SHORT = {
    "lora": lambda: peft.LoraConfig(target_modules=["k_proj", "up_proj"], init_lora_weights=False),
    "ranks": lambda: peft.LoraConfig(
        target_modules=["k_proj", "up_proj"], rank_pattern={"up_proj": 3}, init_lora_weights=False
    ),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj", "o_proj"], init_weights=False),
    "ia3": lambda: peft.IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", SHORT)
def test_a_field_that_is_not_written_has_pefts_default(kind, tmp_path):
    torch.manual_seed(5)
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    adapted_reference(base, SHORT[kind]()).save_pretrained(tmp_path / "adapter")
    wanted = ours(load(tmp_path / "adapter", dtype="float32").model)
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    usual = type(SHORT[kind]())().to_dict()
    short = {name: value for name, value in config.items() if name in KEPT or value != usual.get(name)}
    assert not {"r", "lora_alpha"} & short.keys()
    file.write_text(json.dumps(short))
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), wanted, 0)
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter").eval()
    rows = [logits[-len(ids) :] for logits, ids in zip(theirs(opened), IDS, strict=True)]
    assert_equal(wanted, rows, 3e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], r".*(k_proj|lm_head)"], ids=str)
def test_a_pair_on_a_tied_head_leaves_the_embedding(targets, dtype, tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    model = save(base, tmp_path / "adapter", target_modules=targets)
    wanted = theirs(model)
    opened = ours(load(tmp_path / "adapter", dtype=dtype).model)
    assert_equal([logits.float() for logits in opened], wanted, 3e-5 if dtype == "float32" else 0.3)
    if dtype == "float32":
        assert_equal(ours(microplane.attach_saved(load_model(base), tmp_path / "adapter").model), wanted, 3e-5)
        merged = merge(tmp_path / "adapter", tmp_path / "merged").folder
        assert_equal(theirs(reference(merged)), wanted, 1e-4)


def test_a_pair_on_the_tied_head_of_an_encoder_decoder_is_refused_by_its_field(tmp_path):
    base = pair_folder(tmp_path / "base", "t5-v1.0")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "lm_head"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"target_modules = \[.*head apart from its embedding.* without the head"):
        load(tmp_path / "adapter")


def test_an_adapter_is_put_on_a_model_in_hand_as_on_its_base(tmp_path):
    """With what was trained in full beside it."""
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    model = save(base, tmp_path / "adapter", target_modules=["k_proj"], modules_to_save=["lm_head"])
    opened = microplane.attach_saved(load_model(base), tmp_path / "adapter").model
    assert_equal(ours(opened), theirs(model), 3e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_modules": ["embed_tokens", "k_proj"]}, "target_modules: a LoRA of an embedding"),
        ({"target_modules": ["k_proj"], "trainable_token_indices": [3]}, r"trainable_token_indices = \[3\]"),
        ({"target_modules": ["k_proj"], "layer_replication": [[0, 2], [0, 2]]}, r"layer_replication = \[\["),
        ({"target_modules": ["k_proj"], "bias": "lora_only"}, "bias = 'lora_only'"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_by_its_field(options, says, tmp_path):
    base = save_tiny_folder(tmp_path / "base", "llama-untied")
    save(base, tmp_path / "adapter", **options)
    with pytest.raises(AdapterError, match=says):
        load(tmp_path / "adapter")


def test_a_target_whose_tensors_are_not_in_the_file_is_missed(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    save(base, tmp_path / "adapter", target_modules=["k_proj", "up_proj", "c_attn"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if ".layers.1.mlp" not in name}, file)
    with pytest.raises(AdapterError, match=r"missing: .*layers\.1\.mlp\.up_proj|'c_attn' name no linear layer"):
        load(tmp_path / "adapter")


# Heads


TARGETS = {"modernbert": ["Wqkv"], "llama-untied": ["v_proj"], "qwen2": ["v_proj"], "t5": ["v"]}


@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "llama-untied", "qwen2", "t5"])
def test_a_classifier_that_peft_trained_gives_its_scores_here(family, labels, tmp_path):
    make = {"t5": pair_folder, "llama-untied": save_tiny_folder, "qwen2": save_tiny_folder}.get(family, encoder_folder)
    base = make(tmp_path / "base", family)
    torch.manual_seed(3)
    bare = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    bare.config.pad_token_id = bare.config.pad_token_id or 0
    extra = {"bert": ["pooler"], "modernbert": ["head"], "t5": ["classification_head"]}.get(family, [])
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=TARGETS.get(family, ["query"]),
        modules_to_save=extra or None,
        init_lora_weights=False,
    )
    model = peft.get_peft_model(bare, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    opened = load(tmp_path / "adapter", dtype="float32")
    ids = [7, 9, 11, 1] if family == "t5" else [7, 9, 11]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits
    from microplane.models.heads import task_scores

    with torch.no_grad():
        torch.testing.assert_close(task_scores(opened.model, Rows.of([ids])), expected, atol=1e-4, rtol=1e-4)
    assert opened.model.task_head.config.task == ("regression" if labels == 1 else "classification")


def test_a_head_that_was_new_and_is_not_in_the_file_is_said(tmp_path):
    base = encoder_folder(tmp_path / "base")
    bare = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    peft.get_peft_model(bare, config).save_pretrained(tmp_path / "adapter")
    with pytest.warns(Warning, match=r"the head's bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight are neither"):
        assert len(load(tmp_path / "adapter").classify(["a film"])[0].probabilities) == 2


# A language model inside one that sees


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    folder = save_tiny_folder(tmp_path_factory.mktemp("seeing") / "model", "gemma2")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    text = transformers.Gemma3TextConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=16,
        sliding_window=4,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 258, "boi_token_index": 257, "eoi_token_index": 256, "mm_tokens_per_image": 4}
    config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision, **tokens)
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def whole(folder):
    return transformers.Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("targets", [["k_proj", "up_proj"], r".*language_model.*\.(k_proj|up_proj)"], ids=str)
def test_the_language_part_of_pefts_adapter_of_the_whole_is_read(seeing, targets, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(whole(seeing), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = str(seeing)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(told))
    with (
        pytest.warns(Warning, match="belong to layers that see images") if isinstance(targets, list) else nullcontext()
    ):
        opened = load(tmp_path / "adapter", dtype="float32")
    assert_equal(ours(opened.model), theirs(model))


def test_our_adapter_is_one_of_the_whole(seeing, tmp_path):
    from microplane.checkpoints.adapter import save_adapter
    from microplane.methods import make_method
    from microplane.methods.method import attach_method, trainable
    from microplane.models.files.load import load_model

    model, method = load_model(seeing), make_method({"name": "lora", "rank": 4, "targets": ["q", "down"]})
    attach_method(method, model)
    for tensor in trainable(model).values():
        tensor.data += 0.2 * torch.randn_like(tensor)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(seeing)})
    opened = peft.PeftModel.from_pretrained(whole(seeing), tmp_path / "adapter").eval()
    assert_equal(theirs(opened), ours(model))
    assert not [name for name, _ in opened.named_parameters() if "lora_" in name and "vision" in name]
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), ours(model))


OF_TEXT = r".*language_model.*\.k_proj"
BESIDE = {
    "the tied head": peft.LoraConfig(r=4, target_modules=rf"({OF_TEXT}|lm_head)", init_lora_weights=False),
    "IA3 of all": peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False),
    "the projector in full": peft.LoraConfig(
        r=4, target_modules=OF_TEXT, modules_to_save=["multi_modal_projector"], init_lora_weights=False
    ),
    "the embedding in full": peft.LoraConfig(
        r=4, target_modules=OF_TEXT, modules_to_save=["embed_tokens"], init_lora_weights=False
    ),
    "DoRA of all": peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False),
}


def saved_of_whole(seeing, config, folder):
    torch.manual_seed(0)
    model = whole(seeing)
    model.name_or_path = str(seeing)
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", BESIDE)
def test_only_what_sees_is_left_out(form, seeing, tmp_path):
    """What has no place among the language model's own layers may be of it all the same: a tied head has no layer."""
    adapted = saved_of_whole(seeing, BESIDE[form], tmp_path / "adapter")
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(adapted), 2e-5)
    assert not torch.allclose(theirs(adapted)[0], theirs(whole(seeing))[0], atol=1e-2)


@pytest.mark.parametrize(
    "respelled", ["language_model.model.", "model.", "", "language_model."], ids=["older", "text", "bare", "headless"]
)
def test_the_language_part_under_other_names(respelled, seeing, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=OF_TEXT, init_lora_weights=False)
    adapted = saved_of_whole(seeing, config, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    start = "base_model.model."
    save_file(
        {name.replace(f"{start}model.language_model.", start + respelled): x for name, x in load_file(file).items()},
        file,
    )
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(adapted), 2e-5)


def test_an_adapter_of_nothing_but_what_sees_is_refused_with_the_reason(seeing, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=r".*vision_tower.*\.q_proj", init_lora_weights=False)
    saved_of_whole(seeing, config, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="adapts only layers that see images"):
        load(tmp_path / "adapter")
