"""The declaration of formats, and what is made of it."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

from typer.testing import CliRunner

from microplane.cli.app import app
from microplane.exports.export import WRITERS
from microplane.exports.formats import FORMATS, table

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_docs_is_what_the_code_says_and_each_format_has_a_part():
    text = (ROOT / "docs" / "exports.md").read_text()
    assert table() in text, "write what microplane.exports.formats.table() gives"
    assert all(f"\n## {name}\n" in text for name in FORMATS)


def test_every_format_is_written_by_something_and_installed_by_an_extra():
    assert {*WRITERS, "hf"} == set(FORMATS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for form in FORMATS.values():
        if form.extra:
            assert any(requirement.startswith(form.package) for requirement in extras[form.extra]), form.name


def test_the_help_names_every_format_and_the_command_writes_one(tmp_path):
    from tests.exports.kit import folder_of

    runner = CliRunner()
    text = runner.invoke(app, ["export", "--help"], env={"COLUMNS": "200"}).output
    assert all(f"{name}:" in re.sub(r"[\s│]", "", text) for name in FORMATS)
    base = folder_of(tmp_path / "base")
    done = runner.invoke(app, ["export", str(base), str(tmp_path / "m.gguf"), "--to", "gguf", "--dtype", "float16"])
    assert done.exit_code == 0, done.output
    assert "as gguf, float16" in done.output
    assert "\nllama-cli -m m.gguf --jinja\n" in done.output
    assert json.loads((tmp_path / "m.export.json").read_text())["files"] == ["m.gguf"]
    assert ("not checked in llama-cpp-python: pip install" in done.output) is (find_spec("llama_cpp") is None)
    refused = runner.invoke(app, ["export", str(base), str(tmp_path / "n"), "--to", "onyx"])
    assert refused.exit_code == 1
    assert "possible are hf, peft, gguf" in str(refused.exception)
