"""The second pass over the files: rows become tokens, are counted, and are written to the cache one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from microplane.cache.eviction import new_entry
from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import EVERY, Progress, Split, Survey, examples, overlap, survey_all
from microplane.data.preparing.summary import DataSummary, length_facts
from microplane.data.reading.bad_rows import LISTED, Problem
from microplane.data.reading.formats import Example
from microplane.data.rendering.causal import Layout, Row, layout
from microplane.data.rendering.labelled import LabelFormat, LabelLayout, label_names
from microplane.data.rendering.seq2seq import PairLayout
from microplane.data.row_kind import TEXT, Shape
from microplane.data.store import SplitWriter, Stored, TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError

AnyLayout = Layout | PairLayout | LabelLayout


def layout_for(tokenizer: Tokenizer, template: str, system: str | None, shape: Shape = TEXT) -> Layout | PairLayout:
    """How conversations become rows of this shape."""
    return PairLayout(tokenizer, system) if shape.kind == "pairs" else layout(tokenizer, template, system)


def build(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress | None,
    hold_out: bool = True,
    shape: Shape = TEXT,
    names: Sequence[str] | None = None,
) -> None:
    """Read the files twice, and write the arrays of all splits and `summary.json` to a new folder.

    Args:
        names: of the classes, where a task head has them already; otherwise those in the training rows.

    Raises:
        DataError: see `dataset.load_splits`. Nothing is left behind then.
    """
    found = survey_all(files, knobs, progress, hold_out, shape)
    how: AnyLayout
    if isinstance(form := found.splits["train"].format, LabelFormat):
        shape = replace(shape, task=form.task)
        known = _names(form.task, found.splits["train"].labels, names or (), strictly=not hold_out)
        how = LabelLayout(tokenizer, form.task, known)
    else:
        how = layout_for(tokenizer, knobs.template, knobs.system, shape)
    with new_entry(folder, "the tokenised data", f"rows of {Path(knobs.train).name} as tokens") as temporary:
        with ExitStack() as stack:
            writers = {
                name: SplitWriter(temporary, name, split.files, how.stops, shape, stack)
                for name, split in found.splits.items()
            }
            builder = Builder(found, knobs, how, writers, progress)
            for name in files:
                builder.tokenise(name)
            stored = {name: writer.close() for name, writer in writers.items()}
        summary = builder.summary(stored, temporary)
        content = {"summary": summary.to_dict(), "stored": {name: asdict(item) for name, item in stored.items()}}
        (temporary / "summary.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


@dataclass
class Counts:
    """What happened to the rows of one split while they were tokenised."""

    cut: dict[str, int] = field(default_factory=lambda: {"": 0, "prompt": 0, "answer": 0})
    dropped: int = 0
    unknown: int = 0
    trained_unknown: int = 0


class Builder:
    """Tokenises the splits that the first pass found."""

    def __init__(
        self,
        found: Survey,
        knobs: DataKnobs,
        layout: AnyLayout,
        writers: Mapping[str, SplitWriter],
        progress: Progress | None,
    ):
        self.found, self.knobs, self.layout, self.writers, self.progress = found, knobs, layout, writers, progress
        self.counts = {name: Counts() for name in found.splits}

    def tokenise(self, name: str) -> None:
        """Render and write the rows of the files of one split. Those of the training files may belong to two.

        Raises:
            DataError: for rows that the template refuses, unless bad rows are skipped.
        """
        split = self.found.splits[name]
        held_out = self.found.held_out if name == "train" else None
        total = len(split.hashes) if held_out is None else len(held_out)
        again = Split(split.name, split.files, split.format)  # collects the bad rows that are known by now
        for row, (file, line, example) in enumerate(examples(again, self.knobs)):
            if row >= total:
                break  # the file grew; the second look at its identity tells
            if self.progress and row % EVERY == 0:
                self.progress(f"tokenising {split.label}", row, total)
            if made := self._render(split, example):
                side = "validation" if held_out is not None and held_out[row] else name
                self._write(side, made, (file, line))
        if self.progress:
            self.progress(f"tokenising {split.label}", total, total)
        if split.problems.total and not self.knobs.skip_bad_rows:
            raise split.problems.error(split.label, total)

    def _render(self, split: Split, example: Example) -> Row | None:
        """The tokens of a row, or None if the template refuses it; that makes it a bad row."""
        most = self.knobs.max_length
        try:
            return self.layout.row(example, most, self.knobs.max_target_length or most)
        except DataError as error:
            split.problems.add(example.where, Problem("refused by the template", str(error)))
        if not self.knobs.skip_bad_rows and split.problems.total >= LISTED:  # often all rows: no need to see more
            raise split.problems.error(split.label, len(split.hashes))
        return None

    def _write(self, name: str, row: Row, place: tuple[int, int]) -> None:
        counts = self.counts[name]
        if not row.count:
            counts.dropped += 1
            return
        counts.cut[row.cut] += 1
        unknown = self.layout.tokenizer.unk_id
        if unknown is not None and unknown in row.ids:
            counts.unknown += row.ids.count(unknown)
            counts.trained_unknown += sum(
                is_target for token, is_target in zip(row.ids, row.trained, strict=True) if token == unknown
            )
        self.writers[name].add(row, place)

    def summary(self, stored: Mapping[str, Stored], folder: Path) -> DataSummary:
        """All numbers and warnings.

        Raises:
            DataError: if a split has nothing to train on.
        """
        splits, problems, counts = self.found.splits, self.found.problems, self.counts
        for name, item in stored.items():
            _refuse_empty(splits[name], item, counts[name])
        shared = {name: overlap(splits["train"], split) for name, split in splits.items() if name != "train"}
        trained = 0 if isinstance(self.layout, LabelLayout) else stored["train"].trained_tokens
        pairs = isinstance(self.layout, PairLayout)
        summary = DataSummary(
            format=str(splits["train"].format),
            template="none" if splits["train"].format.name == "text" else self.layout.kind,
            task=self.layout.task if isinstance(self.layout, LabelLayout) else None,
            labels=self.layout.names if isinstance(self.layout, LabelLayout) else [],
            label_counts={name: dict(split.labels) for name, split in splits.items()},
            system=self.knobs.system,
            max_length=self.knobs.max_length,
            max_target_length=self.knobs.max_target_length if pairs else None,
            loses="end" if pairs else "start",
            files={name: [str(path) for path in split.files] for name, split in splits.items()},
            validation_from="file" if self.found.held_out is None else "split off",
            bad=dict(problems.counts),
            bad_examples=problems.first[:LISTED],
            rows={name: item.rows for name, item in stored.items()},
            tokens={name: item.tokens for name, item in stored.items()},
            trained_tokens={name: item.trained_tokens for name, item in stored.items()},
            lengths={name: length_facts(TokenDataset(folder, name, item).lengths) for name, item in stored.items()},
            truncated={name: item.cut["prompt"] for name, item in counts.items()},
            answers_cut={name: item.cut["answer"] for name, item in counts.items()},
            dropped={name: item.dropped for name, item in counts.items()},
            duplicates={name: split.duplicates for name, split in splits.items()},
            overlap={name: item.rows for name, item in shared.items()},
            overlap_examples=[pair for item in shared.values() for pair in item.pairs],
            knows_all=self.layout.tokenizer.unk_id is None,
            unk_rate=counts["train"].unknown / stored["train"].tokens,
            trained_unk_rate=_share(counts["train"].trained_unknown, trained),
            input_unk_rate=_share(
                counts["train"].unknown - counts["train"].trained_unknown, stored["train"].tokens - trained
            ),
            fingerprint=_fingerprint(stored),
        )
        summary.warn()
        if summary.template == "chat" and not self.layout.continues:
            summary.warnings.append(
                "the chat template begins answers in another way for generation than in these rows, so what is trained "
                "is not quite what will be asked for"
            )
        return summary


def _names(task: str, found: Mapping[str, int], known: Sequence[str], strictly: bool) -> list[str]:
    """Of the classes: those that the model knows, where the rows have no others, or none may be added."""
    if task == "regression":
        return []
    return list(known) if known and (strictly or set(found) <= set(known)) else label_names(found)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _refuse_empty(split: Split, stored: Stored, counts: Counts) -> None:
    if not stored.rows:
        if not counts.dropped and split.problems.total:
            raise split.problems.error(split.label, split.problems.total)
        tried = f"none of the {counts.dropped:,} {split.name} rows has a token to train on"
        raise DataError(f"{split.label}: {tried}; expected answers that leave tokens within data.max_length")


def _fingerprint(stored: Mapping[str, Stored]) -> str:
    parts = [f"{name} {item.fingerprint}" for name, item in sorted(stored.items())]
    return sha256("\n".join(parts).encode()).hexdigest()
