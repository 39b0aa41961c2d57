"""YAML in and out, as people write it: `1e-3` is a number, and what is written is read back equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text; here it is a number, as YAML 1.2 has it. A name that stands twice is an error, as
    it is there: PyYAML takes the second, and of two sections `train` the first would be ignored in silence."""

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

for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
    )


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
