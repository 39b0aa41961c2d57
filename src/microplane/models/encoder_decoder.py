"""What encoder-decoders have in common: the source is read once, and each block of the decoder looks at it.

    T   tokens of all target rows, side by side    D   model width of the target's side
    Ts  tokens of all source rows, of width Ds     V   vocabulary
    B   pairs of rows, L longest source row        K   positions whose logits are wanted
    H   heads, of width Dh                         P   vectors of a prompt that a method adds

A family says what its two stacks are, how words are embedded, and which part of a block reads the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor, nn, unflatten

from microplane.models.contract import Model
from microplane.nn.attention import MaskSpec, attend, attend_to
from microplane.nn.cache import Cache, PairCache, in_rectangles
from microplane.nn.layers import Linear
from microplane.nn.ops.dropout import Dropout
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.rows import Pairs, Rows

KeysValues = tuple[Tensor, Tensor]  # (Ts, H, Dh) each, source rows end to end; in a cache (B, H, L, Dh)


class SourceReader(Protocol):
    """The attention of a decoder's block that looks at the source."""

    def project_source(self, memory: Tensor) -> KeysValues:
        """Keys and values of the encoder's output: (Ts, Ds) -> (Ts, H, Dh) each."""

    @property
    def source_parts(self) -> list[nn.Module]:
        """The modules by which they are made, which is before the block itself is called."""


@dataclass(frozen=True)
class EncodedSource:
    """The encoder's output as keys and values for each block of the decoder.

    Attributes:
        lengths: of the source rows, with a prompt's vectors.
        layers: in the order of the blocks. It may compute each when it is asked for, and can then be read once.
    """

    lengths: tuple[int, ...]
    layers: Iterable[KeysValues]


class EncoderDecoder(Model):
    """Base class of the families; see models/contract.py for what the parts are called.

    `encoder` and `decoder` are stacks: called with embeddings, their rows and, for the decoder, an `EncodedSource` and
    a cache, they give states after the last norm. `prompt_socket` sees the embeddings of the source.
    """

    KIND: ClassVar[str] = "encoder-decoder"
    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: Any):
        super().__init__(config)
        self.prompt_socket = PromptSocket()

    def target_embedded(self, ids: Tensor) -> Tensor:
        """Embeddings of the target's tokens, (T,) -> (T, D): those of the source where both share a table."""
        return self.embedded(ids)

    @property
    def decoder_blocks(self) -> list[nn.Module]:
        return list(cast(nn.ModuleList, self.decoder.layers))

    def reader(self, block: nn.Module) -> SourceReader:
        """The part of a decoder's block that looks at the source."""
        return cast(SourceReader, block.cross_attention)

    def encode(self, source: Rows) -> Tensor:
        """The encoder's output, (Ts, Ds)."""
        memory, rows = self._memory(source)
        return self.prompt_socket.strip_prompt(memory, rows, source)

    def _memory(self, source: Rows) -> tuple[Tensor, Rows]:
        """The encoder's output with a prompt's vectors, which the decoder sees too, (Ts + B P, Ds); and those rows."""
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
        hidden: Tensor = self.decoder(self.target_embedded(target.ids), target, source, cache)
        return hidden

    def _encoded_source(self, source: Rows) -> EncodedSource:
        memory, rows = self._memory(source)
        readers = map(self.reader, self.decoder_blocks)
        return EncodedSource(rows.lengths, (reader.project_source(memory) for reader in readers))

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        """Encode the prompts. Each answer begins with the decoder's start token."""
        source = self._encoded_source(Rows.of(prompts).to(self.device))
        cache = PairCache(self.config.num_decoder_layers, source.lengths)
        cache.memory = [in_rectangles(pair, source.lengths) for pair in source.layers]
        return cache, [[self.config.decoder_start] for _ in prompts]


class Attention(nn.Module):
    """Self-attention by `forward`; attention to the source by `project_source` and then `attend_source`.

    Args:
        layer: the number of its block, by which a cache knows it.
        scale: by which scores are multiplied.
        dropout: of the shares of attention.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, D: int, heads: int, head_dim: int, layer: int, *, scale: float, dropout: float, bias: bool):
        super().__init__()
        inner = heads * head_dim
        self.layer, self.head_dim, self.scale = layer, head_dim, scale
        self.q, self.k, self.v = (Linear(D, inner, bias=bias) for _ in range(3))
        self.o = Linear(inner, D, bias=bias)
        self.prefix: nn.Module | None = None  # gives keys and values (H, P, Dh) that every row sees before its own
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, mask_spec: MaskSpec, cache: Cache | None = None, bias: Tensor | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        q, k, v = (self._heads(linear, x) for linear in (self.q, self.k, self.v))  # (T, H, Dh)
        mixed = attend(q, k, v, mask_spec, self.scale, None, cache, self.layer, bias, self._drop, self._prefix)
        return self.o(mixed.flatten(1))

    def project_source(self, memory: Tensor) -> KeysValues:
        """Keys and values of the encoder's output: (Ts, D) -> (Ts, H, Dh) each."""
        return self._heads(self.k, memory), self._heads(self.v, memory)

    @property
    def source_parts(self) -> list[nn.Module]:
        return [self.k, self.v]

    def attend_source(self, x: Tensor, source: KeysValues, mask_spec: MaskSpec) -> Tensor:
        """Target rows attend to the source: (T, D) -> (T, D)."""
        q = self._heads(self.q, x)
        mixed = attend_to(q, *source, mask_spec, self.scale, dropout=self._drop, prefix=self._prefix)
        return self.o(mixed.flatten(1))

    def _heads(self, linear: nn.Module, x: Tensor) -> Tensor:  # (T, D) -> (T, H, Dh)
        return unflatten(linear(x), -1, (-1, self.head_dim))

    @property
    def _drop(self) -> float:
        return self.dropout.p if self.training else 0.0

    @property
    def _prefix(self) -> KeysValues | None:
        return None if self.prefix is None else self.prefix()
