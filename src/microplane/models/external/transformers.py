"""Models without an implementation here, run by transformers: decoders and encoder-decoders that write text.

    T  tokens of all rows, side by side      B, S  rows and the longest of them, as a padded rectangle
    D  width of what goes into the head      K     positions whose logits are wanted

Slower than our own: rows are padded inside, and each new token of an answer computes its whole row again, since a
cache for rows of unequal length is not alike in all these models. `net` is transformers' model; methods know its
linears by their own names. Code from a model's repository is never run.

What a model does between its last hidden state and its logits is not known here. So it is tried: where the head alone
gives the model's logits, but for rounding, logits are computed at the wanted positions only, else for every token.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from microplane.errors import ConfigError, ModelError
from microplane.models.contract import Model, module_map_of
from microplane.models.external.any_module import map_modules
from microplane.nn.attention import MaskSpec
from microplane.nn.cache import Cache
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.rows import Pairs, Rows, from_grid

CONTEXTS = ("max_position_embeddings", "seq_length", "max_seq_len", "max_target_positions")
UNBOUNDED = 1 << 20  # tokens: for models whose config.json names no context


@dataclass(frozen=True)
class TransformersModelConfig:
    architecture: str
    kind: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    context: int
    decoder_start: int | None
    fields: dict[str, Any] = field(hash=False)  # of config.json
    tied: bool = False  # transformers ties the head to the embedding itself
    final_logit_softcapping: None = None

    def to_hf(self) -> dict[str, Any]:
        return dict(self.fields)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> TransformersModelConfig:
        architecture, kind = find_transformers_class(fields)
        config = _hf_config(fields)
        start = getattr(config, "decoder_start_token_id", None)
        if kind == "encoder-decoder" and start is None:
            raise ModelError("config.json names no decoder_start_token_id, with which the answers of this model begin")
        context = next((size for name in CONTEXTS if isinstance(size := getattr(config, name, None), int)), UNBOUNDED)
        try:
            sizes = [int(getattr(config, name)) for name in ("vocab_size", "hidden_size", "num_hidden_layers")]
        except (AttributeError, TypeError) as error:
            raise ModelError(f"config.json does not say what a model that writes text needs: {error}") from None
        vocab, width, layers = sizes
        return cls(architecture, kind, vocab, width, layers, context, start, dict(fields))


class TokenCache(Cache):
    """A cache of the rows' tokens instead of keys and values; of an encoder-decoder also the encoder's output."""

    def __init__(self, batch: int, memory: list[Tensor] | None = None):
        super().__init__(0, batch)
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.memory = memory  # (tokens of the source, width) of each row

    def extend(self, rows: Rows) -> Rows:
        """Append new tokens. Returns the rows from their start."""
        for held, new in zip(self.rows, torch.split(rows.ids, list(rows.lengths)), strict=True):
            held.extend(new.tolist())
        self.advance(rows)
        return Rows.of(self.rows)

    def select(self, indices: Sequence[int]) -> None:
        super().select(indices)
        self.rows = [list(self.rows[index]) for index in indices]
        self.memory = None if self.memory is None else [self.memory[index] for index in indices]


class TransformersModel(Model):
    """A model of transformers behind our contract, without the sockets and roles that only our own models have."""

    ARCHITECTURES: ClassVar[dict[str, str]] = {}
    net: Any
    config: TransformersModelConfig

    def __init__(self, config: TransformersModelConfig):
        super().__init__(config)
        self.head_is_separable = True  # the head alone gives the logits
        self.prompt_socket = PromptSocket()  # stays empty: methods that need sockets are refused
        self.set_net(_new(config))

    @property
    def load_notice(self) -> str:  # type: ignore[override]
        """Tells users that it is slower than a model with an implementation here."""
        return f"{self.config.architecture} has no implementation here: loaded through transformers, slower"

    @property
    def KIND(self) -> str:  # type: ignore[override]  # noqa: N802
        return self.config.kind

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> TransformersModel:
        return cls(TransformersModelConfig.from_hf(fields))

    def set_net(self, net: nn.Module) -> None:
        """Use `net`, a model of transformers, and map its modules."""
        self.net = net
        map_modules(self, prefix="net.")
        head = self.net.get_output_embeddings()
        self.head_name = next((name for name, module in self.named_modules() if module is head), None)
        on_meta = any(parameter.is_meta for parameter in net.parameters())
        self.head_is_separable = self.head_name is not None and (on_meta or self._head_gives_logits())

    def load_weights(self, folder: Path, dtype: torch.dtype, stored: str) -> None:
        """Load a folder's weights with transformers, in `dtype`; `stored` is the format in which the folder has them.

        Raises:
            ModelError: if they are not all there, or some are of no use; if they are quantised.
        """
        if stored == "nf4":
            raise ModelError(
                f"the weights in {folder} are quantised, which is read for architectures that have an implementation "
                "here: give the model as it was before; model.dtype=nf4 quantises it"
            )
        self.set_net(_read(self.config, folder, dtype))

    @property
    def head(self) -> nn.Module:
        """The module that makes logits of the output of `forward`; Identity if `forward` gives logits itself."""
        return self.get_submodule(self.head_name) if self.head_is_separable and self.head_name else nn.Identity()

    @head.setter
    def head(self, head: nn.Module | None) -> None:
        raise ConfigError(
            f"labels need a task head, and {self.config.architecture}, which is loaded through transformers, takes "
            "none here. Choose a model that Microplane has code for, or give the labels as answers: data.task=answers"
        )

    @property
    def head_weight(self) -> Tensor:
        return self.head.get_parameter("weight")

    @property
    def head_bias(self) -> Tensor | None:
        return getattr(self.head, "bias", None)

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """The input of `logits` for every token: (T, D), or (T, V) if the head cannot be separated."""
        if isinstance(rows, Pairs):
            return self._decoded(rows.target, self._encoded(rows.source))
        if cache is None:
            return self._decoded(rows, None)
        assert isinstance(cache, TokenCache)
        whole, new = cache.extend(rows), torch.tensor(rows.lengths)
        output = self._decoded(whole, None if cache.memory is None else cache.memory)
        ends = torch.repeat_interleave(whole.last + 1, new)
        back = torch.cat([torch.arange(count, 0, -1) for count in rows.lengths])
        return output.index_select(0, ends - back)

    def encode(self, source: Rows) -> Tensor:
        return torch.cat(self._encoded(source))

    def _encoded(self, source: Rows) -> list[Tensor]:
        """The encoder's output for each row, (tokens, D)."""
        return [row for _, own in _groups(source) for row in self._encoded_together(own)]

    def _encoded_together(self, source: Rows) -> list[Tensor]:
        ids, mask = _rectangle(source)
        with self._compute_format():
            output = self.net.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return list(torch.split(from_grid(output, source), list(source.lengths)))

    def _decoded(self, rows: Rows, memory: list[Tensor] | None) -> Tensor:
        keys = None if memory is None else [len(row) for row in memory]
        parts = [
            self._decoded_together(own, None if memory is None else memory[numbers])
            for numbers, own in _groups(rows, keys)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decoded_together(self, rows: Rows, memory: list[Tensor] | None) -> Tensor:
        ids, mask = _rectangle(rows)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if memory is not None:
            from transformers.modeling_outputs import BaseModelOutput

            lengths = torch.tensor([len(row) for row in memory])
            read = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            given = {
                "encoder_outputs": BaseModelOutput(nn.utils.rnn.pad_sequence(memory, batch_first=True)),
                "attention_mask": read,
                "decoder_input_ids": ids,
                "decoder_attention_mask": mask,
            }
        with self._compute_format():
            body = self.net.base_model if self.head_is_separable else self.net
            output = body(**given, use_cache=False, return_dict=True)
        return from_grid(output.last_hidden_state if self.head_is_separable else output.logits, rows)

    @contextmanager
    def _compute_format(self) -> Iterator[None]:
        """Compute in the format of the activations (autocast), if weights that train are wider."""
        with torch.autocast("cpu", self.compute or torch.bfloat16, enabled=self.compute is not None):
            yield

    def logits(self, hidden: Tensor) -> Tensor:
        with self._compute_format():
            scores: Tensor = self.head(hidden)
        return scores

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        if self.config.decoder_start is None or self.KIND == "decoder":
            return TokenCache(len(prompts)), [list(prompt) for prompt in prompts]
        return TokenCache(len(prompts), self._encoded(Rows.of(prompts))), [[self.config.decoder_start] for _ in prompts]

    @torch.no_grad()
    def _head_gives_logits(self) -> bool:
        """True if the model's logits are head(last hidden state), with no operation between or after."""
        was_training = self.net.training
        self.net.eval()
        ids = [number % self.config.vocab_size for number in (3, 1, 4, 1, 5)]
        rows: Rows | Pairs = Rows.of([ids])
        rows = Pairs(Rows.of([ids]), rows) if self.KIND == "encoder-decoder" else rows  # type: ignore[arg-type]
        found = []
        try:
            for self.head_is_separable in (False, True):
                found.append(self.logits(self(rows)))
        except (TypeError, AttributeError, RuntimeError):  # no such body, no such output, another width
            return False
        finally:
            self.net.train(was_training)
        whole, alone = found
        rounding = 8 * torch.finfo(whole.dtype).eps * whole.abs().max()
        return whole.shape == alone.shape and bool((whole - alone).abs().max() <= rounding)

    def hf_names(self) -> dict[str, str]:
        """transformers' own names on both sides."""
        module_map = module_map_of(self)
        assert module_map is not None
        return module_map.names(self)

    def plain_tensors(self) -> dict[str, Tensor]:
        """Parameters, shared ones once, and the buffers that are saved with them."""
        own, module_map = dict(self.named_parameters()), module_map_of(self)
        assert module_map is not None
        assert all(f"{path}.weight" in own for path in module_map.linears), (
            "merge what a method has added before saving"
        )
        parameters = dict(self.net.named_parameters())
        stored, buffers = self.net.state_dict(), dict(self.net.named_buffers())
        return parameters | {name: stored[name] for name in buffers if name in stored}

    def init_weights(self, seed: int = 0) -> TransformersModel:
        """New random weights, as transformers initialises the model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.set_net(_new(self.config))
        return self


def _groups(rows: Rows, keys: Sequence[int] | None = None) -> list[tuple[slice, Rows]]:
    """Rows of similar length together, as attention has them, so that one long row doesn't widen all."""
    return [(numbers, own.rows) for numbers, own in MaskSpec(rows, causal=False, keys=keys).groups]


def _rectangle(rows: Rows) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both (B, S): padded on the right with copies of the last token."""
    lengths = torch.tensor(rows.lengths)
    return rows.ids[rows.grid], (torch.arange(rows.longest) < lengths[:, None]).long()


# ------------------------------------------------------------------------------------------------ transformers


def find_transformers_class(fields: Mapping[str, Any]) -> tuple[str, str]:
    """(architecture, kind) of a config.json whose model transformers has; kind is decoder or encoder-decoder.

    Raises:
        ModelError: if transformers is not installed, or has no model of that name that writes text.
    """
    named = fields.get("architectures")
    what = named[0] if isinstance(named, list) and named else fields.get("model_type") or "(config.json names none)"
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"the architecture {what} has no implementation here; transformers may have one, and is not installed: "
            "pip install 'microplane[transformers]'"
        )
    from transformers.models.auto import modeling_auto

    for kind, table in (
        ("decoder", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("encoder-decoder", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    ):
        known = table.get(str(fields.get("model_type")))
        if known is not None and what in ((known,) if isinstance(known, str) else known):
            return what, kind
    version = importlib.metadata.version("transformers")
    foreign_code = " Code from the model's own repository is never run." if fields.get("auto_map") else ""
    raise ModelError(
        f"the architecture {what} is not supported: it has no implementation here, and transformers {version} has none "
        f"of that name that writes text.{foreign_code}"
    )


def _hf_config(fields: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    given = {name: value for name, value in fields.items() if name not in ("model_type", "auto_map")}
    try:
        return AutoConfig.for_model(fields["model_type"], **given)
    except Exception as error:  # whatever a config class makes of a wrong field
        raise ModelError(f"transformers cannot read this config.json: {error}") from None


def _class(config: TransformersModelConfig) -> Any:
    import transformers

    return getattr(transformers, config.architecture)


def _new(config: TransformersModelConfig) -> Any:
    try:
        return _class(config)(_hf_config(config.fields))
    except (TypeError, ValueError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ModelError(f"transformers cannot build {config.architecture} from this config.json: {error}") from None


def _read(config: TransformersModelConfig, folder: Path, dtype: torch.dtype) -> Any:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        net, info = _class(config).from_pretrained(
            folder,
            config=_hf_config(config.fields),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"transformers cannot load {folder}: {error}") from None
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    wrong = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "wrong": info["mismatched_keys"],
    }
    if any(wrong.values()):
        lines = [
            f"  {len(names)} {what}: {', '.join(map(str, sorted(names)[:8]))}" for what, names in wrong.items() if names
        ]
        raise ModelError(
            f"the weights in {folder} do not fit the {config.architecture} that its config describes:\n"
            + "\n".join(lines)
        )
    return net
