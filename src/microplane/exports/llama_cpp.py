"""llama.cpp, by the package llama-cpp-python: what it makes of a GGUF file. And our own reader of the same file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microplane.config.knobs import GenerateKnobs
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import AdapterError
from microplane.exports.source import ROOM
from microplane.inference.generate import generate
from microplane.models.contract import Model
from microplane.models.files.load import load_model
from microplane.nn.rows import Rows


class DecoderEngine:
    """What compares decoders alone."""

    measure = "logit"

    def scores(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        raise NotImplementedError


class OwnReader(DecoderEngine):
    """The file as Microplane opens it."""

    name = "read back"

    def __init__(self, file: Path, model: Model | None = None):
        self.model = model or load_model(file)
        self.tokenizer = load_tokenizer(file)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model.logits(self.model(Rows.of([list(ids)]))).float()

    def greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        stops = self.tokenizer.eos_ids
        answers = generate(self.model, self.tokenizer, prompts, GenerateKnobs(max_new_tokens=most), stops)
        return [answer.ids + ([-1] if answer.stopped else []) for answer in answers]


class LlamaCpp(DecoderEngine):
    """llama.cpp with the file opened."""

    def __init__(self, file: Path, adapter: Path | None = None, scale: float = 1.0):
        self.library: Any = importlib.import_module("llama_cpp")
        self.name = f"llama.cpp (llama-cpp-python {self.library.__version__})"
        settings: dict[str, Any] = {
            "n_ctx": ROOM,
            "n_batch": ROOM,
            "n_ubatch": ROOM,
            "n_threads": 1,
            "n_threads_batch": 1,
        }
        settings |= dict.fromkeys(("type_k", "type_v"), self.library.GGML_TYPE_F32)  # its cache is float16 otherwise
        settings |= {"lora_path": str(adapter), "lora_scale": scale} if adapter else {}
        try:
            self.llama = self.library.Llama(str(file), logits_all=True, n_gpu_layers=0, verbose=False, **settings)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise AdapterError(f"llama.cpp does not open what was written ({error}); nothing was kept") from None
        if adapter and not getattr(self.llama, "_lora_adapter", True):  # a null pointer, taken for an adapter there
            self.llama.close()
            raise AdapterError("llama.cpp does not put what was written on its base; nothing was kept")

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.llama.tokenize(text.encode(), add_bos=True, special=True)
        return found

    def logits(self, ids: Sequence[int]) -> Tensor:
        self.llama.reset()
        self.llama.eval(list(ids))
        return torch.from_numpy(np.array(self.llama.scores[: len(ids)], np.float32))

    def greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        return [self._continued(ids, most) for ids in prompts]

    def _continued(self, ids: Sequence[int], most: int) -> list[int]:
        self.llama.reset()
        self.llama.eval(list(ids))
        found: list[int] = []
        while len(found) < most:
            token = int(self.llama.scores[self.llama.n_tokens - 1].argmax())
            if self.stops(token):
                return [*found, -1]
            found.append(token)
            self.llama.eval([token])
        return found

    def stops(self, token: int) -> bool:
        """Whether llama.cpp itself ends an answer there."""
        model = self.llama._model
        return bool(self.library.llama_vocab_is_eog(self.library.llama_model_get_vocab(model.model), token))

    def close(self) -> None:
        self.llama.close()


@contextmanager
def llama_cpp(file: Path, adapter: Path | None = None, scale: float = 1.0) -> Iterator[LlamaCpp]:
    engine = LlamaCpp(file, adapter, scale)
    try:
        yield engine
    finally:
        engine.close()
