"""Sampling a mixture: row number i follows from the seed and i, so a run that was killed goes on with the same rows.

All chance comes from Philox, a counter-based generator (Salmon et al., SC 2011): the draws of row i are those at its
own counter, wherever one begins. Only raw words are used, which no version of numpy changes. Within a source, rows come
in shuffled epochs; see docs/decisions/0005-mixture-rows-by-number.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from microplane.data.mixtures.sources import Source, open_source
from microplane.data.mixtures.spec import MixturePlan, read_mixture
from microplane.data.mixtures.task_templates import Fields, OptionStyle, fill_in, option_styles
from microplane.errors import DataError

Side = Literal["train", "validation"]
CHOICES = 8  # words that are drawn for every row; two counters of Philox with four words each
CHUNK = 2**17  # rows whose draws are made at once
_CHOOSE, _ORDER, _INSIDE = 0, 1, 2  # streams of a side: choices, order of an epoch, within one row
_STREAMS = {"train": 0, "validation": 16}


@dataclass(frozen=True)
class Draws:
    """What was drawn for rows `start` and following, (rows,) each."""

    start: int
    source: np.ndarray  # number of the source
    inverted: np.ndarray  # bool
    few_shot: np.ndarray  # bool
    options: np.ndarray  # bool
    template: np.ndarray  # in [0, 1), to choose a template by
    style: np.ndarray  # in [0, 1), to choose a way to list options by
    exemplars: np.ndarray  # how many a few-shot row asks for


class Mixture:
    """An opened mixture.

    Attributes:
        plan: what its file says.
        sources: those that can be drawn.
    """

    def __init__(self, plan: MixturePlan, sources: Sequence[Source]):
        self.plan, self.sources = plan, tuple(sources)
        of = [plan.submixtures[source.plan.submixture] for source in self.sources]
        turned = [bool(source.plan.family.inverted) for source in self.sources]
        self._inversion = np.array([k.inversion / (1 + k.inversion) * t for k, t in zip(of, turned, strict=True)])
        self._few_shot = np.array([k.few_shot for k in of])
        self._options = np.array([k.with_options * s.has_options for k, s in zip(of, self.sources, strict=True)])
        self._orders: dict[tuple[Side, int], tuple[int, np.ndarray]] = {}

    def shares(self, side: Side = "train") -> np.ndarray:
        """The probability of each source, (sources,): its submixture's weight times its rate min(n, K) there.

        Raises:
            DataError: if no source has rows on this side.
        """
        rates = np.array([float(len(source.sides["train"])) for source in self.sources])
        there = np.array([len(source.sides[side]) > 0 for source in self.sources])
        shares = np.zeros(len(self.sources))
        for name, knobs in self.plan.submixtures.items():
            own = np.array([source.plan.submixture == name for source in self.sources])
            if own.any():
                capped = np.minimum(rates[own], knobs.cap or np.inf)
                shares[own] = knobs.weight * capped / capped.sum()
        shares *= there
        if not shares.sum():
            raise DataError(
                f"{self.plan.path}: no source has two different rows, so none can be held out to validate on; "
                "give data.validation"
            )
        normalised: np.ndarray = shares / shares.sum()
        return normalised

    def style_shares(self) -> dict[str, float]:
        """The share of rows that the rules make few-shot, with options and inverted."""
        shares = self.shares()
        return {
            "few_shot": float(shares @ self._few_shot),
            "with_options": float(shares @ (self._options * (1 - self._inversion))),
            "inverted": float(shares @ self._inversion),
        }

    def draws(self, start: int, stop: int, side: Side = "train") -> Draws:
        """The choices for rows `start` to `stop`; equal however the rows are cut into calls."""
        u = (self._choices(start, stop, side) >> np.uint64(11)) * 2.0**-53  # (rows, CHOICES) in [0, 1)
        shares = self.shares(side)
        bounds = np.cumsum(shares)
        last = np.flatnonzero(shares)[-1]  # rounding may leave the last bound a little below 1
        source = np.minimum(np.searchsorted(bounds, u[:, 0], side="right"), last)
        inverted = u[:, 1] < self._inversion[source]
        least, most = self.plan.knobs.exemplars
        return Draws(
            start,
            source,
            inverted,
            few_shot=u[:, 2] < self._few_shot[source],
            options=(u[:, 3] < self._options[source]) & ~inverted,
            template=u[:, 4],
            style=u[:, 5],
            exemplars=least + (u[:, 6] * (most - least + 1)).astype(np.int64),
        )

    def rows(self, start: int = 0, stop: int | None = None, side: Side = "train") -> Iterator[dict[str, Any]]:
        """Rows `start` to `stop`, or without end: inputs, targets, source, template, shots and options.

        To begin at row `start`, the draws before it are counted, some four million a second; no row is rendered.
        """
        seen = self._counts(start, side)
        while stop is None or start < stop:
            end = start + 1024 if stop is None else min(start + 1024, stop)
            drawn = self.draws(start, end, side)
            for place, source in enumerate(drawn.source.tolist()):
                yield self._row(drawn, place, int(seen[source]), side)
                seen[source] += 1
            start = end

    def _choices(self, start: int, stop: int, side: Side) -> np.ndarray:
        raw = self._philox(side, _CHOOSE, start * CHOICES // 4).random_raw((stop - start) * CHOICES)
        return np.asarray(raw).reshape(-1, CHOICES)

    def _philox(self, side: Side, stream: int, counter: int | list[int]) -> np.random.Philox:
        key = np.array([self.plan.knobs.seed, _STREAMS[side] + stream], np.uint64)
        return np.random.Philox(key=key, counter=counter)

    def _counts(self, stop: int, side: Side) -> np.ndarray:
        """How often each source is drawn before row `stop`, (sources,)."""
        counts = np.zeros(len(self.sources), np.int64)
        for start in range(0, stop, CHUNK):
            drawn = self.draws(start, min(start + CHUNK, stop), side)
            counts += np.bincount(drawn.source, minlength=len(counts))
        return counts

    def _place(self, source: int, time: int, side: Side) -> int:
        """The row of a source that is taken when it is drawn for the `time`-th time: each once before any again."""
        rows = self.sources[source].sides[side]
        epoch, place = divmod(time, len(rows))
        known = self._orders.get((side, source))
        if known is None or known[0] != epoch:
            keys = self._philox(side, _ORDER, [0, source, epoch, 0]).random_raw(len(rows))
            known = self._orders[side, source] = epoch, np.argsort(np.asarray(keys), kind="stable")
        return int(rows[known[1][place]])

    def _row(self, drawn: Draws, place: int, time: int, side: Side) -> dict[str, Any]:
        number = int(drawn.source[place])
        source, inverted = self.sources[number], bool(drawn.inverted[place])
        kind = source.plan.family
        templates = kind.inverted if inverted else kind.templates
        chosen = int(drawn.template[place] * len(templates))
        words = _Words(self._philox(side, _INSIDE, [0, 0, drawn.start + place, 0]))
        styles = option_styles()
        style = styles[int(drawn.style[place] * len(styles))] if drawn.options[place] else None
        row = self._place(number, time, side)
        asked = self._asked(source.store[row], style, words)
        others = self._exemplars(source, row, int(drawn.exemplars[place]), words) if drawn.few_shot[place] else []
        shots = [self._asked(source.store[other], style, words) for other in others]
        inputs, targets, kept = fill_in(templates[chosen], asked, shots, style, self.plan.knobs.max_characters)
        name = f"{source.plan.knobs.family}/{'inverted/' if inverted else ''}{chosen + 1}"
        made = {"inputs": inputs, "targets": targets, "source": source.name, "template": name}
        return {**made, "shots": kept, "options": style is not None}

    def _asked(self, row: Fields, style: OptionStyle | None, words: _Words) -> Fields:
        """A row with its options in the order in which they are listed."""
        if style is None or not self.plan.knobs.shuffle_options:
            return row
        return replace(row, options=words.shuffled(row.options))

    def _exemplars(self, source: Source, row: int, count: int, words: _Words) -> list[int]:
        """Different training rows, none of which says the same as the row itself. Fewer where there are not so many."""
        pool, hashes = source.sides["train"], source.hashes
        taken = {int(hashes[row])}
        chosen: list[int] = []
        for _ in range(4 * count + 8):
            other = int(pool[words.below(len(pool))])
            if len(chosen) < count and (content := int(hashes[other])) not in taken:
                taken.add(content)
                chosen.append(other)
        return chosen


class _Words:
    """Whole numbers for the inside of one row."""

    def __init__(self, generator: np.random.Philox):
        self._generator = generator

    def below(self, end: int) -> int:
        return int(self._generator.random_raw()) * end >> 64

    def shuffled(self, items: Sequence[str]) -> list[str]:
        """Fisher and Yates."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed


def open_mixture(path: Path, validation_share: float = 0.0, validation_rows: int = 200) -> Mixture:
    """Read a mixture's file and its sources.

    Args:
        validation_share: of each source that is held out; the rest alone is trained on and gives exemplars.
        validation_rows: at most this many of each source are held out.

    Raises:
        ConfigError: if the mixture's file is not understood.
        DataError: if a source cannot be read, lacks a column, or has bad rows.
    """
    plan = read_mixture(path)
    skip = plan.knobs.skip_bad_rows
    return Mixture(plan, [open_source(source, validation_share, validation_rows, skip) for source in plan.sources])
