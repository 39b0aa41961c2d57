"""The encoder families: what a config.json leaves out, how Hugging Face calls the modules, how its heads are laid out.

A new family is an entry in `SPECS`, and in models/encoder.py what it computes otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from microplane.models.configs.form import Form


@dataclass(frozen=True)
class Names:
    """Our module -> Hugging Face's, in the model without a head."""

    stack: str  # the list of blocks
    tables: Mapping[str, str]  # what has a weight alone
    around: Mapping[str, str]  # what has a bias too, outside of the blocks; where the configuration has it
    block: Mapping[str, str]
    unused: tuple[str, ...]  # modules of heads of pre-training
    kept: tuple[str, ...] = ()  # those of their modules that a task head may begin with
    has_pooler: bool = False  # whether Hugging Face's model without a head contains them


@dataclass(frozen=True)
class EncoderSpec:
    """Properties of an architecture that its config.json does not say."""

    model_type: str
    prefix: str  # what stands before the names of its tensors in a model with a head
    defaults: dict[str, Any]  # of fields that config.json may leave out
    names: Names
    rows: Form  # the head of Hugging Face's class that labels rows; `plain` and `prefix` are filled in
    tokens: Form = Form("", "classifier", tokens=True)  # noqa: RUF009 - frozen
    fields: Mapping[str, str] = field(default_factory=dict)  # BERT's name of a field -> how this family spells it
    also: tuple[str, ...] = ()  # those of `fields` that may go by BERT's name too
    modern: bool = False  # ModernBERT's configuration: windows, each kind of layer with its own rotary base
    norm_before: bool = False  # the norm of a sub-layer stands before it, and one behind the last block
    norms_embeddings: bool = True
    rms: bool = False  # norms take no mean away
    fused: bool = False  # q, k and v are one linear layer, and gate and up too
    gated: bool = False  # the feed-forward layer is down(act(gate(x)) * up(x))
    rotary: bool = False  # positions turn queries and keys, in all layers alike, and are not embedded
    counts_from_pad: bool = False  # positions begin behind the number of the pad token
    first_position: int = 0  # or always here
    drops_attention: bool = True  # dropout of the attention's output
    drops_mlp: bool = True  # and of the feed-forward layer's
    always_projects: bool = False  # a linear layer follows embeddings that are as wide as the blocks, too

    def spelled(self, name: str) -> str:
        return self.fields.get(name, name)


BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
NO_SEGMENTS = {name: value for name, value in BERT.items() if name != "type_vocab_size"}
ROBERTA = BERT | {"vocab_size": 50265, "pad_token_id": 1}
MODERNBERT: dict[str, Any] = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "pad_token_id": 50283,
}
EUROBERT = {
    "vocab_size": 128256,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 128001,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "classifier_dropout": 0.0,  # its classes have none
}
NOMIC = BERT | {
    "vocab_size": 30528,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 2048,
    "rope_theta": 1000.0,
}
DISTILBERT = NO_SEGMENTS | {"num_hidden_layers": 6, "seq_classif_dropout": 0.2}
ELECTRA = BERT | {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
ALBERT = BERT | {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "classifier_dropout_prob": 0.1,
}
MPNET = NO_SEGMENTS | {"vocab_size": 30527, "pad_token_id": 1, "relative_attention_num_buckets": 32}
DEBERTA = NO_SEGMENTS | {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
    "position_biased_input": True,
    "conv_kernel_size": 0,
    "conv_groups": 1,
    "conv_act": "tanh",
    "pos_att_type": [],  # and the other fields of `nn.disentangled.Distances`
}

WORDS = {"embed": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings"}
SEGMENTS = WORDS | {"types": "embeddings.token_type_embeddings"}
BERT_BLOCK = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
BERT_NAMES = Names(
    stack="encoder.layer",
    tables=SEGMENTS,
    around={"embed_norm": "embeddings.LayerNorm"},
    block=BERT_BLOCK,
    unused=("cls", "lm_head", "pooler"),
    kept=("pooler.dense",),
    has_pooler=True,
)
MODERNBERT_NAMES = Names(
    stack="layers",
    tables={"embed": "embeddings.tok_embeddings"},
    around={"embed_norm": "embeddings.norm", "norm": "final_norm"},
    block={
        "attention_norm": "attn_norm",
        "attention.qkv": "attn.Wqkv",
        "attention.o": "attn.Wo",
        "mlp_norm": "mlp_norm",
        "mlp.gate_up": "mlp.Wi",
        "mlp.down": "mlp.Wo",
    },
    unused=("head", "decoder"),
    kept=("head.dense", "head.norm"),
)
DISTILBERT_NAMES = Names(
    stack="transformer.layer",
    tables=WORDS,
    around={"embed_norm": "embeddings.LayerNorm"},
    block={
        **{f"attention.{role}": f"attention.{role}_lin" for role in ("q", "k", "v")},
        "attention.o": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "mlp.up": "ffn.lin1",
        "mlp.down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    },
    unused=("vocab_transform", "vocab_layer_norm", "vocab_projector"),
)
ELECTRA_NAMES = Names(
    stack="encoder.layer",
    tables=SEGMENTS,
    around={"embed_norm": "embeddings.LayerNorm", "embed_project": "embeddings_project"},
    block=BERT_BLOCK,
    unused=("discriminator_predictions", "generator_predictions", "generator_lm_head"),
)
ALBERT_NAMES = Names(
    stack="encoder.albert_layer_groups",
    tables=SEGMENTS,
    around={"embed_norm": "embeddings.LayerNorm", "embed_project": "encoder.embedding_hidden_mapping_in"},
    block={
        "attention.q": "albert_layers.0.attention.query",
        "attention.k": "albert_layers.0.attention.key",
        "attention.v": "albert_layers.0.attention.value",
        "attention.o": "albert_layers.0.attention.dense",
        "attention_norm": "albert_layers.0.attention.LayerNorm",
        "mlp.up": "albert_layers.0.ffn",
        "mlp.down": "albert_layers.0.ffn_output",
        "mlp_norm": "albert_layers.0.full_layer_layer_norm",
    },
    unused=("predictions", "sop_classifier", "pooler"),
    kept=("pooler",),
    has_pooler=True,
)
MPNET_NAMES = Names(
    stack="encoder.layer",
    tables=WORDS | {"relative": "encoder.relative_attention_bias"},
    around={"embed_norm": "embeddings.LayerNorm"},
    block={
        **{f"attention.{role}": f"attention.attn.{role}" for role in ("q", "k", "v", "o")},
        "attention_norm": "attention.LayerNorm",
        **{name: theirs for name, theirs in BERT_BLOCK.items() if name.startswith("mlp")},
    },
    unused=("lm_head", "pooler"),
    kept=("pooler.dense",),
    has_pooler=True,
)
DEBERTA_NAMES = Names(
    stack="encoder.layer",
    tables=SEGMENTS | {"distances.table": "encoder.rel_embeddings"},
    around={
        "embed_norm": "embeddings.LayerNorm",
        "distances.norm": "encoder.LayerNorm",
        "conv.conv": "encoder.conv.conv",
        "conv.norm": "encoder.conv.LayerNorm",
    },
    block=BERT_BLOCK
    | {
        "attention.q": "attention.self.query_proj",
        "attention.k": "attention.self.key_proj",
        "attention.v": "attention.self.value_proj",
        "attention.distance_k": "attention.self.pos_key_proj",
        "attention.distance_q": "attention.self.pos_query_proj",
    },
    unused=("cls", "lm_predictions", "mask_predictions", "pooler"),
    kept=("pooler.dense",),
)

DECODERS_BLOCK = {
    **{f"attention.{role}": f"self_attn.{role}_proj" for role in ("q", "k", "v", "o")},
    **{f"mlp.{role}": f"mlp.{role}_proj" for role in ("gate", "up", "down")},
}
EUROBERT_NAMES = Names(
    stack="layers",
    tables={"embed": "embed_tokens"},
    around={"norm": "norm"},
    block=DECODERS_BLOCK | {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    unused=("lm_head",),
)
NOMIC_NAMES = Names(
    stack="layers",
    tables={"embed": "embeddings.word_embeddings", "types": "embeddings.token_type_embeddings"},
    around={"embed_norm": "embeddings.LayerNorm"},
    block=DECODERS_BLOCK | {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_mlp_layernorm"},
    unused=("cls", "pooler"),
    kept=("pooler.dense",),
)

BERT_ROWS = Form("", "classifier", dense="bert.pooler.dense")
ROBERTA_ROWS = Form("", "classifier.out_proj", dense="classifier.dense", dropout_first=True)
MODERN_ROWS = Form(
    *("", "classifier"),
    dense="head.dense",
    norm="head.norm",
    activation="gelu",
    activation_field="classifier_activation",
    poolings=("cls", "mean"),
)
EUROBERT_ROWS = Form(
    *("", "classifier"),
    dense="dense",
    activation="gelu",
    poolings=("cls", "mean"),
    pooling_names={"cls": "bos"},
    usual_pooling="late",  # scores of each token are pooled, which is not done here
)

SPECS = {
    "BertModel": EncoderSpec("bert", "bert.", BERT, BERT_NAMES, BERT_ROWS),
    "RobertaModel": EncoderSpec("roberta", "roberta.", ROBERTA, BERT_NAMES, ROBERTA_ROWS, counts_from_pad=True),
    "XLMRobertaModel": EncoderSpec(
        "xlm-roberta", "roberta.", ROBERTA | {"vocab_size": 30522}, BERT_NAMES, ROBERTA_ROWS, counts_from_pad=True
    ),
    "ModernBertModel": EncoderSpec(
        *("modernbert", "model.", MODERNBERT, MODERNBERT_NAMES),
        rows=MODERN_ROWS,
        tokens=replace(MODERN_ROWS, tokens=True),
        modern=True,
        norm_before=True,
        fused=True,
        gated=True,
    ),
    "EuroBertModel": EncoderSpec(
        *("eurobert", "model.", EUROBERT, EUROBERT_NAMES),
        rows=EUROBERT_ROWS,
        norm_before=True,
        norms_embeddings=False,
        rms=True,
        gated=True,
        rotary=True,
    ),
    "NomicBertModel": EncoderSpec(
        *("nomic_bert", "nomic_bert.", NOMIC, NOMIC_NAMES),
        rows=replace(BERT_ROWS, dense="nomic_bert.pooler.dense"),
        gated=True,
        rotary=True,
    ),
    "DistilBertModel": EncoderSpec(
        *("distilbert", "distilbert.", DISTILBERT, DISTILBERT_NAMES),
        rows=Form("", "classifier", dense="pre_classifier", activation="relu", dropout="seq_classif_dropout"),
        tokens=Form("", "classifier", tokens=True, dropout=None),
        fields={
            "hidden_size": "dim",
            "intermediate_size": "hidden_dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
        },
        also=("hidden_size", "num_hidden_layers", "num_attention_heads"),
        drops_attention=False,
    ),
    "ElectraModel": EncoderSpec(
        *("electra", "electra.", ELECTRA, ELECTRA_NAMES),
        rows=Form("", "classifier.out_proj", dense="classifier.dense", activation="gelu", dropout_first=True),
    ),
    "AlbertModel": EncoderSpec(
        *("albert", "albert.", ALBERT, ALBERT_NAMES),
        rows=Form("", "classifier", dense="albert.pooler", dropout="classifier_dropout_prob"),
        tokens=Form("", "classifier", tokens=True, dropout="classifier_dropout_prob"),
        drops_mlp=False,
        always_projects=True,
    ),
    "MPNetModel": EncoderSpec(
        *("mpnet", "mpnet.", MPNET, MPNET_NAMES),
        rows=Form("", "classifier.out_proj", dense="classifier.dense", dropout_first=True, dropout=None),
        tokens=Form("", "classifier", tokens=True, dropout=None),
        first_position=2,
    ),
    "DebertaV2Model": EncoderSpec(
        *("deberta-v2", "deberta.", DEBERTA, DEBERTA_NAMES),
        rows=Form(
            *("", "classifier"),
            dense="pooler.dense",
            activation="gelu",
            activation_field="pooler_hidden_act",
            dropout="cls_dropout",
        ),
        tokens=Form("", "classifier", tokens=True, dropout=None),
    ),
}
# A class with a head that is of no use here, by the end of its name -> the modules of that head which no other class of
# the family has.
LEFT_OUT = {
    "ForMaskedLM": (),
    "ForPreTraining": (),
    "ForNextSentencePrediction": (),
    "ForQuestionAnswering": ("qa_outputs", "classifier"),
    "ForMultipleChoice": ("classifier", "pre_classifier", "sequence_summary"),
}
PRETRAINED = {f"{plain.removesuffix('Model')}{end}": plain for plain in SPECS for end in LEFT_OUT}  # -> the model alone


def heads_left_out(architecture: str) -> tuple[str, ...]:
    """Modules of a class of Hugging Face's that its model alone lacks, beside those of pre-training."""
    return next((modules for end, modules in LEFT_OUT.items() if architecture.endswith(end)), ())


def left_to_transformers(fields: Mapping[str, Any]) -> bool:
    """Whether it is a form of one of these families that transformers alone reads: a NomicBERT in the layout of its
    authors' own code, or an ALBERT whose groups have several blocks each, which no published one has."""
    if fields.get("model_type") == "albert":
        return bool(fields.get("inner_group_num", 1) != 1)
    return fields.get("model_type") == "nomic_bert" and "n_embd" in fields


ARCHITECTURES = {name: spec.model_type for name, spec in SPECS.items()}
ARCHITECTURES |= {name: SPECS[plain].model_type for name, plain in PRETRAINED.items()}
