"""The Transformer of 2017 (arXiv 1706.03762): an encoder that reads and a decoder that writes. Loads Marian's files.

    T   tokens of all rows, side by side       D   model width (d_model)
    S   tokens of all source rows              M   width of the feed-forward layer
    H   heads                                  V   vocabulary
    Dh  width of a head (D / H)                K   positions whose logits are wanted

The paper's model is this one with activation relu and scale_embedding; Marian's published ones (Helsinki-NLP) take
swish. All is as in the paper, section 3: norms behind the sum, biases, one table for source, target and head (3.4).
Two things are Marian's: positions have all sines before all cosines (nn/position.py), and the head adds a bias that
does not train.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.models.contract import Model, Writing
from microplane.models.transformer_config import ARCHITECTURES, TransformerConfig
from microplane.nn.attention import Sight, attend, attend_to
from microplane.nn.cache import Cache, PairCache
from microplane.nn.dropout import dropout
from microplane.nn.layers import MLP, LayerNorm, Linear
from microplane.nn.position import sinusoids
from microplane.nn.rows import Pairs, Rows, to_grid

Memory = tuple[Tensor, Tensor]  # keys and values (B, H, L, Dh) of the rows that were read


class Attention(nn.Module):
    """Of a row to itself."""

    def __init__(self, width: int, heads: int, share: float, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.share = layer, width // heads, share
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.prefix: nn.Module | None = None  # a socket: gives keys and values (H, P, Dh) that every row sees first

    def heads(self, linear: nn.Module, x: Tensor) -> Tensor:  # (T, D) -> (T, H, Dh)
        return linear(x).unflatten(-1, (-1, self.head_dim))

    @property
    def extras(self) -> dict[str, Any]:
        prefix = None if self.prefix is None else self.prefix()
        return {"dropout": self.share if self.training else 0.0, "prefix": prefix}

    def forward(self, x: Tensor, sight: Sight, cache: Cache | None = None) -> Tensor:  # (T, D) -> (T, D)
        q, k, v = (self.heads(linear, x) for linear in (self.q, self.k, self.v))
        mixed = attend(q, k, v, sight, self.scale, cache=cache, layer=self.layer, **self.extras)
        return self.o(mixed.flatten(1))


class CrossAttention(Attention):
    """Of a target row to what the encoder made of its source row."""

    def memory(self, states: Tensor, rows: Rows) -> Memory:  # states (S, D)
        k, v = (to_grid(self.heads(linear, states), rows).transpose(1, 2) for linear in (self.k, self.v))
        return k, v

    def forward(self, x: Tensor, memory: Memory, sight: Sight) -> Tensor:  # type: ignore[override]
        mixed = attend_to(self.heads(self.q, x), *memory, sight, self.scale, **self.extras)
        return self.o(mixed.flatten(1))


class EncoderBlock(nn.Module):
    def __init__(self, config: TransformerConfig, heads: int, inner: int, layer: int):
        super().__init__()
        D = config.hidden_size
        self.share = config.dropout
        self.attention = Attention(D, heads, config.attention_dropout, layer)
        self.attention_socket = nn.Identity()
        self.attention_norm = LayerNorm(D)
        self.mlp = MLP(D, inner, config.activation, bias=True, share=config.activation_dropout)
        self.mlp_socket = nn.Identity()
        self.mlp_norm = LayerNorm(D)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + dropout(y, self.share, self.training)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:  # (S, D) -> (S, D)
        x = self.attention_norm(self.add(x, self.attention_socket(self.attention(x, sight))))
        return self.mlp_norm(self.add(x, self.mlp_socket(self.mlp(x))))


class DecoderBlock(EncoderBlock):
    def __init__(self, config: TransformerConfig, heads: int, inner: int, layer: int):
        super().__init__(config, heads, inner, layer)
        self.cross_attention = CrossAttention(config.hidden_size, heads, config.attention_dropout, layer)
        self.cross_attention_socket = nn.Identity()
        self.cross_attention_norm = LayerNorm(config.hidden_size)

    def forward(  # type: ignore[override]
        self, x: Tensor, sight: Sight, memory: Memory, across: Sight, cache: Cache | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        x = self.attention_norm(self.add(x, self.attention_socket(self.attention(x, sight, cache))))
        y = self.cross_attention_socket(self.cross_attention(x, memory, across))
        x = self.cross_attention_norm(self.add(x, y))
        return self.mlp_norm(self.add(x, self.mlp_socket(self.mlp(x))))


class Stack(nn.Module):
    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Transformer(Model):
    """A sequence-to-sequence model; see models/contract.py for what its parts are called.

    `embed` is the table of the source and, where the two are shared, of the target; else `target_embed` is the latter.
    The pad is the target's start token; its row of the table gets no gradient as an input.
    """

    ARCHITECTURES: ClassVar[dict[str, str]] = ARCHITECTURES
    KIND: ClassVar[str] = "encoder-decoder"
    config: TransformerConfig
    embed: nn.Embedding
    head: nn.Linear | None
    final_logits_bias: Tensor  # (1, V)

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        D, V = config.hidden_size, config.vocab_size
        pad = config.pad if config.pad < config.source_vocab_size else None
        self.embed = nn.Embedding(config.source_vocab_size, D, pad)
        self.target_embed = None if config.shared else nn.Embedding(V, D, config.pad)
        self.prelude = nn.Identity()
        read = (config.encoder_heads, config.encoder_inner)
        written = (config.decoder_heads, config.decoder_inner)
        self.encoder = Stack(EncoderBlock(config, *read, layer) for layer in range(config.encoder_layers))
        self.decoder = Stack(DecoderBlock(config, *written, layer) for layer in range(config.decoder_layers))
        self.head = None if config.tied else Linear(D, V, bias=False)
        self.register_buffer("final_logits_bias", torch.zeros(1, V))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Transformer:
        return cls(TransformerConfig.from_hf(fields))

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """Hidden states of the target rows after the last norm: (T, D).

        Without a cache it takes `Pairs`; with one (of `open`) only target rows, which go on from what it holds.
        """
        memories: Iterable[Memory]
        if isinstance(cache, PairCache):
            assert isinstance(rows, Rows), "the cache holds what was read"
            target, read, memories = rows, cache.source_lengths, cache.memory
        else:
            assert isinstance(rows, Pairs), "an encoder-decoder takes pairs of rows"
            target, read, memories = rows.target, rows.source.lengths, self._memories(rows.source)
        x = self._enter(target, self.target_embed or self.embed)  # (T, D)
        sight = Sight(target, None if cache is None else cache.lengths)
        across = Sight(target, causal=False, keys=read)
        for block, memory in zip(self.decoder.layers, memories, strict=True):
            x = block(x, sight, memory, across, cache)
        if cache is not None:
            cache.advance(target)
        return x

    def encode(self, rows: Rows) -> Tensor:
        """What the encoder makes of source rows: (S, D)."""
        x = self._enter(rows, self.embed, self.prelude)
        sight = Sight(rows, causal=False)
        for block in self.encoder.layers:
            x = block(x, sight)
        return x

    def _memories(self, rows: Rows) -> Iterable[Memory]:
        """What each block of the decoder takes from the encoder, made when the block needs it."""
        states = self.encode(rows)
        return (block.cross_attention.memory(states, rows) for block in self.decoder.layers)

    def _enter(self, rows: Rows, embed: nn.Module, prelude: nn.Module | None = None) -> Tensor:
        """Embeddings with positions: (T, D)."""
        x = embed(rows.ids)
        x = x if self.compute is None else x.to(self.compute)
        if self.config.scale_embedding:
            x = x * math.sqrt(self.config.hidden_size)
        x = x + sinusoids(rows.positions, self.config.hidden_size).to(x)
        x = x if prelude is None else prelude(x)
        return dropout(x, self.config.dropout, self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        bias = self.head_bias.to(hidden.dtype)
        if self.head is not None:
            return self.head(hidden) + bias
        return F.linear(hidden, self.head_weight.to(hidden.dtype), bias)

    @property
    def head_weight(self) -> Tensor:
        return (self.head or self.target_embed or self.embed).weight

    @property
    def head_bias(self) -> Tensor:
        return self.final_logits_bias.squeeze(0)

    @property
    def writing(self) -> Writing:
        """As generation_config.json says, or config.json; and the pad is never written, for it means nothing."""
        told = self.generation_config or self.source_config or {}
        words, last = told.get("bad_words_ids") or [], told.get("forced_eos_token_id")
        if not isinstance(words, list) or not all(_is_token(word) for word in words):
            raise ModelError(
                f"bad_words_ids = {words!r} is not supported; only a list of single tokens is, as in [[5]]"
            )
        if last is not None and type(last) is not int:
            raise ModelError(f"forced_eos_token_id = {last!r} is not supported; only a single token is")
        never = dict.fromkeys([self.config.pad, *(word[0] for word in words)])
        return Writing(tuple(never), last, bool(told.get("renormalize_logits")))

    def open(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        rows = Rows.of(prompts)
        cache = PairCache(self.config.decoder_layers, rows)
        cache.memory = list(self._memories(rows))
        return cache, [[self.config.decoder_start] for _ in prompts]

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> Transformer:
        """As the paper's own code (tensor2tensor) begins: Xavier uniform, embeddings normal with deviation 1/sqrt(D).

        The pad's embedding is 0, biases are 0 and norms neutral.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, self.config.hidden_size**-0.5, generator=generator)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0.0
            elif isinstance(module, LayerNorm):
                module.reset_parameters()
        self.final_logits_bias.zero_()
        return self

    @property
    def tied_names(self) -> tuple[str, str]:
        return (SHARED if self.config.shared else TARGET), HEAD

    def ignores(self, name: str) -> bool:
        """Also tables of positions, which follow from config.json, and further copies of the embedding."""
        spare = (*POSITIONS, SHARED) if not self.config.shared else (*POSITIONS, SOURCE, TARGET)
        return super().ignores(name) or name in spare

    def aliases(self) -> dict[str, tuple[str, ...]]:
        tied = (HEAD,) if self.config.tied else ()
        return {SHARED: (SOURCE, TARGET, *tied), SOURCE: (SHARED,), TARGET: (*tied, SHARED)}

    def hf_names(self) -> dict[str, str]:
        config = self.config
        names = {"embed.weight": SHARED if config.shared else SOURCE, "final_logits_bias": "final_logits_bias"}
        names |= {} if config.shared else {"target_embed.weight": TARGET}
        names |= {} if config.tied else {"head.weight": HEAD}
        for stack, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
            modules = MODULES if stack == "encoder" else MODULES | CROSS_MODULES
            for i in range(count):
                for ours, theirs in modules.items():
                    for kind in ("weight", "bias"):
                        names[f"{stack}.layers.{i}.{ours}.{kind}"] = f"model.{stack}.layers.{i}.{theirs}.{kind}"
        return names


def _is_token(word: Any) -> bool:
    return isinstance(word, list) and len(word) == 1 and type(word[0]) is int


SHARED, HEAD = "model.shared.weight", "lm_head.weight"
SOURCE, TARGET = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def _attention(ours: str, theirs: str) -> dict[str, str]:
    parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    return {f"{ours}.{part}": f"{theirs}.{other}" for part, other in parts.items()}


# Our module of a block -> Hugging Face's.
MODULES = {
    **_attention("attention", "self_attn"),
    "attention_norm": "self_attn_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "mlp_norm": "final_layer_norm",
}
CROSS_MODULES = {
    **_attention("cross_attention", "encoder_attn"),
    "cross_attention_norm": "encoder_attn_layer_norm",
}
