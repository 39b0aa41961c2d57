"""How files are named in pages and JSON that people share: as they were given, or by a place that is the same for all.
Where they lie on this machine, and whose it is, stays here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HOME = "~"


def home_name() -> dict[str, str]:
    """What stands for the user's own folder; nothing where that is the root of all files."""
    home = Path.home()
    return {} if home == Path(home.anchor) else {str(home): HOME}


def shown_path(path: Path) -> str:
    """A path as one would type it here: from the working directory, else from one's own folder, else as it is."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(renamed(path.as_posix(), home_name()))


def quoted(path: str) -> str:
    """A shown path as a word of a shell's command."""
    head, slash, rest = path.partition("/")
    return f"{HOME}/{shlex.quote(rest)}" if head == HOME and slash and rest else shlex.quote(path)


def renamed(value: Any, names: Mapping[str, str], whole: str = ".") -> Any:
    """Texts, also those within lists and mappings, with other names for paths.

    Args:
        names: what stands for each path, also at the beginning of a longer one; nothing for a folder within which paths
            begin.
        whole: what stands for such a folder itself.
    """
    if not names:
        return value
    every = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    paths = re.compile(rf"(?<![\w./~-])({every})(?![\w.-])(/?)")

    def name(found: re.Match[str]) -> str:
        told, slash = names[found[1]], found[2]
        return told + slash if told else whole if not slash else ""

    def named(value: Any) -> Any:
        if isinstance(value, str):
            return paths.sub(name, value)
        if isinstance(value, Mapping):
            return {key: named(item) for key, item in value.items()}
        return [named(item) for item in value] if isinstance(value, list | tuple) else value

    return named(value)
