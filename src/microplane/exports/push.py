"""`microplane push`: a run's adapter, its merged model, or a folder that `microplane export` wrote, to the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from microplane.adapters.card import NAME as CARD
from microplane.adapters.card import OURS
from microplane.checkpoints.attach_saved import adapter_folder
from microplane.errors import AdapterError, ConfigError, check_type
from microplane.exports.export import RECORD, export
from microplane.files import object_in, scratch_folder
from microplane.models.files.hub import HUB_NAME, PICKLES, hub_endpoint, hub_offline, hub_status

MODELS = (".safetensors", ".gguf", ".onnx", "model.bin")  # what an export's folder holds; the last is CTranslate2's


@dataclass(frozen=True)
class Push:
    """What goes to the Hub, or went there.

    Attributes:
        files: (name, bytes).
        notices: what those who open it should know.
        address: of the commit; None of a dry run.
    """

    repository: str
    public: bool
    files: tuple[tuple[str, int], ...]
    notices: tuple[str, ...]
    address: str | None


def push(
    source: str | Path,
    repository: str,
    merged: bool = False,
    public: bool = False,
    dry_run: bool = False,
    message: str | None = None,
    base: str | Path | None = None,
) -> Push:
    """Upload to a model repository of the Hub, which is made where there is none. Its other files stay.

    Args:
        source: a run's folder or an adapter's, of which the adapter goes; or a folder that was exported or merged.
        repository: `org/name`.
        merged: the adapter merged into its base, as a plain model.
        public: for all to see, if the repository is new; one that exists stays as it is.
        dry_run: send nothing, and ask nothing of the network.
        message: of the commit.
        base: of an adapter that is merged: where its base is, if not where the adapter says.

    Raises:
        ConfigError: for a name that the Hub does not take, without a token, or offline.
        AdapterError: for a folder with nothing to push, or what the Hub refuses, in its words.
    """
    check_type(source, "source", (str, Path), "a name or a path")
    if not HUB_NAME.fullmatch(str(repository)):
        raise ConfigError(f"{repository!r} is no name of a repository: give org/name")
    if not dry_run:
        _check_way()
    with _folder(Path(source).expanduser(), merged, base) as folder:
        files = tuple((name, (folder / name).stat().st_size) for name in _names(folder))
        found = Push(repository, public, files, tuple(_notices(folder)), None)
        if dry_run:
            return found
        return replace(found, address=_upload(found, folder, message))


@contextmanager
def _folder(source: Path, merged: bool, base: str | Path | None) -> Iterator[Path]:
    """What is pushed, for as long as the block lasts."""
    adapter = adapter_folder(source)
    if merged:
        if adapter is None:
            raise ConfigError(f"--merged is for a run or an adapter, and {source} is neither: leave it out")
        with scratch_folder(source) as beside:
            export(source, beside / "model", "hf", base=base)
            yield beside / "model"
        return
    if adapter is None and not source.is_dir():
        raise AdapterError(f"there is no folder {source}: give a run's, an adapter's, or one that export wrote")
    yield adapter or source


def _names(folder: Path) -> list[str]:
    """Of all files that go, hidden ones and pickles left out."""
    found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    names = [name for name in found if not any(part.startswith(".") for part in Path(name).parts)]
    names = [name for name in names if name.endswith("model.bin") or not name.endswith(PICKLES)]
    if not any(name.endswith(MODELS) for name in names if "/" not in name):  # a folder of many things is no model
        raise AdapterError(
            f"{folder} holds no weights to push: give a run's folder, or one that microplane export wrote"
        )
    return names


def _notices(folder: Path) -> Iterator[str]:
    if not (folder / CARD).is_file():
        yield f"there is no {CARD}: nobody will know what this is, how good, and under which licence"
    elif OURS not in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        yield f"the {CARD} is your own, and goes as it is"
    named = object_in(folder / "adapter_config.json").get("base_model_name_or_path")
    if named and Path(str(named)).expanduser().exists():
        yield f"the adapter names its base by a folder of this machine, {named}, which others lack; --merged needs none"
    checked = object_in(folder / RECORD)
    if checked and not checked.get("checked"):
        yield f"what is pushed was compared with no other tool: see {RECORD}"


def _check_way() -> None:
    from huggingface_hub import get_token

    if hub_offline():
        raise ConfigError("HF_HUB_OFFLINE is set: unset it to push, or look with --dry-run")
    if not (os.environ.get("HF_TOKEN") or get_token()):
        raise ConfigError("the Hub wants a token that may write: set HF_TOKEN, or log in with `hf auth login`")


def _upload(what: Push, folder: Path, message: str | None) -> str:
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=hub_endpoint(), token=os.environ.get("HF_TOKEN") or None)
    try:
        hub.create_repo(what.repository, private=not what.public, exist_ok=True)
        done = hub.upload_folder(
            repo_id=what.repository,
            folder_path=folder,
            allow_patterns=[_literally(name) for name, _ in what.files],
            commit_message=message or f"Add {folder.parent.name if folder.name == 'adapter' else folder.name}",
        )
    except Exception as error:  # of many kinds, that differ between versions of the library
        raise AdapterError(_why_not(what.repository, error)) from None
    return str(done.commit_url)


def _literally(name: str) -> str:
    """A pattern that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _why_not(repository: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if hub_status(error) in (401, 403):
        return f"the Hub does not let this token write to {repository}: take one with write access. It says: {reason}"
    return f"could not push to {repository} at {hub_endpoint()}: {reason}. What went before is there; push again"
