"""The families of the matrix: those of the contract, and the product's other ones, heads, transformers' models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from microplane.models.contract import Model
from microplane.models.families import MODEL_TYPES
from microplane.models.heads import add_head
from microplane.objectives import HEAD_OBJECTIVES
from microplane.objectives.classification import Classification
from microplane.objectives.head import HeadObjective
from microplane.objectives.seq2seq import Seq2Seq
from tests.contract.families import FAMILIES as CONTRACT
from tests.contract.families import Family, Parity, _maker
from tests.contract.test_methods import REFUSED as CONTRACT_REFUSED
from tests.tiny import CONFIGS, ENCODER_CONFIGS, LLAMA, PAIR_CONFIGS, T5_SMALL, copy_task

WIDE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 4}
GEMMA3 |= {"query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 2}


@dataclass(frozen=True)
class WithHead(Family):
    """A model whose task head is not one of two classes."""

    def build(self, dtype: torch.dtype = torch.float32) -> Model:
        model = self.make().to(dtype)
        add_head(model, self.objective.name, ["one", "two", "three"])
        return model.requires_grad_(False).eval()


class Labelled(Parity):
    """Rows, and for each what a head of three is to say of it."""

    def __init__(self, rows: list[Any], task: str):
        super().__init__(rows)
        self.task = task
        if task == "tokens":
            self.trained_counts = self.lengths.copy()

    def labels(self, index: int) -> np.ndarray:
        ids = self.rows[index][0]
        if self.task == "tokens":
            return (ids % 3).astype(np.float32)
        if self.task == "classification":
            return np.array([ids[2] % 3], np.float32)
        parities = (ids[:3] % 2).astype(np.float32)
        return parities if self.task == "multilabel" else parities - 0.5


def decoder(fields: dict[str, Any]) -> Family:
    return Family(_maker(fields), copy_task())


def pairs(fields: dict[str, Any]) -> Family:
    return Family(_maker(fields), copy_task(), objective=Seq2Seq())


def encoder(fields: dict[str, Any]) -> Family:
    return Family(_maker(fields), Parity(copy_task().rows), lr=2e-3, objective=Classification())


def labelled(fields: dict[str, Any], objective: HeadObjective) -> Family:
    return WithHead(_maker(fields), Labelled(copy_task().rows, objective.name), lr=2e-3, objective=objective)


def of_type(fields: dict[str, Any], name: str, architecture: str) -> dict[str, Any]:
    return fields | {"model_type": name, "architectures": [architecture]}


OURS = {
    **{name: decoder(CONFIGS[name]) for name in CONFIGS if name not in CONTRACT},
    "mistral": decoder(of_type(LLAMA, "mistral", "MistralForCausalLM") | {"sliding_window": 4}),
    "smollm3": decoder(of_type(LLAMA, "smollm3", "SmolLM3ForCausalLM") | {"num_hidden_layers": 4}),
    "gemma3_text": decoder(LLAMA | GEMMA3),
    **{name: pairs(PAIR_CONFIGS[name]) for name in PAIR_CONFIGS if name not in CONTRACT},
    "mt5": pairs(of_type(T5_SMALL, "mt5", "MT5ForConditionalGeneration")),
    "umt5": pairs(of_type(T5_SMALL, "umt5", "UMT5ForConditionalGeneration")),
    **{name: encoder(ENCODER_CONFIGS[name]) for name in ENCODER_CONFIGS if name not in CONTRACT},
    "xlm-roberta": encoder(of_type(ENCODER_CONFIGS["roberta"], "xlm-roberta", "XLMRobertaModel")),
}
THROUGH_TRANSFORMERS = {  # one of each kind
    "opt": decoder(of_type(WIDE, "opt", "OPTForCausalLM") | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "plbart": pairs(of_type(PAIR_CONFIGS["bart"], "plbart", "PLBartForConditionalGeneration") | {"init_std": 0.2}),
    "ernie": encoder(of_type(WIDE, "ernie", "ErnieModel")),
}
FAMILIES = {**CONTRACT, **OURS, **THROUGH_TRANSFORMERS}
BASES = {"llama-tied": CONFIGS["llama-tied"], "t5": PAIR_CONFIGS["t5"], "bert": ENCODER_CONFIGS["bert"]}
BASES |= {"ernie": of_type(WIDE, "ernie", "ErnieModel")}
HEADS = {  # every task on every kind of model
    f"{base}+{task}": labelled(fields, objective)
    for base, fields in BASES.items()
    for task, objective in HEAD_OBJECTIVES.items()
}
REFUSED = CONTRACT_REFUSED | {
    **{
        ("bitfit", name): "trains biases"
        for name in ("llama-untied", "qwen3", "mistral", "smollm3", "gemma3_text", "gemma2", "t5-v1.0", "mt5", "umt5")
    },
    ("bitfit", "modernbert"): "trains biases",
    **{
        ("head-only", name): "has no head of its own to train"
        for name in ("gemma2", "qwen2", "qwen3", "mistral", "smollm3", "gemma3_text", "t5-v1.0", "marian-apart")
    },
    ("ia3", "modernbert"): "q, k, v are one linear layer here, qkv",
    ("ia3", "ernie"): "'down' name no linear layer",
    **{
        (method, name): "that Microplane's own models keep open"
        for method in ("bottleneck", "prompt", "prefix")
        for name in THROUGH_TRANSFORMERS
    },
    **{("last-n", name): "needs to know which blocks a model has" for name in THROUGH_TRANSFORMERS},
    **{("head-only", name): "needs to know which blocks a model has" for name in ("opt", "plbart")},
}
"""What cannot be, and how it is told; tests/contract/test_methods.py sees to those of the contract."""
WITH_HEADS = ("lora", "dora", "prompt", "bottleneck", "full", "head-only", "last-n")


def model_types() -> set[str]:
    """All that the product has code for."""
    return set(MODEL_TYPES.values())


def built_types() -> set[str]:
    """Those of the matrix's families."""
    return {MODEL_TYPES[family.make().config.architecture] for family in (CONTRACT | OURS).values()}
