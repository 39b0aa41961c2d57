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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from microplane.models.configs.t5 import ARCHITECTURES, T5Config
from microplane.models.contract import Model
from microplane.models.fused_step import BlockParts, NotFusableError, StackParts, fused_step
from microplane.nn.attention import MaskSpec, attend, attend_to
from microplane.nn.cache import Cache, PairCache, in_rectangles
from microplane.nn.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, gated
from microplane.nn.ops.dropout import Dropout
from microplane.nn.ops.few_rows import linear
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.relative import RelativeBias
from microplane.nn.rows import Pairs, Rows
from microplane.nn.selective_recompute import recomputed

KeysValues = tuple[Tensor, Tensor]  # (Ts, H, Dh) each, source rows end to end; in a cache (B, H, L, Dh)


class Attention(nn.Module):
    """Self-attention by `forward`; attention to the source by `project_source` and then `attend_source`."""

    def __init__(self, config: T5Config, layer: int, relative: bool = False, causal: bool = False):
        super().__init__()
        D, inner = config.hidden_size, config.num_heads * config.head_dim
        self.layer, self.head_dim = layer, config.head_dim
        self.q = Linear(D, inner, bias=False)
        self.k = Linear(D, inner, bias=False)
        self.v = Linear(D, inner, bias=False)
        self.o = Linear(inner, D, bias=False)
        self.relative: RelativeBias | None = None
        if relative:
            self.relative = RelativeBias(config.buckets, config.max_distance, config.num_heads, causal)
        self.prefix: nn.Module | None = None  # gives keys and values (H, P, Dh) that every row sees before its own
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask_spec: MaskSpec, bias: Tensor, cache: Cache | None = None) -> Tensor:
        # (T, D) -> (T, D)
        q, k, v = (self._heads(linear, x) for linear in (self.q, self.k, self.v))  # (T, H, Dh)
        mixed = attend(q, k, v, mask_spec, 1.0, None, cache, self.layer, bias, self._drop, self._prefix)
        return self.o(mixed.flatten(1))

    def project_source(self, memory: Tensor) -> KeysValues:
        """Keys and values of the encoder's output: (Ts, D) -> (Ts, H, Dh) each."""
        return self._heads(self.k, memory), self._heads(self.v, memory)

    def attend_source(self, x: Tensor, source: KeysValues, mask_spec: MaskSpec) -> Tensor:
        """Target rows attend to the source: (T, D) -> (T, D)."""
        q = self._heads(self.q, x)
        mixed = attend_to(q, *source, mask_spec, 1.0, dropout=self._drop, prefix=self._prefix)
        return self.o(mixed.flatten(1))

    def _heads(self, linear: nn.Module, x: Tensor) -> Tensor:  # (T, D) -> (T, H, Dh)
        return torch.unflatten(linear(x), -1, (-1, self.head_dim))

    @property
    def _drop(self) -> float:
        return self.dropout.p if self.training else 0.0

    @property
    def _prefix(self) -> KeysValues | None:
        return None if self.prefix is None else self.prefix()


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
        y = self.attention(self.attention_norm(x), mask_spec, bias, cache)
        x = self.dropout(self.attention_socket(y), added=x)
        if source is not None and source_mask_spec is not None:
            y = self.cross_attention.attend_source(self.cross_attention_norm(x), source, source_mask_spec)
            x = self.dropout(self.cross_attention_socket(y), added=x)
        y = self.mlp(self.mlp_norm(x))
        return self.dropout(self.mlp_socket(y), added=x)


@dataclass(frozen=True)
class EncodedSource:
    """The encoder's output as keys and values for each layer of the decoder."""

    lengths: tuple[int, ...]  # of the source rows, with a prompt's vectors
    layers: list[KeysValues]


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
        for layer, block in enumerate(self.blocks):
            if block.attention.relative is not None:
                bias = block.attention.relative(mask_spec)
            x = block(x, mask_spec, bias, cache, None if source is None else source.layers[layer], source_mask_spec)
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


class T5(Model):
    """An encoder-decoder; see models/contract.py for what its parts are called.

    `prompt_socket` sees the embeddings of the source.
    """

    ARCHITECTURES: ClassVar[dict[str, str]] = ARCHITECTURES
    KIND: ClassVar[str] = "encoder-decoder"
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
        self.prompt_socket = PromptSocket()
        self.encoder = Stack(config, config.num_layers, decodes=False)
        self.decoder = Stack(config, config.num_decoder_layers, decodes=True)
        self.head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> T5:
        return cls(T5Config.from_hf(fields))

    def encode(self, source: Rows) -> Tensor:
        """The encoder's output, (Ts, D)."""
        memory, rows = self._memory(source)
        return self.prompt_socket.strip_prompt(memory, rows, source)

    def _memory(self, source: Rows) -> tuple[Tensor, Rows]:
        """The encoder's output with a prompt's vectors, which the decoder sees too, (Ts + B P, D); and those rows."""
        x, rows = self.prompt_socket(self.embedded(source.ids), source)
        return self.encoder(x, rows), rows

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """Hidden states of the target rows, ready for the head: (T, D).

        `Pairs` compute both sides. `Rows` are target rows that continue those in the cache of `start_generation`, and
        are appended to it.
        """
        if isinstance(rows, Pairs):
            assert cache is None, "with a cache, give target rows alone"
            target, source = rows.target, self._encoded_source(rows.source)
        else:
            assert isinstance(cache, PairCache), "target rows alone need the cache of `start_generation`"
            target, source = rows, EncodedSource(cache.source_lengths, cache.memory)
        hidden = self.decoder(self.embedded(target.ids), target, source, cache)
        return hidden * self.config.hidden_size**-0.5 if self.config.scaled else hidden

    def _encoded_source(self, source: Rows) -> EncodedSource:
        memory, rows = self._memory(source)
        return EncodedSource(
            rows.lengths, [block.cross_attention.project_source(memory) for block in self.decoder.blocks]
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        return self.head(hidden) if self.head is not None else linear(hidden, self.embed.weight.to(hidden.dtype), None)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the embedding's where the two are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        """Encode the prompts. Each answer begins with the decoder's start token."""
        source = self._encoded_source(Rows.of(prompts).to(self.device))
        cache = PairCache(self.config.num_decoder_layers, source.lengths)
        cache.memory = [in_rectangles(pair, source.lengths) for pair in source.layers]
        return cache, [[self.config.decoder_start] for _ in prompts]

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
