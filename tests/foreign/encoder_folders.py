"""Folders of tiny encoders that Microplane has no code for, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from tests.labels import save_wordpiece

WIDE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
DEBERTA = WIDE | {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
# model_type -> what differs from the family's own sizes
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": WIDE | {"embedding_size": 16, "inner_group_num": 2},  # of one there is code here
    "big_bird": WIDE | {"attention_type": "original_full"},
    "camembert": WIDE | {"pad_token_id": 1},
    "convbert": WIDE | {"embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 2},
    "data2vec-text": WIDE | {"pad_token_id": 1},
    "deberta": DEBERTA | {"share_att_key": False},
    "ernie": WIDE,
    "esm": WIDE | {"pad_token_id": 0, "mask_token_id": 4, "token_dropout": True, "position_embedding_type": "rotary"},
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 0,
                 "pad_token_id": 0},
    "fnet": WIDE | {"tpu_short_seq_length": 64},
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1], "block_repeats": [1, 1],
               "num_decoder_layers": 1},
    "gte": WIDE,
    "ibert": WIDE | {"pad_token_id": 1},
    "layoutlm": WIDE,
    "longformer": WIDE | {"attention_window": 4, "pad_token_id": 1},
    "luke": WIDE | {"entity_emb_size": 16, "entity_vocab_size": 9, "pad_token_id": 1},
    "megatron-bert": WIDE,
    "mobilebert": WIDE | {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "mra": WIDE,
    "nystromformer": WIDE | {"num_landmarks": 4, "segment_means_seq_len": 8},
    "rembert": WIDE | {"bos_token_id": 2, "eos_token_id": 3, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta-prelayernorm": WIDE | {"pad_token_id": 1},
    "roc_bert": WIDE | {"pronunciation_vocab_size": 9, "shape_vocab_size": 9},
    "roformer": WIDE | {"embedding_size": 32},
    "squeezebert": WIDE | {"embedding_size": 32},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 0},
    "xlm-roberta-xl": WIDE | {"pad_token_id": 1},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.2},
    "xmod": WIDE | {"pad_token_id": 1, "languages": ["en_XX"], "default_language": "en_XX"},
    "yoso": WIDE,
}  # fmt: skip


def encoder_net(name: str, vocabulary: int, masked: bool = False, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, vocab_size=vocabulary, **ENCODERS[name])
    config.architectures = ["FunnelModel"] if name == "funnel" else None  # which has two plain models
    net = (AutoModelForMaskedLM if masked else AutoModel).from_config(config)
    for name, parameter in net.named_parameters():  # as biases are that were trained
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return net.eval()


def save_encoder(folder: Path, name: str, masked: bool = False) -> Path:
    """The model with a WordPiece tokenizer in tokenizer.json."""
    folder.mkdir(parents=True)
    encoder_net(name, save_wordpiece(folder), masked).save_pretrained(folder)
    return folder
