"""A model ready to use: the base, the adapter on it if any, the tokenizer, and the template it was trained with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microplane.config.knobs import GenerateKnobs, ModelKnobs, build, is_utf8, shown
from microplane.data.preparing.tokenise import layout_for
from microplane.data.reading.formats import Message
from microplane.data.row_kind import Shape
from microplane.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from microplane.errors import AdapterError, ConfigError, DataError, ModelError
from microplane.inference.generate import Answer, generate
from microplane.inference.predict import Said, Text, classify, embed_texts
from microplane.methods import Method
from microplane.methods.method import attach as attach_method
from microplane.models.configs.head import POOLINGS
from microplane.models.contract import Model
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model, open_checkpoint
from microplane.nn.number_format import NumberFormat, fastest_dtype
from microplane.nn.quantised import QUANTISED
from microplane.objectives.select import head_from, row_shape
from microplane.training.resume import load_adapter, read_method

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

    Args:
        dtype: as the knob `model.dtype`; auto quantises the base of an adapter as it was when the adapter was trained.

    Raises:
        ModelError, AdapterError: saying what is not there or does not fit.
    """
    folder = adapter_folder(Path(name).expanduser())
    if folder is None:
        path = resolve(str(name), revision)
        stored = open_checkpoint(path).stored
        dtype = stored if dtype == "auto" and stored in QUANTISED else dtype
        return Loaded(load_model(path, number_format(dtype)), load_tokenizer(path), path)
    method, about = read_method(folder)
    path = folder if method.whole_model else base_of(folder, about)
    model = load_model(path, _opened_as(method, about, dtype))
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


def number_format(name: str, compute: str = "auto", cached: bool = False) -> NumberFormat:
    """The format that the knobs `model.dtype`, `model.compute` and `model.cache_dequantised` ask for.

    Raises:
        ConfigError: if the last two are set for a base that is not quantised.
    """
    if name in QUANTISED:
        in_8_bits = compute == "int8"
        return NumberFormat(_dtype("auto" if in_8_bits else compute), name, cached, in_8_bits)
    if compute != "auto" or cached:
        knob = "model.cache_dequantised" if cached else f"model.compute = {compute}"
        raise ConfigError(f"{knob} is for a quantised base, and model.dtype = {name}; choose {' or '.join(QUANTISED)}")
    return NumberFormat(_dtype(name))


def base_format(model: ModelKnobs, method: Method, stored: str = "") -> NumberFormat:
    """The format of the base that `method` is to be trained on; auto leaves in nf4 what is stored so.

    Raises:
        ConfigError: for a format in which the method cannot work.
    """
    asked = f"model.dtype = {model.dtype}: the method {method.name}"
    if method.quantize and model.dtype not in ("auto", method.quantize):
        raise ConfigError(f"{asked} is for a base in {method.quantize}; leave it at auto, or choose another method")
    if method.needs_float32:
        if model.dtype not in ("auto", "float32"):
            raise ConfigError(f"{asked} {method.needs_float32}; leave it at auto, or choose float32")
        return number_format("float32", model.compute, model.cache_dequantised)
    if not method.trains_base or method.any_base:
        kept = stored if model.dtype == "auto" and stored in QUANTISED else model.dtype
        return number_format(method.quantize or kept, model.compute, model.cache_dequantised)
    if model.dtype in QUANTISED:
        raise ConfigError(
            f"{asked} trains the model's own weights, and in {model.dtype} small updates would be lost; "
            "leave it at auto, or choose float32 or bfloat16 for what is multiplied"
        )
    form = number_format(model.dtype, model.compute, model.cache_dequantised)
    return form._replace(weights=torch.float32)


def _opened_as(method: Method, about: dict[str, Any], dtype: str) -> NumberFormat:
    """The format of the base of an adapter that is opened to be used."""
    if method.needs_float32:
        return base_format(ModelKnobs.model_validate({"dtype": dtype}), method)
    return number_format(*trained_on(method, about)) if dtype == "auto" else number_format(dtype)


def _dtype(name: str) -> torch.dtype:
    return fastest_dtype() if name == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def trained_on(method: Method, about: dict[str, Any]) -> tuple[str, str]:
    """What `number_format` wants to know of the quantised base of an adapter; auto for any other."""
    kind, compute = str(about.get("base_dtype", method.quantize)), str(about.get("base_compute"))
    if kind not in QUANTISED:
        return "auto", "auto"
    return kind, compute if compute in ("float32", "bfloat16", "int8") else "auto"


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
