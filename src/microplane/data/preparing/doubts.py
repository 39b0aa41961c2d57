"""What makes one doubt that the rows mean what they should: a look at what they say, after they were found good.

Counting what is bad, cut, unknown or equal is the reading's own part (`summary.py`). Here rows are compared with each
other: the same question with other answers, held-out rows that hardly differ from training rows, a label that stands in
the text, classes that are spelled in two ways, one answer to everything, conversations without a chat template.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from microplane.data.mixtures.render import Progress
from microplane.data.preparing.summary import DataSummary
from microplane.data.reading.values import is_number
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer

MOST_ROWS, MOST_TOKENS = 20_000, 4_000_000  # of the training rows that are looked at, from the first on
MOST_HELD_OUT = 1_000
ALIKE = 0.75  # Jaccard's index of the pairs of words of two rows that are near-duplicates
LEAST_PAIRS = 5  # of a row that is looked for: short rows are alike by chance
SHARE = 0.01  # of rows from which a doubt is told
NEAR = 0.05  # of held-out rows: a few are paraphrases in the best of data
COPIES = 0.5  # of training rows
SAME_ANSWER = 0.95  # share of the commonest answer from which little is learnt
CONVERSATIONS = ("messages", "conversations")  # formats of rows
PLAIN_TEXT = "none"  # template of rows that are no questions
NOTHING = {"nan", "NaN", "None", "null", "NULL", "n/a", "N/A", "NA", "<NA>", "NaT"}  # as programs write it
SPELLING = re.compile(r"(?:[^\w+#*]|_)+")  # what is between the words of a class's name
LEAKS, ELSEWHERE = 0.9, 0.1  # share of a class's rows that hold its name, and of the others that do


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: str
    answer: str  # or the labels


def doubts(
    sets: Mapping[str, Dataset],
    tokenizer: Tokenizer,
    summary: DataSummary,
    progress: Progress | None = None,
) -> list[str]:
    """Sentences on rows that may not mean what they should; none of rows that nothing is wrong with.

    Args:
        sets: the splits by name, "train" among them.
    """
    if progress:
        progress("comparing rows", 0, None)
    train = sets["train"]
    known = list(_rows(train, MOST_ROWS, tokenizer, summary))
    others = {name: rows for name, rows in sets.items() if name != "train"}
    unseen = {name: list(_rows(rows, MOST_HELD_OUT, tokenizer, summary)) for name, rows in others.items()}
    found = [*_without_template(summary, tokenizer), *doubtful_names(summary.labels), *_contradictions(known)]
    found += [*_one_answer(known, summary), *_no_answers(known, summary), *_copies(known), *_leaks(known, summary)]
    for name, rows in unseen.items():
        found += [*_contradicted(known, name, rows), *_near_duplicates(known, name, rows)]
    return found


def _rows(dataset: Dataset, most: int, tokenizer: Tokenizer, summary: DataSummary) -> Iterator[_Row]:
    tokens = 0
    for row in range(min(len(dataset), most)):
        tokens += int(dataset.lengths[row])
        if tokens > MOST_TOKENS:
            return
        if summary.task:
            prompt, answer = dataset[row][0].tolist(), _labels(dataset, row, summary)
        elif summary.template == PLAIN_TEXT:
            prompt, answer = [], tokenizer.decode(dataset[row][0].tolist())
        else:
            prompt, target = dataset.prompt_and_target(row)
            answer = tokenizer.for_targets.decode(target)
        yield _Row(dataset.where(row), tokenizer.decode(prompt), answer)


def _labels(dataset: Dataset, row: int, summary: DataSummary) -> str:
    values = dataset.labels(row).tolist()
    if summary.task == "classification":
        return summary.labels[int(values[0])]
    return " ".join(f"{value:g}" for value in values)


def _without_template(summary: DataSummary, tokenizer: Tokenizer) -> Iterator[str]:
    if summary.format_name in CONVERSATIONS and not tokenizer.chat_template and summary.template == "plain":
        yield (
            "the rows are conversations, and the model has no chat template: they are written as plain lines, who "
            "speaks is lost. Choose an instruction-tuned model, or rows of prompt and completion"
        )


def _contradictions(rows: Sequence[_Row]) -> Iterator[str]:
    """Of answers that are written a few may well differ; of labels none should."""
    by_prompt: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if row.prompt.strip():
            by_prompt[row.prompt].append(row)
    torn = [alike for alike in by_prompt.values() if len({row.answer for row in alike}) > 1]
    count = sum(len(alike) for alike in torn)
    if torn and count >= SHARE * len(rows):
        first = torn[0][0]
        other = next(row for row in torn[0] if row.answer != first.answer)
        yield (
            f"{count:,} of {len(rows):,} training rows ask the same and are answered otherwise, as {first.where} "
            f"({_short(first.answer)}) and {other.where} ({_short(other.answer)}): nobody can be right on both"
        )


def _contradicted(known: Sequence[_Row], name: str, unseen: Sequence[_Row]) -> Iterator[str]:
    """Held-out rows that some training rows ask too, and all of these answer otherwise."""
    taught: dict[str, list[_Row]] = defaultdict(list)
    for row in known:
        taught[row.prompt].append(row)
    torn = [
        row
        for row in unseen
        if row.prompt.strip()
        and row.prompt in taught
        and row.answer not in {twin.answer for twin in taught[row.prompt]}
    ]
    if torn and len(torn) >= NEAR * len(unseen):
        row, twin = torn[0], taught[torn[0].prompt][0]
        yield (
            f"{len(torn):,} of {len(unseen):,} {name} rows ask what training rows ask, which answer it otherwise: "
            f"{twin.where} ({_short(twin.answer)}) and {row.where} ({_short(row.answer)}): nobody can be right"
        )


def _copies(rows: Sequence[_Row]) -> Iterator[str]:
    different = len({(row.prompt, row.answer) for row in rows})
    if 1 < different <= (1 - COPIES) * len(rows):
        yield (
            f"{len(rows) - different:,} of {len(rows):,} training rows are copies of others: an epoch over them is one "
            f"of {different:,} rows, made {len(rows) / different:.1f} times"
        )


def _one_answer(rows: Sequence[_Row], summary: DataSummary) -> Iterator[str]:
    """Of classes and tags one may well be by far the commonest."""
    if summary.task in ("classification", "tokens") or len(rows) < 2 or not any(row.prompt.strip() for row in rows):
        return
    answer, count = Counter(row.answer for row in rows).most_common(1)[0]
    if count >= SAME_ANSWER * len(rows):
        yield f"{count:,} of {len(rows):,} training rows have the same answer, {_short(answer)}: it is all they teach"


def _no_answers(rows: Sequence[_Row], summary: DataSummary) -> Iterator[str]:
    """Answers that are written as programs write that there is none. Of classes the names are looked at."""
    if summary.task or summary.template == PLAIN_TEXT:
        return
    empty = [row for row in rows if row.answer.strip() in NOTHING]
    if empty and len(empty) >= SHARE * len(rows):
        yield (
            f"{len(empty):,} of {len(rows):,} training rows are answered as programs write that there is nothing, the "
            f"first in {empty[0].where} ({_short(empty[0].answer)}): it is learnt like any answer. Leave such rows "
            "out, or write what should be said"
        )


def doubtful_names(labels: Sequence[str]) -> Iterator[str]:
    """Sentences on class names that may not mean what they should."""
    yield from _spelled_alike(labels)
    yield from _no_names(labels)
    yield from _numbered(labels)


def _spelled_alike(labels: Sequence[str]) -> Iterator[str]:
    """Classes that are one but for capitals, white space and punctuation, and numbers that are equal. Signs that tell
    names apart (C, C#, C++) are no punctuation."""
    by_form: dict[str | float, list[str]] = defaultdict(list)
    for label in labels:
        plain = unicodedata.normalize("NFKC", label).casefold()
        words = SPELLING.sub(" ", plain).strip()
        words = words + "-" * plain.endswith("-") if words else label  # A- is no A
        by_form[float(plain) if is_number(plain) and re.search(r"\d", plain) else words].append(label)
    for alike in by_form.values():
        if len(alike) > 1:
            listed = ", ".join(repr(label) for label in alike)
            yield f"the classes {listed} differ in spelling alone, and are learnt as {len(alike)} classes"


def _no_names(labels: Sequence[str]) -> Iterator[str]:
    """Classes that are called as programs write that there is nothing, and such as are several others in one."""
    if nothing := [label for label in labels if label in NOTHING]:
        listed = ", ".join(map(repr, nothing))
        yield f"{listed} is a class like the others; if it means that there is no label: data.no_label=[{nothing[0]}]"
    for mark in ",;|":
        parts = {label: [part.strip() for part in label.split(mark)] for label in labels}
        holders = Counter(part for own in parts.values() for part in set(own))
        joined = [
            label for label in labels if len(parts[label]) > 1 and all(holders[part] > 1 for part in parts[label])
        ]
        if joined:
            yield (
                f"the class {joined[0]!r} is named as several others together, and is learnt as one of its own "
                f"({len(joined):,} such); where a row has several labels, write a list: {parts[joined[0]]}"
            )
            return


def _numbered(labels: Sequence[str]) -> Iterator[str]:
    """As many classes with names as with numbers from 0 or 1 on: likely two columns in one."""
    numbers = sorted(int(label) for label in labels if label.isascii() and label.isdigit())
    names = [label for label in labels if not is_number(label)]
    if len(names) > 1 and numbers in ([*range(len(names))], [*range(1, len(names) + 1)]):
        listed, named = ", ".join(map(str, numbers[:6])), ", ".join(map(repr, names[:6]))
        yield f"{listed} and {named} are {2 * len(names)} classes; if they mean the same, write all of them in one way"


def _leaks(rows: Sequence[_Row], summary: DataSummary) -> Iterator[str]:
    """Classes whose name stands in the texts of their rows and hardly in others'."""
    if summary.task != "classification":
        return
    told, texts = [], [(row.answer, row.prompt.casefold()) for row in rows]
    for label in (name for name in summary.labels if re.search(r"\w{2}", name)):
        holds = _whole(label)
        own = [holds(text) for answer, text in texts if answer == label]
        others = [holds(text) for answer, text in texts if answer != label]
        if own and others and sum(own) >= LEAKS * len(own) and sum(others) <= ELSEWHERE * len(others):
            told.append(label)
    if told and len(told) >= len(summary.labels) / 2:
        listed = ", ".join(repr(label) for label in told[:4])
        yield (
            f"the texts of {len(told)} of {len(summary.labels)} classes hold the class's own name ({listed}), and "
            "other texts do not: the label may have been left in the text"
        )


def _whole(label: str) -> Callable[[str], bool]:
    """Whether a text, its case folded, holds the label as words of their own."""
    folded = label.casefold()
    pattern = re.compile(rf"(?<!\w){re.escape(folded)}(?!\w)")
    return lambda text: folded in text and pattern.search(text) is not None


def _near_duplicates(known: Sequence[_Row], name: str, unseen: Sequence[_Row]) -> Iterator[str]:
    """Held-out rows of which a training row has nearly the same words and the same answer, and is not the same.

    A row that is alike shares at least one of the `(1 - ALIKE) n + 1` rarest of its n pairs of words: so only few
    training rows are compared with each.
    """
    words = _Numbers()
    shingles = [array("q", _pairs(row.prompt or row.answer, words)) for row in known]
    frequency = Counter(pair for pairs in shingles for pair in pairs)
    asked = [_pairs(row.prompt or row.answer, words) for row in unseen]
    looked_for = [_rarest(pairs, frequency) if len(pairs) >= LEAST_PAIRS else [] for pairs in asked]
    holders: dict[int, list[int]] = {pair: [] for pairs in looked_for for pair in pairs}
    for number, shingle in enumerate(shingles):
        for pair in holders.keys() & _rarest(shingle, frequency):
            holders[pair].append(number)
    count, first = 0, None
    for row, pairs, rare in zip(unseen, asked, looked_for, strict=True):
        near = {number for pair in rare for number in holders[pair]}
        twin = next((n for n in sorted(near) if _alike(pairs, shingles[n]) and _differ(row, known[n])), None)
        if twin is not None:
            count += 1
            first = first or f"{known[twin].where} and {row.where}"
    if count and count >= NEAR * len(unseen):
        yield (
            f"{count:,} of {len(unseen):,} {name} rows hardly differ from a training row with the same answer (as "
            f"{first}): numbers measured on {name} will look too good"
        )


class _Numbers(dict[str, int]):
    """A number for each word, by which pairs of them take a tenth of the memory."""

    def __missing__(self, word: str) -> int:
        self[word] = len(self)
        return self[word]


def _pairs(text: str, words: _Numbers) -> set[int]:
    """The pairs of words that stand side by side."""
    numbers = [words[word] for word in re.findall(r"\w+", text.casefold())]
    return {one << 32 | other for one, other in pairwise(numbers)}


def _rarest(pairs: Collection[int], frequency: Mapping[int, int]) -> list[int]:
    """The pairs of which a row that is alike must have one, by one order for all rows."""
    kept = len(pairs) - int(-(-ALIKE * len(pairs) // 1)) + 1
    return sorted(pairs, key=lambda pair: (frequency.get(pair, 0), pair))[:kept]


def _alike(one: set[int], other: Collection[int]) -> bool:
    shared = len(one.intersection(other))
    return shared >= ALIKE * (len(one) + len(other) - shared)


def _differ(one: _Row, other: _Row) -> bool:
    """Equal rows are counted as such already; those that are answered otherwise ask something else."""
    return one.answer == other.answer and one.prompt != other.prompt


def _short(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= most else text[: most - 3] + "...")
