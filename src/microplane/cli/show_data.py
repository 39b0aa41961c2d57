"""What was understood of a data file, to look at before anything is trained: `microplane data FILE [--model M]`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.render import Progress
from microplane.data.preparing.first_pass import FirstPass, files_of, first_pass
from microplane.data.preparing.holdout import TooFewRowsError
from microplane.data.preparing.load_splits import load_rows, load_splits
from microplane.data.preparing.split import examples
from microplane.data.preparing.summary import length_facts, told_split
from microplane.data.preparing.unread import told_unread
from microplane.data.reading.bad_rows import LISTED
from microplane.data.reading.example import Example
from microplane.data.reading.read import first_texts
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.objectives.select import NEXT_TOKEN, AnyCandidates
from microplane.runs.check import SAMPLES, sample

WORD_ROWS = 500  # whose words are looked up in the vocabulary
BINS = 12
BAR = 40  # characters of the longest bar
SHOWN = 600  # characters of one part of a sample
TRAINED = "bold underline green"


def describe(
    knobs: DataKnobs,
    tokenizer: Tokenizer | None = None,
    candidates: AnyCandidates = NEXT_TOKEN,
    progress: Progress | None = None,
    seed: int = 0,
) -> Description:
    """Look at the files that the knobs name. Bad rows, and text that the vocabulary does not know, are listed rather
    than refused.

    With a tokenizer, rows are shown as they are trained and counted in tokens; without, in characters.

    Args:
        candidates: what the model may be trained for, where a tokenizer is given.
        seed: of what is drawn anew in each epoch.

    Raises:
        DataError: for files of which nothing can be used.
    """
    knobs = knobs.model_copy(update={"skip_bad_rows": True, "max_unknown": 1.0})
    too_few = []
    if tokenizer is None:
        files = files_of(knobs, progress)
        unicode = "as-is" if knobs.unicode == "auto" else knobs.unicode  # auto is the model's choice
        try:
            found = first_pass(files, knobs, progress, unicode=unicode)
        except TooFewRowsError as error:
            found, too_few = first_pass(files, knobs, progress, hold_out=False, unicode=unicode), [str(error)]
        facts = _of_first_pass(found, knobs)
    else:
        try:
            splits = load_splits(knobs, tokenizer, candidates, progress, seed)
            rows, objective, summary = splits.train, splits.objective, splits.summary
        except TooFewRowsError as error:
            (rows, objective, summary), too_few = load_rows(knobs, tokenizer, candidates, progress), [str(error)]
        facts = {"unit": "tokens", **summary.to_dict(), "histogram": histogram(rows.lengths)}
        shown = range(min(SAMPLES, len(rows)))
        broken, words = tokenizer.broken_words(first_texts(Path(summary.files["train"][0]), WORD_ROWS))
        facts |= {"broken_words": len(broken), "words": words, "broken_examples": broken[:LISTED]}
        facts["samples"] = [sample(row, objective, rows, tokenizer, summary.labels) for row in shown]
    facts["warnings"] = [*too_few, *facts["warnings"]]
    return Description(facts)


def _part(text: str, trained: bool) -> dict[str, Any]:
    return {"text": text, "trained": trained}


def _read_sample(where: str, example: Example) -> dict[str, Any]:
    parts = []
    for message in example.messages or ():
        parts.append(_part(f"{message.role}: ", False))
        parts.append(_part(f"{message.content}\n", message.role == "assistant"))
    if example.text is not None:
        parts.append(_part(example.text, True))
    return {"where": where, "parts": parts}


def _of_first_pass(found: FirstPass, knobs: DataKnobs) -> dict[str, Any]:
    train = found.splits["train"]
    limited = knobs.model_copy(update={"limit": SAMPLES})
    shown = examples(train.unread(), limited)  # its bad rows are known
    samples = [_read_sample(f"{train.files[file].name}:{line}", row) for file, line, row in shown]
    return {
        "unit": "characters",
        "format": str(train.format),
        "files": {name: [str(path) for path in split.files] for name, split in found.splits.items()},
        "split_by": train.part.column if train.part else "",
        "validation_from": "file" if found.held_out is None else "split off",
        "rows": {name: len(split.hashes) for name, split in found.splits.items()},
        "lengths": {name: length_facts(split.sizes) for name, split in found.splits.items()},
        "bad": dict(found.problems.counts),
        "bad_examples": found.problems.first[:LISTED],
        "duplicates": {name: split.duplicates for name, split in found.splits.items()},
        "overlap": {name: item.rows for name, item in found.overlap.items()},
        "overlap_examples": [pair for item in found.overlap.values() for pair in item.pairs],
        "histogram": histogram(train.sizes),
        "samples": samples,
        "warnings": [*found.problems.notices, *told_unread(knobs)],
    }


def histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Rows by length, in at most `BINS` bins of a round width: `from` (included), `to` (excluded), `rows`."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = _round_up(max(1, math.ceil((high - low) / (BINS - 1))))
    first = low // width
    counts = np.bincount(np.asarray(lengths, np.int64) // width - first)
    return [
        {"from": (first + number) * width, "to": (first + number + 1) * width, "rows": count}
        for number, count in enumerate(counts.tolist())
    ]


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = int(10 ** (len(str(width)) - 1))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


@dataclass
class Description:
    """What `microplane data` prints; `facts` is the same for `--json`."""

    facts: dict[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = console.color_system is not None
        yield self._overview()
        yield from self._bad_rows()
        yield from rendered(self.facts["samples"], colour)
        yield from self._histogram()
        for warning in self.facts["warnings"]:
            yield Text.assemble(("warning: ", "bold yellow"), warning)

    def _overview(self) -> Table:
        facts = self.facts
        table = Table.grid(padding=(0, 2))
        table.add_row("format", Text(facts["format"], style="bold"))
        if "template" in facts:
            table.add_row("template", facts["template"])
        split = told_split(facts["split_by"], facts["validation_from"])
        table.add_row("rows", by_split(facts["rows"]) + split)
        length = facts["lengths"]["train"]
        span = (
            f"{length['min']:,} to {length['max']:,}, median {length['median']:,.0f}, 95% within {length['p95']:,.0f}"
        )
        table.add_row(facts["unit"], span)
        if facts["unit"] == "tokens":
            table.add_row("labels" if facts["task"] else "trained", self._trained())
            table.add_row("cut", self._cut())
            rates = (
                f"{facts['input_unk_rate']:.2%} of the tokens of inputs, {facts['trained_unk_rate']:.2%} of answers'"
            )
            table.add_row("<unk>", Text("none: every text is known" if facts["knows_all"] else rates))
        if facts.get("words"):
            table.add_row("words", self._broken())
        table.add_row("duplicates", by_split(facts["duplicates"]))
        first = f", such as {facts['overlap_examples'][0]}" if facts["overlap_examples"] else ""
        table.add_row("overlap", f"{by_split(facts['overlap'])} rows that stand in train too{first}")
        return table

    def _trained(self) -> str:
        tokens, trained = sum(self.facts["tokens"].values()), sum(self.facts["trained_tokens"].values())
        if self.facts["task"]:
            return f"{trained:,} of {', '.join(self.facts['labels'][:8]) or 'numbers'}"
        return f"{trained:,} of {tokens:,} tokens ({trained / tokens:.0%})"

    def _broken(self) -> str:
        broken, words = self.facts["broken_words"], self.facts["words"]
        such = f", such as {', '.join(self.facts['broken_examples'][:3])}" if broken else ""
        return f"{broken:,} of {words:,} are cut into more than three tokens ({broken / words:.0%}){such}"

    def _cut(self) -> str:
        cut, answers, pieces, dropped = (
            sum(self.facts[key].values()) for key in ("truncated", "answers_cut", "in_pieces", "dropped")
        )
        above = f"above {self.facts['max_length']:,} tokens"
        texts = f", {pieces:,} texts into rows" if pieces else ""
        return f"{cut:,} prompts and {answers:,} answers {above}{texts}; {dropped:,} rows dropped"

    def _bad_rows(self) -> Iterator[Text]:
        bad = self.facts["bad"]
        if not bad:
            return
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in bad.items())
        yield Text(
            f"\n{sum(bad.values()):,} bad rows ({kinds}), which training refuses without --skip-bad-rows:", "bold red"
        )
        for line in self.facts["bad_examples"]:
            yield Text(f"  {visible(line)}")

    def _histogram(self) -> Iterator[Text]:
        bins = self.facts["histogram"]
        most = max(item["rows"] for item in bins)
        width = len(f"{bins[-1]['to']:,}")
        yield Text(f"\nTraining rows by length in {self.facts['unit']}", "bold")
        for item in bins:
            bar = "█" * math.ceil(BAR * item["rows"] / most)
            last = f" to {item['to'] - 1:>{width},}" if item["to"] - item["from"] > 1 else ""
            yield Text(f"  {item['from']:>{width},}{last}  {bar} {item['rows']:,}")


def rendered(samples: Sequence[dict[str, Any]], colour: bool) -> Iterator[Text]:
    """Rows as they are trained, what is trained of them marked."""
    legend = Text("\nTrained text is ") + (Text("marked so", TRAINED) if colour else Text("within [[ ]]"))
    yield legend + Text(". The rest is only read.")
    for row in samples:
        yield Text(f"\n{row['where']}", "bold")
        text = Text()
        for part in row["parts"]:
            shown = visible(shorten(part["text"]))
            if part["trained"] and not colour:
                body = shown.rstrip("\n")
                shown = f"[[{body}]]{shown[len(body) :]}"
            text.append(shown, TRAINED if part["trained"] and colour else None)
        text.rstrip()
        yield Text("  ") + Text("\n  ").join(text.split("\n"))  # Padding would crop at the terminal's width


def by_split(counts: dict[str, int]) -> str:
    """`train 900, validation 100`"""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def shorten(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]} ... ({len(text) - SHOWN:,} more characters) ... {text[-half:]}"


def visible(text: str) -> str:
    """Control characters as their pictures, so that data cannot steer the terminal."""
    return "".join(chr(0x2400 + ord(char)) if ord(char) < 32 and char not in "\n\t" else char for char in text)
