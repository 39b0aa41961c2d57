"""The recorded commit is ours, or none: of repositories that the package lies in, some are somebody else's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from microplane.runs import provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
OURS = '[project]\nname = "microplane"\n'


def package_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    return folder


def repository(folder: Path) -> str:
    """Make it one, with everything in it committed; gives its commit."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    run = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", f"in {folder}"]):
        subprocess.run([*run, *arguments], check=True, env=env, capture_output=True)
    done = subprocess.run([*run, "rev-parse", "HEAD"], check=True, env=env, capture_output=True, text=True)
    return done.stdout.strip()


def installed(site: Path, url: dict[str, object] | None) -> Path:
    """The package as pip installs it, with what pip notes of where it came from."""
    package, about = package_in(site / "microplane"), site / "microplane-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: microplane\nVersion: 9.9\n")
    if url is not None:
        (about / "direct_url.json").write_text(json.dumps(url))
    return package


@pytest.fixture
def commit_of(monkeypatch):
    """What is recorded of a package in this place."""

    def ask(package: Path) -> str | None:
        monkeypatch.setattr(provenance, "PACKAGE", package.resolve())
        return provenance.commit()

    return ask


@needs_git
def test_a_source_tree_tells_its_commit(tmp_path, commit_of):
    package = package_in(tmp_path / "tree" / "src" / "microplane")
    (tmp_path / "tree" / "pyproject.toml").write_text(OURS)
    assert commit_of(package) is None, "an sdist that was unpacked"
    commit = repository(tmp_path / "tree")
    assert commit_of(package) == commit
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    assert commit_of(tmp_path / "link" / "src" / "microplane") == commit


@needs_git
@pytest.mark.parametrize(
    ("place", "project"),
    [
        (".venv/lib/python3.12/site-packages/microplane", '[project]\nname = "theirs"\n'),
        (".venv/lib/python3.12/site-packages/microplane", OURS),  # somebody works on a fork, and runs what is installed
        ("third_party/microplane/src/microplane", None),
        ("src/microplane", '[project]\nname = "theirs"\n'),
        ("src/microplane", "[tool.x]\n"),
        ("src/microplane", "not toml"),
        ("src/microplane", None),
        ("microplane", OURS),
    ],
)
def test_the_repository_of_somebody_else_is_none_of_ours(tmp_path, commit_of, place, project):
    package = package_in(tmp_path / "theirs" / place)
    if project is not None:
        (tmp_path / "theirs" / "pyproject.toml").write_text(project)
    if place.startswith("third_party"):
        (package.parents[1] / "pyproject.toml").write_text(OURS)
    assert repository(tmp_path / "theirs")
    assert commit_of(package) is None


@needs_git
def test_a_repository_of_ours_within_another_is_the_one_that_counts(tmp_path, commit_of):
    package = package_in(tmp_path / "theirs" / "lib" / "src" / "microplane")
    (tmp_path / "theirs" / "lib" / "pyproject.toml").write_text(OURS)
    ours = repository(tmp_path / "theirs" / "lib")
    assert repository(tmp_path / "theirs") != ours
    assert commit_of(package) == ours


@needs_git
def test_a_hook_of_another_repository_changes_nothing(tmp_path, commit_of, monkeypatch):
    package = package_in(tmp_path / "tree" / "src" / "microplane")
    (tmp_path / "tree" / "pyproject.toml").write_text(OURS)
    ours = repository(tmp_path / "tree")
    repository(tmp_path / "theirs")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "tree"))  # as if that were its work tree
    assert commit_of(package) == ours


@needs_git
@pytest.mark.parametrize(
    ("url", "known"),
    [
        ({"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee" * 6}}, "c0ffee" * 6),
        ({"url": "file:///x/microplane-9.9.whl", "archive_info": {}}, None),
        ({"url": "file:///x", "dir_info": {"editable": True}}, None),
        ({"vcs_info": None}, None),
        (None, None),
    ],
)
def test_what_was_installed_has_the_commit_that_pip_noted(tmp_path, commit_of, monkeypatch, url, known):
    """Also where the environment lies in the user's own repository."""
    package = installed(tmp_path / "theirs" / ".venv" / "site-packages", url)
    repository(tmp_path / "theirs")
    monkeypatch.syspath_prepend(str(package.parent))
    assert commit_of(package) == known


@needs_git
def test_the_commit_of_another_copy_that_is_installed_is_not_that_of_this_one(tmp_path, commit_of, monkeypatch):
    other = installed(tmp_path / "site-packages", {"vcs_info": {"vcs": "git", "commit_id": "c0ffee"}})
    package = package_in(tmp_path / "tree" / "src" / "microplane")
    (tmp_path / "tree" / "pyproject.toml").write_text(OURS)
    ours = repository(tmp_path / "tree")
    monkeypatch.syspath_prepend(str(other.parent))
    assert commit_of(package) == ours


def test_without_git_there_is_none(tmp_path, commit_of, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(package_in(tmp_path / "src" / "microplane")) is None


def test_a_git_that_hangs_is_ended_with_all_that_it_began(tmp_path, commit_of, monkeypatch):
    (tmp_path / "git").write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/child\nsleep 600\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "PATIENCE", 1.0)
    started = time.monotonic()
    assert commit_of(package_in(tmp_path / "src" / "microplane")) is None
    assert time.monotonic() - started < 30
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "what git had begun runs on"
        time.sleep(0.05)


@needs_git
def test_a_copy_in_an_environment_within_the_users_repository(tmp_path):
    """The whole of it, in a process of its own that runs the copy."""
    site = tmp_path / "theirs" / ".venv" / "lib" / "site-packages"
    source = Path(provenance.__file__).parents[1]
    shutil.copytree(source, site / "microplane", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "theirs" / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    repository(tmp_path / "theirs")
    script = (
        "from microplane.runs import provenance; print(provenance.__file__); print(provenance.describe()['commit'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(site / "microplane/runs/provenance.py"), "None"]
