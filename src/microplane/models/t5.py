"""The T5 family: T5 v1.0, v1.1 and FLAN-T5, ByT5, mT5 and umT5 (arXiv 1910.10683, 2002.05202, 2210.11416).

    T   tokens of all target rows, side by side    D   model width (d_model)
    Ts  tokens of all source rows                  M   width of the feed-forward layer (d_ff)
    B   pairs of rows                              V   vocabulary
    L   longest source row                         K   positions whose logits are wanted
    H   heads, of width Dh (H * Dh need not be D)

Norms stand before the sub-layers, there are no biases on linears, and scores are not divided by sqrt(Dh): the scale is
in the initial weights. Positions are known by relative biases alone (nn/relative.py), in self-attention only.
The families differ only in what `T5Config` says (models/configs/t5.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from microplane.models import encoder_decoder
from microplane.models.configs.t5 import ARCHITECTURES, T5Config
from microplane.models.encoder_decoder import EncodedSource, EncoderDecoder, KeysValues
from microplane.models.fused_step import BlockParts, NotFusableError, StackParts, fused_step
from microplane.nn.attention import MaskSpec
from microplane.nn.cache import Cache
from microplane.nn.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, gated
from microplane.nn.ops.dropout import Dropout
from microplane.nn.ops.few_rows import linear
from microplane.nn.relative import RelativeBias
from microplane.nn.rows import Pairs, Rows
from microplane.nn.selective_recompute import recomputed


class Attention(encoder_decoder.Attention):
    """Scores are not divided; the first block's, or every block's, add a bias of relative positions."""

    def __init__(self, config: T5Config, layer: int, relative: bool = False, causal: bool = False):
        sizes = config.hidden_size, config.num_heads, config.head_dim
        super().__init__(*sizes, layer, scale=1.0, dropout=config.dropout, bias=False)
        self.relative: RelativeBias | None = None
        if relative:
            self.relative = RelativeBias(config.buckets, config.max_distance, config.num_heads, causal)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) in T5 v1.0."""

    def __init__(self, config: T5Config):
        super().__init__()
        D, M = config.hidden_size, config.intermediate_size
        self.activation = config.activation
        self.gate = Linear(D, M, bias=False) if config.gated else None
        self.up = Linear(D, M, bias=False)
        self.down = Linear(M, D, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (T, D) -> (T, D)
        up = self.up(x)  # (T, M)
        if self.gate is None:
            inner = recomputed(ACTIVATIONS[self.activation], up)
        else:
            inner = gated(self.activation, self.gate(x), up)
        return self.down(self.dropout(inner))


class Block(nn.Module):
    """Self-attention, in a decoder also attention to the source, and a feed-forward layer."""

    def __init__(self, config: T5Config, layer: int, decodes: bool):
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.norm_eps)

        self.attention_norm = norm()
        self.attention = Attention(config, layer, config.bias_everywhere or layer == 0, causal=decodes)
        self.attention_socket = nn.Identity()
        if decodes:
            self.cross_attention_norm = norm()
            self.cross_attention = Attention(config, layer)
            self.cross_attention_socket = nn.Identity()
        self.mlp_norm = norm()
        self.mlp = MLP(config)
        self.mlp_socket = nn.Identity()
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask_spec: MaskSpec,
        bias: Tensor,
        cache: Cache | None = None,
        source: KeysValues | None = None,
        source_mask_spec: MaskSpec | None = None,
    ) -> Tensor:  # (T, D) -> (T, D)
        y = self.attention(self.attention_norm(x), mask_spec, cache, bias)
        x = self.dropout(self.attention_socket(y), added=x)
        if source is not None and source_mask_spec is not None:
            y = self.cross_attention.attend_source(self.cross_attention_norm(x), source, source_mask_spec)
            x = self.dropout(self.cross_attention_socket(y), added=x)
        y = self.mlp(self.mlp_norm(x))
        return self.dropout(self.mlp_socket(y), added=x)


class Stack(nn.Module):
    """The encoder or the decoder: blocks and a last norm."""

    __call__: Callable[..., Tensor]

    def __init__(self, config: T5Config, layers: int, decodes: bool):
        super().__init__()
        self.config, self.decodes = config, decodes
        self.layers = nn.ModuleList(Block(config, layer, decodes) for layer in range(layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.layers))

    def forward(self, x: Tensor, rows: Rows, source: EncodedSource | None = None, cache: Cache | None = None) -> Tensor:
        """(T, D) -> (T, D). With a cache, the rows continue those in it and are appended to it."""
        if cache is not None and (step := fused_step(self.parts, x, rows, cache)) is not None:
            hidden = step(x, rows, cache, {})
            cache.advance(rows)
            return self.norm(hidden)
        mask_spec = MaskSpec(rows, cache.lengths if cache is not None else None, causal=self.decodes)
        source_mask_spec = None if source is None else MaskSpec(rows, causal=False, keys=source.lengths)
        x, bias = self.dropout(x), x.new_zeros(())
        reads: Iterable[KeysValues | None] = repeat(None) if source is None else source.layers
        for block, read in zip(self.blocks, reads, strict=False):
            if block.attention.relative is not None:
                bias = block.attention.relative(mask_spec)
            x = block(x, mask_spec, bias, cache, read, source_mask_spec)
        if cache is not None:
            cache.advance(rows)
        return self.dropout(self.norm(x))

    def parts(self) -> StackParts:
        """The blocks as models/fused_step.py computes them.

        Raises:
            NotFusableError: if they are not plain ones.
        """
        config = self.config
        return StackParts(
            [_parts_of(block) for block in self.blocks],
            heads=config.num_heads,
            kv=config.num_heads,
            head=config.head_dim,
            inner=config.intermediate_size,
            activation=config.activation,
            eps=config.norm_eps,
            scale=1.0,
        )


def _parts_of(block: Block) -> BlockParts:
    own, cross, mlp = block.attention, block.cross_attention, block.mlp
    if (type(block), type(own), type(cross), type(mlp)) != (Block, Attention, Attention, MLP):
        raise NotFusableError
    if own.prefix is not None or cross.prefix is not None:
        raise NotFusableError
    linears: dict[str, nn.Module | None] = {
        "q": own.q,
        "k": own.k,
        "v": own.v,
        "o": own.o,
        "cross_q": cross.q,
        "cross_o": cross.o,
    }
    norms: dict[str, nn.Module | None] = {
        "before": block.attention_norm,
        "cross_before": block.cross_attention_norm,
        "mlp_before": block.mlp_norm,
    }
    return BlockParts(
        linears | {"gate": mlp.gate, "up": mlp.up, "down": mlp.down},
        norms,
        relative=own.relative,
        sockets=(block.attention_socket, block.cross_attention_socket, block.mlp_socket),
        whole=(block, own, cross, mlp),
    )


class T5(EncoderDecoder):
    ARCHITECTURES: ClassVar[dict[str, str]] = ARCHITECTURES
    TIED: ClassVar[tuple[str, str]] = ("shared.weight", "lm_head.weight")
    TIE_BY_WEIGHTS: ClassVar[bool] = True
    UNSUPPORTED_DTYPES: ClassVar[Mapping[torch.dtype, str]] = {
        torch.float16: "its activations grow beyond 65,504, the most that format holds, and become NaN"
    }
    config: T5Config
    embed: nn.Embedding
    head: nn.Linear | None

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config, config.num_layers, decodes=False)
        self.decoder = Stack(config, config.num_decoder_layers, decodes=True)
        self.head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> T5:
        return cls(T5Config.from_hf(fields))

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        hidden = super().forward(rows, cache)
        return hidden * self.config.hidden_size**-0.5 if self.config.scaled else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        return self.head(hidden) if self.head is not None else linear(hidden, self.embed.weight.to(hidden.dtype), None)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the embedding's where the two are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> T5:
        """New random weights as T5 begins: normal, and so scaled that scores of attention need no division.

        A head of its own has standard deviation D^-0.5, so that its first scores are about 1 in size.
        """
        config, generator = self.config, torch.Generator().manual_seed(seed)
        D, inner, M = config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size
        stds = {"q": (D * config.head_dim) ** -0.5, "o": inner**-0.5, "down": M**-0.5}
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(config.init_factor)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, config.init_factor, generator=generator)
            elif isinstance(module, nn.Linear | RelativeBias):
                std = stds.get(name.rpartition(".")[2], D**-0.5)
                module.weight.normal_(0.0, config.init_factor * std, generator=generator)
        return self

    def is_unused_weight(self, name: str) -> bool:
        """Also copies of the embedding, and an unused bias of cross-attention that old files contain."""
        return super().is_unused_weight(name) or name in (*COPIES, UNUSED)

    def aliases(self) -> dict[str, tuple[str, ...]]:
        return {"shared.weight": COPIES}

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for the plain model that `config` describes."""
        config = self.config
        mlp = {"mlp.gate": "wi_0", "mlp.up": "wi_1", "mlp.down": "wo"} if config.gated else PLAIN_MLP
        names = {"embed.weight": "shared.weight"} | ({} if config.tied else {"head.weight": "lm_head.weight"})
        for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            sublayers = {"attention": "SelfAttention"}
            sublayers |= {"cross_attention": "EncDecAttention"} if stack == "decoder" else {}
            last = len(sublayers)
            for i in range(layers):
                for at, (ours, theirs) in enumerate(sublayers.items()):
                    place = f"{stack}.block.{i}.layer.{at}"
                    names[f"{stack}.layers.{i}.{ours}_norm.weight"] = f"{place}.layer_norm.weight"
                    for role in ("q", "k", "v", "o"):
                        names[f"{stack}.layers.{i}.{ours}.{role}.weight"] = f"{place}.{theirs}.{role}.weight"
                if config.bias_everywhere or i == 0:
                    theirs = f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
                    names[f"{stack}.layers.{i}.attention.relative.weight"] = theirs
                place = f"{stack}.block.{i}.layer.{last}"
                names[f"{stack}.layers.{i}.mlp_norm.weight"] = f"{place}.layer_norm.weight"
                for ours, theirs in mlp.items():
                    names[f"{stack}.layers.{i}.{ours}.weight"] = f"{place}.DenseReluDense.{theirs}.weight"
            names[f"{stack}.norm.weight"] = f"{stack}.final_layer_norm.weight"
        return names


PLAIN_MLP = {"mlp.up": "wi", "mlp.down": "wo"}
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
