"""Gets the texts through apt: Debian's package lists with English and French descriptions, and WordNet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from microplane.errors import DataError

WORDNET = "wordnet-base"
APT_HELPER = "/usr/lib/apt/apt-helper"


def apt_options(folder: Path) -> list[str]:
    """Lists and downloads in a folder of ours: root is not needed, and nothing of the system changes."""
    options = {
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "en,fr",  # images often set "none"; only the command line has the last word
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "",
    }
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def run(command: list[str], folder: Path, what: str) -> bytes:
    """The output of a command.

    Raises:
        DataError: if it fails, with the last line that it said.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except OSError as error:
        raise DataError(f"{what}: {command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        told = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise DataError(f"{what} failed: {told[-1]}\n  in {folder}\n  is there a network, and a Debian mirror?")
    return done.stdout


def debian(folder: Path) -> None:
    """Fetch package indexes with English and French descriptions, and WordNet, into `folder`.

    Writes packages.txt, en.txt, fr.txt (stanzas as Debian has them) and wordnet/data.{noun,verb,adj,adv}.

    Raises:
        DataError: where there is no apt, or no network.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None or not Path(APT_HELPER).exists():
        raise DataError(
            "this example reads Debian's package descriptions and its package wordnet-base, and needs apt-get and "
            "dpkg-deb to fetch them\n  they are not on this machine\n  run it on Debian or Ubuntu, also in a container"
        )
    apt, options = folder / "apt", apt_options(folder / "apt")
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    run(["apt-get", *options, "update"], apt, "fetching Debian's package lists")
    for name, ending in (("packages", "_Packages"), ("en", "_Translation-en"), ("fr", "_Translation-fr")):
        found = sorted(path for path in (apt / "lists").iterdir() if path.is_file() and ending in path.name)
        texts = [run([APT_HELPER, "cat-file", str(path)], apt, f"reading {path.name}") for path in found]
        if not texts:
            raise DataError(f"the Debian mirror has no list {ending}\n  in {apt / 'lists'}")
        (folder / f"{name}.txt").write_bytes(b"\n".join(texts))
    run(["apt-get", *options, "download", WORDNET], apt, f"fetching {WORDNET}")
    package = next(apt.glob(f"{WORDNET}_*.deb"))
    run(["dpkg-deb", "-x", str(package), "unpacked"], apt, f"unpacking {package.name}")
    shutil.copytree(apt / "unpacked" / "usr" / "share" / "wordnet", folder / "wordnet", dirs_exist_ok=True)
    shutil.rmtree(apt)
