"""A model without an implementation here, run by transformers: what its writers and its encoders have in common.

`net` is transformers' model; methods know its linears by their own names. Code from a model's repository is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from microplane.errors import ModelError
from microplane.models.configs.head import HeadConfig
from microplane.models.contract import Model, module_map_of
from microplane.models.external.library import find_transformers_class, hf_config, new_net, sizes_of
from microplane.models.external.together import NOTICES, Together
from microplane.models.files.checkpoint import Checkpoint
from microplane.nn.prompt_socket import PromptSocket


@dataclass(frozen=True)
class TransformersModelConfig:
    architecture: str  # transformers' class; of an encoder that without a head
    kind: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    context: int
    decoder_start: int | None
    fields: dict[str, Any] = field(hash=False)  # of config.json
    head: HeadConfig | None = None  # of a class of transformers that labels
    tied: bool = False  # transformers ties the head to the embedding itself
    final_logit_softcapping: None = None

    def to_hf(self) -> dict[str, Any]:
        named = self.fields if self.kind != "encoder" else {**self.fields, "architectures": [self.architecture]}
        return dict(named)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> TransformersModelConfig:
        architecture, kind = find_transformers_class(fields)
        config = hf_config(fields)
        start = getattr(config, "decoder_start_token_id", None)
        if kind == "encoder-decoder" and start is None:
            raise ModelError("config.json names no decoder_start_token_id, with which the answers of this model begin")
        vocab, width, layers, context = sizes_of(config)
        return cls(architecture, kind, vocab, width, layers, context, start, dict(fields))


class TransformersModel(Model):
    """A model of transformers behind our contract, without the sockets and roles that only our own models have."""

    ARCHITECTURES: ClassVar[dict[str, str]] = {}
    SAME_LOGITS = 1e-5  # some of transformers' code (Longformer) rounds by where its tensors lie in memory
    net: Any
    config: TransformersModelConfig

    def __init__(self, config: TransformersModelConfig):
        super().__init__(config)
        self.prompt_socket = PromptSocket()  # stays empty: methods that need sockets are refused
        self.together = Together.PADDED
        self.set_net(self.new_net())

    @property
    def load_notice(self) -> str:  # type: ignore[override]
        """Tells users that it is slower than a model with an implementation here."""
        told = f"{self.config.architecture} has no implementation here: loaded through transformers, slower"
        return "; ".join(part for part in (told, NOTICES[self.together]) if part)

    @property
    def KIND(self) -> str:  # type: ignore[override]  # noqa: N802
        return self.config.kind

    def new_net(self) -> Any:
        """transformers' model for the configuration, with new weights."""
        return new_net(self.config.architecture, self.config.fields)

    def set_net(self, net: Any) -> None:
        """Use `net`, a model of transformers, and map its modules."""
        raise NotImplementedError

    def as_tried(self, other: Any) -> None:
        """Take what was tried of a model of the same configuration and class, whose weights are there."""
        raise NotImplementedError

    def load_weights(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        """Load a folder's weights with transformers, in `dtype`.

        Raises:
            ModelError: if they are not all there, or some are of no use; if they are quantised.
        """
        if checkpoint.stored == "nf4":
            raise ModelError(
                f"the weights in {checkpoint.path} are quantised, which is read for architectures that have an "
                "implementation here: give the model as it was before; model.dtype=nf4 quantises it"
            )
        self.read_weights(checkpoint, dtype)

    def read_weights(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        raise NotImplementedError

    @contextmanager
    def compute_format(self) -> Iterator[None]:
        """Compute in the format of the activations (autocast), if weights that train are wider."""
        with torch.autocast(self.device.type, self.compute or torch.bfloat16, enabled=self.compute is not None):
            yield

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
            self.set_net(self.new_net())
        return self
