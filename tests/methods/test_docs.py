"""docs/methods says what the code says: the table of facts, and a card for each method."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from microplane.cli.app import app
from microplane.methods import METHODS, facts_table

DOCS = Path(__file__).parents[2] / "docs" / "methods"
CARDS = {"lora": "lora", "lora+": "lora-plus"}  # a card's file where it is not the method's name


def test_the_table_of_facts_is_what_the_code_says():
    assert facts_table() in (DOCS / "README.md").read_text(), "write what `microplane methods --table` prints"


def test_every_row_of_the_table_links_to_a_card_that_is_there():
    readme = (DOCS / "README.md").read_text()
    for name in METHODS:
        card = CARDS.get(name, name)
        assert (DOCS / f"{card}.md").is_file(), name
        assert f"{card}.md" in readme, name


def test_the_command_prints_the_table_and_the_facts():
    table = CliRunner().invoke(app, ["methods", "--table"])
    assert table.stdout.strip() == facts_table()
    listed = CliRunner(env={"COLUMNS": ""}).invoke(app, ["methods"]).stdout
    assert "prompt: " in listed
    assert "merges: no; starts as the base: no; trains the base's own weights: no; default train.lr: 0.1" in listed
