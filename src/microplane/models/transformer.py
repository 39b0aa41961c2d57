"""The Transformer of 2017 (arXiv 1706.03762), an encoder that reads and a decoder that writes, and its descendants:
Marian, BART (arXiv 1910.13461), mBART (2001.08210), M2M100 and NLLB (2010.11125, 2207.04672), Pegasus (1912.08777).

    T   tokens of all rows, side by side       D   model width (d_model)
    S   tokens of all source rows              M   width of the feed-forward layer
    B   pairs of rows, L longest source row    V   vocabulary
    H   heads, of width Dh = D / H             K   positions whose logits are wanted

The paper's model is Marian's with activation relu and scale_embedding: norms behind the sum, biases, one table for
source, target and head (3.4). The families differ in where the norms stand, in their positions, and in whether the
embeddings are normed (`SPECS` of models/configs/transformer.py). The head adds a bias that does not train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.models.configs.transformer import ARCHITECTURES, TransformerConfig
from microplane.models.encoder_decoder import Attention, EncodedSource, EncoderDecoder, KeysValues
from microplane.models.generation_rules import GenerationRules
from microplane.nn.attention import MaskSpec
from microplane.nn.cache import Cache
from microplane.nn.layers import MLP, Embedding, LayerNorm, Linear
from microplane.nn.ops.dropout import Dropout
from microplane.nn.position import fairseq_sinusoids, sinusoids
from microplane.nn.rows import Rows

UNUSED_POSITIONS = 2  # rows of a table of learned positions that stand before the first token's


def _attention_of(config: TransformerConfig, heads: int, layer: int) -> Attention:
    head_dim = config.hidden_size // heads
    how: dict[str, Any] = {"scale": 1.0 / math.sqrt(head_dim), "dropout": config.attention_dropout, "bias": True}
    return Attention(config.hidden_size, heads, head_dim, layer, **how)


class EncoderBlock(nn.Module):
    def __init__(self, config: TransformerConfig, heads: int, inner: int, layer: int):
        super().__init__()
        D = config.hidden_size
        self.pre_norm = config.spec.pre_norm
        self.attention = _attention_of(config, heads, layer)
        self.attention_socket = nn.Identity()
        self.attention_norm = LayerNorm(D)
        self.mlp = MLP(D, inner, config.activation, bias=True, dropout=config.activation_dropout)
        self.mlp_socket = nn.Identity()
        self.mlp_norm = LayerNorm(D)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask_spec: MaskSpec) -> Tensor:  # (S, D) -> (S, D)
        y = self.attention(self._before(self.attention_norm, x), mask_spec)
        x = self._added(self.attention_norm, self.attention_socket(y), x)
        return self._fed_forward(x)

    def _fed_forward(self, x: Tensor) -> Tensor:  # (T, D) -> (T, D)
        y = self.mlp(self._before(self.mlp_norm, x))
        return self._added(self.mlp_norm, self.mlp_socket(y), x)

    def _before(self, norm: LayerNorm, x: Tensor) -> Tensor:
        """What a sub-layer gets: (T, D) -> (T, D)."""
        return norm(x) if self.pre_norm else x

    def _added(self, norm: LayerNorm, y: Tensor, x: Tensor) -> Tensor:
        """A sub-layer's output y and its input x together: (T, D) each -> (T, D)."""
        total: Tensor = self.dropout(y, added=x)
        return total if self.pre_norm else norm(total)


class DecoderBlock(EncoderBlock):
    def __init__(self, config: TransformerConfig, heads: int, inner: int, layer: int):
        super().__init__(config, heads, inner, layer)
        self.cross_attention = _attention_of(config, heads, layer)
        self.cross_attention_socket = nn.Identity()
        self.cross_attention_norm = LayerNorm(config.hidden_size)

    def forward(  # type: ignore[override]
        self, x: Tensor, mask_spec: MaskSpec, source: KeysValues, source_mask_spec: MaskSpec, cache: Cache | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        y = self.attention(self._before(self.attention_norm, x), mask_spec, cache)
        x = self._added(self.attention_norm, self.attention_socket(y), x)
        y = self.cross_attention.attend_source(self._before(self.cross_attention_norm, x), source, source_mask_spec)
        x = self._added(self.cross_attention_norm, self.cross_attention_socket(y), x)
        return self._fed_forward(x)


class Stack(nn.Module):
    """The encoder or the decoder: what is done to embeddings before the blocks, the blocks, and a last norm."""

    __call__: Callable[..., Tensor]
    embedding_norm: nn.Module
    norm: nn.Module

    def __init__(self, config: TransformerConfig, layers: Iterable[nn.Module]):
        super().__init__()
        D, spec = config.hidden_size, config.spec
        learned = spec.positions == "learned"
        self.positions = Embedding(config.context + UNUSED_POSITIONS, D) if learned else None
        sines = partial(fairseq_sinusoids, first=config.pad + 1) if spec.positions == "fairseq" else sinusoids
        self.sines: Callable[[Tensor, int, int], Tensor] = sines
        self.embedding_norm = LayerNorm(D) if spec.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = LayerNorm(D) if spec.pre_norm else nn.Identity()

    def enter(self, x: Tensor, rows: Rows) -> Tensor:
        """Embeddings with positions: (T, D) -> (T, D)."""
        if self.positions is not None:
            added = self.positions(rows.positions + UNUSED_POSITIONS)
        else:
            added = self.sines(rows.positions, x.shape[1], rows.last_position)
        entered: Tensor = self.dropout(self.embedding_norm(x + added.to(x)))
        return entered

    def forward(self, x: Tensor, rows: Rows, source: EncodedSource | None = None, cache: Cache | None = None) -> Tensor:
        """(T, D) -> (T, D). With a cache, the rows continue those in it and are appended to it."""
        x = self.enter(x, rows)
        if source is None:
            mask_spec = MaskSpec(rows, causal=False)
            for block in self.layers:
                x = block(x, mask_spec)
        else:
            mask_spec = MaskSpec(rows, None if cache is None else cache.lengths)
            source_mask_spec = MaskSpec(rows, causal=False, keys=source.lengths)
            for block, read in zip(self.layers, source.layers, strict=True):
                x = block(x, mask_spec, read, source_mask_spec, cache)
        if cache is not None:
            cache.advance(rows)
        last: Tensor = self.norm(x)
        return last


class Transformer(EncoderDecoder):
    """`embed` is the table of the source and, where the two are shared, of the target; else `target_embed` is.
    The pad is the target's start token; its row of the table gets no gradient as an input.
    """

    ARCHITECTURES: ClassVar[dict[str, str]] = ARCHITECTURES
    ZEROS: ClassVar[tuple[str, ...]] = ("final_logits_bias",)
    config: TransformerConfig
    embed: nn.Embedding
    head: nn.Linear | None
    final_logits_bias: Tensor | None  # (1, V)

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        D, V = config.hidden_size, config.vocab_size
        pad = config.pad if config.pad < config.source_vocab_size else None
        self.embed = Embedding(config.source_vocab_size, D, pad)
        self.target_embed = None if config.shared else Embedding(V, D, config.pad)
        read = (config.encoder_heads, config.encoder_inner)
        written = (config.decoder_heads, config.decoder_inner)
        self.encoder = Stack(config, (EncoderBlock(config, *read, layer) for layer in range(config.num_layers)))
        blocks = (DecoderBlock(config, *written, layer) for layer in range(config.num_decoder_layers))
        self.decoder = Stack(config, blocks)
        self.head = None if config.tied else Linear(D, V, bias=False)
        self.register_buffer("final_logits_bias", torch.zeros(1, V) if config.spec.logits_bias else None)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Transformer:
        return cls(TransformerConfig.from_hf(fields))

    def embedded(self, ids: Tensor) -> Tensor:
        return self._scaled(ids, self.embed)

    def target_embedded(self, ids: Tensor) -> Tensor:
        return self._scaled(ids, self.target_embed or self.embed)

    def _scaled(self, ids: Tensor, embed: nn.Module) -> Tensor:  # (T,) -> (T, D)
        x: Tensor = embed(ids)
        x = x if self.compute is None else x.to(self.compute)
        return x * math.sqrt(self.config.hidden_size) if self.config.scale_embedding else x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        bias = None if self.head_bias is None else self.head_bias.to(hidden.dtype)
        if self.head is not None:
            scores: Tensor = self.head(hidden)
            return scores if bias is None else scores + bias
        return F.linear(hidden, self.head_weight.to(hidden.dtype), bias)

    @property
    def head_weight(self) -> Tensor:
        return (self.head or self.target_embed or self.embed).weight

    @property
    def head_bias(self) -> Tensor | None:
        return None if self.final_logits_bias is None else self.final_logits_bias.squeeze(0)

    @property
    def generation_rules(self) -> GenerationRules:
        """From generation_config.json, or else config.json. Marian's pad is never written either: it has no meaning."""
        settings = self.generation_config or self.source_config or {}
        words = settings.get("bad_words_ids") or []
        if not isinstance(words, list) or not all(_is_token(word) for word in words):
            raise ModelError(f"bad_words_ids = {words!r} is not supported; only single tokens are, as in [[5]]")
        forced = {name: settings.get(name) for name in ("forced_eos_token_id", "forced_bos_token_id")}
        if wrong := next((name for name, token in forced.items() if type(token) not in (int, type(None))), None):
            raise ModelError(f"{wrong} = {forced[wrong]!r} is not supported; only a single token is")
        pad = [] if self.config.spec.writes_pad else [self.config.pad]
        bad_tokens = dict.fromkeys([*pad, *(word[0] for word in words)])
        eos, bos = forced.values()
        return GenerationRules(tuple(bad_tokens), eos, bos, bool(settings.get("renormalize_logits")))

    def drop_head(self) -> None:
        """Raises: ModelError, for tables of their own of source and target, which no class with a task head has."""
        config = self.config
        if not config.shared and not config.spec.apart:
            raise ModelError(
                f"this {config.architecture} reads and writes with two tables of embeddings, and transformers' class "
                "with a task head has one: it takes no labels. Give them as answers: data.task=answers"
            )
        super().drop_head()
        self.final_logits_bias = None
        self.config = replace(config, share_embeddings=config.shared, tied=True)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> Transformer:
        """New random weights: normal with the configuration's deviation; Marian's as in the paper's code
        (tensor2tensor), Xavier uniform, and embeddings normal with std D^-0.5.

        The pad's embedding is 0, biases are 0 and norms neutral.
        """
        xavier, std = self.config.spec.xavier, self.config.init_std
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if xavier:
                    nn.init.xavier_uniform_(module.weight, generator=generator)
                else:
                    module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                deviation = self.config.hidden_size**-0.5 if xavier else std
                module.weight.normal_(0.0, deviation, generator=generator)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0.0
            elif isinstance(module, LayerNorm):
                module.reset_parameters()
        if self.final_logits_bias is not None:
            self.final_logits_bias.zero_()
        return self

    @property
    def tied_names(self) -> tuple[str, str]:
        return (SHARED if self.config.shared else TARGET), HEAD

    def is_unused_weight(self, name: str) -> bool:
        """Also position tables that are computed from config.json, copies of the embedding, and the versions of
        fairseq's modules."""
        name = self.canonical_name(name)
        spare = [SHARED] if not self.config.shared else [SOURCE, TARGET]
        spare += [] if self.config.spec.positions == "learned" else POSITIONS
        spare += [BIAS] if self.final_logits_bias is None else []
        return super().is_unused_weight(name) or name in (*spare, *VERSIONS)

    def extra_weights_to_save(self) -> dict[str, Tensor]:
        """The table that transformers makes beside those of source and target and does not read, and Pegasus' sines,
        which its files hold."""
        config, like = self.config, self.embed.weight.detach()
        extra = {SHARED: like.clone()} if not config.shared and not config.spec.apart else {}
        if config.spec.saves_positions:
            every = torch.arange(config.context, device=like.device)
            extra |= {name: sinusoids(every, config.hidden_size, config.context).to(like) for name in POSITIONS[::2]}
        return extra

    def canonical_name(self, name: str) -> str:
        """Files of the model without a head leave `model.` out."""
        return f"model.{name}" if name.startswith(("encoder.", "decoder.", "shared.")) else name

    def aliases(self) -> dict[str, tuple[str, ...]]:
        tied = (HEAD,) if self.config.tied else ()
        return {SHARED: (SOURCE, TARGET, *tied), SOURCE: (SHARED,), TARGET: (*tied, SHARED)}

    def hf_names(self) -> dict[str, str]:
        config = self.config
        names = {"embed.weight": SHARED if config.shared else SOURCE}
        names |= {BIAS: BIAS} if self.final_logits_bias is not None else {}
        names |= {} if config.shared else {"target_embed.weight": TARGET}
        names |= {} if config.tied else {"head.weight": HEAD}
        for stack, count in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            modules = MODULES if stack == "encoder" else MODULES | CROSS_MODULES
            if config.spec.positions == "learned":
                names[f"{stack}.positions.weight"] = f"model.{stack}.embed_positions.weight"
            norms = {"embedding_norm": config.spec.embedding_norm, "norm": config.spec.pre_norm}
            for ours in (ours for ours, there in norms.items() if there):
                for kind in ("weight", "bias"):
                    names[f"{stack}.{ours}.{kind}"] = f"model.{stack}.{STACK_NORMS[ours]}.{kind}"
            for i in range(count):
                for ours, theirs in modules.items():
                    for kind in ("weight", "bias"):
                        names[f"{stack}.layers.{i}.{ours}.{kind}"] = f"model.{stack}.layers.{i}.{theirs}.{kind}"
        return names


def _is_token(word: Any) -> bool:
    return isinstance(word, list) and len(word) == 1 and type(word[0]) is int


SHARED, HEAD = "model.shared.weight", "lm_head.weight"
SOURCE, TARGET = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
BIAS = "final_logits_bias"
STACKS = ("encoder", "decoder")
POSITIONS = tuple(f"model.{stack}.embed_positions.{kind}" for stack in STACKS for kind in ("weight", "weights"))
VERSIONS = ("model.encoder.version", "model.decoder.version")
STACK_NORMS = {"embedding_norm": "layernorm_embedding", "norm": "layer_norm"}


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
