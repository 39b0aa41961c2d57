"""The second pass over the files: rows become tokens, are counted, and are written to the cache one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from microplane.cache.eviction import new_entry
from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.render import Progress
from microplane.data.preparing.doubts import doubts
from microplane.data.preparing.first_pass import FirstPass, first_pass
from microplane.data.preparing.making import Counts, Making, RawItem
from microplane.data.preparing.side_by_side import side_by_side
from microplane.data.preparing.split import Split, good_rows
from microplane.data.preparing.summary import DataSummary, length_facts
from microplane.data.preparing.unread import told_unread
from microplane.data.reading.bad_rows import LISTED, Problem
from microplane.data.reading.formats import TEXT
from microplane.data.reading.label_values import AUTO, means_none, same_class
from microplane.data.rendering.interface import Candidates, DataObjective, Renderer, RowTraits
from microplane.data.rendering.labelled import LabelRenderer, class_names
from microplane.data.store import SplitInfo, SplitWriter, TokenDataset
from microplane.data.tokenizers.tokenizer import RARE, Tokenizer
from microplane.errors import DataError


def tokenise_files(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress | None,
    candidates: Candidates[DataObjective],
    hold_out: bool = True,
    marked: str = "",
) -> None:
    """Read the files twice, and write the arrays of all splits and `summary.json` to a new folder.

    Args:
        candidates: what the model may be trained for; the format of the training rows decides.
        marked: as of `first_pass`.

    Raises:
        DataError: see `load_splits.load_splits`. Nothing is left behind then.
        ConfigError: if the user asked for an objective that does not fit these rows.
    """
    found = first_pass(files, knobs, progress, hold_out, candidates.read_format, tokenizer.unicode, marked)
    train = found.splits["train"]
    objective = candidates.objective(train.format.name)
    named = train.format.classes or train.classes.numbers
    if not hold_out and candidates.classes and (hot := train.format.classes) and hot != candidates.classes:
        expected = f"the names or {len(candidates.classes)} numbers for the classes of this model"
        raise DataError(f"{train.label}: the labels are lists of {len(hot)} times 0 or 1, expected {expected}")
    if knobs.no_label == AUTO:
        _refuse_doubtful(train, set(named) - set(candidates.classes))
    classes = class_names(named, candidates.classes, strictly=not hold_out)
    renderer = objective.renderer(tokenizer, knobs.template, knobs.system, classes)
    if isinstance(renderer, LabelRenderer):
        renderer.in_windows = knobs.long_rows == "windows" and not renderer.labels_per_token
    traits = renderer.traits
    _refuse_mixed(found, traits)
    with new_entry(folder, "the tokenised data", f"rows of {Path(knobs.train).name} as tokens") as temporary:
        with ExitStack() as stack:
            writers = {
                name: SplitWriter(temporary, name, split.files, traits.stops, traits.labels_per_token, stack)
                for name, split in found.splits.items()
            }
            second_pass = SecondPass(found, knobs, objective, renderer, writers, progress)
            for name in files:
                second_pass.tokenise(name)
            infos = {name: writer.close() for name, writer in writers.items()}
        summary = second_pass.summary(infos, temporary)
        del found, train, second_pass, writers  # what was kept of each row makes room
        if hold_out:  # rows that are trained on
            sets = {name: TokenDataset(temporary, name, info) for name, info in infos.items()}
            summary.warnings += doubts(sets, renderer.tokenizer, summary, progress)
        content = {"summary": summary.to_dict(), "splits": {name: asdict(info) for name, info in infos.items()}}
        (temporary / "summary.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _refuse_mixed(found: FirstPass, traits: RowTraits) -> None:
    """Raises: DataError, for plain text beside answers, which an encoder-decoder learns in two ways."""
    train = found.splits["train"]
    for split in found.splits.values():
        if traits.bounds_target and (split.format.name == TEXT) != (train.format.name == TEXT):
            raise DataError(
                f"{split.label} is read as {split.format}, and {train.label} as {train.format}: an encoder-decoder "
                "learns plain text in another way than answers. Give files of one kind"
            )


def _refuse_doubtful(train: Split, named: set[str]) -> None:
    """Raises: DataError, for a label that was read as a class by the first rows, and by all rows seems to be none."""
    if doubtful := named & means_none(named):
        raise DataError(
            f"{train.label}: the label {doubtful.pop()} stands beside the numbers of three classes or more, where it "
            "often means that there is none; the first rows do not show that. Say so with --set "
            "data.no_label=[-100, -1], or that it is a class with --set data.no_label=-100"
        )


class SecondPass:
    """Tokenises the splits that the first pass found."""

    def __init__(
        self,
        found: FirstPass,
        knobs: DataKnobs,
        objective: DataObjective,
        renderer: Renderer,
        writers: Mapping[str, SplitWriter],
        progress: Progress | None,
    ):
        self.found, self.knobs, self.objective, self.renderer = found, knobs, objective, renderer
        self.writers, self.progress = writers, progress
        self.counts = {name: Counts() for name in found.splits}
        self.joined = False  # whether any text has words joined by _

    def tokenise(self, name: str) -> None:
        """Render and write the rows of the files of one split. Those of the training files may belong to two.

        Raises:
            DataError: for rows that the template refuses, unless bad rows are skipped.
        """
        split, held_out = self.found.splits[name], self.found.held_out if name == "train" else None
        rows, total = self._rows(split, held_out)
        most, unknown = self.knobs.max_length, self.renderer.tokenizer.unk_id
        making = Making(split.unread(), self.renderer, most, self.knobs.max_target_length or most, unknown)
        done = 0
        with closing(side_by_side(making, rows, total)) as made:
            for chunk in made:
                if self.progress:
                    self.progress(f"tokenising {split.label}", done, total)
                done += chunk.items
                self.joined = self.joined or chunk.joined
                for where, problem in chunk.problems:
                    self._refuse(split, where, problem, total)
                for side, packed in chunk.rows.items():
                    self.writers[side].add(packed)
                for side, counts in chunk.counts.items():
                    self.counts[side].add(counts)
        if self.progress:
            self.progress(f"tokenising {split.label}", total, total)
        if split.problems.total and not self.knobs.skip_bad_rows:
            raise split.problems.error(split.label, total)

    def _rows(self, split: Split, held_out: np.ndarray | None) -> tuple[Iterator[RawItem], int]:
        """The rows of the files of one split, each with the split that it belongs to, and how many there are."""
        if held_out is None:
            return ((split.name, *row) for row in good_rows(split, split.places)), len(split.places)
        places = np.empty((len(held_out), 2), np.int64)
        places[~held_out], places[held_out] = split.places, self.found.splits["validation"].places
        sides = ("validation" if held else split.name for held in held_out)
        return ((side, *row) for side, row in zip(sides, good_rows(split, places), strict=False)), len(places)

    def _refuse(self, split: Split, where: str, problem: Problem, total: int) -> None:
        """Count a row that the template refuses as a bad one.

        Raises:
            DataError: once there are enough of them to be told; often it is all rows, and no need to see more.
        """
        split.problems.add(where, problem)
        if not self.knobs.skip_bad_rows and split.problems.total >= LISTED:
            raise split.problems.error(split.label, total, more=True)

    def summary(self, infos: Mapping[str, SplitInfo], folder: Path) -> DataSummary:
        """All numbers and warnings.

        Raises:
            DataError: if a split has nothing to train on.
        """
        splits, problems, counts = self.found.splits, self.found.problems, self.counts
        for name, info in infos.items():
            _refuse_empty(splits[name], info, counts[name], labelled=self.objective.needs_head)
        shared = self.found.overlap
        train = counts["train"]
        summary = DataSummary(
            **self._rules(),
            label_counts={name: self._label_counts(split) for name, split in splits.items()},
            unlabelled={name: split.unlabelled for name, split in splits.items()},
            rewritten=sum(split.rewritten for split in splits.values()),
            notices=[*problems.notices, *told_unread(self.knobs)],
            files={name: [str(path) for path in split.files] for name, split in splits.items()},
            split_by=part.column if (part := splits["train"].part) else "",
            validation_from="file" if self.found.held_out is None else "split off",
            bad=dict(problems.counts),
            bad_examples=problems.first[:LISTED],
            rows={name: info.rows for name, info in infos.items()},
            tokens={name: info.tokens for name, info in infos.items()},
            trained_tokens={name: info.trained_tokens for name, info in infos.items()},
            lengths={name: length_facts(TokenDataset(folder, name, info).lengths) for name, info in infos.items()},
            truncated={name: item.lost["start"] + item.lost["end"] for name, item in counts.items()},
            ends_cut={name: item.lost["end"] for name, item in counts.items()},
            in_pieces={name: item.in_pieces for name, item in counts.items()},
            by_answer={name: item.by_answer for name, item in counts.items()},
            answers_cut={name: item.lost["answer"] for name, item in counts.items()},
            dropped={name: item.dropped for name, item in counts.items()},
            duplicates={name: split.duplicates for name, split in splits.items()},
            overlap={name: item.rows for name, item in shared.items()},
            overlap_examples=[pair for item in shared.values() for pair in item.pairs],
            knows_all=self.renderer.tokenizer.unk_id is None and not self.renderer.tokenizer.leaves_out(RARE),
            unk_rate=train.unknown / infos["train"].tokens,
            trained_unk_rate=_share(train.unknown_targets, train.targets),
            input_unk_rate=_share(train.unknown - train.unknown_targets, infos["train"].tokens - train.targets),
            shared_system=_only(splits["train"].systems),
            second_texts=splits["train"].pairs,
            fingerprint=_fingerprint(infos),
        )
        summary.warn()
        summary.warnings += self._of_rendering()
        return summary

    def _label_counts(self, split: Split) -> dict[str, int]:
        """Of the classes, by the names that those of the training rows have."""
        counts, classes = Counter[str](), self.renderer.traits.classes
        for name, count in split.classes.counts().items():
            counts[same_class(name, classes)] += count
        return dict(counts)

    def _of_rendering(self) -> Iterator[str]:
        """What is to be said of rows that are not quite what was meant once they are rendered."""
        tokenizer = self.renderer.tokenizer
        if tokenizer.expects_segments and tokenizer.segment == "none" and not self.joined:
            yield (
                "the model was trained on words joined by _ (as in cà_phê), and no row has any: data.segment=vi joins "
                "them here and when the run is asked"
            )
        pairs = self.renderer.traits.bounds_target and self.found.splits["train"].format.name != TEXT
        if pairs and tokenizer.chat_template:
            yield (
                "the model has a chat template, which an encoder-decoder's rows do not follow here: it reads texts as "
                "they stand, in training and when it is asked, and of turns only what the rows write out"
            )
        if forged := sum(item.forged for item in self.counts.values()):
            yield (
                f"{forged:,} rows hold special tokens of the model as text, which is read as any other text; if they "
                "were rendered already, give them as one column `text`"
            )
        if unlike := sum(item.unlike for item in self.counts.values()):
            yield (
                f"in {unlike:,} rows the chat template begins the answer in another way than for generation, where it "
                "may open a thought; so what is trained is not quite what will be asked for"
            )

    def _rules(self) -> dict[str, Any]:
        """By what rules the rows became tokens: those fields of the summary that need no counting."""
        form, traits, knobs = self.found.splits["train"].format, self.renderer.traits, self.knobs
        return {
            "format": str(form),
            "format_name": form.name,
            "objective": self.objective.name,
            "template": "none" if form.name == TEXT else traits.template,
            "task": form.name if self.objective.needs_head else None,
            "labels": list(traits.classes),
            "counted": traits.counted,
            "system": knobs.system,
            "unicode": self.renderer.tokenizer.unicode,
            "max_length": knobs.max_length,
            "max_target_length": knobs.max_target_length if traits.bounds_target else None,
        }


def _only(systems: set[str | None]) -> str | None:
    return next(iter(systems)) if len(systems) == 1 else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _refuse_empty(split: Split, info: SplitInfo, counts: Counts, labelled: bool) -> None:
    if not info.rows:
        if not counts.dropped and split.problems.total:
            raise split.problems.error(split.label, split.problems.total)
        tried = (
            f"none of the {counts.dropped:,} {split.name} rows has {'a label' if labelled else 'a token'} to train on"
        )
        answers = "answers that are trained (a weight of 0 leaves them out) and leave tokens within data.max_length"
        raise DataError(f"{split.label}: {tried}; expected {'labels' if labelled else answers}")


def _fingerprint(infos: Mapping[str, SplitInfo]) -> str:
    parts = [f"{name} {info.fingerprint}" for name, info in sorted(infos.items())]
    return sha256("\n".join(parts).encode()).hexdigest()
