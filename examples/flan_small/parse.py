"""Reads the formats of the sources: WordNet's data files and Debian's stanzas; and splits by family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

LEXNAMES = (  # of lexnames(5WN), by number; "tops" are the roots of the nouns
    "adjective|adjective|adverb|tops|action|animal|object|attribute|body|thought|communication|event|feeling|food|group|"
    "location|motive|natural object|person|phenomenon|plant|possession|process|quantity|relation|shape|state|substance|"
    "time|body|change|thought|communication|competition|consumption|contact|creation|feeling|motion|perception|"
    "possession|social life|state|weather|adjective"
).split("|")
QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Synset:
    """A meaning: its words, its definition, and pointers to others."""

    key: str  # offset and part of speech, as in 00001740n
    kind: str  # n, v, a, s or r
    topic: str  # of its lexicographer file
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    above: tuple[str, ...]  # keys of hypernyms
    opposites: tuple[tuple[str, str, int], ...]  # (own word, key of the other, number of its word from 1)


def wordnet(lines: Iterable[str]) -> Iterator[Synset]:
    """The synsets of a data file, format wndb(5WN). Lines of the licence begin with two spaces."""
    for line in lines:
        if line.startswith("  ") or " | " not in line:
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        at = 4 + 2 * count
        pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
        opposites = [
            (words[int(where[:2], 16) - 1], target + pos, int(where[2:], 16))
            for mark, target, pos, where in pointers
            if mark == "!" and int(where[:2], 16)
        ]
        definition, examples = gloss_parts(gloss)
        yield Synset(
            key=fields[0] + ("a" if fields[2] == "s" else fields[2]),
            kind=fields[2],
            topic=LEXNAMES[int(fields[1])],
            words=words,
            definition=definition,
            examples=examples,
            above=tuple(target + pos for mark, target, pos, _ in pointers if mark in ("@", "@i")),
            opposites=tuple(opposites),
        )


def gloss_parts(gloss: str) -> tuple[str, tuple[str, ...]]:
    """A gloss's definition and its quoted examples."""
    examples = tuple(text.strip() for text in QUOTED.findall(gloss))
    definition = gloss.split('"', 1)[0].strip().rstrip(";:,- ").strip()
    return definition, examples


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a Debian control file, deb822(5): continuation lines stay below their field's first."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line[1:]
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields


def description(text: str) -> tuple[str, str]:
    """Short and long part of a description; the long one as paragraphs of one line, without its lists and verbatim."""
    short, _, rest = text.partition("\n")
    paragraphs: list[list[str]] = [[]]
    for line in rest.split("\n"):
        if line.strip() in (".", ""):
            paragraphs.append([])
        elif line.startswith((" ", "\t")) or line.lstrip().startswith(("*", "-")):
            continue
        else:
            paragraphs[-1].append(line.strip())
    return short.strip(), "\n".join(" ".join(lines) for lines in paragraphs if lines)


@dataclass(frozen=True)
class Package:
    name: str
    source: str
    section: str
    short: str
    long: str
    short_fr: str = ""
    long_fr: str = ""


def packages(index: Iterable[str], english: Iterable[str], french: Iterable[str]) -> list[Package]:
    """Packages with their descriptions; a French one counts only if it was made of this English text."""
    known: dict[str, tuple[str, str]] = {}
    for fields in stanzas(index):
        source = fields.get("Source", fields.get("Package", "")).split(" ")[0]
        known.setdefault(fields.get("Package", ""), (source, fields.get("Section", "").rsplit("/", 1)[-1]))
    translated = {fields.get("Description-md5"): fields.get("Description-fr", "") for fields in stanzas(french)}
    found: dict[str, Package] = {}
    for fields in stanzas(english):
        name, text = fields.get("Package", ""), fields.get("Description-en", "")
        if text and name in known and name not in found:
            other = description(translated.get(fields.get("Description-md5"), ""))
            found[name] = Package(name, *known[name], *description(text), *other)
    return list(found.values())


def share_of(family: str, salt: str = "") -> float:
    """A number from 0 to below 1 that follows from a family's name: a split by it keeps families together."""
    return int.from_bytes(sha256(f"{salt}/{family}".encode()).digest()[:6], "big") / 2**48


def split_of(family: str, validation: float, test: float, salt: str = "") -> str:
    """train, validation or test."""
    share = share_of(family, salt)
    return "test" if share < test else "validation" if share < test + validation else "train"
