"""The report opened in a real browser: at a phone's width and a wide one, in both colour schemes."""

import json
import math

import pytest

from microplane.report import write_report
from tests.report.browser import BROWSER, at, state
from tests.report.runs import full_result, make_full_run, make_run, metric_lines, speed_lines

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")

WIDTHS = (400, 1400)
FIGURES = "[...document.querySelectorAll('[data-key][data-value]')].map(e => [e.dataset.key, e.dataset.value])"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_full_run(tmp_path_factory.mktemp("runs") / "smollm2-lora-commands"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_and_its_figures_are_those_of_the_result(page, report, width, scheme):
    page.open(report, width, scheme)
    result = json.loads((report.parent / "result.json").read_text(encoding="utf-8"))
    figures = page.read(FIGURES)
    assert len({key for key, _ in figures}) > 60
    for key, value in figures:
        assert json.loads(value) == at(result, key), key
    shown = page.read("document.querySelector('.lead .big').textContent")
    assert " ".join(shown.split()) == "0.3% → 84.7%"
    expected = {"chartsDrawn": "3", "width": str(width), "overflow": "0", "errors": "", "scheme": scheme}
    assert state(page) == expected
    assert page.read("window.innerWidth") == width
    assert page.problems == []
    assert page.requests == [report.resolve().as_uri()]  # nothing else, from anywhere


@pytest.mark.parametrize("id", ["loss", "lr", "speed"])
def test_the_charts_are_painted(page, report, id):
    page.open(report, 400)
    colors = page.read(
        f"""(() => {{ const c = document.getElementById('{id}');
        const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
        return new Set(d).size }})()"""
    )
    assert colors > 20


def test_hovering_tells_the_values(page, report):
    page.open(report, 1400)
    page.read("document.getElementById('loss').scrollIntoView({block: 'center'})")
    x, y = page.read(
        """(() => { const chart = Chart.getChart('loss'), box = chart.canvas.getBoundingClientRect();
        return [box.x + chart.scales.x.getPixelForValue(62), box.y + box.height / 2] })()"""
    )
    page.hover(x, y)
    page.wait("Chart.getChart('loss').tooltip.opacity > 0")
    told = page.read(
        "(({title, body}) => [title[0], ...body.map(b => b.lines[0].trim())])(Chart.getChart('loss').tooltip)"
    )
    loss = next(line["loss"] for line in metric_lines() if line["step"] == 62)
    validation = next(line["validation_loss"] for line in metric_lines() if line["step"] == 60 and "best" in line)
    assert told[0] == "Step 62"
    assert told[1] == f"train, each step: {loss:.4g}"
    assert told[3] == f"validation, step 60: {validation:.4g}"


def test_the_charts_follow_the_colour_scheme(page, report):
    page.open(report, 1400, "light")
    color = "Chart.getChart('loss').data.datasets[2].borderColor"
    light = page.read(color)
    page.media("dark")
    page.wait("document.documentElement.dataset.scheme === 'dark'")
    assert page.read(color) != light


def test_the_loss_can_be_read_on_a_logarithmic_scale(page, report):
    page.open(report, 1400)
    page.read("document.getElementById('log').click()")
    assert page.read("Chart.getChart('loss').scales.y.type") == "logarithmic"


def test_text_can_be_read_in_both_schemes(page, report):
    """Contrast of at least 4.5 for all text colours, WCAG 2.1 AA."""
    page.open(report, 1400)
    for scheme in ("light", "dark"):
        page.media(scheme)
        page.wait(f"document.documentElement.dataset.scheme === '{scheme}'")
        style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
        paper, surface, *inks = (
            page.read(style.format(name))
            for name in ("paper", "surface", "text", "quiet", "good", "bad", "tuned", "validation")
        )
        for ground in (paper, surface):
            assert all(contrast(ink, ground) >= 4.5 for ink in inks), (scheme, ground, inks)


def contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        digits = color.lstrip("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_texts_of_the_data_do_not_run(page, report):
    page.open(report, 400)
    assert page.read("window.hacked === undefined")
    assert page.read("[...document.querySelectorAll('.prompt pre')].some(e => e.textContent.startsWith('<script>'))")
    # right-to-left text runs so, beside text that does not
    directions = "[...document.querySelectorAll('.prompt pre')].map(e => getComputedStyle(e).direction)"
    assert [page.read(directions)[i] for i in (0, 4)] == ["ltr", "rtl"]


def test_paper_shows_what_is_folded_away(page, report):
    page.open(report, 1400, "dark")
    page.read("window.dispatchEvent(new Event('beforeprint'))")
    assert page.read("[...document.querySelectorAll('details')].every(e => e.open)")
    assert page.read("getComputedStyle(document.documentElement).getPropertyValue('--surface').trim()") == "#fff"
    page.read("window.dispatchEvent(new Event('afterprint'))")
    assert page.read("[...document.querySelectorAll('details')].every(e => !e.open)")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["going", "first step", "not a number", "before the first step", "long names"])
def test_partial_and_odd_runs_open_too(page, tmp_path, kind, width):
    failed = full_result("failed") | {"status": "failed", "error": "x" * 500, "metrics": {}, "samples": []}
    failed["train"] = {"steps": 41, "train_loss": math.nan}
    long = full_result("n" * 200)
    long["model"]["path"] = long["environment"]["cpu"] = long["checks"][0]["value"] = "w" * 300
    long["metrics"]["after"]["m" * 60] = 1e300
    run, charts = {
        "going": (make_run(tmp_path / "going", None, metric_lines(67), speed_lines(67)), "3"),
        "first step": (make_run(tmp_path / "first", None, metric_lines(1), speed_lines(1)), "3"),
        "not a number": (make_run(tmp_path / "nan", failed, [{"step": 1, "loss": math.nan, "lr": 1e-3}]), "2"),
        "before the first step": (make_run(tmp_path / "zero", {"schema": 1, "status": "failed", "error": "full"}), "0"),
        "long names": (make_run(tmp_path / "long", long, metric_lines(), speed_lines()), "3"),
    }[kind]
    page.open(write_report(run), width)
    found = state(page)
    assert (found["chartsDrawn"], found["overflow"], found["errors"]) == (charts, "0", "")
    assert page.problems == []
