"""Every decoder family against transformers: logits, loss and the gradient of every parameter, in float32."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from microplane.models.files.load import load_model, save_model
from microplane.nn.rows import Rows
from tests.parity.decoder_shapes import GPT2_SIZE, NEOX_SIZE, PHI3_SIZE, SHAPES, STARCODER2_SIZE

SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,  # large enough for attention to have something to choose from
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24}
OLMO2: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "hidden_act": "gelu"},
    {"tie_word_embeddings": True},
    {"attention_bias": True},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 2.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    {"rms_norm_eps": 1e-6, "num_hidden_layers": 1},
    {"rms_norm_eps": 1e-3, "tie_word_embeddings": True, "num_key_value_heads": 4},
    {"num_hidden_layers": 4, "attention_bias": True, "num_key_value_heads": 1},
    {"rope_parameters": LLAMA3},
    {"hidden_act": "relu", "num_key_value_heads": 2},
]
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
GRANITES: list[dict[str, Any]] = [  # the first as granite-3 has them
    {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    {"tie_word_embeddings": True},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4, "attention_bias": True},
    {"mlp_bias": True, "num_hidden_layers": 1},
    {"embedding_multiplier": 1.0},
    {"attention_multiplier": 1.0, "num_hidden_layers": 4},
    {"residual_multiplier": 1.0, "tie_word_embeddings": True},
    {"logits_scaling": 1.0, "hidden_act": "gelu"},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000.0}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}, "rms_norm_eps": 1e-5},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 0.5},
]
OLMO2_SIZES = [
    {"hidden_size": 8 * wide, "intermediate_size": inner}
    for wide, inner in zip(
        (4, 3, 2, 5, 4, 7, 2, 6, 1, 3, 4, 5), (48, 31, 7, 64, 33, 20, 9, 50, 11, 72, 25, 17), strict=True
    )
]
SLIDES = {"use_sliding_window": True, "max_window_layers": 1}


@dataclass
class Case:
    name: str
    config: type
    fields: dict[str, Any]
    size: dict[str, Any] | None = None  # instead of `SMALL`
    slow: bool = False

    def __str__(self) -> str:
        return self.name

    def build(self) -> transformers.PreTrainedModel:
        """A random model of transformers in float32; norms and biases too are random, so that they count."""
        torch.manual_seed(0)
        size = SMALL if self.size is None else self.size
        config = self.config(**size | copy.deepcopy(self.fields), bos_token_id=1, eos_token_id=2, pad_token_id=0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model


CASES = [
    Case("llama", transformers.LlamaConfig, {}),
    Case("llama tied", transformers.LlamaConfig, {"tie_word_embeddings": True}),
    Case("llama all heads", transformers.LlamaConfig, {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    Case("llama one kv head", transformers.LlamaConfig, {"num_key_value_heads": 1, "head_dim": 12}),
    Case("llama biases", transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    Case("llama 3 rope", transformers.LlamaConfig, {"rope_parameters": LLAMA3}),
    Case("llama linear rope", transformers.LlamaConfig, {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    Case("smollm3", transformers.SmolLM3Config, {"num_hidden_layers": 4}),
    Case("smollm3 all rope", transformers.SmolLM3Config, {"no_rope_layers": [1, 1, 1]}),
    Case(
        "smollm3 window",
        transformers.SmolLM3Config,
        {"use_sliding_window": True, "sliding_window": 4, "no_rope_layers": [1, 0, 1]},
    ),
    Case("mistral window 4", transformers.MistralConfig, {"sliding_window": 4}),
    Case("mistral window 64", transformers.MistralConfig, {"sliding_window": 64}),
    Case("mistral no window", transformers.MistralConfig, {"sliding_window": None}),
    Case("qwen2", transformers.Qwen2Config, {"tie_word_embeddings": True}),
    Case("qwen2 window 4", transformers.Qwen2Config, SLIDES | {"sliding_window": 4}),
    Case("qwen2 window 64", transformers.Qwen2Config, SLIDES | {"sliding_window": 64}),
    Case("qwen3", transformers.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    Case("qwen3 window biases", transformers.Qwen3Config, SLIDES | {"sliding_window": 4, "attention_bias": True}),
    *(
        Case(f"olmo2-{number}", transformers.Olmo2Config, OLMO2_SIZES[number] | switch)
        for number, switch in enumerate(OLMO2)
    ),
    *(
        Case(f"granite-{number}", transformers.GraniteConfig, OLMO2_SIZES[number] | GRANITE | switch)
        for number, switch in enumerate(GRANITES)
    ),
    Case("gemma2 window 4", transformers.Gemma2Config, GEMMA | {"sliding_window": 4}),
    Case(
        "gemma2 tight caps",
        transformers.Gemma2Config,
        GEMMA | {"sliding_window": 64, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    ),
    Case(
        "gemma2 no caps untied",
        transformers.Gemma2Config,
        GEMMA
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    Case("gemma3 default ropes", transformers.Gemma3TextConfig, GEMMA | {"sliding_window": 4, "num_hidden_layers": 7}),
    Case(
        "gemma3 scaled ropes",
        transformers.Gemma3TextConfig,
        GEMMA
        | {
            "sliding_window": 4,
            "rope_parameters": GEMMA3_ROPES,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
]  # fmt: skip
CASES += [
    Case(f"{name}-{number}", config, switch, size, slow=number > 1)
    for name, (config, size, switches) in SHAPES.items()
    for number, switch in enumerate(switches)
]
NARROW = [case for case in CASES if " " not in case.name or "gemma" in case.name]
BATCHES = {"one row": (20,), "five rows": (20, 3, 11, 1, 16)}


def each(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.slow) if case.slow else case for case in cases]


def texts(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, SMALL["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


def padded(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    """As transformers takes it: ids, mask, positions, and labels that leave the padding out."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def loss_of(model, rows: Rows) -> torch.Tensor:
    """Mean cross-entropy over all tokens that have a token before them in their row."""
    hidden = model(rows)
    targets = torch.ones(len(rows.ids), dtype=torch.bool)
    targets[rows.last - torch.tensor(rows.lengths) + 1] = False
    targets = targets.nonzero().squeeze(1)
    return F.cross_entropy(model.logits(hidden[targets - 1]), rows.ids[targets])


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("case", each(CASES), ids=str)
def test_logits_loss_and_gradients_are_those_of_transformers(case: Case, tmp_path):
    theirs = case.build()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).requires_grad_(True)
    names = ours.hf_names()
    assert names.keys() == {name for name, _ in ours.named_parameters()}
    their_parameters = dict(theirs.named_parameters())
    assert sorted(names.values()) == sorted(their_parameters)

    for lengths in BATCHES.values():
        for side in ("left", "right"):
            batch = padded(texts(lengths), side)
            rows = Rows.from_padded(batch["input_ids"], batch["attention_mask"])
            real = batch["attention_mask"].bool()
            logits = theirs(**batch).logits
            assert off(ours.logits(ours(rows)), logits[real]) < 1e-4, (lengths, side)

            labels = batch["input_ids"].masked_fill(~real, -100)
            labels[real & (batch["position_ids"] == 0)] = -100  # of left padding, the pad would predict it
            expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss = loss_of(ours, rows)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            for model, value in ((ours, loss), (theirs, expected)):
                model.zero_grad()
                value.backward()
            for name, parameter in ours.named_parameters():
                expected = ours.turned(name, their_parameters[names[name]].grad)
                assert off(parameter.grad, expected) < 1e-4, (name, lengths, side)


@pytest.mark.parametrize("case", each(CASES), ids=str)
def test_transformers_opens_what_is_saved(case: Case, tmp_path):
    case.build().save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    batch = padded(texts(BATCHES["five rows"]), "right")
    expected = ours.logits(ours(Rows.from_padded(batch["input_ids"], batch["attention_mask"])))
    real = batch["attention_mask"].bool()

    save_model(ours, tmp_path / "from a file")
    ours.source_config = {"pad_token_id": 0}  # nearly none, as of a model that was never in a file
    save_model(ours, tmp_path / "from nothing")
    for name in ("from a file", "from nothing"):
        reopened, report = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / name, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            assert off(reopened(**batch).logits[real], expected) < 1e-4, name
        assert load_model(tmp_path / name).config == ours.config, name


@pytest.mark.parametrize("case", each(CASES), ids=str)
def test_cached_decoding_is_the_whole_forward(case: Case, tmp_path):
    case.build().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    rows = texts((20, 13, 17))
    whole = model(Rows.of(rows)).split([len(row) for row in rows])

    cache, _ = model.start_generation(rows)
    pieces: list[list[torch.Tensor]] = [[], [], []]
    for lengths in ((9, 2, 5), (3, 3, 3), *[(1, 1, 1)] * 8):  # a prompt, a few at once, then token by token
        new = [row[start : start + n] for row, start, n in zip(rows, cache.lengths, lengths, strict=True)]
        hidden = model(Rows.of(new, starts=cache.lengths), cache)
        for piece, part in zip(pieces, hidden.split(lengths), strict=True):
            piece.append(part)
    assert cache.lengths == [20, 13, 16]
    for piece, expected in zip(pieces, whole, strict=True):
        seen = torch.cat(piece)
        torch.testing.assert_close(seen, expected[: len(seen)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", each(NARROW), ids=str)
def test_bfloat16_is_finite_and_close(case: Case, tmp_path):
    case.build().save_pretrained(tmp_path)
    rows = Rows.of(texts(BATCHES["five rows"]))
    wide, narrow = load_model(tmp_path), load_model(tmp_path, torch.bfloat16)
    hidden = narrow(rows)
    assert hidden.dtype == torch.bfloat16
    logits, expected = narrow.logits(hidden).float(), wide.logits(wide(rows))
    assert logits.isfinite().all()
    assert (logits - expected).norm() < 0.05 * expected.norm()


def test_embedding_factor_of_gemma_is_rounded_as_in_transformers(tmp_path):
    """In bfloat16, sqrt(40) = 6.325 becomes 6.3125."""
    case = Case("gemma3", transformers.Gemma3TextConfig, GEMMA | {"hidden_size": 40})
    theirs = case.build().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, torch.bfloat16)
    seen = []
    ours.prompt_socket.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    rows = Rows.of([[5, 6, 7]])
    ours(rows)
    assert torch.equal(seen[0], theirs.get_input_embeddings()(rows.ids))


NO_BIASES = {"attention_bias": True, "mlp_bias": True}
UNREAD: list[
    tuple[type, dict[str, Any], dict[str, Any]]
] = [  # family, its size, what may stand in its config.json, and None: what may not
    (transformers.MistralConfig, SMALL, NO_BIASES | {"hidden_activation": "relu"}),
    (transformers.Qwen2Config, SMALL, NO_BIASES),
    (transformers.Phi3Config, PHI3_SIZE, NO_BIASES | {"hidden_dropout": 0.5}),
    (transformers.Qwen3Config, SMALL, {"mlp_bias": True}),
    (transformers.Olmo2Config, SMALL, {"mlp_bias": True}),
    (transformers.Gemma2Config, SMALL | GEMMA, {"mlp_bias": True, "hidden_act": "relu"}),
    (transformers.Gemma3TextConfig, SMALL | GEMMA, {"mlp_bias": True, "attn_logit_softcapping": 0.1}),
    (
        transformers.GPTNeoXConfig,
        NEOX_SIZE,
        {"mlp_bias": False, "rms_norm_eps": 0.5, "layer_norm_eps": None, "rope_theta": 3.0},
    ),
    (transformers.Starcoder2Config, STARCODER2_SIZE, {"mlp_bias": False, "attention_bias": False, "use_bias": None}),
    (transformers.GPT2Config, GPT2_SIZE, {"hidden_act": "relu", "activation_function": None, "intermediate_size": 7}),
]


@pytest.mark.parametrize(("family", "size", "fields"), UNREAD, ids=lambda x: getattr(x, "model_type", ""))
def test_a_field_that_the_class_of_a_family_does_not_read_counts_for_nothing(family, size, fields, tmp_path):
    """Files get them from tools that write Llama's fields for every family."""
    Case("", family, {"num_hidden_layers": 2}, size).build().save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(
        json.dumps({name: x for name, x in told.items() if fields.get(name, 0) is not None})
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    batch, ours = padded(texts((20,)), "right"), load_model(tmp_path)
    expected = theirs(**batch).logits[0].detach()
    assert off(ours.logits(ours(Rows.of(batch["input_ids"].tolist()))), expected) < 1e-4
    save_model(ours, tmp_path / "again")
    assert load_model(tmp_path / "again").config == ours.config


def test_text_part_of_a_gemma_3_that_sees_images(tmp_path):
    text = SMALL | GEMMA | {"sliding_window": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_id=66,
    )
    theirs = transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path / "images")
    ours = load_model(tmp_path / "images")
    ids = torch.tensor(texts((20,)))
    expected = theirs(input_ids=ids).logits[0]
    assert off(ours.logits(ours(Rows.of(ids.tolist()))), expected) < 1e-4
    save_model(ours, tmp_path / "text")
    reopened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", attn_implementation="eager")
    assert type(reopened).__name__ == "Gemma3ForCausalLM"
    assert off(reopened(input_ids=ids).logits[0], expected) < 1e-4
