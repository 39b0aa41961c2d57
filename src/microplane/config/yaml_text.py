"""YAML in and out, as people write it (version 1.2): `1e-3` is a number, `no` a word, `2026-11-28` text, `010` ten; and
what is written is read back equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")  # of what PyYAML reads without quotes


class _Loader(yaml.SafeLoader):
    """Values as YAML 1.2 reads them, where PyYAML's are of YAML 1.1: that has `1e-3` as text, `no`, `on` and `y` as
    truth, `010` as 8 and `1:30` as 90. A name that stands twice is an error, as it is there: PyYAML takes the second,
    and of two sections `train` the first would be ignored in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(str(key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would take for a number, or for several lines."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        rare_breaks = any(mark in text for mark in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if rare_breaks else None)


_Dumper.add_representer(str, _Dumper.represent_str)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag in _KEPT]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_DIGITS = "-+.0123456789"
_FORMS = (  # what stands there without quotes and is no text: its kind, its form and its first characters
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$", _DIGITS),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*|(\.[0-9]+|[0-9]+\.?[0-9]*)[eE][-+]?[0-9]+)$", _DIGITS),
    ("float", r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", _DIGITS),
)
for _kind in (_Loader, _Dumper):
    for _tag, _form, _first in _FORMS:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list(_first))


def _whole(_: _Loader, node: yaml.ScalarNode) -> int:
    digits = node.value.replace("_", "")
    return int(digits, 0 if re.match("[-+]?0[xob]", digits) else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def parse(text: str) -> Any:
    """Raises: ValueError, with what is wrong on one line."""
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe one: makes nothing but plain values
    except Exception as error:  # PyYAML lets through what its constructors raise: KeyError for `!!bool x`, and others
        told = (
            str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value is damaged or nested too deeply"
        )
        raise ValueError(" ".join(told.split()).replace('in "<unicode string>", ', "in ")) from None


def dump(values: Mapping[str, Any]) -> str:
    """The inverse of `parse`."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
