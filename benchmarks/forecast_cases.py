"""The runs that `forecast.py` forecasts and measures: models, methods, lengths, formats, and what else counts."""

from __future__ import annotations

from typing import Any

DECODER, ENCODER, T5, TINY, GPT2, QWEN, BERT, BART = "smollm2", "minilm", "t5", "tiny", "gpt2", "qwen", "bert", "bart"
LLAMA = "llama"
T5_SHAPE = {  # of t5-small v1.1, without its weights
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
TINY_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}

LLAMA_SHAPE = {  # of SmolLM2, with a fifth of its blocks
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
GPT2_SHAPE = {  # of distilgpt2
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 6,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
}
QWEN_SHAPE = {  # of Qwen2.5-0.5B, with a third of its blocks
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 8,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
BERT_SHAPE = {  # of bert-base
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 1048,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
BART_SHAPE = {  # of distilbart
    "architectures": ["BartForConditionalGeneration"],
    "model_type": "bart",
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "activation_function": "gelu",
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    T5: T5_SHAPE,
    TINY: TINY_SHAPE,
    LLAMA: LLAMA_SHAPE,
    GPT2: GPT2_SHAPE,
    QWEN: QWEN_SHAPE,
    BERT: BERT_SHAPE,
    BART: BART_SHAPE,
}
LABELLED = (ENCODER, BERT)  # learn labels whatever is said


def case(
    model: str, method: str, length: int, dtype: str = "auto", recompute: str = "none", **more: Any
) -> dict[str, Any]:
    """One run.

    Args:
        more: `task` of a head (classification, regression, tokens), `optimizer`, or other knobs of `train`.
    """
    return {"model": model, "method": method, "length": length, "dtype": dtype, "recompute": recompute} | more


CASES = [
    case(DECODER, "lora", 32, "bfloat16"),
    case(DECODER, "lora", 128, "bfloat16"),
    case(DECODER, "lora", 256, "float32"),
    case(DECODER, "lora", 512, "bfloat16"),
    case(DECODER, "lora", 1024, "bfloat16"),
    case(DECODER, "lora", 256, "bfloat16", "blocks"),
    case(DECODER, "lora", 512, "float32", "blocks"),
    case(DECODER, "lora", 256, "bfloat16", "cheap"),
    case(DECODER, "lora", 1024, "int8", "cheap"),
    case(DECODER, "lora", 256, "int8"),
    case(DECODER, "qlora", 256, "nf4"),
    case(DECODER, "qlora", 64, "nf4"),
    case(DECODER, "qlora", 512, "nf4", "blocks"),
    case(DECODER, "dora", 128, "bfloat16"),
    case(DECODER, "ia3", 256, "bfloat16"),
    case(DECODER, "vera", 128, "float32"),
    case(DECODER, "prefix", 256, "bfloat16"),
    case(DECODER, "bottleneck", 128, "bfloat16"),
    case(DECODER, "full", 128, "bfloat16"),
    case(DECODER, "full", 256, "float32", "blocks"),
    case(DECODER, "last-n", 128, "float32"),
    case(DECODER, "norms", 64, "bfloat16"),
    case(ENCODER, "lora", 64, "float32"),
    case(ENCODER, "lora", 256, "bfloat16"),
    case(ENCODER, "full", 128, "float32"),
    case(ENCODER, "full", 256, "bfloat16", "blocks"),
    case(ENCODER, "head-only", 128, "float32"),
    case(ENCODER, "bitfit", 256, "float32"),
    case(ENCODER, "qlora", 128, "nf4"),
    case(T5, "full", 64, "bfloat16"),
    case(T5, "full", 256, "float32"),
    case(T5, "full", 512, "bfloat16", "blocks"),
    case(T5, "lora", 256, "bfloat16"),
    case(T5, "lora", 1024, "bfloat16", "cheap"),
    case(T5, "qlora", 128, "nf4"),
    case(TINY, "lora", 64, "float32"),
    case(TINY, "full", 512, "float32"),
]

NEW = [
    case(DECODER, "lora", 64, "float32"),
    case(DECODER, "qlora", 128, "nf4", "cheap"),
    case(DECODER, "full", 32, "float32", optimizer="adafactor"),
    case(DECODER, "lora", 64, "float32", task="classification"),
    case(DECODER, "ia3", 128, "int8", "blocks"),
    case(LLAMA, "lora", 1024, "float32", "cheap"),
    case(LLAMA, "lora", 512, "int8", "blocks"),
    case(LLAMA, "dora", 256, "float32", "cheap"),
    case(LLAMA, "full", 128, "float32", "cheap", optimizer="adamw_8bit"),
    case(LLAMA, "prompt", 256, "float32"),
    case(LLAMA, "vera", 512, "int8", "blocks"),
    case(GPT2, "bitfit", 128, "float32"),
    case(ENCODER, "full", 32, "float32", optimizer="adamw_8bit"),
    case(ENCODER, "full", 256, "float32", optimizer="adafactor"),
    case(ENCODER, "dora", 128, "float32", task="regression"),
    case(ENCODER, "lora", 256, "int8", task="tokens"),
    case(ENCODER, "last-n", 256, "float32", "blocks"),
    case(BERT, "lora", 512, "float32", "blocks"),
    case(BERT, "full", 64, "float32", task="tokens"),
    case(BERT, "qlora", 256, "nf4"),
    case(BERT, "bottleneck", 32, "float32"),
    case(BERT, "head-only", 512, "float32"),
    case(BERT, "lora", 1024, "int8", "cheap", task="regression"),
    case(T5, "lora", 512, "float32"),
    case(T5, "full", 128, "float32", optimizer="adafactor"),
    case(T5, "qlora", 512, "nf4", "blocks"),
    case(T5, "ia3", 64, "int8"),
    case(T5, "full", 256, "float32", "cheap"),
    case(BART, "lora", 256, "float32"),
    case(BART, "full", 64, "float32", "blocks"),
    case(BART, "bottleneck", 256, "int8", "cheap"),
    case(GPT2, "lora", 512, "float32"),
    case(GPT2, "full", 128, "float32", "blocks", optimizer="adafactor"),
    case(GPT2, "qlora", 1024, "nf4", "cheap"),
    case(GPT2, "norms", 32, "float32"),
    case(QWEN, "lora", 128, "float32"),
    case(QWEN, "qlora", 256, "nf4", "blocks"),
    case(QWEN, "last-n", 64, "float32"),
    case(QWEN, "prefix", 128, "int8"),
    case(TINY, "lora", 1024, "float32", "cheap"),
    case(TINY, "full", 32, "float32", optimizer="adamw_8bit"),
]
