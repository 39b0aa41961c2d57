"""The page of a comparison in a real browser: figures, sorting, a row's answers, files, both widths and schemes."""

from __future__ import annotations

import json

import pytest

import microplane
from microplane.comparison.page import render
from tests.comparison.kit import SETS, in_this_process, place
from tests.report.browser import BROWSER, at, state

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        folder = tmp_path_factory.mktemp("page")
        how = {"methods": "lora,ia3", "seeds": 1, "set": SETS, "learning_curve": True}
        return microplane.compare(*place(folder), out=folder / "out", **how)


FIGURES = "[...document.querySelectorAll('[data-key]')].map(e => [e.dataset.key, JSON.parse(e.dataset.value)])"


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_and_its_figures_are_those_of_the_json(page, done, width, scheme):
    page.open(done.folder / "comparison.html", width, scheme)
    found = state(page)
    assert (found["errors"], found["chartsDrawn"], found["overflow"], found["scheme"]) == ("", "4", "0", scheme)
    assert page.problems == []
    assert page.requests == [(done.folder / "comparison.html").resolve().as_uri()]
    result = json.loads((done.folder / "comparison.json").read_text())
    figures = page.read(FIGURES)
    assert len(figures) > 2 * 8
    for key, value in figures:
        assert value == at(result, key), key
    assert page.read("document.querySelector('.outcome').textContent") == result["answer"]["sentences"][0]


def test_tables_are_sorted_by_a_click(page, done):
    page.open(done.folder / "comparison.html", 1400)
    names = "[...document.querySelectorAll('#methods tbody th')].map(e => e.textContent)"
    click = "document.querySelector('#methods thead th:nth-child(10) button').click()"  # trained weights
    weights = {row["method"]: row["trainable_parameters"] for row in done.methods}
    page.read(click)
    assert page.read(names)[:2] == sorted(weights, key=weights.get, reverse=True)
    assert set(page.read(names)[2:]) == {row["name"] for row in done.result["baselines"]}  # without a figure: below
    page.read(click)
    assert page.read(names)[:2] == sorted(weights, key=weights.get)


def test_a_click_on_a_row_shows_its_answers(page, done):
    page.open(done.folder / "comparison.html", 1400)
    page.read("document.querySelector('tr.row').click()")
    shown = page.read("[...document.querySelectorAll('tr.opened h4')].map(e => e.textContent)")
    assert shown[:2] == ["target", "untouched model"]
    assert set(shown[2:4]) == {"lora", "ia3"}
    assert page.read("document.querySelector('tr.opened pre').textContent") == done.result["rows"][0]["prompt"]
    page.read("document.querySelector('tr.row').click()")
    assert page.read("document.querySelectorAll('tr.opened').length") == 0


def test_figures_can_be_taken_along(page, done):
    page.open(done.folder / "comparison.html", 1400)
    page.read("document.querySelector('[data-download=csv]').click()")
    length = len((done.folder / "comparison.csv").read_text())
    assert page.read("document.documentElement.dataset.downloaded") == f"csv {length}"
    page.read("document.querySelector('[data-download=json]').click()")
    assert page.read("document.documentElement.dataset.downloaded").startswith("json ")
    assert page.problems == []


def test_the_line_holds_those_that_none_is_better_and_cheaper_than(page, done):
    page.open(done.folder / "comparison.html", 1400)
    page.read(
        "const s = document.getElementById('cost'); s.value = 'trainable_parameters';"
        "s.dispatchEvent(new Event('change'))"
    )
    front = json.loads(page.read("document.documentElement.dataset.front"))
    best, kept = None, []
    for row in sorted(done.methods, key=lambda row: (row["trainable_parameters"], -row["score"]["value"])):
        if best is None or row["score"]["value"] > best:
            best = row["score"]["value"]
            kept.append(row["method"])
    assert front == kept


def hovered(page, chart, x, y):
    """What a chart tells of a point of it."""
    page.read(f"document.getElementById('{chart}').scrollIntoView({{block: 'center'}})")
    place = page.read(
        f"""(() => {{ const chart = Chart.getChart('{chart}'), box = chart.canvas.getBoundingClientRect();
        return [box.x + chart.scales.x.getPixelForValue({x}), box.y + chart.scales.y.getPixelForValue({y})] }})()"""
    )
    page.hover(*place)
    page.wait(f"Chart.getChart('{chart}').tooltip.opacity > 0")
    return page.read(f"Chart.getChart('{chart}').tooltip.body.map(b => b.lines[0].trim())")


def test_a_logarithmic_axis_names_the_powers_of_ten_alone(page, done, tmp_path):
    """On a telephone `5e-3` and `1e-2` were printed over one another."""
    points = [{"stage": "short", "lr": lr, "validation_loss": 0.5} for lr in (1e-4, 2e-3, 0.2)]
    search = {name: found | {"points": points} for name, found in done.result["search"].items()}
    result = done.result | {"search": search}
    (tmp_path / "page.html").write_text(render(result), encoding="utf-8")
    page.open(tmp_path / "page.html", 400)
    labels = page.read("Chart.getChart('rates').scales.x.ticks.map(tick => tick.label)")
    assert labels == ["1e-4", "1e-3", "1e-2", "1e-1"]


def test_a_method_whose_best_rate_is_an_edge_fits_a_telephone(page, done, tmp_path):
    """The sentence on it was one line, and the page as wide as that."""
    search = done.result["search"] | {"instruction-tuned": done.result["search"]["lora"] | {"edge": "highest"}}
    (tmp_path / "page.html").write_text(render(done.result | {"search": search}), encoding="utf-8")
    page.open(tmp_path / "page.html", 400)
    assert "the best rate is the highest" in page.read("document.querySelector('.under').textContent")
    assert state(page)["overflow"] == "0"


@pytest.mark.parametrize("width", [400, 1400])
def test_names_stay_in_sight_beside_the_last_columns(page, done, width):
    page.open(done.folder / "comparison.html", width)
    edge = "e => Math.round(e.getBoundingClientRect().left)"
    sides = f"[document.querySelector('.wide'), ...document.querySelectorAll('#methods tbody th')].map({edge})"
    page.read("document.querySelector('.wide').scrollLeft = 10000")
    outer, *names = page.read(sides)
    assert page.read("document.querySelector('.wide').scrollLeft") > 0
    assert names
    assert all(0 <= name - outer <= 2 for name in names)
    left, right = page.read(f"[...document.querySelectorAll('tr.row td')].slice(0, 2).map({edge})")
    assert right - left < width / 2  # what a method came to stands beside the row's text


def test_hovering_a_chart_tells_the_values(page, done):
    page.open(done.folder / "comparison.html", 1400)
    row = done.methods[0]
    told = hovered(page, "pareto", row["seconds"], row["score"]["value"])
    assert any(line.startswith(f"{row['method']}: {row['score']['value']:.1%}, ") for line in told)
    point = done.result["learning_curve"]["points"][1]
    told = hovered(page, "learning", point["rows"], point["value"])
    assert f"mean of the seeds, {point['rows']} rows: {point['value']:.1%}" in told
    name, (tokens, loss) = "lora", done.result["curves"]["lora"][-1]
    told = hovered(page, "curves", tokens, loss)
    assert any(line.startswith((f"{name}, {tokens:,} tokens: ", "ia3, ")) for line in told)
    assert page.problems == []


def test_the_answer_on_more_rows_stands_on_the_page(page, done):
    page.open(done.folder / "comparison.html", 400)
    told = page.read("document.getElementById('more-rows').textContent")
    assert told == done.result["learning_curve"]["sentence"]
    assert "With one seed of each size, what seeds differ by is not in this" in told
