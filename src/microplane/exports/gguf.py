"""`--to gguf`: a decoder, merged, as one file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from microplane.adapters.asked import asked_as as asked_elsewhere
from microplane.adapters.export import finished
from microplane.data.tokenizers.gguf import KEY
from microplane.exports.compare import Comparison, compare
from microplane.exports.engines import usable
from microplane.exports.gguf_file import FILE_TYPES, KINDS, QUANTISED, write_gguf
from microplane.exports.gguf_model import architecture, check_read_back, metadata, tensors
from microplane.exports.gguf_tokens import more_ends, token_metadata
from microplane.exports.llama_cpp import OwnReader, llama_cpp
from microplane.exports.source import Source
from microplane.exports.written import Written
from microplane.models.decoder import Decoder

FILE = "model.gguf"


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Write folder/model.gguf, read it back, and compare it in llama.cpp where that is installed."""
    notices = write_file(source, folder / FILE, dtype)
    return Written((FILE,), (*notices, *asked_as(source)), tuple(checks(source, folder / FILE)),
                   (f"llama-cli -m {FILE} --jinja",))  # fmt: skip


def write_file(source: Source, file: Path, dtype: str) -> list[str]:
    """The file alone; what users are to be told of it.

    Raises:
        AdapterError: for a model or a tokenizer that llama.cpp cannot be.
    """
    model = source.pipeline.model
    name = architecture(model, source.name)
    decoder, kind = cast(Decoder, model), KINDS[dtype]
    keys, notices = metadata(decoder.config, name)
    source.context(keys[f"{name}.context_length"])
    tokens, more = tokenizer_keys(source)
    described: dict[str, Any] = {"general.type": "model", "general.name": Path(source.name).name}
    described |= {"general.file_type": int(FILE_TYPES[kind])}
    described |= {"general.quantization_version": 2} if kind in QUANTISED else {}
    write_gguf(file, name, described | keys | tokens, lambda: tensors(decoder, name), kind)
    check_read_back(file, decoder.config, name)
    return [*notices, *more]


def tokenizer_keys(source: Source) -> tuple[dict[str, Any], list[str]]:
    """The keys below `tokenizer.`, and what users are to be told of them."""
    pipeline, notices = source.pipeline, list[str]()
    stops = pipeline.stop_ids
    tokenizer, _ = finished(pipeline.model, pipeline.tokenizer, stops)
    keys = token_metadata(tokenizer, stops, pipeline.model.config.vocab_size)
    if left := more_ends(keys, stops):
        texts = ", ".join(repr(tokenizer.piece(stop)) for stop in left)
        notices.append(f"GGUF has places for three stop tokens: give {texts} as stop texts")
    if tokenizer.chat_template and speaks_chat(source):
        keys["tokenizer.chat_template"] = tokenizer.chat_template
        if keys[f"{KEY}add_bos_token"] and "bos_token" in tokenizer.chat_template:
            notices.append(
                "the chat template writes BOS itself: of a text that was rendered elsewhere, let none be added"
            )
    if tokenizer.unicode != "as-is":
        form = tokenizer.unicode.upper()
        notices.append(
            f"llama.cpp does not bring text to {form}, as is done here: first, unicodedata.normalize({form!r}, text)"
        )
    return keys, notices


def speaks_chat(source: Source) -> bool:
    """Whether the model is asked through its chat template."""
    pipeline = source.pipeline
    return pipeline.template != "plain" and (pipeline.frame is None or pipeline.frame[1] != "")


def asked_as(source: Source) -> Iterator[str]:
    """What belongs around a question and is not in the file."""
    if not speaks_chat(source):
        yield ("the model was trained on texts without a chat template, so the file has none: give it the text itself "
               "by completion, not chat; a question ends with a line end")  # fmt: skip
    yield from asked_elsewhere(source.pipeline)


def checks(source: Source, file: Path) -> Iterator[Comparison]:
    """The file as our own reader opens it, and as llama.cpp does."""
    yield compare(source, OwnReader(file))
    if usable("llama_cpp"):
        with llama_cpp(file) as engine:
            yield compare(source, engine)
