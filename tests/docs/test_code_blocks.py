"""Every code block of the first hour and of the how-tos runs as it stands, on tiny models named as the real ones.

What exists in the working folder comes before a name of the Hub, so a page's `smollm2` is a folder here. A block with a
title is a file, `sh` and `python` are run, `text` is for reading alone.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from microplane.cli.app import app
from tests.labels import encoder_folder
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import save_tiny_folder

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "first-hour.md", DOCS / "first-hour.vi.md", *sorted((DOCS / "how-to").glob("*.md"))]
QUICK = ["classify.md", "extract-json.md", "chat.md"]
BLOCK = re.compile(r'^```(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
TINY = ["--set", "data.max_unknown=1", "--set", "train.threads=1"]
TAKES = {"train": TINY, "check": TINY, "compare": TINY, "data": TINY[:2]}


@dataclass(frozen=True)
class Block:
    kind: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(**found.groupdict()) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def test_each_block_says_what_it_is():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(blocks(page)) * 2 == text.count("```"), page
        for block in blocks(page):
            assert block.title or block.kind in ("sh", "python", "text"), (page, block)
    assert sum(len(blocks(page)) for page in PAGES) > 40


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page.name in QUICK else pytest.mark.slow, id=page.name) for page in PAGES]
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_folder(tmp_path / "smollm2", max_position_embeddings=512)
    encoder_folder(tmp_path / "minilm")
    pair_folder(tmp_path / "google" / "flan-t5-small")
    found = blocks(page)
    for block in found:
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    for block in found:
        if block.kind == "python":
            exec(compile(block.text, page.name, "exec"), {})
        for line in block.text.splitlines() if block.kind == "sh" else []:
            run(line)


def run(line: str) -> None:
    program, command, *rest = shlex.split(line)
    assert program == "microplane", line
    tiny = [] if "--resume" in rest else TAKES.get(command, [])
    done = CliRunner().invoke(app, [command, *rest, *tiny])
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception}"
