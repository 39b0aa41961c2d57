"""What a folder of sentence-transformers says beside the model: how the tokens of a text become its embedding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from microplane.errors import ModelError
from microplane.files import read_object, write_aside

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
LENGTHS = "sentence_bert_config.json"
BESIDE = (MODULES, POOLING, "config_sentence_transformers.json", LENGTHS, "2_Normalize/config.json")
KNOWN = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
KNOWN |= {"mean_sqrt_len_tokens": "mean"}  # of another length, and embeddings have length 1


def sentence_pooling(folder: Path) -> str | None:
    """cls, mean or last, or what else the folder asks for, by its own name; None where it says nothing.

    Raises:
        ModelError: if the file is damaged.
    """
    if not folder.is_dir() or not (folder / POOLING).is_file():
        return None
    modes = list(_modes(folder / POOLING))
    return KNOWN.get(modes[0], modes[0]) if len(modes) == 1 else " with ".join(modes) or None


def sentence_tokens(folder: Path) -> int | None:
    """How many tokens of a sentence are read, where the folder says it: no more than the model was trained with.

    Raises:
        ModelError: if the file is damaged.
    """
    if not folder.is_dir() or not (folder / LENGTHS).is_file():
        return None
    told = read_object(folder / LENGTHS, ModelError).get("max_seq_length")
    return told if isinstance(told, int) and told > 0 else None


def copy_settings(folder: Path, to: Path) -> None:
    """Copy what says how a model's folder embeds sentences into the folder of the same model with other weights."""
    for name in BESIDE:
        if folder.is_dir() and (folder / name).is_file():
            write_aside(to / name, (folder / name).read_bytes())


def _modes(file: Path) -> Iterator[str]:
    told = read_object(file, ModelError)
    if isinstance(mode := told.get("pooling_mode"), str):
        yield mode
    for name, on in told.items():
        if name.startswith("pooling_mode_") and on is True:
            yield name.removeprefix("pooling_mode_")
