"""T5Gemma (arXiv 2504.06225): an encoder-decoder of Gemma 2's blocks.

    T   tokens of all target rows, side by side    D   model width of a side
    Ts  tokens of all source rows                  M   width of the feed-forward layer
    B   pairs of rows, L longest source row        V   vocabulary
    H   query heads, KV heads of keys and values   K   positions whose logits are wanted
    Dh  width of a head

The blocks are those of models/decoder.py. The encoder's look to both sides. The decoder's have attention to the source
between their two sub-layers, with norms of its own before and behind it, and without rotation: all of the source is
equally near. The two sides may be of different width and depth, and have an embedding each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from microplane.models.configs.decoder import DecoderConfig
from microplane.models.configs.t5gemma import FIRST, T5GemmaConfig
from microplane.models.decoder import Attention, Block, capped, norm_of, scaled
from microplane.models.encoder_decoder import EncodedSource, EncoderDecoder, KeysValues
from microplane.nn.attention import MaskSpec, Window, attend_to
from microplane.nn.cache import Cache
from microplane.nn.layers import Embedding, Linear, RMSNorm
from microplane.nn.ops.dropout import Dropout
from microplane.nn.ops.few_rows import linear
from microplane.nn.rows import Rows


class CrossAttention(Attention):
    """Attention of target rows to their source, by its keys and values."""

    def project_source(self, memory: Tensor) -> KeysValues:
        """Keys and values of the encoder's output: (Ts, D of the encoder) -> (Ts, KV, Dh) each."""
        keys, values = (torch.unflatten(part(memory), -1, (-1, self.head_dim)) for part in (self.k, self.v))
        return keys, values

    @property
    def source_parts(self) -> list[nn.Module]:
        return [self.k, self.v]

    def forward(self, x: Tensor, source: KeysValues, mask_spec: MaskSpec) -> Tensor:  # type: ignore[override]
        """(T, D) -> (T, D)."""
        q = torch.unflatten(self.q(x), -1, (-1, self.head_dim))
        keys, values = source
        drop, prefix = self.drop, self.seen_first
        mixed = attend_to(q, keys, values, mask_spec, self.scale, self.softcap, None, drop, prefix)
        return self.o(mixed.flatten(1))


class DecoderBlock(Block):
    """One that also attends to the source."""

    def __init__(self, config: DecoderConfig, layer: int, source_size: int):
        super().__init__(config, layer)
        self.cross_attention_norm = norm_of(config)
        self.cross_attention = CrossAttention(config, layer, source_size)
        self.cross_attention_out_norm = norm_of(config)
        self.cross_attention_socket = nn.Identity()

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        seen: tuple[MaskSpec, MaskSpec],  # of its own row, and of the source
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        source: KeysValues,
    ) -> Tensor:  # (T, D) -> (T, D)
        own, across = seen
        x = self.attended(x, self.attention(self.attention_norm(x), own, angles, cache))
        y = self.cross_attention(self.cross_attention_norm(x), source, across)
        x = x + self.cross_attention_socket(self.added(self.cross_attention_out_norm(y)))
        return self.fed(x, x)


class Stack(nn.Module):
    """The encoder or the decoder: blocks and a last norm.

    Args:
        windows: of each layer.
        make: gives a block by its number.
        together: of the decoder, what its blocks get of both masks: that of their own row, and that of the source.
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self,
        config: DecoderConfig,
        windows: Sequence[Window],
        make: Callable[[int], nn.Module],
        together: Callable[[MaskSpec, MaskSpec], Any] | None = None,
    ):
        super().__init__()
        self.config, self.windows, self.together = config, tuple(windows), together
        self.layers = nn.ModuleList(make(layer) for layer in range(config.num_layers))
        self.norm = norm_of(config)
        self.dropout = Dropout(config.embed_dropout)

    def forward(self, x: Tensor, rows: Rows, source: EncodedSource | None = None, cache: Cache | None = None) -> Tensor:
        """(T, D) -> (T, D). With a cache, the rows continue those in it and are appended to it."""
        config, starts = self.config, cache.lengths if cache is not None else None
        x = self.dropout(x)
        angles = {
            rope: None if rope is None else rope.angles(rows.positions, config.head_dim, x.dtype)
            for rope in set(config.ropes)
        }
        seen: dict[Window, Any] = {
            window: MaskSpec(rows, starts, window, causal=self.together is not None) for window in set(self.windows)
        }
        if source is not None and self.together is not None:
            across = MaskSpec(rows, causal=False, keys=source.lengths)
            seen = {window: self.together(own, across) for window, own in seen.items()}
        reads: Iterable[tuple[KeysValues, ...]] = repeat(()) if source is None else zip(source.layers)
        kinds = zip(self.layers, self.windows, config.ropes, strict=True)
        for (block, window, rope), read in zip(kinds, reads, strict=False):
            x = block(x, seen[window], angles[rope], cache, *read)
        if cache is not None:
            cache.advance(rows)
        return self.dropout(self.norm(x))


def encoder_of(config: T5GemmaConfig) -> Stack:
    """Of both generations."""
    side = config.encoder
    return Stack(side, [config.encoder_window(window) for window in side.windows], lambda layer: Block(side, layer))


class T5Gemma(EncoderDecoder):
    """`embed` is the table of the source, `target_embed` that of the target."""

    ARCHITECTURES: ClassVar[dict[str, str]] = FIRST
    config: T5GemmaConfig
    embed: nn.Embedding
    head: nn.Linear | None

    def __init__(self, config: T5GemmaConfig):
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.source_size)
        self.target_embed = Embedding(config.vocab_size, config.hidden_size)
        self.encoder = encoder_of(config)
        own, read = config.decoder, config.source_size
        self.decoder = Stack(own, own.windows, lambda layer: DecoderBlock(own, layer, read), lambda *both: both)
        self.head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> T5Gemma:
        return cls(T5GemmaConfig.from_hf(fields))

    def embedded(self, ids: Tensor) -> Tensor:
        return scaled(super().embedded(ids))

    def target_embedded(self, ids: Tensor) -> Tensor:
        x: Tensor = self.target_embed(ids)
        return scaled(x if self.compute is None else x.to(self.compute))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        own = linear(hidden, self.head_weight.to(hidden.dtype), None) if self.head is None else self.head(hidden)
        return capped(own, self.config.final_logit_softcapping)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the embedding's of the decoder where the two are tied."""
        return self.target_embed.weight if self.head is None else self.head.weight

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> T5Gemma:
        """New random weights, normal with the configured standard deviation, that of a head of its own divided by
        sqrt(V); biases 0, norms neutral."""
        generator, config = torch.Generator().manual_seed(seed), self.config
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = config.init_std * (config.vocab_size**-0.5 if module is self.head else 1.0)
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, RMSNorm):
                module.reset_parameters()
        return self

    @property
    def tied_names(self) -> tuple[str, str]:
        return "model.decoder.embed_tokens.weight", HEAD

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for the plain model that `config` describes."""
        names = {"embed": "model.encoder.embed_tokens", "target_embed": "model.decoder.embed_tokens"}
        names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}
        names |= names_of_stack("encoder", self.config.encoder, MODULES)
        names |= names_of_stack("decoder", self.config.decoder, MODULES | CROSS_MODULES)
        return names if self.config.tied else names | {"head.weight": HEAD}


def names_of_stack(stack: str, side: DecoderConfig, modules: Mapping[str, str], called: str = "") -> dict[str, str]:
    """Our parameter name -> Hugging Face's.

    Args:
        modules: our module of a block -> Hugging Face's.
        called: what Hugging Face calls the stack, where it is otherwise.
    """
    place = f"model.{called or stack}"
    names = {f"{stack}.norm.weight": f"{place}.norm.weight"}
    for ours, theirs in modules.items():
        biased = side.qkv_bias and ours.rpartition(".")[2] in ("q", "k", "v", "o")
        for kind in ("weight", "bias") if biased else ("weight",):
            for i in range(side.num_layers):
                names[f"{stack}.layers.{i}.{ours}.{kind}"] = f"{place}.layers.{i}.{theirs}.{kind}"
    return names


HEAD = "lm_head.out_proj.weight"


def _around(ours: str, theirs: str) -> dict[str, str]:
    """The norms before and behind a sub-layer."""
    return {f"{ours}_norm": f"pre_{theirs}_layernorm", f"{ours}_out_norm": f"post_{theirs}_layernorm"}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    linears = {f"{ours}.{role}": f"{theirs}.{role}_proj" for role in ("q", "k", "v", "o")}
    return linears | _around(ours, theirs)


# Our module of a block -> Hugging Face's.
MODULES = {
    **_attention("attention", "self_attn"),
    **_around("mlp", "feedforward"),
    **{f"mlp.{role}": f"mlp.{role}_proj" for role in ("gate", "up", "down")},
}
CROSS_MODULES = _attention("cross_attention", "cross_attn")
