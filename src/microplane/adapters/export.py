"""Write a model as a folder that any tool opens, and that there stops, pads and tokenises as it does here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microplane.adapters.card import HEAD_TENSORS, PADDED, POOLED, card_of, write_card
from microplane.adapters.other_tokenizer import agree_with_transformers
from microplane.checkpoints.attach_saved import adapter_folder
from microplane.checkpoints.tensors import disk_errors
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import AdapterError
from microplane.files import folder_aside
from microplane.inference.pipeline import Pipeline, load
from microplane.models.configs.head import FORMS, HeadConfig
from microplane.models.contract import Model
from microplane.models.external.together import Together
from microplane.models.external.transformers import TransformersModel
from microplane.models.files.load import open_checkpoint, save_model
from microplane.models.files.sentence_transformers import copy_settings

WINDOWS = (  # of a run with data.long_rows=windows
    "long texts were read in windows of {length:,} tokens, and the mean of what is said of them counts: other tools "
    "read the first {length:,} tokens alone, or more than the model has seen at once"
)


@dataclass(frozen=True)
class Exported:
    folder: Path
    dtype: torch.dtype
    notices: tuple[str, ...] = ()  # what other tools do otherwise, and what to do about it


def export(name: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> Exported:
    """Write a base model (short name, .gguf file, Hub name, 4-bit folder) as a plain folder of safetensors.

    Args:
        out: the new folder; must not exist, or be empty.
        dtype: as in `microplane.adapters.merge.merge`.

    Raises:
        AdapterError: `out` is taken, or `name` is a run or an adapter, which is merged.
        ModelError: there is no such model, or its family fails in `dtype`.
    """
    folder = Path(out)
    if adapter_folder(Path(name).expanduser()) is not None:
        raise AdapterError(f"{name} has an adapter: microplane merge {name} {out} writes it with its base as one model")
    check_free(folder, "export")
    loaded = load(name, dtype="float32")
    dtype = written_dtype(loaded, dtype)
    return Exported(folder, dtype, write_folder(loaded, folder, dtype, card=card_of(name, "hf")))


def check_free(folder: Path, verb: str) -> None:
    """Raises: AdapterError, if something is there already, or nothing can be."""
    above = next((place for place in folder.absolute().parents if place.exists()), Path("/"))
    if not above.is_dir():
        raise AdapterError(f"{folder} cannot be made: {above} is no folder; choose another place to {verb} into")
    if folder.is_symlink() and not folder.exists():
        raise AdapterError(f"{folder} is a link to {folder.readlink()}, which is not there; choose another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} exists and is not an empty folder; choose another one to {verb} into")


def written_dtype(loaded: Pipeline, asked: torch.dtype | None) -> torch.dtype:
    """In which format the weights are written: as asked, or as the base is stored; float32 for a quantised base, or one
    that is stored in a format that its family fails in.

    Raises:
        ModelError: the model's family fails in the format that was asked for.
    """
    loaded.model.refuse_format(asked)
    named = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "f16": torch.float16}
    stored = named.get(open_checkpoint(loaded.path).stored.lower(), torch.float32)
    return asked or (torch.float32 if stored in loaded.model.UNSUPPORTED_DTYPES else stored)


def write_folder(
    loaded: Pipeline, folder: Path, dtype: torch.dtype, texts: Sequence[str] = (), card: str = ""
) -> tuple[str, ...]:
    """The whole folder aside, then renamed: a full disk leaves nothing that looks like a model.

    Args:
        texts: which transformers shall cut into the same tokens.
        card: the text of README.md; none if empty.

    Returns:
        What users are to be told of it.
    """
    stops = loaded.stop_ids if loaded.model.KIND != "encoder" else ()
    tokenizer, tokens = finished(loaded.model, loaded.tokenizer, stops)
    with folder_aside(folder) as temporary, disk_errors(folder):  # an empty folder gives way
        save_model(loaded.model, temporary, dtype, tokens)
        tokenizer.save(temporary)
        # what sentence-transformers needs to embed with it
        steps = copy_settings(loaded.path, temporary) if loaded.model.task_head is None else []
        if card:
            write_card(temporary, card)
        elsewhere = [*agree_with_transformers(temporary, tokenizer, texts)]
    windows = [WINDOWS.format(length=loaded.window)] if loaded.window is not None else []
    return (*_notices(loaded.model, tokenizer), *steps, *elsewhere, *windows)


def finished(model: Model, tokenizer: Tokenizer, stops: Sequence[int]) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer as other tools need it to stop and pad where the model here does, and the fields of config.json and
    generation_config.json that tell of it.

    Args:
        stops: tokens that end an answer, first the one that answers are trained to end with; none of labels.
    """
    rows = model.config.vocab_size
    source = {**(model.source_config or {}), **(model.generation_config or {})}
    tokens: dict[str, Any] = {}
    if known := [token for token in stops if token < rows]:
        tokens["eos_token_id"] = known[0] if len(known) == 1 else known
        tokenizer = tokenizer.ending_with(known[0])
    if model.KIND == "encoder-decoder" and model.task_head is not None:  # whose class looks for the end of the text
        tokens["eos_token_id"] = tokenizer.encode("a")[-1]
    if model.KIND == "decoder":
        if model.task_head is not None:  # whose class looks for the last token that is no pad
            tokenizer = tokenizer.padded_apart()
        if (pad := tokenizer.pad_id) is not None and pad < rows:
            tokens["pad_token_id"] = pad
        if source.get("bos_token_id") is None and tokenizer.bos_id is not None:
            tokens["bos_token_id"] = tokenizer.bos_id
    return tokenizer, tokens


def minds_padding(model: Model) -> bool:
    """Whether transformers computes a row that is padded otherwise than alone, in its class for the head or at all."""
    head = model.task_head.config if model.task_head is not None else None
    if head is not None and head.form in FORMS and FORMS[head.form].minds_padding:
        return True
    return isinstance(model, TransformersModel) and model.together is not Together.PADDED


def _notices(model: Model, tokenizer: Tokenizer) -> Iterator[str]:
    head = model.task_head.config if model.task_head is not None else None
    if head is not None and head.form is None:
        yield f"transformers has no class for this head, and microplane.load opens it. There: {_recipe(model, head)}"
    elif head is not None and model.KIND == "decoder" and tokenizer.pad_id is None:
        yield "the tokenizer has no token to pad with: in transformers, give this model one row at a time"
    if minds_padding(model):
        yield PADDED
    if model.KIND == "decoder" and head is None and tokenizer.chat_template and tokenizer.backend.encode_special_tokens:
        yield (
            "split_special_tokens in tokenizer_config.json has transformers cut the marks of the chat template too, "
            "which are tokens here: there, render the chat as text, and encode it with split_special_tokens=False"
        )


def _recipe(model: Model, head: HeadConfig) -> str:
    """How the scores of a head of ours are computed elsewhere."""
    side = ".get_encoder()" if model.KIND == "encoder-decoder" and not head.reads_decoder else ""
    states = f"AutoModel.from_pretrained(folder){side}'s last_hidden_state"
    what = "each token" if head.per_token else POOLED[head.pooling]
    return f"{states}, of {what}, times {HEAD_TENSORS} of model.safetensors"
