"""What a `mixture.yaml` says: sources of rows, the templates for each, and how often each is drawn.

A file may build on a ready-made one (`base: flan2022`) and brings only what differs. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from microplane.config.build import build, fields, read_yaml, shown
from microplane.config.section import Knobs
from microplane.data.mixtures.task_templates import Family, family
from microplane.data.reading.read import check_file
from microplane.errors import ConfigError, nearest

READY = Path(__file__).parent / "ready"
SUFFIXES = (".yaml", ".yml")


class SourceKnobs(Knobs):
    """One data set of a submixture."""

    name: str = Field(min_length=1, description="a name of your choice, shown in rows and tables")
    file: str = Field(min_length=1, description="a data file, or a folder with train/validation/test")
    family: str = Field(description="the family of templates; list: microplane mixture --families")
    split: Literal["train", "validation", "test", "all"] = Field(
        "train", description="which files of a folder are read, or rows of a file that has a column split"
    )
    fields: dict[str, str] = Field({}, description="column by field, as in {text: review}; the same name otherwise")
    constants: dict[str, str] = Field({}, description="a field's text for all rows, as in {target_language: French}")
    options: dict[str, str] | None = Field(
        None, description="possible answers: a list, or {value in the file: word to write}"
    )
    options_column: str | None = Field(None, description="the column with each row's own list of possible answers")
    limit: int | None = Field(None, ge=2, description="use only the first so many rows")

    @field_validator("options", mode="before")
    @classmethod
    def _options(cls, options: Any) -> Any:
        """A list as a mapping to itself. `[yes, no]` without quotes is true and false in YAML."""
        if isinstance(options, list):
            options = dict(zip(options, options, strict=True)) if _plain(options) else options
        if not isinstance(options, dict):
            return options
        if any(isinstance(part, bool) for pair in options.items() for part in pair):
            raise ValueError("YAML reads true and false as no text; put them in quotes: ['true', 'false']")
        if len(set(options.values())) < 2:
            raise ValueError("at least two different answers are needed to choose from")
        return {str(value): str(word) for value, word in options.items()}

    @model_validator(mode="after")
    def _one_kind(self) -> SourceKnobs:
        if self.options is not None and self.options_column is not None:
            raise ValueError("options and options_column are both given; expected one")
        return self


def _plain(options: list[Any]) -> bool:
    if not all(isinstance(option, str | int | float) for option in options):
        raise ValueError("must be a list of texts, as in [positive, negative]")
    return True


class SubmixtureKnobs(Knobs):
    """Sources that share a weight; within it, a source is drawn in proportion to min(its rows, cap)."""

    weight: float = Field(1.0, ge=0, description="how often this submixture is drawn, relative to the others")
    cap: int | None = Field(
        None, ge=1, description="K, the rows at which a source's rate stops to grow; none otherwise"
    )
    few_shot: float = Field(0.5, ge=0, le=1, description="share of rows with exemplars before them")
    with_options: float = Field(
        0.5, ge=0, le=1, description="share of rows that list their options, where there are any"
    )
    inversion: float = Field(
        0.0, ge=0, le=100, description="weight of inverted rows beside 1 for the others; 0.3 inverts 23%"
    )
    sources: list[dict[str, Any]] = Field([], description="the data sets: name, file, family and more")


class MixtureKnobs(Knobs):
    """A mixture. Its row number i follows from this, the rows of its files, and i."""

    base: str | None = Field(None, description="a ready-made mixture (flan2022) or file that this one builds on")
    seed: int = Field(0, ge=0, lt=2**63, description="of all that is drawn")
    rows: int = Field(10_000, ge=1, description="rows that are rendered to train on")
    exemplars: tuple[int, int] = Field((1, 5), description="fewest and most exemplars of a few-shot row")
    max_characters: int = Field(
        4000, ge=1, description="longest few-shot prompt in characters; exemplars that do not fit are left out"
    )
    shuffle_options: bool = Field(True, description="list options in a drawn order instead of the given one")
    skip_bad_rows: bool = Field(False, description="leave out bad rows of the sources, instead of refusing them")
    submixtures: dict[str, dict[str, Any]] = Field(min_length=1, description="the parts of the mixture by name")

    @field_validator("exemplars")
    @classmethod
    def _exemplars(cls, exemplars: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= exemplars[0] <= exemplars[1] <= 64:
            raise ValueError("must be fewest and most, from 1 to 64, as in [1, 5]")
        return exemplars


@dataclass(frozen=True)
class SourcePlan:
    """A source as the file describes it, with its family and its place on the disk."""

    knobs: SourceKnobs
    family: Family
    path: Path
    submixture: str
    where: str  # for errors: "mixture.yaml, source reviews"

    def column(self, field: str) -> str:
        return self.knobs.fields.get(field, field)


@dataclass(frozen=True)
class MixturePlan:
    """A mixture file, checked; nothing of its sources is opened yet."""

    path: Path
    knobs: MixtureKnobs
    submixtures: Mapping[str, SubmixtureKnobs]
    sources: tuple[SourcePlan, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]  # this file and those it builds on


def mixture_fields() -> Iterator[tuple[str, FieldInfo]]:
    """All that can stand in a mixture file, as (dotted name, declaration)."""
    yield from fields(MixtureKnobs, "mixture.")
    yield from fields(SubmixtureKnobs, "mixture.submixtures.NAME.")
    yield from fields(SourceKnobs, "mixture.submixtures.NAME.sources.N.")


def is_mixture(path: Path) -> bool:
    """Whether a path names a mixture file, by its ending; what is in it is checked when it is read."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read_mixture(path: Path) -> MixturePlan:
    """Read and check a mixture file.

    Raises:
        ConfigError: for anything in it that is not understood or does not fit together.
        DataError: if there is no such file, or it is empty.
    """
    check_file(path)
    values, files = _with_base(path, ())
    if "submixtures" not in values:
        has = ", ".join(map(str, list(values)[:8])) or "nothing"
        raise ConfigError(
            f"{path} is no mixture: it has no section submixtures; it holds {has}. Knobs of a run go to --config FILE"
        )
    knobs = build(MixtureKnobs, values, where=str(path), section="mixture.")
    submixtures, sources = {}, []
    for name, section in knobs.submixtures.items():
        submixtures[name] = build(SubmixtureKnobs, section, where=str(path), section=f"submixtures.{name}.")
        sources += list(_sources(path, name, submixtures[name]))
    names = [plan.knobs.name for plan in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path}: two sources are named {twice!r}; give each its own name")
    notes = _check_weights(path, submixtures)
    drawn = tuple(plan for plan in sources if submixtures[plan.submixture].weight > 0)
    return MixturePlan(path, knobs, submixtures, drawn, notes, files)


def _with_base(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The values of a file laid over those of its base, and all files that were read."""
    values = read_yaml(path)
    base = values.get("base")
    if base is None:
        return values, (path,)
    below = _find_base(path, base)
    if below.resolve() in seen or below.resolve() == path.resolve():
        raise ConfigError(f"{path}: base = {shown(base)} leads back to itself")
    lower, files = _with_base(below, (*seen, path.resolve()))
    return _overlay(lower, values), (path, *files)


def _find_base(path: Path, base: Any) -> Path:
    ready = sorted(file.stem for file in READY.glob("*.yaml"))
    if isinstance(base, str) and base in ready:
        return READY / f"{base}.yaml"
    found = path.parent / base if isinstance(base, str) else None
    if found is None or not found.is_file():
        close = nearest(str(base), ready)
        raise ConfigError(
            f"{path}: base = {shown(base)}: there is no such file or ready-made mixture.{close} "
            f"Ready-made: {', '.join(ready)}"
        )
    return found


def _overlay(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    both = dict(lower)
    for name, value in upper.items():
        below = both.get(name)
        both[name] = _overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _sources(path: Path, submixture: str, knobs: SubmixtureKnobs) -> Iterator[SourcePlan]:
    for number, values in enumerate(knobs.sources):
        section = f"submixtures.{submixture}.sources.{number}."
        source = build(SourceKnobs, values, where=str(path), section=section)
        where = f"{path.name}, source {source.name}"
        try:
            kind = family(source.family)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        _check_fields(source, kind, where)
        _check_options(source, kind, knobs, where)
        yield SourcePlan(source, kind, path.parent / Path(source.file).expanduser(), submixture, where)


def _check_fields(source: SourceKnobs, kind: Family, where: str) -> None:
    possible = ", ".join(f"{name} ({field.about})" for name, field in kind.fields.items())
    for section, given in (("fields", source.fields), ("constants", source.constants)):
        for name in given:
            if name not in kind.fields:
                raise ConfigError(
                    f"{where}: {section} has {name!r}, which is no field of the family {source.family}."
                    f"{nearest(name, kind.fields)} Its fields: {possible}"
                )
    if both := sorted(set(source.fields) & set(source.constants)):
        raise ConfigError(f"{where}: {both[0]!r} is in fields and in constants; expected one of them")
    if kind.answer in source.constants:
        raise ConfigError(f"{where}: constants has {kind.answer!r}, the answer, which would be the same for all rows")


def _check_options(source: SourceKnobs, kind: Family, submixture: SubmixtureKnobs, where: str) -> None:
    given = source.options is not None or source.options_column is not None
    if kind.options == "none" and given:
        raise ConfigError(f"{where}: options are given, but the family {source.family} has none to choose from")
    if kind.options == "needed" and not given and submixture.with_options > 0:
        raise ConfigError(
            f"{where}: the family {source.family} chooses among options, and with_options = "
            f"{submixture.with_options:g}, but none are given. Expected options: [first, second], "
            "options_column: COLUMN, or with_options: 0"
        )


def _check_weights(path: Path, submixtures: Mapping[str, SubmixtureKnobs]) -> tuple[str, ...]:
    """Notes on submixtures without sources, whose weight goes to the others."""
    filled = {name: knobs for name, knobs in submixtures.items() if knobs.sources}
    if not filled:
        raise ConfigError(
            f"{path}: no submixture has sources ({', '.join(submixtures)}). Expected, as in: "
            "sources: [{name: reviews, file: reviews.jsonl, family: sentiment, options: [negative, positive]}]"
        )
    if not sum(knobs.weight for knobs in filled.values()):
        raise ConfigError(f"{path}: the weights of the submixtures with sources are 0 in total; raise one of them")
    empty = [name for name in submixtures if name not in filled and submixtures[name].weight > 0]
    return (f"no sources in {', '.join(empty)}: the weight is shared among the others",) if empty else ()
