"""Makes the files of the experiment: text to pretrain on, the mixture's tasks, and the task that is held out."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parse import Package, Synset, packages, split_of, wordnet

from microplane.data.mixtures.task_templates import family
from microplane.files import write_aside

Row = Mapping[str, Any]
HELD_OUT_FAMILY, HELD_OUT_TEMPLATE = "topic", 2  # no other task of this family is in the mixture
LONG = 400  # characters of a long text in a task


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_aside(path, "".join(line + "\n" for line in lines).encode())
    return len(lines)


def build(folder: Path, commands: int = 4000) -> dict[str, int]:
    """Everything below `folder`, from what `fetch.debian` left there; returns rows by file."""
    rng = random.Random(0)
    synsets = [
        synset
        for part in ("noun", "verb", "adj", "adv")
        for synset in wordnet((folder / "wordnet" / f"data.{part}").read_text(encoding="utf-8").splitlines())
    ]
    lists = [folder / f"{name}.txt" for name in ("packages", "en", "fr")]
    found = packages(*[path.read_text(encoding="utf-8", errors="replace").splitlines() for path in lists])
    seen = [package for package in found if side_of(package) == "train"]
    shuffled = list(texts_of(synsets, seen))
    rng.shuffle(shuffled)
    counts = {"text": write_rows(folder / "text.jsonl", ({"text": text} for text in shuffled))}
    for name, rows in mixture_tasks(synsets, seen, rng).items():
        rng.shuffle(rows)
        counts[name] = write_rows(folder / "tasks" / f"{name}.jsonl", rows)
    made = recipe("home_commands").build(folder / "home", train_rows=commands, test_rows=10)
    lines = [json.loads(line) for line in (folder / "home" / "train.jsonl").read_text().splitlines()]
    rows = [{"command": line["input"], "output": line["output"]} for line in lines]
    counts["commands"] = write_rows(folder / "tasks" / "commands.jsonl", rows[: made["train_rows"]])
    for name, rows in held_out(found, rng).items():
        counts[f"held out, {name}"] = write_rows(folder / "held_out" / f"{name}.jsonl", rows)
    return counts


def recipe(name: str) -> Any:
    """The recipe of another example."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / name / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def texts_of(synsets: Iterable[Synset], found: Iterable[Package]) -> Iterable[str]:
    """Plain text: what WordNet and Debian say, once each. Nothing of the tasks' wordings."""
    seen: set[str] = set()
    for synset in synsets:
        yield f"{', '.join(synset.words)}: {synset.definition}" + "".join(f". {text}" for text in synset.examples)
    for package in found:
        for text in (package.long, package.short_fr and package.long_fr):
            for paragraph in text.split("\n") if text else ():
                if len(paragraph) > 60 and paragraph not in seen:  # families of packages share paragraphs
                    seen.add(paragraph)
                    yield paragraph
        if package.short not in seen:
            seen.add(package.short)
            yield f"{package.name}: {package.short}"


def mixture_tasks(synsets: Sequence[Synset], found: Sequence[Package], rng: random.Random) -> dict[str, list[dict]]:
    """Rows by task, with the fields that the families of templates want."""
    return {
        "definitions": [{"term": s.words[0], "definition": s.definition} for s in synsets if len(s.definition) > 8],
        "kinds": kinds(synsets, rng),
        "opposites": opposites(synsets, rng),
        "gaps": gaps(synsets, rng),
        **debian_tasks(found),
    }


def kinds(synsets: Sequence[Synset], rng: random.Random) -> list[dict]:
    """From a definition: whether the thing is a kind of another thing, one of its own hypernyms or a random one."""
    by_key = {synset.key: synset for synset in synsets}
    nouns = [s for s in synsets if s.kind == "n" and s.above and s.above[0] in by_key]
    made = []
    for synset in nouns:
        right = rng.random() < 0.5
        above = by_key[synset.above[0]] if right else by_key[rng.choice(nouns).above[0]]
        if right or above.key not in synset.above:
            name = synset.words[0]
            premise, claim = f"{name}: {synset.definition}", f"{name} is a kind of {above.words[0]}"
            made.append({"premise": premise, "hypothesis": claim, "label": "yes" if right else "no"})
    return made


def opposites(synsets: Sequence[Synset], rng: random.Random) -> list[dict]:
    """Pairs of words that mean the same or the opposite."""
    by_key = {synset.key: synset for synset in synsets}
    question = 'Do "{}" and "{}" mean the same or the opposite?'
    apart = [
        {"question": question.format(word, other.words[number - 1]), "answer": "opposite"}
        for synset in synsets
        for word, key, number in synset.opposites
        if (other := by_key.get(key)) and 0 < number <= len(other.words)
    ]
    same = [
        {"question": question.format(s.words[0], s.words[1]), "answer": "same"}
        for s in synsets
        if len(s.words) > 1 and s.kind != "n"
    ]
    count = min(len(apart), len(same))
    return rng.sample(apart, count) + rng.sample(same, count)


def gaps(synsets: Sequence[Synset], rng: random.Random) -> list[dict]:
    """Example sentences with the word taken out, and words to choose from."""
    words = [s.words[0] for s in synsets if s.examples and " " not in s.words[0]]
    made = []
    for synset in synsets:
        word = synset.words[0]
        for example in synset.examples[:1]:
            text, hits = re.subn(rf"\b{re.escape(word)}\b", "___", example)
            if hits == 1 and len(text) > 12:
                options = list(dict.fromkeys([word, *rng.sample(words, min(3, len(words)))]))
                row = {"question": "Which word fits into the gap?", "context": text, "answer": word}
                made.append(row | {"options": options})
    return made


def debian_tasks(found: Sequence[Package]) -> dict[str, list[dict]]:
    """Translations, and summaries of one package of each source, since families share sentences."""
    short = {p.short: p.short_fr for p in found if p.short_fr and 12 < len(p.short) < 90}
    long = [p for p in one_of_each(found) if len(p.long) > 80 and 8 < len(p.short) < 90]
    return {
        "translation": [{"source": english, "target": french} for english, french in short.items()],
        "summaries": [{"text": p.long[:LONG], "summary": p.short} for p in long],
    }


def one_of_each(found: Iterable[Package]) -> list[Package]:
    """One package of each source."""
    return list({package.source: package for package in found}.values())


def side_of(package: Package) -> str:
    """train, validation or test. Of the last two, nothing is read in pretraining nor in the mixture."""
    return split_of(package.source, validation=0.05, test=0.1)


def held_out(
    found: Sequence[Package],
    rng: random.Random,
    at_least: int = 150,
    most: int = 600,
    listed: int = 4,
    longest: int = 250,
) -> dict[str, list[dict]]:
    """In which section of Debian a package is: from its description, with a few sections to choose from.

    One package of each source, split by source, in one wording. Sections with fewer than `at_least` packages are left
    out, and no more than `most` of one are taken, or guessing the commonest would be right half of the time.
    """
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    template = family(HELD_OUT_FAMILY).templates[HELD_OUT_TEMPLATE]
    own = [package for package in one_of_each(found) if len(package.long) > 80]
    counts = Counter(package.section for package in own)
    known = sorted(section for section, count in counts.items() if count >= at_least)
    taken: Counter[str] = Counter()
    for package in own:
        taken[package.section] += 1
        if package.section not in known or taken[package.section] > most:
            continue
        others = [section for section in known if section != package.section]
        options = rng.sample(
            [package.section, *rng.sample(others, min(listed, len(known)) - 1)], min(listed, len(known))
        )
        text = f"{package.short}. {package.long.splitlines()[0]}"[:longest]
        shown = "Options:\n" + "\n".join(f"- {option}" for option in options)
        inputs, targets = template.render({"text": text, "label": package.section}, shown)
        splits[side_of(package)].append({"inputs": inputs, "targets": targets, "options": options})
    for rows in splits.values():
        rng.shuffle(rows)
    return splits
