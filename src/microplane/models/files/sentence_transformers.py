"""What a folder of sentence-transformers says beside the model: how the tokens of a text become its embedding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from microplane.errors import ModelError
from microplane.files import read_object, write_aside
from microplane.models.contract import Model

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
LENGTHS, SETTINGS = "sentence_bert_config.json", "config_sentence_transformers.json"
FOLLOWED = ("Transformer", "Pooling", "Normalize", "Dropout")  # steps that are done here too
WITHOUT_FILES = ("Normalize", "Dropout")  # steps that may have none
BESIDE = (MODULES, POOLING, SETTINGS, LENGTHS, "2_Normalize/config.json")
KNOWN = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
WITHOUT_PROMPT = "without the tokens of its prompt"
KNOWN |= {"mean_sqrt_len_tokens": "mean"}  # of another length, and embeddings have length 1


def sentence_pooling(folder: Path) -> str | None:
    """cls, mean or last, or what else the folder asks for, by its own name; None where it says nothing.

    Raises:
        ModelError: if the file is damaged.
    """
    if not folder.is_dir():
        return None
    steps = list(_steps(folder))
    place = next((path for kind, path in steps if kind == "Pooling"), Path(POOLING).parent.name)
    found = None
    if (file := folder / place / "config.json").is_file():
        modes = list(_modes(file))
        found = KNOWN.get(modes[0], modes[0]) if len(modes) == 1 else " with ".join(modes) or None
    more = [kind for kind, _ in steps if kind not in FOLLOWED]
    return ", ".join([found or "the usual pooling", *more]) if more else found


def note_sentences(model: Model, folder: Path) -> None:
    """Have a model know how its folder says that sentences are embedded, and how many tokens of one are read: no more
    than it was trained with.

    Raises:
        ModelError: if a file is damaged.
    """
    model.sentence_pooling = sentence_pooling(folder)
    lengths, settings = (
        read_object(folder / name, ModelError, absent={}) if folder.is_dir() else {} for name in (LENGTHS, SETTINGS)
    )
    longest = lengths.get("max_seq_length")
    model.sentence_tokens = longest if isinstance(longest, int) and longest > 0 else None
    model.sentence_lower = lengths.get("do_lower_case") is True
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    model.sentence_prompt = prompt if isinstance(prompt, str) else ""
    if model.sentence_prompt and model.sentence_pooling != "last" and _leaves_prompt_out(folder):
        model.sentence_pooling = f"{model.sentence_pooling or 'mean'}, {WITHOUT_PROMPT}"


def copy_settings(folder: Path, to: Path) -> list[str]:
    """Copy what says how a model's folder embeds sentences into the folder of the same model with other weights: its
    settings, and the folders of all steps behind the model.

    Returns:
        What is to be said of steps that the folder names and does not have.
    """
    if not folder.is_dir():
        return []
    for name in BESIDE:
        if (folder / name).is_file():
            write_aside(to / name, (folder / name).read_bytes())
    lacking = []
    for kind, path in _steps(folder):
        place, inside = folder / path, ".." not in Path(path).parts and not Path(path).is_absolute()
        if not path or not inside or kind in ("Transformer", *WITHOUT_FILES):
            continue
        if place.is_dir():
            shutil.copytree(place, to / path, dirs_exist_ok=True)
        elif not (to / path).is_dir():
            lacking.append(path)
    if not lacking:
        return []
    return [
        f"{MODULES} names {' and '.join(lacking)}, which {folder} does not have: before sentence-transformers opens "
        "the new folder, copy that into it from where the model was published"
    ]


def _steps(folder: Path) -> Iterator[tuple[str, str]]:
    """What is done with a text in turn: the kind of each step, and its folder."""
    if not (folder / MODULES).is_file():
        return
    try:
        listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        for step in listed:
            yield str(step["type"]).rpartition(".")[-1], str(step["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / MODULES} is damaged ({error}): expected a list of steps, each with type and path"
        ) from None


def _leaves_prompt_out(folder: Path) -> bool:
    place = next((path for kind, path in _steps(folder) if kind == "Pooling"), Path(POOLING).parent.name)
    return read_object(folder / place / "config.json", ModelError, absent={}).get("include_prompt") is False


def _modes(file: Path) -> Iterator[str]:
    told = read_object(file, ModelError)
    if isinstance(mode := told.get("pooling_mode"), str):
        yield mode
    for name, on in told.items():
        if name.startswith("pooling_mode_") and on is True:
            yield name.removeprefix("pooling_mode_")
