"""Where a result comes from: versions, commit, machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import psutil
import torch

from microplane.hardware import cpu_name, run_program

PACKAGE = Path(__file__).resolve().parents[1]
PATIENCE = 5.0  # seconds for git
# With one of these, as in a hook of git's, git would speak of another repository than that of the folder.
POINTERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


def describe() -> dict[str, Any]:
    return {
        "microplane": package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def package_version() -> str:
    try:
        return version("microplane")
    except PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """The commit that this package's code is of, where that is known: of the source tree that it runs from, or the one
    that pip says it was installed from. Never that of another repository that the package happens to lie in.
    """
    return _installed_commit(PACKAGE) or _tree_commit(PACKAGE)


def _installed_commit(package: Path) -> str | None:
    """What pip noted when it installed this package from a repository (direct_url.json, PEP 610)."""
    try:
        ours = distribution("microplane")
        if Path(str(ours.locate_file("microplane"))).resolve() != package:
            return None  # another copy is installed than the one that runs
        noted = json.loads(ours.read_text("direct_url.json") or "{}")
        commit = noted["vcs_info"]["commit_id"]
    except (PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) else None


def _tree_commit(package: Path) -> str | None:
    """The commit of the repository whose `src/microplane` the package is."""
    env = {name: value for name, value in os.environ.items() if name not in POINTERS}
    try:
        found = run_program(["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"], PATIENCE, env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = found.stdout.splitlines()
    if found.returncode or len(lines) != 2 or Path(lines[0]).resolve() / "src" / "microplane" != package:
        return None
    return lines[1] if _is_ours(Path(lines[0])) else None


def _is_ours(tree: Path) -> bool:
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return bool(project["name"] == "microplane")
    except (OSError, ValueError, KeyError, TypeError):
        return False
