"""A model ready to use: the base, the adapter on it if any, the tokenizer, and the template it was trained with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microplane.config import GenerateKnobs, build, is_utf8, shown
from microplane.data.build import layout_for
from microplane.data.formats import Message
from microplane.data.shape import Shape
from microplane.data.tokenizer import Tokenizer, load_tokenizer
from microplane.errors import AdapterError, ConfigError, DataError, ModelError
from microplane.generate import Answer, generate
from microplane.methods import Method
from microplane.methods.method import attach as attach_method
from microplane.models.contract import Model
from microplane.models.head_config import POOLINGS
from microplane.models.hub import resolve
from microplane.models.load import load_model
from microplane.nn.number_format import fastest_dtype
from microplane.predict import Said, Text, classify, embed_texts
from microplane.tasks import head_from, row_shape
from microplane.training.checkpoint import load_adapter, read_method

MEBIBYTE = 1 << 20


@dataclass
class Loaded:
    """What `microplane.load` gives."""

    model: Model
    tokenizer: Tokenizer
    path: Path  # of the base model
    template: str = "auto"
    system: str | None = None
    method: Method | None = None  # of the adapter, if there is one
    about: dict[str, Any] | None = None  # what the adapter says of its making
    prefix: str = ""  # what every prompt of its training began with, as "Convert the command to JSON."

    def prompt(self, text: str | Sequence[Message]) -> list[int]:
        """Token ids that generation starts from: a user's text behind the prefix, or a whole conversation as it is."""
        messages = [self.asked(text)] if isinstance(text, str) else list(text)
        for part in [self.system or "", *(message.content for message in messages)]:
            if not is_utf8(part):
                raise DataError(f"the prompt {shown(part)} holds bytes that are not UTF-8; give it in that encoding")
        ids = layout_for(self.tokenizer, self.template, self.system, self.shape).prompt(messages)
        check_ids(self.model, self.tokenizer, ids)
        return ids

    def asked(self, text: str) -> Message:
        """A user's text as the model was trained to be asked."""
        return Message("user", text if text.startswith(self.prefix) else self.prefix + text)

    @property
    def shape(self) -> Shape:
        """What rows the model takes."""
        return row_shape(self.model)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return layout_for(self.tokenizer, self.template, None, self.shape).stops

    def answers(
        self,
        prompts: Sequence[str | Sequence[Message]],
        knobs: GenerateKnobs | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        ids = [self.prompt(prompt) for prompt in prompts]
        tokenizer, knobs = self.tokenizer.for_targets, knobs or GenerateKnobs()
        return generate(self.model, tokenizer, ids, knobs, self.stop_ids, on_text=on_text)

    def generate(self, prompt: str, **knobs: Any) -> str:
        """The answer to one prompt; knobs are those of `GenerateKnobs` (temperature, max_new_tokens, ...)."""
        return self.answers([prompt], build(GenerateKnobs, knobs))[0].text

    def classify(self, texts: Sequence[Text]) -> list[Said]:
        """What the task head says of each text (or pair of texts): labels with their probabilities, or numbers.

        Raises:
            ConfigError: if the model has no task head.
        """
        return classify(self.model, self.tokenizer, texts)

    def embed(self, texts: Sequence[Text], pooling: str | None = None) -> torch.Tensor:
        """Sentence embeddings (texts, model width), float32 of length 1; `pooling` is mean, cls or last.

        Raises:
            ConfigError: for another pooling.
        """
        if pooling not in (None, *POOLINGS):
            raise ConfigError(f"pooling = {pooling!r}: possible are {', '.join(POOLINGS)}")
        return embed_texts(self.model, self.tokenizer, texts, pooling)


def load(name: str | Path, dtype: str = "auto", revision: str | None = None) -> Loaded:
    """Open a base model (short name, folder, .gguf, Hub name), a run's folder, or an adapter's folder.

    Raises:
        ModelError, AdapterError: saying what is not there or does not fit.
    """
    folder = adapter_folder(Path(name).expanduser())
    if folder is None:
        path = resolve(str(name), revision)
        return Loaded(load_model(path, number_format(dtype)), load_tokenizer(path), path)
    method, about = read_method(folder)
    path = folder if method.whole_model else base_of(folder, about)
    model = load_model(path, number_format(dtype))
    if not method.whole_model:
        attach(model, method, folder, about)
    template, system, prefix = about.get("template", "auto"), about.get("system"), about.get("prefix", "")
    return Loaded(model, load_tokenizer(path), path, template, system, method, about, prefix)


def attach(model: Model, method: Method, folder: Path, about: Mapping[str, Any]) -> None:
    """Put the adapter of `folder` on an untouched base, ready for use, and with it the head that `about` tells of."""
    head_from(model, about)
    try:
        attach_method(method, model)
    except ConfigError as error:
        raise AdapterError(f"the adapter {folder} does not fit this model. {error}") from None
    load_adapter(folder, model, method)
    model.requires_grad_(False).eval()


def adapter_folder(path: Path) -> Path | None:
    """The adapter of a run's folder, or the folder itself if it is an adapter, else None."""
    for folder in (path, path / "adapter"):
        if (folder / "method.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if (path / "run.yaml").is_file():
        raise AdapterError(f"the run {path} has no adapter yet; microplane train --resume {path} goes on with it")
    return None


def number_format(name: str) -> torch.dtype:
    return fastest_dtype() if name == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def fingerprint(path: Path) -> str:
    """What a model's files are: a hash of their names, sizes, and first and last mebibyte."""
    digest = hashlib.sha256()
    kinds = {".safetensors", ".gguf", ".json", ".model"}
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in kinds)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(MEBIBYTE))
            stream.seek(max(0, size - MEBIBYTE))
            digest.update(stream.read())
    return digest.hexdigest()[:32]


def base_of(folder: Path, about: dict[str, Any]) -> Path:
    """The base model of an adapter.

    Raises:
        AdapterError: if the adapter does not name it, or its files are not those that the adapter was trained on.
    """
    name = about.get("base")
    if not name or not isinstance(name, str):
        raise AdapterError(f"the adapter {folder} does not name the model that it belongs to")
    try:
        path = resolve(name, about.get("revision"))
    except ModelError as error:
        raise AdapterError(f"the base of the adapter {folder} is not to be had: {error}") from None
    wanted = about.get("base_fingerprint")
    if wanted and fingerprint(path) != wanted:
        place = f"{path} ({name})" if name != str(path) else name
        raise AdapterError(
            f"the adapter {folder} was trained on other files than those now at {place}: "
            "their contents differ. Give the original model its place back, or train again."
        )
    return path


MARK = "\N{PILCROW SIGN}\N{SECTION SIGN}"


def shared_prefix(prompts: Sequence[str], tokenizer: Tokenizer, template: str, system: str | None, shape: Shape) -> str:
    """The whole lines with which what the user says begins in every one of these rendered prompts."""
    if shape.kind == "labels":
        return ""
    asked = layout_for(tokenizer, template, system, shape).prompt([Message("user", MARK)])
    empty = tokenizer.decode(asked, skip_special=False)
    frame, common = empty.split(MARK)[0], os.path.commonprefix(list(prompts))  # noqa: RUF071 - of characters
    if len(prompts) < 2 or not common.startswith(frame):
        return ""
    said = common[len(frame) :]
    return said[: said.rfind("\n") + 1]


def check_ids(model: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Refuse a tokenizer that was given tokens for which the model has no embedding.

    Raises:
        ModelError: naming a token and the sizes.
    """
    size = model.config.vocab_size
    if ids and max(ids) >= size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and makes {tokenizer.piece(max(ids))!r} number "
            f"{max(ids):,}, but the model has embeddings for {size:,} only. They do not belong together: fetch the "
            "model again, or resize its embedding"
        )
