"""Finds the path on this machine of a model that a user names: a short name, a folder, a .gguf file, or a Hub name.

Nothing is asked of the network unless the name is a Hub name, or a short name whose file is not here yet.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from microplane.errors import ModelError, nearest
from microplane.models.files.packaged import ALIASES, SHORT_NAMES, is_whole, packaged_as, provide, tokenizer_folder

__all__ = ["SHORT_NAMES", "is_cached", "resolve", "tokenizer_folder"]

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = [
    "*.safetensors",
    "*.json",
    "tokenizer.model",
    "spiece.model",
    "*.spm",
    "*.jinja",
    "*.txt",
    "1_Pooling/config.json",
]  # never a pickle
HUB_NOT = ["[!1]*/*", "1_Pooling/*.safetensors", "consolidated*"]  # other formats, the weights in other layouts
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """The folder or .gguf file that `name` stands for, fetched if it must be. What exists here comes first.

    Raises:
        ModelError: if there is no such model, or it cannot be fetched.
    """
    text = str(name).strip()
    try:
        path = Path(text).expanduser()
        if text and path.exists():
            _no_revision(text, revision)
            return _local(path)
    except (OSError, RuntimeError) as error:  # not to be read, too long for a path, no such user behind ~
        raise ModelError(f"cannot look at {text[:200]!r}: {getattr(error, 'strerror', None) or error}") from None
    if packaged := packaged_as(text):
        _no_revision(text, revision)
        return provide(packaged)
    if path.parent != Path() and (runs := _runs_in(path.parent)):  # before the Hub is asked
        raise ModelError(f"there is no run {text}.{nearest(path.name, runs)} microplane runs {path.parent} lists them")
    if HUB_NAME.fullmatch(text) and not text.startswith(".") and path.suffix.lower() != ".gguf":
        return _from_hub(text, revision)
    raise ModelError(
        f"there is no model {text!r}.{_hint(text)} Give a folder in Hugging Face layout, a .gguf file, a Hub name such"
        f" as org/model, or one of {', '.join(SHORT_NAMES)}"
    )


def is_cached(name: str) -> bool:
    """True if the files of a short name are on this machine, so that no network is needed."""
    packaged = packaged_as(name)
    return packaged is not None and is_whole(packaged)


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelError(f"model.revision = {revision!r} is only for Hub names, and {name} is none: leave it out")


def _runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder; none where there is no such folder."""
    with suppress(OSError):
        return sorted(other.name for other in folder.iterdir() if (other / "run.yaml").is_file())
    return []


def _hint(name: str) -> str:
    """The name of a similar model for an error message: a short name, or one in the folder where `name` would be."""
    path = Path(name).expanduser()
    known = [*SHORT_NAMES, *ALIASES]
    with suppress(OSError):
        known += [str(path.parent / other.name) for other in path.parent.iterdir() if _looks_like_a_model(other)]
    return nearest(name, known)


def _looks_like_a_model(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" or (path / "config.json").is_file()


# What lies here


def _local(path: Path) -> Path:
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        why = " A pickle can run any code when it is opened, and is never read." if path.suffix in PICKLES else ""
        raise ModelError(
            f"{path} is not a model.{why} Give a folder with config.json and model.safetensors, or a .gguf file"
        )
    if (path / "config.json").is_file():
        return path
    if any((path / mark).exists() for mark in ("run.yaml", "adapter_config.json", "adapter")):
        raise ModelError(f"{path} is {_what_it_is(path)}")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) == 1:
        return files[0]
    if files:
        raise ModelError(f"{path} has {len(files)} .gguf files: give one of {', '.join(file.name for file in files)}")
    hides = (
        " It hides the model of that short name: rename it, or work in another folder."
        if packaged_as(str(path))
        else ""
    )
    raise ModelError(
        f"the folder {path} is not a model: expected config.json and model.safetensors, or one .gguf file."
        f"{hides or _hint(str(path))}"
    )


def _what_it_is(path: Path) -> str:
    """A run or an adapter, and what to do with it."""
    file = next(
        (f for f in (path / "adapter_config.json", path / "adapter" / "adapter_config.json") if f.is_file()), None
    )
    base = None
    if file is not None:
        with suppress(OSError, ValueError, AttributeError):
            base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    kind = "an adapter" if (path / "adapter_config.json").exists() else "a run"
    trained = f" Its base is {base}." if base else ""
    on = "microplane train --from FOLDER DATA (in Python model.adapter) begins a new run with it"
    return f"{kind}, not a base model. generate, eval and merge take it; {on}.{trained}"


# The Hub


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    endpoint = hub_endpoint()
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=_hub_cache(),
            endpoint=endpoint,
            local_files_only=hub_offline(),
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_NOT,
        )
    except Exception as error:  # of many kinds, that differ between versions of the library
        raise ModelError(_why_not(name, revision, error, endpoint)) from None
    if not any(Path(folder).glob("*.safetensors")):
        raise ModelError(_no_weights(name, revision, endpoint))
    return Path(folder)


def _hub_cache() -> str | None:
    home, cache = (os.path.expandvars(os.environ.get(name, "")) for name in ("HF_HOME", "HF_HUB_CACHE"))
    found = cache or (f"{home}/hub" if home else None)
    return found and str(Path(found).expanduser())


def hub_endpoint() -> str:
    """Where the Hub is. The environment is read here and not by the library, which reads it only once, at import."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def hub_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _why_not(name: str, revision: str | None, error: Exception, endpoint: str) -> str:
    from huggingface_hub import errors

    wanted = f"{name} (revision {revision})" if revision else name
    has_token = bool(os.environ.get("HF_TOKEN"))
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms at {endpoint}/{name}, and set HF_TOKEN to a token of your account"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{name} has no revision {revision!r}: give a branch, tag or commit of {endpoint}/{name}, or leave it out"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or hub_status(error) in (401, 403):
        token = "the token in HF_TOKEN may not read it" if has_token else "if it is private, set HF_TOKEN"
        return f"there is no folder {name} here, and no model {name} at {endpoint}, or {token}.{_hint(name)}"
    if isinstance(error, errors.LocalEntryNotFoundError) and hub_offline():
        return f"{wanted} is not whole in the cache, and HF_HUB_OFFLINE is set: unset it once to fetch the model"
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is neither a folder here nor a name that a Hub model can have.{_hint(name)}"
    reason = " ".join(str(error).split())[:300]
    return (
        f"could not fetch {wanted} from {endpoint}: {reason}. There is no folder {name} here either; check the name and"
        f" the network, or give a local folder or .gguf file.{_hint(name)}"
    )


def hub_status(error: Exception) -> int | None:
    """Of the Hub's answer to what failed, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _no_weights(name: str, revision: str | None, endpoint: str) -> str:
    found = sorted(set(_weights_on_hub(name, revision, endpoint)))
    why = f" It has {', '.join(found[:4])}{' ...' if len(found) > 4 else ''}." if found else ""
    if any(file.endswith(".gguf") for file in found):
        return f"{name} has no .safetensors files.{why} Download one .gguf file of it and give its path as the model"
    if found:
        why += " A pickle can run any code when it is opened, and is never read."
    return (
        f"{name} has no .safetensors files.{why} Take a version of the model that has them, or convert it where you"
        " trust it with save_pretrained(folder, safe_serialization=True) of transformers"
    )


def _weights_on_hub(name: str, revision: str | None, endpoint: str) -> Iterator[str]:
    """The names of weight files that were not downloaded, for an error message."""
    from huggingface_hub import HfApi

    if hub_offline():
        return
    with suppress(Exception):
        for file in HfApi(endpoint=endpoint).list_repo_files(name, revision=revision):
            if file.endswith((*PICKLES, ".gguf", ".h5", ".msgpack")):
                yield file
