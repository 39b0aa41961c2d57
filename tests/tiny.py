"""Tiny random models and data for tests: real code paths, milliseconds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_rows, load_splits
from microplane.data.store import Dataset
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.contract import Model
from microplane.models.decoder import Decoder
from microplane.models.encoder import Encoder
from microplane.models.families import family_of
from microplane.models.files.load import save_model
from microplane.objectives.denoising import SpanCorruption
from microplane.objectives.select import NEXT_TOKEN, AnySplits, TextCandidates
from microplane.objectives.seq2seq import Seq2Seq

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "initializer_range": 0.2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-tied": LLAMA,
    "llama-untied": LLAMA | {"tie_word_embeddings": False},
    "qwen2": LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "granite": LLAMA
    | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "olmo2": LLAMA | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 128,
        "initializer_range": 0.2,
    },
    "gpt_neox": LLAMA
    | {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
    },
    "phi3": LLAMA
    | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0, "tie_word_embeddings": False},
    "starcoder2": LLAMA
    | {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 4,
        **dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.1),
    },
    "gemma2": LLAMA
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}

SHALLOW: dict[str, Any] = {"num_hidden_layers": 1}
"""Of a folder's model that only has to be there: half the time of two layers."""

T5_SMALL: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,  # so that heads * d_kv is not d_model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
MARIAN: dict[str, Any] = {
    "architectures": ["MarianMTModel"],
    "model_type": "marian",
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "activation_function": "relu",
    "scale_embedding": True,
    "max_position_embeddings": 128,
    "dropout": 0.1,
    "pad_token_id": 96,
    "eos_token_id": 0,
    "decoder_start_token_id": 96,
}
BART: dict[str, Any] = MARIAN | {
    "architectures": ["BartForConditionalGeneration"],
    "model_type": "bart",
    "activation_function": "gelu",
    "scale_embedding": False,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "init_std": 0.2,
}
GEMMA_SIDE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
}
T5GEMMA: dict[str, Any] = {
    "architectures": ["T5GemmaForConditionalGeneration"],
    "model_type": "t5gemma",
    "encoder": GEMMA_SIDE,
    "decoder": GEMMA_SIDE,
    "vocab_size": 97,
    "dropout_rate": 0.1,
}
T5GEMMA2: dict[str, Any] = {
    "architectures": ["T5Gemma2ForConditionalGeneration"],
    "model_type": "t5gemma2",
    "encoder": {"text_config": GEMMA_SIDE | {"intermediate_size": 31}, "eoi_token_index": 11},
    "decoder": GEMMA_SIDE | {"sliding_window_pattern": 2},
    "dropout_rate": 0.1,
}
PAIR_CONFIGS: dict[str, dict[str, Any]] = {
    "t5": T5_SMALL,
    "t5-v1.0": T5_SMALL | {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "marian": MARIAN,
    "bart": BART,
    "mbart": BART
    | {"architectures": ["MBartForConditionalGeneration"], "model_type": "mbart", "scale_embedding": True},
    "m2m_100": BART
    | {
        "architectures": ["M2M100ForConditionalGeneration"],
        "model_type": "m2m_100",
        "activation_function": "relu",
        "scale_embedding": True,
    },
    "pegasus": BART
    | {
        "architectures": ["PegasusForConditionalGeneration"],
        "model_type": "pegasus",
        "activation_function": "relu",
        "scale_embedding": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    },
    "t5gemma": T5GEMMA | {"encoder": GEMMA_SIDE | {"hidden_size": 40, "intermediate_size": 31}},
    "t5gemma2": T5GEMMA2,
    "marian-apart": MARIAN | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 97},
}


def tiny_pairs(family: str = "t5", seed: int = 0) -> Model:
    """A frozen random encoder-decoder in eval mode, as `load_model` gives it."""
    model = family_of(PAIR_CONFIGS[family]).from_hf(PAIR_CONFIGS[family]).init_weights(seed)
    return model.requires_grad_(False).eval()


BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
ENCODER_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT | {"architectures": ["RobertaModel"], "model_type": "roberta", "pad_token_id": 1},
    "modernbert": BERT
    | {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "num_hidden_layers": 3,
        "global_attn_every_n_layers": 2,
        "local_attention": 6,
        "pad_token_id": 0,
    },
    "distilbert": {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "vocab_size": 97,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    },
    "electra": BERT | {"architectures": ["ElectraModel"], "model_type": "electra", "embedding_size": 16},
    "albert": BERT
    | {"architectures": ["AlbertModel"], "model_type": "albert", "embedding_size": 16, "hidden_dropout_prob": 0.1},
    "mpnet": BERT | {"architectures": ["MPNetModel"], "model_type": "mpnet", "pad_token_id": 1},
    "nomic": BERT | {"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "hidden_act": "silu"},
    "eurobert": BERT
    | {
        "architectures": ["EuroBertModel"],
        "model_type": "eurobert",
        "hidden_act": "silu",
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    },
    "deberta": BERT
    | {
        "architectures": ["DebertaV2Model"],
        "model_type": "deberta-v2",
        "relative_attention": True,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "position_buckets": 8,
        "conv_kernel_size": 3,
    },
}


def tiny_encoder(family: str = "bert", seed: int = 0) -> Encoder:
    """A frozen random encoder in eval mode, without a task head."""
    return Encoder.from_hf(ENCODER_CONFIGS[family]).init_weights(seed).requires_grad_(False).eval()


def tiny(family: str = "llama-tied", seed: int = 0) -> Decoder:
    """A frozen random model in eval mode, as `load_model` gives it."""
    model = Decoder(DecoderConfig.from_hf(CONFIGS[family])).init_weights(seed)
    return model.requires_grad_(False).eval()


class MemoryDataset:
    """Rows in memory with the interface of `microplane.data.store.Dataset`."""

    features = None

    def __init__(self, rows: list[tuple[list[int], list[bool]]]):
        self.rows = [(np.array(ids, np.int32), np.array(mask, np.bool_)) for ids, mask in rows]
        self.lengths = np.array([len(ids) for ids, _ in self.rows], np.int32)
        self.trained_counts = np.array([int(mask.sum()) for _, mask in self.rows], np.int32)
        self.fingerprint = "memory"

    @property
    def highest_id(self) -> int:
        return max(int(ids.max()) for ids, _ in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut where the first target stands."""
        ids, mask = self[index]
        return ids[: int(np.argmax(mask))], ids[int(np.argmax(mask)) :]

    def segments(self, index: int) -> np.ndarray:
        return np.zeros(len(self.rows[index][0]), np.bool_)

    def at(self, epoch: int) -> MemoryDataset:
        return self

    def where(self, index: int) -> str:
        return f"memory:{index + 1}"


PAIRS = TextCandidates(Seq2Seq(), SpanCorruption())
"""What an encoder-decoder may be trained for; `NEXT_TOKEN` is what a decoder may."""


def text_splits(knobs: DataKnobs, tokenizer: Any, progress: Any = None) -> AnySplits:
    """The data as a decoder takes it."""
    return load_splits(knobs, tokenizer, NEXT_TOKEN, progress)


def text_rows(knobs: DataKnobs, tokenizer: Any) -> Dataset:
    """The rows to measure on, as a decoder takes them."""
    return load_rows(knobs, tokenizer, NEXT_TOKEN)[0]


def copy_task(rows: int = 64, vocabulary: int = 97, seed: int = 0) -> MemoryDataset:
    """Rows `a b c 1 a b c`: the second half repeats the first and is what is trained."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        half = rng.integers(2, vocabulary, rng.integers(2, 7)).tolist()
        made.append(([0, *half, 1, *half], [False] * (len(half) + 2) + [True] * len(half)))
    return MemoryDataset(made)


def logits(model: Any, dataset: MemoryDataset, rows: int = 4) -> torch.Tensor:
    from microplane.nn.rows import Rows

    with torch.no_grad():
        return model.logits(model(Rows.of([dataset[i][0].tolist() for i in range(rows)])))


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_byte_tokenizer(folder: Path, ends: bool = False) -> int:
    """Bytes behind <pad>, </s>, <unk> and 40 sentinels, as an encoder-decoder has them; returns the number of tokens.

    With `ends`, every text is followed by </s>.
    """
    specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(40))]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(specials + letters)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    if ends:
        backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return len(vocabulary)


def save_tiny_folder(folder: Path, family: str = "llama-tied", **changes: Any) -> Path:
    """A tiny model with a byte-level tokenizer and a chat template, in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(specials + letters)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    backend.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_end|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    fields = CONFIGS[family] | {"vocab_size": len(vocabulary), "eos_token_id": 2, "bos_token_id": 1, **changes}
    model = Decoder(DecoderConfig.from_hf(fields)).init_weights(0)
    model.source_config = {"pad_token_id": fields["pad_token_id"]} if "pad_token_id" in fields else None
    save_model(model, folder)
    return folder
