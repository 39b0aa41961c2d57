"""The decoder families: what a config.json leaves out, and how Hugging Face calls the modules.

A new family is an entry in `SPECS`, and in models/decoder.py what it computes otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Names:
    """Our module -> Hugging Face's."""

    block: Mapping[str, str]  # exactly the modules of a block that have weights
    prefix: str = "model."  # of all but the head for words
    stack: str = "layers"  # the list of blocks
    around: Mapping[str, str] = field(default_factory=lambda: {"embed": "embed_tokens", "norm": "norm"})
    transposed: bool = False  # linear layers of a block are stored as (in, out)
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)  # ends of what old files hold and config.json says
    stored_head: str = "lm_head"  # what the head for words is called in files


MLP = {f"mlp.{role}": f"mlp.{role}_proj" for role in ("gate", "up", "down")}
LINEARS = {f"attention.{role}": f"self_attn.{role}_proj" for role in ("q", "k", "v", "o")} | MLP
QK_NORMS = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
BEFORE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
AFTER = {"attention_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}
AROUND = AFTER | {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
LLAMA_NAMES = Names(LINEARS | BEFORE)
GPT2_NAMES = Names(
    block={
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    prefix="transformer.",
    stack="h",
    around={"embed": "wte", "positions": "wpe", "norm": "ln_f"},
    transposed=True,
    buffers=(".attn.bias", ".attn.masked_bias"),  # masks
)
PHI3_NAMES = Names(
    block={
        "attention.qkv": "self_attn.qkv_proj",
        "attention.o": "self_attn.o_proj",
        "mlp.gate_up": "mlp.gate_up_proj",
        "mlp.down": "mlp.down_proj",
        **BEFORE,
    }
)
NEOX_NAMES = Names(
    block={
        "attention.qkv": "attention.query_key_value",
        "attention.o": "attention.dense",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
        **BEFORE,
    },
    prefix="gpt_neox.",
    around={"embed": "embed_in", "norm": "final_layer_norm"},
    buffers=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
    stored_head="embed_out",
)
STARCODER2_NAMES = Names(
    block={
        **{f"attention.{role}": f"self_attn.{role}_proj" for role in ("q", "k", "v", "o")},
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        **BEFORE,
    }
)


@dataclass(frozen=True)
class DecoderSpec:
    """Properties of an architecture that its config.json does not say."""

    model_type: str
    defaults: dict[str, Any] = field(default_factory=dict)  # of fields that config.json may leave out
    names: Names = LLAMA_NAMES
    fields: Mapping[str, str] = field(default_factory=dict)  # Llama's name of a field -> how this family spells it
    also: tuple[str, ...] = ()  # those of `fields` that may go by Llama's name too
    unread: tuple[str, ...] = ("mlp_bias",)  # that its class in transformers does not read: they count for nothing
    only: Mapping[str, Any] = field(default_factory=dict)  # fields of which one value is supported
    dropouts: tuple[str, ...] = ()  # of `DROPOUTS`: those that it has in its training
    slides: Callable[[Mapping[str, Any], int], bool] | None = None  # has a layer a window?
    layer_types: bool = False  # whether its config.json has layer_types
    switch: bool = False  # a window is in force only with use_sliding_window
    qkv_bias: bool = False  # always; else attention_bias decides, where it is read
    inner: int = 0  # how many times as wide the feed-forward layer is, where config.json does not say
    biases: bool = False  # all linear layers of a block have them
    grouped: bool = True  # config.json may say how many heads of keys there are, and how wide a head is
    layer_norm: bool = False  # norms take the mean away and have biases
    fused: bool = False  # q, k and v are one linear layer, and where the feed-forward layer is gated, gate and up too
    fused_by_head: bool = False  # where the first head's q, k and v stand before the second's
    gated: bool = True
    rotary: bool = True  # otherwise positions are embedded
    partial: bool = False  # config.json may say that a part of each head turns alone
    longrope: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    norm_after: bool = False
    multiplies: bool = False  # embeddings, scores, what is added, and logits are scaled by fields of config.json
    gemma: bool = False
    labels_rows: bool = True  # whether Hugging Face has a class of it that does
    labels_tokens: str = "score"  # what that class which labels tokens calls its head; "": there is none
    local_rope: bool = False  # layers with a window have their own rotary base
    no_rope: bool = False  # some layers have no rotary positions

    def spelled(self, name: str) -> str:
        return self.fields.get(name, name)


DROPOUTS = ("embed_dropout", "hidden_dropout", "attention_dropout")
BIASES = ("attention_bias", "mlp_bias")
GEMMA = {
    "num_attention_heads": 8,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
GEMMA2 = GEMMA | {"vocab_size": 256_000, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3 = GEMMA | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
SMOLLM3 = {"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True}
GRANITE = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
GPT2 = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "hidden_act": "gelu_new",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    **dict.fromkeys(DROPOUTS, 0.1),
}
PHI3 = {"rms_norm_eps": 1e-5, **dict.fromkeys(DROPOUTS[1:], 0.0)}
NEOX = {
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_parallel_residual": True,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    **dict.fromkeys(DROPOUTS, 0.0),
}
STARCODER2 = {
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "initializer_range": 0.018042,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    **dict.fromkeys(DROPOUTS, 0.0),
}
QWEN = {"sliding_window": 4096, "max_window_layers": 28}

SPECS = {
    "LlamaForCausalLM": DecoderSpec("llama", unread=()),
    "SmolLM3ForCausalLM": DecoderSpec(
        *("smollm3", SMOLLM3),
        unread=(),
        slides=lambda c, i: not has_rope(c, i),
        layer_types=True,
        switch=True,
        no_rope=True,
    ),
    "MistralForCausalLM": DecoderSpec(
        "mistral", {"num_key_value_heads": 8, "sliding_window": 4096}, unread=BIASES, slides=lambda c, i: True
    ),
    "Qwen2ForCausalLM": DecoderSpec(
        *("qwen2", QWEN),
        unread=BIASES,
        slides=lambda c, i: i >= c["max_window_layers"],
        layer_types=True,
        switch=True,
        qkv_bias=True,
    ),
    "Qwen3ForCausalLM": DecoderSpec(
        "qwen3",
        QWEN | {"head_dim": 128},
        Names(LINEARS | QK_NORMS | BEFORE),
        slides=lambda c, i: i >= c["max_window_layers"],
        layer_types=True,
        switch=True,
        qk_norm=True,
    ),
    "Olmo2ForCausalLM": DecoderSpec(
        "olmo2",
        {"rms_norm_eps": 1e-5},
        Names(LINEARS | QK_NORMS | AFTER),
        qk_norm=True,
        qk_norm_whole=True,
        norm_after=True,
        labels_tokens="",
    ),
    "GraniteForCausalLM": DecoderSpec(
        "granite", GRANITE, unread=(), multiplies=True, labels_rows=False, labels_tokens=""
    ),
    "Gemma2ForCausalLM": DecoderSpec(
        "gemma2", GEMMA2, Names(LINEARS | AROUND), slides=lambda c, i: i % 2 == 0, layer_types=True, gemma=True
    ),
    "Gemma3ForCausalLM": DecoderSpec(
        "gemma3_text",
        GEMMA3,
        Names(LINEARS | QK_NORMS | AROUND),
        unread=("mlp_bias", "attn_logit_softcapping"),
        slides=lambda c, i: (i + 1) % (c.get("sliding_window_pattern") or 6) != 0,
        layer_types=True,
        qk_norm=True,
        gemma=True,
        labels_tokens="",
        local_rope=True,
    ),
    "Phi3ForCausalLM": DecoderSpec(
        *("phi3", PHI3, PHI3_NAMES),
        fields={"hidden_dropout": "resid_pdrop"},
        unread=BIASES,
        dropouts=DROPOUTS[1:],
        slides=lambda c, i: True,
        fused=True,
        partial=True,
        longrope=True,
    ),
    "GPTNeoXForCausalLM": DecoderSpec(
        *("gpt_neox", NEOX, NEOX_NAMES),
        fields={
            "rms_norm_eps": "layer_norm_eps",
            "rope_theta": "rotary_emb_base",
            "partial_rotary_factor": "rotary_pct",
            "embed_dropout": "hidden_dropout",
        },
        dropouts=DROPOUTS,
        grouped=False,
        layer_norm=True,
        fused=True,
        fused_by_head=True,
        gated=False,
        partial=True,
        labels_tokens="classifier",
    ),
    "Starcoder2ForCausalLM": DecoderSpec(
        *("starcoder2", STARCODER2, STARCODER2_NAMES),
        fields={
            "rms_norm_eps": "norm_epsilon",
            "attention_bias": "use_bias",
            "mlp_bias": "use_bias",
            "embed_dropout": "embedding_dropout",
            "hidden_dropout": "residual_dropout",
        },
        unread=(),
        dropouts=DROPOUTS,
        slides=lambda c, i: True,
        layer_norm=True,
        gated=False,
    ),
    "GPT2LMHeadModel": DecoderSpec(
        *("gpt2", GPT2, GPT2_NAMES),
        fields={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "hidden_act": "activation_function",
            "rms_norm_eps": "layer_norm_epsilon",
            **dict(zip(DROPOUTS, ("embd_pdrop", "resid_pdrop", "attn_pdrop"), strict=True)),
        },
        also=("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        only={"add_cross_attention": False},
        dropouts=DROPOUTS,
        inner=4,
        biases=True,
        grouped=False,
        layer_norm=True,
        fused=True,
        gated=False,
        rotary=False,
        labels_tokens="classifier",
    ),
}


def stem(architecture: str) -> str:
    """What the names of Hugging Face's other classes of a family begin with."""
    name = architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return "Gemma3Text" if name == "Gemma3" else name


# A model without a head for words -> the same with one, which is its embedding here.
HEADLESS = {f"{stem(name)}Model": name for name in SPECS}
ARCHITECTURES = {name: spec.model_type for name, spec in SPECS.items()}
ARCHITECTURES |= {name: SPECS[whole].model_type for name, whole in HEADLESS.items()}


def has_rope(fields: Mapping[str, Any], layer: int) -> bool:
    layers = fields.get("no_rope_layers")  # in spite of its name, 1 stands for a layer that has it
    if layers is None:
        return bool((layer + 1) % fields.get("no_rope_layer_interval", 4))
    return bool(layers[layer])
