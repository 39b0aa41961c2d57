"""T5Gemma 2 (arXiv 2512.14856), its text part: an encoder-decoder of Gemma 3's blocks; shapes as in models/t5gemma.py.

The decoder's self-attention looks at its own row and at the source at once, with one set of weights: the source's keys
are made by the same layers, normed and not turned, and are seen from everywhere, whatever the window. The encoder, the
decoder and the head share one table of words. The token behind a picture has a vector of its own, which is not scaled.

Pictures are not read here. The tensors of the tower that sees them are kept as they are and written into every folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.models.configs.t5gemma import SECOND, T5Gemma2Config
from microplane.models.contract import SEEING, Inside
from microplane.models.decoder import Attention, Block
from microplane.models.encoder_decoder import EncoderDecoder, KeysValues, SourceReader
from microplane.models.t5gemma import HEAD, MODULES, Stack, T5Gemma, encoder_of, names_of_stack
from microplane.nn.cache import Cache
from microplane.nn.layers import Embedding
from microplane.nn.merged_attention import MergedMask, attend_merged


class MergedAttention(Attention):
    """Attention of target rows to themselves and to their source, by its keys and values."""

    def project_source(self, memory: Tensor) -> KeysValues:
        """Keys and values of the encoder's output: (Ts, D) -> (Ts, KV, Dh) each."""
        keys, values = (torch.unflatten(part(memory), -1, (-1, self.head_dim)) for part in (self.k, self.v))
        return cast(nn.Module, self.k_norm)(keys), values

    @property
    def source_parts(self) -> list[nn.Module]:
        return [self.k, self.v, cast(nn.Module, self.k_norm)]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: MergedMask,
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        source: KeysValues,
    ) -> Tensor:
        """(T, D) -> (T, D)."""
        q, k, v = self.heads(x)
        how = mask, self.scale, self.softcap, cache, self.layer, self.drop, self.seen_first, angles
        return self.o(attend_merged(q, k, v, source, *how).flatten(1))


class MergedBlock(Block):
    def __init__(self, config: Any, layer: int):
        super().__init__(config, layer)
        self.attention = MergedAttention(config, layer)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: MergedMask,
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        source: KeysValues,
    ) -> Tensor:  # (T, D) -> (T, D)
        return self.fed(x, self.attended(x, self.attention(self.attention_norm(x), mask, angles, cache, source)))


class T5Gemma2(T5Gemma):
    ARCHITECTURES: ClassVar[dict[str, str]] = SECOND
    config: T5Gemma2Config

    def __init__(self, config: T5Gemma2Config):
        if not config.tied:
            raise ModelError("its head differs from its embedding, which is not supported: T5Gemma 2 has one table")
        EncoderDecoder.__init__(self, config)
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.end_of_image = nn.Parameter(torch.empty(config.hidden_size))
        self.encoder = encoder_of(config)
        own = config.decoder
        self.decoder = Stack(own, own.windows, lambda layer: MergedBlock(own, layer), MergedMask)
        self.head = None

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> T5Gemma2:
        return cls(T5Gemma2Config.from_hf(fields))

    def embedded(self, ids: Tensor) -> Tensor:
        x = super().embedded(ids)
        return torch.where((ids == self.config.end_of_image)[:, None], self.end_of_image.to(x.dtype), x)

    def target_embedded(self, ids: Tensor) -> Tensor:
        return self.embedded(ids)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the embedding's."""
        return self.embed.weight

    def reader(self, block: nn.Module) -> SourceReader:
        return cast(MergedAttention, block.attention)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> T5Gemma2:
        """As of a T5Gemma; the vector behind pictures is 0. There is no tower then: a folder of it is of text alone."""
        super().init_weights(seed)
        self.end_of_image.zero_()
        return self

    @property
    def tied_names(self) -> tuple[str, str]:
        return f"{EMBED}.weight", HEAD

    @property
    def inside(self) -> Inside | None:  # type: ignore[override]
        """The tower beside it has layers of the same names."""
        others = tuple(name.removesuffix(".weight").removesuffix(".bias") for name in self.extra_weights)
        return Inside({}, others) if others else None

    def canonical_name(self, name: str) -> str:
        """Without the level of names that older files leave out."""
        return name.replace("model.encoder.text_model.", "model.encoder.")

    def is_head_weight(self, name: str) -> bool:
        """Also those of the tower: they are kept as those of heads are."""
        return name.startswith(TOWER)

    def is_unused_weight(self, name: str) -> bool:
        """Also the tower's, and the decoder's copy of what both sides share."""
        return super().is_unused_weight(name) or name.startswith((*TOWER, "model.decoder.embed_tokens."))

    def idle(self) -> Sequence[nn.Parameter]:
        """What stands behind pictures, of which there are none."""
        return (self.end_of_image,)

    def plain_tensors(self) -> dict[str, Tensor]:
        """With the tower's, as they were read."""
        return super().plain_tensors() | self.extra_weights

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for the plain model that `config` describes."""
        names = {"embed.weight": f"{EMBED}.weight", "end_of_image": f"{EMBED}.eoi_embedding"}
        modules = MODULES | {f"attention.{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")}
        names |= names_of_stack("encoder", self.config.encoder, modules, "encoder.text_model")
        return names | names_of_stack("decoder", self.config.decoder, modules)


EMBED = "model.encoder.text_model.embed_tokens"
TOWER = tuple(f"model.encoder.{part}." for part in SEEING)
