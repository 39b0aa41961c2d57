"""The encoder family: BERT (arXiv 1810.04805), RoBERTa and XLM-R (1907.11692, 1911.02116), DistilBERT (1910.01108),
ALBERT (1909.11942), ELECTRA (2003.10555), MPNet (2004.09297), DeBERTa-v2 and v3 (2006.03654, 2111.09543), NomicBERT
(2402.01613), ModernBERT (2412.13663), EuroBERT (2503.05500).

    T   tokens of all rows, side by side       D   model width (hidden_size)
    H   heads                                  M   width of the feed-forward layer (intermediate_size)
    Dh  width of a head                        P   length of a prefix
    E   width of the embeddings (embedding_size): D, but for ELECTRA and ALBERT
    S   longest row

Two kinds of blocks: BERT's, with the norm after each sum, and ModernBERT's, with the norm before each sub-layer.
Every token attends to its whole row, or to a window around itself. An encoder has no head for words: labels are
predicted by a `TaskHead` (models/heads.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.models.configs.encoder import Convolution, EncoderConfig
from microplane.models.configs.encoder_families import ARCHITECTURES, SPECS, Names, heads_left_out
from microplane.models.configs.fields import architecture_of
from microplane.models.contract import Model
from microplane.models.nomic_layout import Named, as_stored
from microplane.models.task_head import activation
from microplane.nn.attention import Bias, MaskSpec, attend
from microplane.nn.cache import Cache
from microplane.nn.disentangled import DistanceTable, distance_scores
from microplane.nn.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, RMSNorm, gated
from microplane.nn.ops.dropout import dropout
from microplane.nn.position import rotate
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.relative import RelativeBias
from microplane.nn.rows import Pairs, Rows, from_grid
from microplane.nn.selective_recompute import recomputed

Angles = tuple[Tensor, Tensor]
DistanceVectors = tuple[Tensor, Tensor]  # see `DistanceTable`


class Attention(nn.Module):
    """Self-attention. `prefix`, if a method sets it, gives keys and values (H, P, Dh) that every token attends to."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, bias = config.hidden_size, config.attention_bias
        self.head_dim = config.head_width
        inner, shared = config.num_heads * self.head_dim, (config.num_kv_heads or config.num_heads) * self.head_dim
        self.dropout = config.attention_dropout
        self.fused = config.spec.fused
        if self.fused:
            self.qkv = Linear(D, 3 * D, bias=bias)
        else:
            self.q, self.k, self.v = (Linear(D, width, bias=bias) for width in (inner, shared, shared))
        self.o = Linear(inner, D, bias=bias)
        self.prefix: nn.Module | None = None
        distances = self.distances = config.distances
        self.scale = 1.0 / math.sqrt(self.head_dim * config.score_terms)
        self.table_dropout = config.hidden_dropout
        if distances is not None and not distances.shared:
            self.distance_k = Linear(D, D) if distances.keys else None
            self.distance_q = Linear(D, D) if distances.queries else None

    def forward(
        self, x: Tensor, mask_spec: MaskSpec, angles: Angles | None, bias: Bias | DistanceVectors | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        if isinstance(bias, tuple):
            bias = self._of_distances(*bias)
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (torch.unflatten(part, -1, (-1, self.head_dim)) for part in parts)  # (T, H, Dh)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        p = self.dropout if self.training else 0.0
        prefix = None if self.prefix is None else self.prefix()
        mixed = attend(q, k, v, mask_spec, self.scale, bias=bias, dropout=p, prefix=prefix)
        return self.o(mixed.flatten(1))

    def _of_distances(self, vectors: Tensor, index: Tensor) -> Bias:
        """What distances add to the scores: vectors (R, D), and for each distance which of them it has (W,)."""
        assert self.distances is not None
        vectors = dropout(vectors, self.table_dropout, self.training)
        shared = self.distances.shared
        by_key = self.k if shared else self.distance_k
        by_query = self.q if shared else self.distance_q

        def projected(linear: nn.Module) -> Tensor:  # (W, H, Dh)
            return torch.unflatten(linear(vectors), -1, (-1, self.head_dim)).index_select(0, index)

        keys = projected(by_key) if self.distances.keys and by_key is not None else None
        queries = projected(by_query) if self.distances.queries and by_query is not None else None
        return distance_scores(keys, queries, self.scale)


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) (arXiv 2002.05202), ModernBERT's with both in one matrix."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, M, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = config.activation
        self.dropout = config.mlp_dropout
        self.fused, self.gated = config.spec.fused, config.spec.gated
        if self.fused:
            self.gate_up = Linear(D, 2 * M, bias=bias)
        else:
            self.up = Linear(D, M, bias=bias)
            self.gate = Linear(D, M, bias=bias) if self.gated else None
        self.down = Linear(M, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (T, D) -> (T, D)
        if self.fused:
            inner = gated(self.activation, *self.gate_up(x).chunk(2, dim=-1))  # (T, M)
        elif self.gate is not None:
            inner = gated(self.activation, self.gate(x), self.up(x))
        else:
            inner = recomputed(ACTIVATIONS[self.activation], self.up(x))  # (T, M)
        return self.down(dropout(inner, self.dropout, self.training))


class Block(nn.Module):
    """BERT's block: the norm is applied after the sum."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dropout = config.hidden_dropout if config.spec.drops_mlp else 0.0
        self.attention_dropout = config.hidden_dropout if config.spec.drops_attention else 0.0
        self.attention = Attention(config)
        self.attention_socket = nn.Identity()
        self.attention_norm = norm_of(config)
        self.mlp = MLP(config)
        self.mlp_socket = nn.Identity()
        self.mlp_norm = norm_of(config)

    def forward(
        self, x: Tensor, mask_spec: MaskSpec, angles: Angles | None, bias: Bias | DistanceVectors | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        y = dropout(self.attention(x, mask_spec, angles, bias), self.attention_dropout, self.training)
        x = self.attention_norm(x + self.attention_socket(y))
        y = dropout(self.mlp(x), self.dropout, self.training)
        return self.mlp_norm(x + self.mlp_socket(y))


class ModernBlock(nn.Module):
    """ModernBERT's and EuroBERT's block: the norm is applied before the sub-layer. ModernBERT's first block has none
    before its attention, as the embeddings have been normed already."""

    def __init__(self, config: EncoderConfig, layer: int):
        super().__init__()
        self.dropout = config.attention_dropout if config.modern else 0.0
        self.attention_norm = norm_of(config) if layer or not config.modern else nn.Identity()
        self.attention = Attention(config)
        self.attention_socket = nn.Identity()
        self.mlp_norm = norm_of(config)
        self.mlp = MLP(config)
        self.mlp_socket = nn.Identity()

    def forward(
        self, x: Tensor, mask_spec: MaskSpec, angles: Angles | None, bias: Bias | DistanceVectors | None = None
    ) -> Tensor:  # (T, D) -> (T, D)
        y: Tensor = self.attention(self.attention_norm(x), mask_spec, angles, bias)
        x = x + self.attention_socket(dropout(y, self.dropout, self.training))
        y = self.mlp_socket(self.mlp(self.mlp_norm(x)))
        return x + y


class ConvolutionLayer(nn.Module):
    """norm(y + act(conv(x))) of each row by itself, what lies beyond its ends being 0."""

    def __init__(self, config: EncoderConfig, convolution: Convolution):
        super().__init__()
        D, self.activation = config.hidden_size, activation(convolution.activation)
        self.conv = nn.Conv1d(D, D, convolution.width, groups=convolution.groups)
        self.norm = norm_of(config)
        self.dropout = config.hidden_dropout

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:  # (T, D), (T, D) -> (T, D)
        grid = x[rows.grid].masked_fill(~rows.is_token[..., None], 0.0).transpose(1, 2)  # (B, D, S)
        conv = self.conv
        weight, bias = conv.weight.to(x.dtype), None if conv.bias is None else conv.bias.to(x.dtype)
        mixed = nn.functional.conv1d(grid, weight, bias, padding=conv.kernel_size[0] // 2, groups=conv.groups)
        near = from_grid(mixed.transpose(1, 2), rows)
        return self.norm(y + self.activation(dropout(near, self.dropout, self.training)))


def norm_of(config: EncoderConfig, width: int = 0) -> LayerNorm | RMSNorm:
    if config.spec.rms:
        return RMSNorm(width or config.hidden_size, config.norm_eps)
    return LayerNorm(width or config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


class Encoder(Model):
    """A model that reads in both directions; see models/contract.py for what its parts are called.

    `prompt_socket` gets the word embeddings alone, before positions and segments are added and the sum is normed. There
    a prompt [P; E(x)] (arXiv 2104.08691) is prepended, whose vectors then get positions like words.
    """

    ARCHITECTURES: ClassVar[dict[str, str]] = ARCHITECTURES
    KIND: ClassVar[str] = "encoder"
    config: EncoderConfig
    embed: nn.Embedding
    head: None
    left_out: tuple[str, ...] = ()  # modules of its file's class that the model alone lacks

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        D, places = config.hidden_size, config.context + config.first_position
        E = config.embedding_size or D
        self.embed = Embedding(config.vocab_size, E)
        self.prompt_socket = PromptSocket()
        self.positions = Embedding(places, E) if config.positions else None
        self.types = Embedding(config.token_types, E) if config.token_types else None
        self.embed_norm = norm_of(config, E) if config.spec.norms_embeddings else nn.Identity()
        self.embed_project = Linear(E, D) if config.embedding_size else None
        self.relative = RelativeBias(config.buckets, FARTHEST, config.num_heads, False) if config.buckets else None
        distances, convolution = config.distances, config.convolution
        self.distances = DistanceTable(distances, D, config.norm_eps) if distances else None
        self.conv = ConvolutionLayer(config, convolution) if convolution else None
        before = config.spec.norm_before
        count = config.own_blocks or config.num_layers
        self.layers = nn.ModuleList(ModernBlock(config, i) if before else Block(config) for i in range(count))
        self.norm = norm_of(config) if before else nn.Identity()
        self.head = None
        self.post_norm = not before

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Encoder:
        model = cls(EncoderConfig.from_hf(fields))
        named = architecture_of(fields, ARCHITECTURES)
        model.left_out = heads_left_out(named)
        if model.left_out:
            model.load_notice = f"the head of {named} is left out: what it does is no task here"
        return model

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm: (T, D)."""
        assert isinstance(rows, Rows), "an encoder reads one row"
        assert cache is None, "an encoder sees whole rows"
        words, whole = self.prompt_socket(self.embedded(rows.ids), rows)
        x = self._blocks(self._entry(words, whole), whole, 0, self.config.num_layers)
        return self.norm(self.prompt_socket.strip_prompt(x, whole, rows))

    def lower(self, rows: Rows, blocks: int) -> Tensor:
        return self._blocks(self._entry(self.embedded(rows.ids), rows), rows, 0, blocks)

    def upper(self, x: Tensor, rows: Rows, blocks: int) -> Tensor:
        return self.norm(self._blocks(x, rows, blocks, self.config.num_layers))

    def layers_below(self, block: int) -> int:
        return sum(own < block for own in self.config.block_of_layer)

    def _entry(self, words: Tensor, rows: Rows) -> Tensor:
        """The input of the first block: (T, D)."""
        x = self.embed_norm(self._summed(words, rows))  # (T, E)
        x = dropout(x, self.config.embed_dropout, self.training and not self.frozen)
        return x if self.embed_project is None else self.embed_project(x)

    def _blocks(self, x: Tensor, rows: Rows, first: int, end: int) -> Tensor:
        """The output of blocks first .. end - 1: (T, D) -> (T, D)."""
        config = self.config
        mask_specs = {
            window: MaskSpec(rows, None, window, causal=False, terms=config.score_terms)
            for window in set(config.windows)
        }
        angles = {
            rope: None if rope is None else rope.angles(rows.positions, config.head_width, x.dtype)
            for rope in set(config.ropes)
        }
        bias: Bias | DistanceVectors | None = None
        if self.relative is not None:
            bias = self.relative(mask_specs[None])  # (H, S, S)
        elif self.distances is not None:
            bias = self.distances(rows.longest, x.dtype)
        kinds = list(zip(config.block_of_layer, config.windows, config.ropes, strict=True))
        for number, (block, window, rope) in enumerate(kinds[first:end], first):
            y = self.layers[block](x, mask_specs[window], angles[rope], bias)
            x = self.conv(x, y, rows) if self.conv is not None and number == 0 else y
        return x

    def _summed(self, words: Tensor, rows: Rows) -> Tensor:
        """The sum of word, segment and position embeddings: (T, E)."""
        x = words
        if self.types is not None:
            types = torch.zeros_like(rows.ids) if rows.types is None else rows.types
            types = types.clamp(max=self.config.token_types - 1)  # RoBERTa has one kind, also for pairs
            x = x + self.types(types).to(x.dtype)
        if self.positions is not None:
            assert rows.longest <= self.config.context, f"a row has more tokens than {self.config.context}"
            x = x + self.positions(self._places(rows)).to(x.dtype)
        return x

    def _places(self, rows: Rows) -> Tensor:
        """The row of the table of positions that belongs to each token: (T,).

        RoBERTa's kind counts no place for its token for padding, wherever that stands: a text may hold it, or the
        vocabulary a word in its place.
        """
        first = self.config.first_position
        return rows.positions_without(first - 1) + first if first else rows.positions

    def logits(self, hidden: Tensor) -> NoReturn:
        raise self._no_words()

    @property
    def head_weight(self) -> NoReturn:
        raise self._no_words()

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> NoReturn:
        raise self._no_words()

    def _no_words(self) -> ModelError:
        return ModelError(
            f"{self.config.architecture} is an encoder and writes no text: it can be trained to classify texts or"
            " tokens, and it embeds. For text, take a decoder or an encoder-decoder"
        )

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> Encoder:
        """New random weights, normal with the configured standard deviation; biases 0, norms neutral."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | RelativeBias):
                module.weight.normal_(0.0, self.config.init_std, generator=generator)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, LayerNorm | RMSNorm):
                module.reset_parameters()
        return self

    def canonical_name(self, name: str) -> str:
        """Without the prefix that names have in a model with a head, and old names of norm weights as new ones."""
        name = name.removeprefix(SPECS[self.config.architecture].prefix)
        for old, new in OLD_NAMES.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    @property
    def names(self) -> Names:
        return SPECS[self.config.architecture].names

    def is_unused_weight(self, name: str) -> bool:
        """Heads of pre-training (BERT's pooler is one of them), and stored position indices."""
        called = self.canonical_name(name)
        stray = "embeddings.position_ids" if self.config.positions else "embeddings.position_"  # DeBERTa's files
        return called.split(".")[0] in (*self.names.unused, *self.left_out) or called.startswith(stray)

    def plain_tensors(self) -> dict[str, Tensor]:
        found = super().plain_tensors()
        return as_stored(found) if self.config.architecture == "NomicBertModel" else found

    def as_read(self, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return dict(Named(stored)) if self.config.architecture == "NomicBertModel" else stored

    def is_head_weight(self, name: str) -> bool:
        return name.rsplit(".", 1)[0] in self.names.kept

    def extra_weights_to_save(self) -> dict[str, Tensor]:
        """BERT's pooler: Hugging Face's model without a head contains it."""
        return self.extra_weights if self.names.has_pooler else {}

    def hf_names(self) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, of the model without a head."""
        config, names = self.config, self.names
        modules = {ours: (theirs, config.norm_bias) for ours, theirs in names.around.items() if self._has(ours)}
        for i in range(len(self.layers)):
            for ours, theirs in names.block.items():
                bias = getattr(config, f"{ours.partition('.')[0]}_bias", config.norm_bias)
                if self._has(f"layers.{i}.{ours}"):
                    modules[f"layers.{i}.{ours}"] = f"{names.stack}.{i}.{theirs}", bias
        if config.modern:
            modules.pop("layers.0.attention_norm")
        found = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.tables.items() if self._has(ours)}
        found |= {f"{ours}.weight": f"{theirs}.weight" for ours, (theirs, _) in modules.items()}
        return found | {f"{ours}.bias": f"{theirs}.bias" for ours, (theirs, bias) in modules.items() if bias}

    def _has(self, module: str) -> bool:
        part: object = self
        for name in module.split("."):
            part = getattr(part, name, None)
        return part is not None


OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
FARTHEST = 128  # tokens: MPNet's bias is the same beyond
