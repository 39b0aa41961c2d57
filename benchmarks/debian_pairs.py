"""English-French pairs: the descriptions of Debian's packages and what its translators made of them.

Fetched with apt into the cache, never vendored: each description has its package's licence. A private set of lists is
used, so root is not needed and nothing of the system changes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from microplane.errors import DataError
from microplane.files import cache_dir

LISTS = {"packages": "_Packages", "en": "_Translation-en", "fr": "_Translation-fr"}
APT_HELPER = "/usr/lib/apt/apt-helper"


class Pair(NamedTuple):
    source_package: str  # packages of one source share sentences, so a split must not part them
    english: str
    french: str


def fetch() -> Path:
    """The folder with packages.txt, en.txt and fr.txt, in Debian's format; fetched once (25 MB).

    Raises:
        DataError: where there is no apt, or no network.
    """
    folder = cache_dir() / "benchmarks" / "debian"
    if all((folder / f"{name}.txt").exists() for name in LISTS):
        return folder
    if shutil.which("apt-get") is None or not Path(APT_HELPER).exists():
        raise DataError("the pairs are Debian's package descriptions, and apt-get, which fetches them, is not here")
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "en,fr",  # images often set "none"; the command line has the last word
        "APT::Sandbox::User": "",
    }
    _run(["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")), "update"])
    for name, ending in LISTS.items():
        found = sorted(path for path in (apt / "lists").iterdir() if path.is_file() and ending in path.name)
        if not found:
            raise DataError(f"the Debian mirror has no list {ending}; see {apt / 'lists'}")
        text = b"\n".join(_run([APT_HELPER, "cat-file", str(path)]) for path in found)
        (folder / f"{name}.txt").write_bytes(text)
    shutil.rmtree(apt)
    return folder


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise DataError(f"{' '.join(command[:2])} failed: {told[-1]}\n  is there a network, and a Debian mirror?")
    return done.stdout


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs in `folder`, each once, in the order of the lists."""
    files = {name: (folder / f"{name}.txt").open(encoding="utf-8", errors="replace") for name in LISTS}
    try:
        return list(dict.fromkeys(pairs(files["packages"], files["en"], files["fr"])))
    finally:
        for file in files.values():
            file.close()


def pairs(index: Iterable[str], english: Iterable[str], french: Iterable[str]) -> Iterator[Pair]:
    """Short descriptions, and paragraphs where both sides have as many. The sum of the English text is the link."""
    sources: dict[str, str] = {}
    for fields in stanzas(index):
        sources.setdefault(fields.get("Package", ""), fields.get("Source", fields.get("Package", "")).split(" ")[0])
    translated = {fields.get("Description-md5"): fields.get("Description-fr", "") for fields in stanzas(french)}
    for fields in stanzas(english):
        source, other = sources.get(fields.get("Package", "")), translated.get(fields.get("Description-md5"))
        if not source or not other:
            continue
        ours, theirs = paragraphs(fields.get("Description-en", "")), paragraphs(other)
        both = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else [(ours[0], theirs[0])]
        yield from (Pair(source, en, fr) for en, fr in both if en and fr and en != fr)


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file, deb822(5); continued lines stay below the first of their field."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] not in " \t":
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif name:
            fields[name] += "\n" + line[1:]
    if fields:
        yield fields


def paragraphs(text: str) -> list[str]:
    """The short description and the paragraphs of the long one, a line each; lists and verbatim lines are left out."""
    short, _, rest = text.partition("\n")
    found: list[list[str]] = [[short.strip()], []]
    for line in rest.split("\n"):
        if line.strip() in (".", ""):
            found.append([])
        elif not line.startswith((" ", "\t", "*", "-")):
            found[-1].append(line.strip())
    return [found[0][0], *(" ".join(lines) for lines in found[1:] if lines)]


def held_out(source_package: str, share: float) -> bool:
    """Whether the pairs of a source package are for validation; follows from its name alone."""
    return int.from_bytes(sha256(source_package.encode()).digest()[:6], "big") / 2**48 < share
