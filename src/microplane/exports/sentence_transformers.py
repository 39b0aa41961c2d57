"""`--to sentence-transformers`: an encoder with the modules that pool its tokens and bring the result to length 1."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microplane.adapters.export import write_folder
from microplane.errors import AdapterError
from microplane.exports.engines import usable
from microplane.exports.source import Source
from microplane.exports.vectors import compare_vectors, pooling_of
from microplane.exports.written import Written
from microplane.files import write_json
from microplane.inference.predict import MAX_LENGTH
from microplane.models.files.sentence_transformers import MODULES, POOLING

MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
KINDS = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def write(source: Source, folder: Path, dtype: str) -> Written:
    """Write the folder, and compare embeddings in sentence-transformers.

    Raises:
        AdapterError: for a model with a task head, a pooling that is not known, or if something else is computed there.
    """
    model = source.pipeline.model
    if model.task_head is not None:
        raise AdapterError(f"{source.name} has a head for {model.task_head.config.task} and embeds nothing: --to hf "
                           "writes it for transformers' pipelines, --to onnx for onnxruntime")  # fmt: skip
    pooling = pooling_of(source)
    if pooling not in MODES:
        possible = ", ".join(MODES)
        raise AdapterError(f"the model's folder pools by {pooling!r}, and here there are {possible}")
    inner = folder / "model"
    notices = write_folder(source.pipeline, inner, getattr(torch, dtype), source.texts)
    for file in inner.iterdir():  # the folder itself is there already
        if file.name not in (MODULES, "1_Pooling", "2_Normalize"):
            file.rename(folder / file.name)
    shutil.rmtree(inner)
    longest = model.sentence_tokens or model.max_row_tokens or MAX_LENGTH
    write_settings(folder, pooling, model.config.hidden_size, longest, model.sentence_prompt, model.sentence_lower)
    checked = []
    if usable("sentence_transformers"):
        library: Any = importlib.import_module("sentence_transformers")
        there = library.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})

        def said(texts: Sequence[str]) -> list[Tensor]:
            in_form = [source.tokenizer.in_form(text) for text in texts]
            return list(torch.as_tensor(there.encode(in_form, convert_to_numpy=True)))

        checked.append(compare_vectors(source, f"sentence-transformers {library.__version__}", said))
    how = "SentenceTransformer(FOLDER).encode(texts)"
    return Written(("model.safetensors", MODULES), notices, tuple(checked), (how,), {"pooling": pooling})


def write_settings(folder: Path, pooling: str, width: int, longest: int, prompt: str = "", lower: bool = False) -> None:
    """As versions 2 to 6 of sentence-transformers read them."""
    write_json(folder / MODULES, [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(KINDS)
    ])  # fmt: skip
    modes = {mode: name == pooling for name, mode in MODES.items()}
    modes |= dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    write_json(folder / POOLING, {"word_embedding_dimension": width, **modes})
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": lower})
    prompts, default = ({"default": prompt}, "default") if prompt else ({}, None)
    settings = {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
