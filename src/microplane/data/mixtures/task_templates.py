"""Templates that turn the fields of a row into an instruction and its answer, in the manner of FLAN (arXiv 2301.13688).

The texts are data: one family of tasks in each file of `templates/`, and the ways to list options in
`option_styles.yaml`. Here they are checked, filled in, and joined to few-shot prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from microplane.config.build import build, read_yaml
from microplane.config.section import Knobs
from microplane.errors import ConfigError, nearest

FOLDER = Path(__file__).parent / "templates"
STYLES = Path(__file__).parent / "option_styles.yaml"
BETWEEN_PAIR = "\n\n"  # between an exemplar's input and its target
BETWEEN_SHOTS = "\n\n\n"  # between exemplars, and before the input that is asked for
_PLACE = re.compile(r"\{(\w+)\}")
_OPTIONS_LINE = re.compile(r"\n*\{options\}")


@dataclass(frozen=True)
class Fields:
    """One row as its templates see it."""

    values: dict[str, str]  # text by field
    options: list[str]  # possible answers, if there are any


class TaskField(Knobs):
    about: str = Field(description="what it holds")
    kind: Literal["text", "turns", "json"] = Field(
        "text", description="turns: also a list of texts; json: also an object, a list or a number, written as JSON"
    )


class Template(Knobs):
    """One wording. `{name}` is the field of that name; `{options}`, alone on a line, is where options are listed."""

    inputs: str = Field(min_length=1, description="what the model reads")
    targets: str = Field(min_length=1, description="what it shall write")

    def render(self, values: Mapping[str, str], options: str = "") -> tuple[str, str]:
        """Inputs and targets of a row.

        Args:
            values: text by field.
            options: the listed options (see `list_options`), or nothing. They stand at `{options}`, else at the end.
        """
        inputs = self.inputs
        if not options:
            inputs = _OPTIONS_LINE.sub("", inputs)
        elif "{options}" not in inputs:
            inputs += "\n\n{options}"
        return _fill(inputs, {**values, "options": options}), _fill(self.targets, values)


class Family(Knobs):
    """A kind of task and its templates."""

    about: str = Field(description="the task in a few words")
    fields: dict[str, TaskField] = Field(min_length=2, description="what a row must hold")
    answer: str = Field(description="the field with the answer, which may be one of several options")
    options: Literal["needed", "optional", "none"] = Field(description="whether answers are chosen among options")
    templates: tuple[Template, ...] = Field(min_length=1, description="the wordings")
    inverted: tuple[Template, ...] = Field((), description="wordings with the direction turned round")

    @model_validator(mode="before")
    @classmethod
    def _short_templates(cls, values: Any) -> Any:
        """A template that is one text has the answer as its target."""
        if isinstance(values, dict) and isinstance(values.get("templates"), list):
            targets = f"{{{values.get('answer')}}}"
            values = values | {
                "templates": [
                    {"inputs": item, "targets": targets} if isinstance(item, str) else item
                    for item in values["templates"]
                ]
            }
        return values

    @model_validator(mode="after")
    def _sound(self) -> Family:
        if self.answer not in self.fields:
            raise ValueError(f"answer {self.answer!r} is none of the fields {', '.join(self.fields)}")
        texts = [template.inputs for template in (*self.templates, *self.inverted)]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"the template {twice!r} is there twice")
        for template in self.templates:
            self._check(template, turned=False)
        for template in self.inverted:
            self._check(template, turned=True)
        return self

    def _check(self, template: Template, turned: bool) -> None:
        """The answer is what is asked for, or in an inverted template what is given, and never both."""
        read, written = places(template.inputs), places(template.targets)
        if unknown := sorted((read | written) - set(self.fields) - {"options"}):
            raise ValueError(f"template {template.inputs!r} has the place {{{unknown[0]}}}, which is no field")
        if not (read & set(self.fields)) or not written or "options" in written:
            raise ValueError(f"template {template.inputs!r} must hold a field in its inputs and one in its targets")
        if shared := sorted(read & written):
            raise ValueError(f"template {template.inputs!r} shows {{{shared[0]}}}, which is asked for")
        if self.answer not in (read if turned else written):
            place = "inputs" if turned else "targets"
            raise ValueError(f"template {template.inputs!r} must hold {{{self.answer}}} in its {place}")
        if "options" in read and (turned or self.options == "none" or not _own_line(template.inputs)):
            raise ValueError(f"template {template.inputs!r} has {{options}} where none are listed, or not on a line")


class OptionStyle(Knobs):
    """A way to list options."""

    head: str = Field(description="what stands before the first")
    item: str = Field(description="how one is written: {option}, with {letter} or {number}")
    between: str = Field(description="what stands between two")

    @field_validator("item")
    @classmethod
    def _item(cls, item: str) -> str:
        if "option" not in places(item) or places(item) - {"option", "letter", "number"}:
            raise ValueError("must hold {option}, and besides it at most {letter} and {number}")
        return item

    def show(self, options: Sequence[str]) -> str:
        """`Options:\\n- yes\\n- no`"""
        items = [
            _fill(self.item, {"option": option, "letter": _letter(number), "number": str(number + 1)})
            for number, option in enumerate(options)
        ]
        return self.head + self.between.join(items)


def places(text: str) -> set[str]:
    """The names in a template's text.

    Raises:
        ValueError: for a brace that belongs to no name.
    """
    if "{" in (rest := _PLACE.sub("", text)) or "}" in rest:
        raise ValueError(f"the text {text!r} has a brace without a name; expected places such as {{text}}")
    return set(_PLACE.findall(text))


def _fill(text: str, values: Mapping[str, str]) -> str:
    """All places at once, so that braces in a value stay what they are."""
    return _PLACE.sub(lambda place: values[place[1]], text)


def _own_line(text: str) -> bool:
    return text.splitlines().count("{options}") == 1 == text.count("{options}")


def _letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def fill_in(
    template: Template, row: Fields, exemplars: Sequence[Fields], style: OptionStyle | None, longest: int
) -> tuple[str, str, int]:
    """Inputs and targets of a row, and how many exemplars its inputs hold (see `join_shots`).

    Args:
        exemplars: other rows, which are shown with their answers before it.
        style: how the options of each row are listed; None to list none.
        longest: characters that the inputs may have.
    """

    def written(fields: Fields) -> tuple[str, str]:
        return template.render(fields.values, style.show(fields.options) if style else "")

    inputs, targets = written(row)
    prompt, shots = join_shots([written(exemplar) for exemplar in exemplars], inputs, longest)
    return prompt, targets, shots


def join_shots(exemplars: Sequence[tuple[str, str]], inputs: str, longest: int) -> tuple[str, int]:
    """A few-shot prompt, and how many exemplars it holds: the last ones are left out until it fits.

    Args:
        exemplars: inputs and targets of other rows.
        inputs: of the row that is asked for.
        longest: characters that the prompt may have. Inputs that are longer by themselves stay whole.
    """
    parts = [_calm(f"{given}{BETWEEN_PAIR}{answer}") for given, answer in exemplars]
    last = _calm(inputs)
    while parts:
        prompt = BETWEEN_SHOTS.join([*parts, last])
        if len(prompt) <= longest:
            return prompt, len(parts)
        parts.pop()
    return inputs, 0


def _calm(text: str) -> str:
    """Without a run of line breaks that would look like the end of an exemplar."""
    return re.sub(r"\n{3,}", BETWEEN_PAIR, text)


@cache
def families() -> dict[str, Family]:
    """All families of the library, by name."""
    return {path.stem: read_family(path) for path in sorted(FOLDER.glob("*.yaml"))}


def family(name: str) -> Family:
    """One family.

    Raises:
        ConfigError: if there is none of this name.
    """
    known = families()
    if name not in known:
        raise ConfigError(
            f"there is no family of templates {name!r}.{nearest(name, known)} There are {', '.join(known)}"
        )
    return known[name]


def list_families() -> str:
    """All families, with the fields that each one needs."""
    lines = []
    for name, kind in families().items():
        lines.append(f"{name}: {kind.about}")
        lines.append(f"  templates: {len(kind.templates)}, inverted: {len(kind.inverted)}; options: {kind.options}")
        lines += [f"  {field}: {facts.about}" for field, facts in kind.fields.items()]
    return "\n".join(lines)


def read_family(path: Path) -> Family:
    """The family in a file.

    Raises:
        ConfigError: if a template does not fit the fields.
    """
    return build(Family, read_yaml(path), where=str(path))


@cache
def option_styles() -> tuple[OptionStyle, ...]:
    """All ways to list options."""
    return tuple(build(OptionStyle, style, where=str(STYLES)) for style in read_yaml(STYLES)["styles"])
