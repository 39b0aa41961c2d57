"""The documentation site: it builds without a warning, and lists every knob and every message."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools import site

ROOT = Path(__file__).parents[2]


def test_every_knob_has_a_row():
    listed = site.knobs()
    for name in ("train.lr", "generate.beams", "mixture.rows", "method.rank", "data.fields"):
        assert f"| `{name}` |" in listed
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in listed.splitlines() if line.startswith("| `"))


def test_messages_are_found_by_their_words():
    source = """
def f(name):
    if name:
        raise ConfigError(f"there is no method {name!r}." + " Possible: lora")
    raise KeyError("not for users") from None
    raise error
"""
    assert list(site.messages_of(source)) == ["there is no method …. Possible: lora"]
    listed = site.messages()
    assert "the Hub wants a token that may write" in listed
    assert listed.count("\n- ") > 400


def test_messages_that_are_made_of_parts_or_have_a_status_are_found_too():
    source = """
def f(name):
    what = f"the prompt has {name} tokens"
    how = " in all" if name else " for each"
    raise ApiError(400, f"{what}{how}. Shorten {name.title}", "messages")

def g(what):
    late = TooLateError(f"{what} took too long")
    raise late

raise RowError("kind", "a row that is none")
"""
    wanted = ["a row that is none", "the prompt has … tokens in all. Shorten …", "… took too long"]
    assert sorted(site.messages_of(source)) == sorted(wanted)
    listed = site.messages()
    assert "the model's context is" in listed
    assert "\n- 40" not in listed


def test_a_page_asks_by_a_comment():
    assert site.on_page_markdown("# Plain") == "# Plain"
    assert "## train" in site.on_page_markdown("<!-- knobs -->")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="tools/venv.sh docs installs what builds the site")
def test_the_site_builds_and_no_link_leads_nowhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "reference" / "api.html").read_text()
    assert 'id="microplane.train"' in page
    assert "exact match" in (tmp_path / "site" / "search" / "search_index.json").read_text()
