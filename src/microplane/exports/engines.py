"""Whether the packages that an export is written with or compared in can be used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from microplane.errors import first_line


def usable(package: str) -> bool:
    """Whether it is installed and can be imported."""
    return find_spec(package) is not None and broken(package) is None


def broken(package: str) -> str | None:
    """What the import of an installed package ends in: a part of it that is missing, or does not fit."""
    try:
        import_module(package)
    except Exception as error:  # whatever it raises: of a library of the system, OSError or RuntimeError
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def lacking(*packages: str) -> str:
    """Those that cannot be used, in words: `onnx and transformers`, or `onnx (it is installed, but ...)`; empty if all
    can."""
    told = list[str]()
    for package in packages:
        if find_spec(package) is None:
            told.append(package)
        elif reason := broken(package):
            told.append(f"{package} (it is installed, but cannot be imported: {reason})")
    return " and ".join(told)
