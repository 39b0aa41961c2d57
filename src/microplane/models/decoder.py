"""The decoders, one block for all families in `SPECS` of models/configs/decoder_families.py.

    T   tokens of all rows, side by side       D   model width (hidden_size)
    H   query heads                            M   width of the feed-forward layer (intermediate_size)
    KV  key and value heads                    V   vocabulary
    Dh  width of a head                        K   positions whose logits are wanted

The families differ only in what `DecoderConfig` says (models/configs/decoder.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from microplane.models.configs.decoder import DecoderConfig
from microplane.models.configs.decoder_families import ARCHITECTURES, HEADLESS, SPECS, Names
from microplane.models.configs.fields import architecture_of
from microplane.models.contract import ROLES, Model
from microplane.models.fused_step import BlockParts, NotFusableError, StackParts, fused_step, try_on
from microplane.nn.attention import MaskSpec, attend
from microplane.nn.cache import Cache
from microplane.nn.layers import MLP, Embedding, GatedMLP, LayerNorm, Linear, RMSNorm
from microplane.nn.ops.dropout import dropout
from microplane.nn.ops.few_rows import Stored, linear, stored_linear
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.rows import Pairs, Rows

__all__ = ["SPECS", "Decoder", "DecoderConfig"]


def norm_of(config: DecoderConfig) -> RMSNorm | LayerNorm:
    if config.layer_norm:
        return LayerNorm(config.hidden_size, eps=config.norm_eps)
    return RMSNorm(config.hidden_size, config.norm_eps, config.gemma)


def scaled(x: Tensor) -> Tensor:
    """Embeddings times the root of their width, as Gemma has them. The factor is rounded to their number format, as it
    was in training."""
    return x * torch.tensor(math.sqrt(x.shape[-1]), device="cpu").to(x.dtype)  # one number: goes anywhere


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Logits that are kept within -cap and cap."""
    return scores if cap is None else torch.tanh(scores / cap) * cap


class Attention(nn.Module):
    """Self-attention. Of a subclass that looks elsewhere, `read` is the width of what keys and values are made of."""

    def __init__(self, config: DecoderConfig, layer: int, read: int | None = None):
        super().__init__()
        D, Dh, H, KV = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
        self.layer, self.head_dim = layer, Dh
        self.rope = config.ropes[layer] if read is None else None
        self.scale = (config.attention_scale or 1.0 / math.sqrt(Dh)) / (layer + 1 if config.scale_by_layer else 1)
        self.softcap, self.dropout = config.attn_logit_softcapping, config.attention_dropout
        self.widths = [H * Dh, KV * Dh, KV * Dh]  # of q, k and v
        self.fused, self.by_head = config.fused, config.fused_by_head
        if self.fused:
            self.qkv = Linear(D, sum(self.widths), bias=config.qkv_bias)
        else:
            inputs = zip((D, read or D, read or D), self.widths, strict=True)
            self.q, self.k, self.v = (Linear(*sizes, bias=config.qkv_bias) for sizes in inputs)
        self.o = Linear(H * Dh, D, bias=config.o_bias)
        self.whole = config.qk_norm_whole
        widths = (H * Dh, KV * Dh) if self.whole else (Dh, Dh)
        self.q_norm, self.k_norm = (
            RMSNorm(width, config.norm_eps, config.gemma) if config.qk_norm else None for width in widths
        )
        self.prefix: nn.Module | None = None  # gives keys and values (KV, P, Dh) that every row sees before its own

    def forward(
        self, x: Tensor, mask_spec: MaskSpec, angles: tuple[Tensor, Tensor] | None, cache: Cache | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        q, k, v = self.heads(x)
        how = mask_spec, self.scale, self.softcap, cache, self.layer
        mixed = attend(q, k, v, *how, dropout=self.drop, prefix=self.seen_first, angles=angles)
        return self.o(mixed.flatten(1))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries (T, H, Dh), keys and values (T, KV, Dh), normed where the family does so, and not yet turned."""
        q, k, v = self._qkv(x)
        if self.whole and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (torch.unflatten(part, -1, (-1, self.head_dim)) for part in (q, k, v))  # (T, H, Dh)
        if not self.whole and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    @property
    def drop(self) -> float:
        return self.dropout if self.training else 0.0

    @property
    def seen_first(self) -> tuple[Tensor, Tensor] | None:
        """The keys and values of a prefix."""
        return None if self.prefix is None else self.prefix()

    def _qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries (T, H Dh), keys and values (T, KV Dh) of (T, D)."""
        if not self.fused:
            return self.q(x), self.k(x), self.v(x)
        if not self.by_head:
            return torch.split(self.qkv(x), self.widths, dim=-1)
        of_heads = torch.unflatten(self.qkv(x), -1, (-1, 3, self.head_dim))  # (T, H, 3, Dh)
        return tuple(part.flatten(1) for part in of_heads.unbind(2))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.multiplier, self.dropout = config.residual_multiplier, config.hidden_dropout
        self.parallel, self.width = config.parallel, config.hidden_size
        before, after = not config.norm_after, config.gemma or config.norm_after
        self.attention_norm = norm_of(config) if before else nn.Identity()
        self.attention = Attention(config, layer)
        self.attention_out_norm = norm_of(config) if after else None
        self.attention_socket = nn.Identity()
        self.mlp_norm = norm_of(config) if before else nn.Identity()
        sizes = config.hidden_size, config.intermediate_size, config.activation, config.mlp_bias
        inner = config.mlp_dropout
        self.mlp = GatedMLP(*sizes, config.fused, inner) if config.gated else MLP(*sizes, dropout=inner)
        self.mlp_out_norm = norm_of(config) if after else None
        self.mlp_socket = nn.Identity()

    def forward(
        self, x: Tensor, mask_spec: MaskSpec, angles: tuple[Tensor, Tensor] | None, cache: Cache | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        y: Tensor = self.attention(self.attention_norm(x), mask_spec, angles, cache)
        return self.fed(x, self.attended(x, y))

    def attended(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's input with the output of its attention: (T, D)."""
        if self.attention_out_norm is not None:
            y = self.attention_out_norm(y)
        summed: Tensor = x + self.attention_socket(self.added(y))
        return summed

    def fed(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output, from its input and from that with the output of its attention: (T, D)."""
        y = self.mlp(self.mlp_norm(x if self.parallel else attended))
        if self.mlp_out_norm is not None:
            y = self.mlp_out_norm(y)
        summed: Tensor = attended + self.mlp_socket(self.added(y))
        return summed

    def added(self, y: Tensor) -> Tensor:
        """A sub-layer's output as it is added to the residual stream."""
        y = dropout(y, self.dropout, self.training)
        return y if self.multiplier == 1.0 else y * self.multiplier


def _parts_of(block: nn.Module, window: int | None, rope: Any) -> BlockParts:
    if type(block) is not Block or type(block.attention) is not Attention or type(block.mlp) is not GatedMLP:
        raise NotFusableError
    attention, mlp = block.attention, block.mlp
    if attention.prefix is not None or attention.fused or block.parallel or (rope is not None and rope.share != 1.0):
        raise NotFusableError
    linears: dict[str, nn.Module | None] = {"q": attention.q, "k": attention.k, "v": attention.v, "o": attention.o}
    norms: dict[str, nn.Module | None] = {"before": block.attention_norm, "after": block.attention_out_norm}
    norms |= {"mlp_before": block.mlp_norm, "mlp_after": block.mlp_out_norm}
    return BlockParts(
        linears | {"gate": mlp.gate, "up": mlp.up, "down": mlp.down},
        norms | {"q_norm": attention.q_norm, "k_norm": attention.k_norm},
        window,
        rope,
        sockets=(block.attention_socket, block.mlp_socket),
        whole=(block, attention, mlp),
    )


class Decoder(Model):
    """A causal language model; see models/contract.py for what its parts are called."""

    ARCHITECTURES: ClassVar[dict[str, str]] = ARCHITECTURES
    KIND: ClassVar[str] = "decoder"
    config: DecoderConfig
    embed: nn.Embedding
    head: nn.Linear | None
    stored_head: Stored | None = None  # the embedding as a GGUF file has it, where it is the head too and is opened so

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.prompt_socket = PromptSocket()
        self.positions = Embedding(config.context, config.hidden_size) if config.positions else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = norm_of(config)
        self.head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Decoder:
        model = cls(DecoderConfig.from_hf(fields))
        if model.config.longest > (context := model.config.context):
            model.load_notice = f"at most {context:,} tokens of a row are read: longrope turns longer rows otherwise"
        if (named := architecture_of(fields, ARCHITECTURES)) in HEADLESS:
            model.load_notice = f"{named} has no head for words: it embeds, and learns labels; what it writes is no use"
        return model

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm: (T, D). With a cache, the rows continue those in it and are
        appended to it."""
        assert isinstance(rows, Rows), "a decoder takes Rows"
        starts = cache.lengths if cache is not None else None
        x, whole = self.prompt_socket(
            self.embedded(rows.ids), rows, starts
        )  # (T, D), longer where a prompt stands before
        x = self._blocks(self._entry(x, whole), whole, 0, self.config.num_layers, cache)
        if cache is not None:
            cache.advance(whole)
        return self._last(self.prompt_socket.strip_prompt(x, whole, rows))

    def lower(self, rows: Rows, blocks: int) -> Tensor:
        return self._blocks(self._entry(self.embedded(rows.ids), rows), rows, 0, blocks)

    def upper(self, x: Tensor, rows: Rows, blocks: int) -> Tensor:
        return self._last(self._blocks(x, rows, blocks, self.config.num_layers))

    def _entry(self, x: Tensor, rows: Rows) -> Tensor:
        """The input of the first block: Granite scales a prompt's vectors as it does those of words."""
        scale = self.config.embedding_multiplier
        x = x if scale == 1.0 else x * scale
        if self.positions is not None:
            assert rows.last_position < self.config.context, f"a row has more tokens than {self.config.context}"
            x = x + self.positions(rows.positions).to(x.dtype)
        return dropout(x, self.config.embed_dropout, self.training and not self.frozen)

    def _last(self, x: Tensor) -> Tensor:
        """Normed, and divided as the logits are to be."""
        hidden: Tensor = self.norm(x)
        return hidden if self.config.logits_scaling == 1.0 else hidden / self.config.logits_scaling

    def _blocks(self, x: Tensor, rows: Rows, first: int, end: int, cache: Cache | None = None) -> Tensor:
        """The output of blocks first .. end - 1: (T, D) -> (T, D)."""
        config, starts = self.config, cache.lengths if cache is not None else None
        angles = {
            rope: None if rope is None else rope.angles(rows.positions, config.head_dim, x.dtype)
            for rope in set(config.ropes)
        }
        if cache is not None and (step := fused_step(self.parts, x, rows, cache)) is not None:
            return step(x, rows, cache, angles)
        mask_specs = {window: MaskSpec(rows, starts, window) for window in set(config.windows)}
        kinds = list(zip(self.layers, config.windows, config.ropes, strict=True))
        for block, window, rope in kinds[first:end]:
            x = block(x, mask_specs[window], angles[rope], cache)
        return x

    def parts(self) -> StackParts:
        """The blocks as models/fused_step.py computes them.

        Raises:
            NotFusableError: if they are not plain ones.
        """
        config = self.config
        if config.scale_by_layer:
            raise NotFusableError
        places = zip(self.layers, config.windows, config.ropes, strict=True)
        blocks = [_parts_of(block, window, rope) for block, window, rope in places]
        return StackParts(
            blocks,
            heads=config.num_heads,
            kv=config.num_kv_heads,
            head=config.head_dim,
            inner=config.intermediate_size,
            activation=config.activation,
            eps=config.norm_eps,
            scale=config.attention_scale or 1.0 / math.sqrt(config.head_dim),
            multiplier=config.residual_multiplier,
            softcap=config.attn_logit_softcapping or 0.0,
            around_one=config.gemma,
            whole=config.qk_norm_whole,
        )

    def embedded(self, ids: Tensor) -> Tensor:
        x = super().embedded(ids)
        return scaled(x) if self.config.gemma else x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (K, D) -> (K, V)."""
        return capped(self._scores(hidden), self.config.final_logit_softcapping)

    def _scores(self, hidden: Tensor) -> Tensor:
        if self.head is not None:
            own: Tensor = self.head(hidden)
            return own
        if self.stored_head is not None and (scores := stored_linear(hidden, self.stored_head, None)) is not None:
            return scores
        return linear(hidden, self.embed.weight.to(hidden.dtype), None)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), the embedding's where the two are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        return Cache(self.config.num_layers, len(prompts)), [list(prompt) for prompt in prompts]

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> Decoder:
        """New random weights, normal with the configured standard deviation; biases 0, norms neutral."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, self.config.init_std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, RMSNorm | LayerNorm):
                module.reset_parameters()
        return self

    @property
    def names(self) -> Names:
        return SPECS[self.config.architecture].names

    @property
    def tied_names(self) -> tuple[str, str]:
        return f"{self.names.prefix}{self.names.around['embed']}.weight", "lm_head.weight"

    def canonical_name(self, name: str) -> str:
        """Without the prefix that the files of some models without a head leave out, as those that embed texts."""
        return name.removeprefix(self.names.prefix)

    def is_unused_weight(self, name: str) -> bool:
        """Also rotary tables and masks: old versions of transformers stored them, and they follow from config.json."""
        stored = f"{self.names.stored_head}.weight" if self.config.tied else None
        return super().is_unused_weight(name) or name == stored or name.endswith(self.names.buffers)

    def aliases(self) -> dict[str, tuple[str, ...]]:
        return {self.tied_names[1]: (f"{self.names.stored_head}.weight",)}

    def plain_tensors(self) -> dict[str, Tensor]:
        """The head for words of GPT-NeoX under the name that all versions of transformers read."""
        head, stored = self.tied_names[1], f"{self.names.stored_head}.weight"
        return {stored if name == head else name: tensor for name, tensor in super().plain_tensors().items()}

    def turned(self, ours: str, tensor: Tensor) -> Tensor:
        """GPT-2's files hold the linear layers of blocks as (in, out)."""
        *where, module, kind = ours.split(".")
        own = self.is_transposed and where[:1] == ["layers"] and module in ROLES and kind == "weight"
        return tensor.t() if own and tensor.dim() == 2 else tensor

    def as_read(self, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        ours = {theirs: name for name, theirs in self.hf_names().items()}
        head, in_files = self.tied_names[1], f"{self.names.stored_head}.weight"
        called = {name: head if name == in_files else name for name in stored}
        return {called[name]: self.turned(ours.get(called[name], ""), tensor) for name, tensor in stored.items()}

    @property
    def is_transposed(self) -> bool:
        """Whether files hold the linear layers of blocks as (in, out)."""
        return self.names.transposed

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, for the plain model that `config` describes."""
        table, config = self.names, self.config
        names = {f"{ours}.weight": f"{table.prefix}{theirs}.weight" for ours, theirs in table.around.items()}
        names |= {"norm.bias": f"{table.prefix}{table.around['norm']}.bias"} if config.layer_norm else {}
        for ours, theirs in table.block.items():
            for kind in ("weight", "bias") if self._has_bias(ours) else ("weight",):
                for i in range(config.num_layers):
                    names[f"layers.{i}.{ours}.{kind}"] = f"{table.prefix}{table.stack}.{i}.{theirs}.{kind}"
        return names if config.tied else names | {"head.weight": "lm_head.weight"}

    def _has_bias(self, module: str) -> bool:
        """Whether a module of a block has a bias."""
        config = self.config
        if module.endswith("norm"):
            return config.layer_norm
        return config.mlp_bias if module.startswith("mlp") else config.o_bias if module[-1] == "o" else config.qkv_bias


def _small() -> Decoder:
    sizes = {"vocab_size": 32, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
    return Decoder(DecoderConfig.from_hf({"model_type": "llama", **sizes, **heads})).init_weights().eval()


try_on(_small)
