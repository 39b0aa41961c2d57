"""The page in a real browser against the real server: typed, streamed, switched and read."""

import json
import os
from pathlib import Path

import httpx
import pytest

from microplane.config.serving import ServeKnobs
from microplane.serving.app import Server
from tests.report.browser import BROWSER
from tests.report.test_browser import contrast
from tests.serving.conftest import running

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
SHOTS = os.environ.get("MICROPLANE_SHOTS")  # a folder for pictures, to be looked at
ROWS = [("turn on the light", "on"), ("مرحبا", "نعم"), ("<b>bold</b> " * 30, "x" * 300)]
ANSWERS = "[...document.querySelectorAll('.answer')].map(e => e.textContent)"
STATE = "document.documentElement?.dataset.state"


@pytest.fixture(scope="module")
def address(library, tmp_path_factory):
    """A server whose lora1 is a run with held-out rows."""
    run = tmp_path_factory.mktemp("run")
    lines = [{"prompt": prompt, "target": target, "before": "", "after": "", "where": f"rows.jsonl:{n}"}
             for n, (prompt, target) in enumerate(ROWS, 1)]  # fmt: skip
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    served = library.served["lora1"]
    before, served.folder = served.folder, run
    with running(Server(library, ServeKnobs(max_batch=8))) as address:
        yield address
    served.folder = before


def opened(page, address, width=1400, scheme="light"):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.media(scheme)
    page.call("Page.navigate", url=address)
    page.wait(f"{STATE} === 'ready'")
    return page


def choose(page, side, model):
    page.read(
        f"""(() => {{ const s = document.querySelectorAll('.model')[{side}]; s.value = {json.dumps(model)};
        s.dispatchEvent(new Event('change')) }})()"""
    )


def type_text(page, text):
    page.read("document.getElementById('prompt').focus(); document.getElementById('prompt').select()")
    page.call("Input.insertText", text=text)


def press(page, key, modifiers=0):
    """2 is Ctrl."""
    codes = {"Enter": 13, "Escape": 27}
    how = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": modifiers}
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", **how)
    page.call("Input.dispatchKeyEvent", type="keyUp", **how)


def answer(address, model, prompt):
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 12}
    return httpx.post(f"{address}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def limit(page, tokens):
    page.read(f"document.getElementById('most').value = {tokens}")


def shot(page, name):
    if SHOTS:
        page.screenshot(Path(SHOTS) / f"{name}.png")


def test_two_models_answer_what_is_typed(page, address):
    opened(page, address)
    assert page.read("[...document.querySelectorAll('.model')].map(e => e.value)")[0] == "base"
    choose(page, 1, "lora1")
    limit(page, 12)
    type_text(page, "lock the door")
    press(page, "Enter", 2)
    page.wait(f"{STATE} === 'done'")
    assert page.read(ANSWERS) == [answer(address, name, "lock the door") for name in ("base", "lora1")]
    assert "tokens in" in page.read("document.querySelector('.told').textContent")
    choose(page, 0, "lora2")  # the models are switched, and asked again by the button
    page.read("document.getElementById('send').click()")
    page.wait(f"{STATE} === 'busy' || {STATE} === 'done'")
    page.wait(f"{STATE} === 'done'")
    assert page.read(ANSWERS) == [answer(address, name, "lock the door") for name in ("lora2", "lora1")]
    assert page.problems == []
    assert {url.split("/", 3)[2] for url in page.requests if not url.startswith("data:")} == {address[7:]}


def test_a_token_tells_how_likely_it_was(page, address):
    opened(page, address)
    limit(page, 12)
    choose(page, 0, "lora1")
    type_text(page, "what is it?")
    press(page, "Enter", 2)
    page.wait(f"{STATE} === 'done'")
    x, y, share = page.read(
        """(() => { const t = [...document.querySelectorAll('.token')].find(e => e.scores.length === 1),
        b = t.getBoundingClientRect();
        return [b.x + b.width / 2, b.y + b.height / 2, +t.dataset.p] })()"""
    )
    page.hover(x, y)
    page.wait("!document.getElementById('tip').hidden")
    told = page.read("[...document.querySelectorAll('#tip .bar')].map(e => [e.className, e.lastChild.textContent])")
    assert len(told) == 5
    assert told[0][0] == "bar first"  # the likeliest is what was written
    assert float(told[0][1].rstrip("%")) == pytest.approx(100 * share, abs=0.06)
    shot(page, "hover")


def test_a_held_out_row_is_one_click_away(page, address):
    opened(page, address)
    limit(page, 12)
    choose(page, 1, "lora1")
    page.wait("document.querySelectorAll('#rows button').length === 3")
    page.read("document.querySelector('#rows button').click()")
    page.wait(f"{STATE} === 'done'")
    assert page.read("document.getElementById('prompt').value") == ROWS[0][0]
    assert page.read("document.getElementById('target').textContent") == ROWS[0][1]
    assert page.read("document.getElementById('where').textContent") == "rows.jsonl:1"
    assert page.read(ANSWERS)[1] == answer(address, "lora1", ROWS[0][0])
    assert page.read("document.querySelectorAll('#rows b').length") == 0  # its text is text


def test_labels_are_bars_and_an_encoder_says_what_it_does(page, address):
    opened(page, address)
    choose(page, 0, "moods")
    choose(page, 1, "bert")
    type_text(page, "fine")
    press(page, "Enter", 2)
    page.wait(f"{STATE} === 'done'")
    found = httpx.post(f"{address}/v1/classify", json={"model": "moods", "input": "fine"}).json()["data"][0]
    ranked = sorted(found["probabilities"].items(), key=lambda one: -one[1])
    cells = "[...document.querySelectorAll('.column .bar')].map(e => [...e.children].map(c => c.textContent))"
    bars = [(name, share) for name, _, share in page.read(cells)]
    assert [name for name, _ in bars] == [name for name, _ in ranked]
    assert float(bars[0][1].rstrip("%")) == pytest.approx(100 * ranked[0][1], abs=0.06)
    assert "vector of 32 numbers" in page.read(ANSWERS)[1]
    shot(page, "labels")


def test_escape_stops_and_errors_are_told(page, address):
    opened(page, address)
    page.read("document.getElementById('most').value = 9000")
    type_text(page, "a")
    press(page, "Enter", 2)
    page.wait(f"{STATE} === 'done'")
    assert "9000 were asked for" in page.read("document.querySelector('.answer .error').textContent")
    limit(page, 400)
    page.read("document.getElementById('temperature').value = 2")
    press(page, "Enter", 2)
    press(page, "Escape")
    page.wait(f"{STATE} === 'done'")
    assert page.read("document.getElementById('stop').disabled")


def test_a_token_is_typed_where_the_server_asks_for_one(page, library):
    with running(Server(library, token="s3cret")) as address:
        page.call("Page.navigate", url=address)
        page.wait(f"{STATE} === 'refused'")
        assert "token is needed" in page.read("document.getElementById('status').textContent")
        page.read("document.getElementById('token').value = 's3cret'; document.getElementById('token').onchange()")
        page.wait(f"{STATE} === 'ready'")


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page, address, width, scheme):
    opened(page, address, width, scheme)
    limit(page, 12)
    choose(page, 1, "lora1")
    page.wait("document.querySelectorAll('#rows button').length === 3")
    page.read("document.querySelectorAll('#rows button')[2].click(); document.getElementById('settings').open = true")
    page.wait(f"{STATE} === 'done'")
    assert page.read("document.documentElement.scrollWidth") <= width
    columns = page.read("[...document.querySelectorAll('.column')].map(e => e.getBoundingClientRect().top)")
    assert (columns[0] == columns[1]) == (width > 1000)  # side by side, or one below the other
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    assert contrast(page.read(style.format("paper")), page.read(style.format("tuned"))) >= 4.5  # of the button
    shot(page, f"{width}-{scheme}")
    assert page.problems == []
