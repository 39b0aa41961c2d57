"""Knobs from values and back: checked, with complaints that name the knob, its value and what is possible."""

from __future__ import annotations

import difflib
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from microplane.config import yaml_text
from microplane.config.extensions import Choice
from microplane.config.knobs import RunKnobs
from microplane.config.other_names import meaning
from microplane.config.section import kinds_of
from microplane.errors import ConfigError

K = TypeVar("K", bound=BaseModel)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All knobs below a section, as (dotted name, declaration)."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def build(model: type[K], values: Mapping[str, Any], where: str = "", section: str = "") -> K:
    """Validate `values` as a section of knobs.

    Raises:
        ConfigError: naming every bad knob, its value and what is possible.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        known = [f"{section}{name}" for name, _ in fields(model)]
        told = dict.fromkeys(_complaint(item, model, known, section) for item in error.errors())
        said: dict[str, list[str]] = {}
        for name, message in told:  # of a knob of several types, one of each
            said.setdefault(name, []).append(message)
        lines = [f"  {name}: {', or '.join(messages)}" for name, messages in said.items()]
        place = f" in {where}" if where else ""
        raise ConfigError(
            f"{'This knob is' if len(lines) == 1 else 'These knobs are'} wrong{place}:\n" + "\n".join(lines)
        ) from None


def assemble(
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunKnobs:
    """The configuration of a run: the file first (with sections, or names such as `train.lr`), then what is given by
    name, then assignments.

    Args:
        given: values by dotted name, as `{"train.lr": 5e-4}`; None stands for what was not given.
        assignments: as `--set` takes them, `train.lr=5e-4`.

    Raises:
        ConfigError: naming every bad knob, its value and what is possible.
    """
    values: dict[str, Any] = {}
    for name, value in (read_yaml(file) if file else {}).items():
        if twice := dotted({str(name): value}).keys() & dotted(values).keys():
            raise ConfigError(f"{file}: {min(twice)} stands there twice, once with its section before a dot")
        place(values, str(name), value)
    for name, value in (given or {}).items():
        if value is not None:
            place(values, name, value)
    for assignment in assignments:
        set_value(values, assignment)
    return build(RunKnobs, values, where=str(file or ""))


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


_SECTION, _LIST = "must be a section, as in {name: value}", "must be a list, as in [a, b]"


_WORDS = {"model_type": _SECTION, "dict_type": _SECTION, "tuple_type": _LIST, "string_type": "must be text"}


def _complaint(item: Any, model: type[BaseModel], known: list[str], section: str) -> tuple[str, str]:
    """The knob, with its value where there is such a knob, and what is wrong."""
    name = section + ".".join(str(part) for part in item["loc"])
    if item["type"] in ("extra_forbidden", "invalid_key"):
        return name, f"there is no such knob.{_nearest_knob(name, known)} All knobs: microplane knobs"
    if (knob := name.rpartition(".")[0]) in _of_several_types(model, section):
        name = knob  # the last part tells which of its types was tried
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be").split(", unable")[0]
    message = _WORDS.get(item["type"], message[:1].lower() + message[1:])
    return f"{name} = {shown(item['input'])}", message


def _of_several_types(model: type[BaseModel], section: str) -> set[str]:
    return {f"{section}{name}" for name, field in fields(model) if _is_union(field.annotation)}


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _nearest_knob(name: str, known: Sequence[str]) -> str:
    """The right name in another section, one that means the same, or one that is spelled nearly so."""
    leaf = name.rsplit(".", 1)[-1]
    same = next((f" Did you mean {other!r}?" for other in known if other.rsplit(".", 1)[-1] == leaf), "")
    return same or meaning(name, known) or _spelled_nearly(name, known)


def _spelled_nearly(name: str, known: Sequence[str]) -> str:
    """By the part behind the section, for two names of one section are alike whatever they mean."""
    section, _, leaf = name.rpartition(".")
    own = [other for other in known if section and other.startswith(f"{section}.")]
    for others in (own, known):
        by_leaf = {other.rsplit(".", 1)[-1]: other for other in reversed(others)}
        if close := difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7):
            return f" Did you mean {by_leaf[close[0]]!r}?"
    return ""


def shown(value: Any) -> str:
    """A value as it can stand in a message: shortened, and `null` as YAML has it."""
    try:
        return "null" if value is None else _SHOWN.repr(value)
    except ValueError:  # Python refuses to print a number of more than 4,300 digits
        return "a very long number"


def set_value(values: dict[str, Any], assignment: str) -> None:
    """Carry out one `--set a.b=c`.

    Raises:
        ConfigError: for text without `=`, or a name below something that is not a section.
    """
    place(values, *split_assignment(assignment))


def split_assignment(assignment: str) -> tuple[str, Any]:
    """Name and value of `a.b=c`; the value is read as YAML, so `null`, `3`, `1e-3` and `[q, v]` mean what they say.
    What a knob of text is set to stands as it was typed, unless it is null or in quotes: in YAML `2024` is a number,
    `Rules: be brief` a mapping, `C # major` the letter C.

    Raises:
        ConfigError: for text without `=`, and where nothing follows it.
    """
    name, separator, text = assignment.partition("=")
    name, text = name.strip(), text.strip()
    if not separator or not name:
        raise ConfigError(f"--set {assignment}: expected name=value, as in --set train.lr=5e-4")
    if not text:
        raise ConfigError(f"--set {assignment}: nothing follows the =; write null for no value, '' for an empty text")
    as_typed = name in _texts() and text not in _NULL and not text.startswith(("'", '"'))
    return name, text if as_typed else parse_value(text)


_NULL = ("null", "Null", "NULL", "~")


@cache
def _texts() -> frozenset[str]:
    """The knobs that hold a text."""
    others = {int, float, bool, dict}
    return frozenset(
        name
        for name, field in fields(RunKnobs)
        if str in (kinds := kinds_of(field.annotation))
        and not kinds & others
        and get_origin(field.annotation) is not tuple
    )


def place(values: dict[str, Any], name: str, value: Any) -> None:
    """Put a value under its dotted name into nested dictionaries.

    Raises:
        ConfigError: if a part of the name is a knob and not a section.
    """
    *sections, leaf = name.split(".")
    for section in sections:
        below = values.get(section)
        if below is None:
            below = values[section] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"{name} cannot be set: {section} = {shown(below)} is a value, not a section of knobs")
        values = below
    _put(values, leaf, value)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a knob; a section is added to what stands there. `method` alone stands for its name."""
    there = values.get(name)
    if name == "method" and isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict) and isinstance(there, dict):
        for key, item in value.items():
            _put(there, str(key), item)
    else:
        values[name] = value


def dotted(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, by `train.lr` and so on."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def parse_value(text: str) -> Any:
    """A value from its text; what is not YAML is itself."""
    try:
        return yaml_text.parse(text)
    except ValueError:
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as nested dictionaries.

    Raises:
        ConfigError: if it is missing, is not YAML, or is not a mapping.
    """
    try:
        values = yaml_text.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold knobs as `name: value`, but holds {shown(values)}")
    return values


def to_yaml(knobs: BaseModel) -> str:
    """The resolved knobs as YAML; `read_yaml` and `build` give them back equal."""
    return yaml_text.dump(knobs.model_dump(mode="json"))


def choices(field: FieldInfo) -> Sequence[Any]:
    """The values that a knob can take where it names one of a few, else nothing."""
    for mark in field.metadata:
        if isinstance(mark, AfterValidator) and isinstance(mark.func, Choice):
            return mark.func.names()
    return get_args(field.annotation) if getattr(field.annotation, "__origin__", None) is Literal else ()


def type_name(field: FieldInfo) -> str:
    """A knob's type as users read it: `number or null`, `one of auto, chat, plain`."""
    if possible := choices(field):
        return " | ".join(str(value) for value in possible)
    annotation = field.annotation
    if _is_union(annotation):
        return " or ".join(_part_name(part) for part in get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def _part_name(part: Any) -> str:
    if get_origin(part) is Annotated:
        part = get_args(part)[0]
    if get_origin(part) is dict:
        return f"{'a number' if get_args(part)[1] is float else 'text or null'} for each name"
    return "null" if part is type(None) else " or ".join(map(str, get_args(part))) or part.__name__
