"""What other installed packages add: methods, objectives, formats of rows and metrics, declared as entry points in a
package's pyproject.toml.

[project.entry-points."microplane.methods"]
diagonal = "microplane_diagonal:Diagonal"

The names are read when a registry is first asked for one that is not built in; an object is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from microplane.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Things of one kind by name: the built-in ones, then those that installed packages add, by package and name.

    Args:
        group: of the entry points, as "microplane.methods".
        built_in: whose names no package may take.
        check: gives back what an entry point's name and object stand for.
            Raises TypeError or ValueError saying what is wrong with the object.
    """

    def __init__(self, group: str, built_in: Mapping[str, T], check: Callable[[str, object], T]):
        self.group, self.built_in, self._check = group, dict(built_in), check
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """Raises: KeyError if there is none; ConfigError if a package declares it and it cannot be used."""
        if name in self.built_in:
            return self.built_in[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(self._entries[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._entries

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self._entries

    def __len__(self) -> int:
        return len(self.built_in) + len(self._entries)

    def package_of(self, name: str) -> str | None:
        """The package that has added `name`; None for what is built in."""
        return None if name in self.built_in else _package(self._entries[name])

    def version_of(self, name: str) -> str | None:
        """The package that has added `name`, and its version; None for what is built in."""
        dist = None if name in self.built_in else self._entries[name].dist
        return None if dist is None else f"{dist.name} {dist.version}"

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: (_package(entry), entry.name)):
            other = "Microplane itself" if entry.name in self.built_in else ""
            if entry.name in found and entry.value != found[entry.name].value:  # one package may be found on two paths
                other = f"the package {_package(found[entry.name])}"
            if other:
                raise ConfigError(
                    f"the package {_package(entry)} adds {entry.name!r} to {self.group}, and {other} has that name. "
                    f"Uninstall one of the two: pip uninstall {_package(entry)}"
                )
            found.setdefault(entry.name, entry)
        return found

    def _load(self, entry: EntryPoint) -> T:
        where = f"the package {_package(entry)} adds {entry.name!r} to {self.group} as {entry.value}"
        way_out = f"Mend the package, or remove it: pip uninstall {_package(entry)}"
        try:
            loaded = entry.load()
        except Exception as error:  # whatever foreign code raises while it is imported
            raise ConfigError(
                f"{where}, which cannot be imported: {type(error).__name__}: {error}. {way_out}"
            ) from error
        try:
            return self._check(entry.name, loaded)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}, {error}. {way_out}") from None


@dataclass(frozen=True)
class Choice:
    """Checks a knob that takes one of these names, or one that an installed package adds to `group`."""

    built_in: tuple[str, ...]
    group: str

    def names(self) -> tuple[str, ...]:
        """All that can be chosen."""
        return *self.built_in, *(name for name in Registry(self.group, {}, _anything) if name not in self.built_in)

    def __call__(self, name: str) -> str:
        """Raises: ValueError, for a name that there isn't."""
        if name in self.built_in or name in (names := self.names()):
            return name
        expected = ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
        raise ValueError(f"must be {expected}.{nearest(name, names)}")


def _anything(name: str, found: object) -> object:
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
