"""The report's content, without a browser."""

import copy
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest

from microplane.report import page, write_report
from microplane.report.curves import MAX_POINTS, curves, smooth, thin
from microplane.report.read import ReportError, read_run
from microplane.report.story import compared, outcome
from tests.report.runs import full_result, make_full_run, make_run, metric_lines, speed_lines


class Dom(HTMLParser):
    """Attributes, text and the figures (`data-key` -> the values that stand there) of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.figures: dict[str, list[str]] = {}
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.inside.append(tag)
        if "data-value" in found:
            self.figures.setdefault(found["data-key"], []).append(found["data-value"])

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def dom_of(run: Path) -> Dom:
    return Dom(write_report(run).read_text(encoding="utf-8"))


def leaves(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


@pytest.fixture
def run(tmp_path):
    return make_full_run(tmp_path / "smollm2-lora-commands")


def test_every_number_of_the_result_is_on_the_page_exactly(run):
    figures = dom_of(run).figures
    result = full_result(run.name)
    checks = {f"checks.{i}.value": check["value"] for i, check in enumerate(result["checks"])}
    for section in ("schema", "run", "samples", "checks"):
        del result[section]
    for name in ("train_rows", "validation_rows", "test_rows"):  # said by data.rows
        assert result["data"].pop(name) == result["data"]["rows"][name.removesuffix("_rows")]
    wanted = {key: value for key, value in leaves(result) if isinstance(value, int | float)} | checks
    assert len(wanted) > 35
    for key, value in wanted.items():
        assert {json.loads(text) for text in figures[key]} == {value}, key


def test_it_reads_for_people(run):
    text = dom_of(run).text
    for wanted in (
        "LoRA (rank 16) took exact match from 0.3% to 84.7% on 300 held-out rows in 7 min 12 s.",
        "4.88 million",
        "adapter of 19.6 MB",
        "1.39 GB",
        "+84.3 points ✓ better",
        "Overfitting: validation loss has risen for 2 checks",
        "420 of 420",
        "3.58e-6",
        "✓ passed",
        "best at step 120",
        "1 epoch ",
        "23 November 2026, 19:07 UTC",
    ):
        assert wanted in text, wanted


def test_facts_of_each_split_stand_in_one_row(run):
    text = dom_of(run).text
    assert "rows train 2,400 , validation 200 , test 300" in text
    assert "tokens in a row, train min 51 , median 64 , mean 65.1 , 95th percentile 77 , max 102" in text
    assert "bad" not in text.split("Data", 1)[1].split("Training")[0]  # nothing to tell


def test_it_says_how_to_use_and_repeat_the_run(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    text = dom_of(run).text
    assert "microplane generate smollm2-lora-commands 'turn on the kitchen light'" in text
    assert "microplane train --config smollm2-lora-commands/run.yaml" in text
    assert "schedule: cosine" in text  # the whole run.yaml


def test_nothing_is_loaded_from_anywhere(run):
    html = write_report(run).read_text(encoding="utf-8")
    for tag, attributes in Dom(html).tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"):
            assert attributes.get(name) in (None, "data:,"), (tag, attributes)
        assert "style" not in attributes  # the policy would refuse it
        assert not any(name.startswith("on") for name in attributes)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(found["content"] for tag, found in Dom(html).tags if tag == "meta" and "http-equiv" in found)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_texts_of_the_data_stay_text(run):
    html = write_report(run).read_text(encoding="utf-8")
    dom = Dom(html)
    assert [tag for tag, _ in dom.tags].count("script") == 3
    assert "b" not in [tag for tag, _ in dom.tags]
    for text in (
        "<script>window.hacked = 1</script> & \"quotes\" 'too'",
        "bật đèn phòng khách",
        "שים מוזיקה בסלון",
        "🔥",
    ):
        assert text in dom.text


def test_hostile_names_stay_text(tmp_path):
    hostile = '"><script>window.hacked=1</script>\ud800\u202e'
    result = full_result(hostile)
    result["error"] = result["model"]["name"] = result["checks"][0]["name"] = result["train"]["overfitting"] = hostile
    result["metrics"]["after"][hostile] = 1.0
    result["environment"][hostile] = hostile
    html = write_report(make_run(tmp_path / "run", result, metric_lines())).read_text(encoding="utf-8")
    assert "<script>window" not in html
    assert [tag for tag, _ in Dom(html).tags].count("script") == 3


def test_inlined_json_cannot_end_its_script():
    text = page.inline_json({"a": "</script><!--"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--"}


def test_rows_say_whether_they_equal_the_target(run):
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count('<span class="verdict equal">✓ equal to target</span>') == 8
    assert html.count('<span class="verdict differs">✗ differs</span>') == 12
    assert "<mark>kitchen</mark>" in html
    assert "<mark>office</mark>" in html
    assert "(empty)" in html


def test_what_differs_is_marked_only_between_texts_that_are_alike():
    assert compared("area kitchen on", "area office on") == [("area ", False), ("office", True), (" on", False)]
    assert compared("yes", "something else entirely") == [("something else entirely", False)]
    assert compared("same", " same\n") == [(" same\n", False)]
    assert "".join(text for text, _ in compared("a b c d", "a x c\n\td")) == "a x c\n\td"


@pytest.mark.parametrize(
    ("before", "after", "split", "sentence"),
    [
        (
            {"exact_match": 0.5},
            {"exact_match": 0.4},
            "test",
            "from 50% to 40%, worse than the untouched model, on 300 held-out",
        ),
        ({"exact_match": 0.5}, {"exact_match": 0.5}, "test", "left exact match at 50% on 300 held-out rows"),
        ({"loss": 3.0}, {"loss": 1.5}, "validation", "took loss from 3 to 1.5 on 300 validation rows"),
        ({"loss": 3, "json_valid": 0}, {"loss": 1, "json_valid": 1.0}, "test", "took valid JSON from 0% to 100%"),
        (None, {"bleu": 31.25, "loss": 1.0}, "test", "reached BLEU 31.25 on 300 held-out rows"),
        (None, None, "test", "reached a validation loss of 0.1239 in 7 min 12 s."),
    ],
)
def test_the_sentence_of_the_outcome(tmp_path, before, after, split, sentence):
    result = full_result() | {"metrics": {"rows": 300, "split": split, "before": before, "after": after}}
    assert sentence in outcome(read_run(make_run(tmp_path / "run", result)))


def test_a_run_stopped_by_hand_says_how_to_go_on(tmp_path):
    run = make_run(tmp_path / "run", full_result() | {"status": "stopped"}, metric_lines(40))
    text = dom_of(run).text
    assert "stopped by hand after 150 steps." in text
    assert "microplane train --resume " in text


def test_a_failed_check_and_warnings_stand_at_the_top(tmp_path):
    result = full_result()
    result["checks"][2]["passed"] = False
    result["data"]["warnings"] = ["7 of 300 test rows stand in the training rows too"]
    text = dom_of(make_run(tmp_path / "run", result)).text
    assert "1 check failed: merged = unmerged." in text
    assert "✗ failed" in text
    assert "7 of 300 test rows stand in the training rows too." in text


def test_a_run_that_failed_before_its_first_step(tmp_path):
    result = {"schema": 1, "status": "failed", "error": "no row of data.jsonl\n  has a trained token", "name": "broken"}
    dom = dom_of(make_run(tmp_path / "run", result))
    assert "LoRA (rank 16) failed before its first step." in dom.text
    assert "no row of data.jsonl has a trained token" in dom.text
    assert "Learning curves" not in dom.text
    assert "canvas" not in [tag for tag, _ in dom.tags]


def test_a_loss_that_is_not_a_number_leaves_a_gap(tmp_path):
    result = full_result() | {"status": "failed", "error": "the loss is not a number", "metrics": {}, "samples": []}
    result["train"] = {"steps": 3, "train_loss": float("nan"), "validation_loss": float("inf")}
    lines = [*metric_lines(2), {"step": 3, "loss": float("nan"), "lr": 1e-3}]
    run = make_run(tmp_path / "run", result, lines)
    dom = dom_of(run)
    assert "failed after 3 steps." in dom.text
    assert "not a number" in dom.text
    assert dom.figures["train.train_loss"] == ["NaN", "NaN"]
    assert curves(read_run(run))["train"][-1] == (3, None)


def test_a_run_without_held_out_rows_or_clock(tmp_path):
    result = full_result() | {"metrics": {}, "samples": []}
    result["data"] = {"test_rows": None, "files": []}
    dom = dom_of(make_run(tmp_path / "run", result, metric_lines()))
    assert "reached a validation loss of 0.1239" in dom.text
    assert "Before and after" not in dom.text
    assert "Nothing was measured." in dom.text
    assert "test rows none" in dom.text


def test_validation_rows_are_not_called_held_out(tmp_path):
    result = full_result()
    result["metrics"]["split"] = "validation"
    text = dom_of(make_run(tmp_path / "run", result)).text
    assert "10 validation rows" in text
    assert "The weights were chosen on these rows" in text


def test_a_run_that_is_still_going(tmp_path):
    run = make_run(tmp_path / "run", None, metric_lines(67), speed_lines(67))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 68, "lo')  # the line that is being written
    dom = dom_of(run)
    assert "has made 67 of 150 steps so far and has no result yet" in dom.text
    assert "3 min 13 s" in dom.text
    assert json.loads(dom.figures["train.tokens"][0]) == sum(1040 + step for step in range(1, 68))
    assert json.loads(dom.figures["train.trained_tokens_per_second"][0]) == pytest.approx(512 / 2.88)
    assert dom.figures["train.best_step"] == ["60", "60"]
    assert dom.figures["train.peak_memory_bytes"][0] == str(1_240_000_000 + 67_000_000)
    assert "commands-train.jsonl" in dom.text
    assert "the run" not in outcome(read_run(run))


def test_a_step_that_stands_twice_counts_once(tmp_path):
    lines = metric_lines(20)
    again = [{**line, "loss": 7.0} for line in lines[10:] if "loss" in line]
    drawn = curves(read_run(make_run(tmp_path / "run", None, lines + again)))
    assert [step for step, _ in drawn["train"]] == list(range(1, 21))
    assert drawn["train"][-1] == (20, 7.0)
    assert [step for step, _ in drawn["validation"]] == [15]


def test_thinning_keeps_ends_spikes_and_gaps():
    curve = [(step, 1.0) for step in range(50_000)]
    curve[31_234] = (31_234, 99.0)
    curve[40_001] = (40_001, None)
    kept = thin(curve)
    assert len(kept) <= MAX_POINTS + 1
    assert {curve[0], curve[31_234], curve[40_001], curve[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_smoothing_starts_at_the_curve_and_skips_gaps():
    assert smooth([(1, 3.0), (2, None), (3, 3.0)]) == [(1, pytest.approx(3.0)), (2, None), (3, pytest.approx(3.0))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "status"', "result.json is damaged: "),
        ("", "result.json is damaged: "),
        ("\xff", "result.json is damaged: "),
        ("[" * 100_000, "result.json is damaged: "),
        ("[]", "it holds a list, not the fields of a run"),
        ('{"status": "success"}', "has schema None; this version of microplane reads 1"),
        ('{"schema": 2}', "has schema 2; this version of microplane reads 1"),
        ('{"schema": 1, "status": ["done"]}', "status is ['done'], expected success or stopped or failed"),
        ('{"schema": 1, "status": "success", "train": [3]}', "train is [3], expected an object"),
        ('{"schema": 1, "status": "success", "metrics": {"after": 3}}', "metrics.after is 3, expected an object"),
        ('{"schema": 1, "status": "success", "samples": ["a"]}', "samples is ['a'], expected a list of objects"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path, content, message):
    (tmp_path / "result.json").write_text(content, encoding="latin-1")
    with pytest.raises(ReportError) as caught:
        write_report(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("line", ["{broken", '{"loss": 3.0}', "[1]", '{"step": "7"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    run = make_full_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 3, "loss": 2.0}}\n')
    with pytest.raises(ReportError, match=r"metrics\.jsonl:2 is damaged: .* expected an object with a step"):
        write_report(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"holds no run: neither result\.json nor metrics.jsonl"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match=r"there is no run at .*nowhere; give the folder of a run"):
        write_report(tmp_path / "nowhere")


def test_an_unreadable_file_is_named(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ReportError, match=r"cannot read .*metrics\.jsonl: Permission denied"):
        write_report(run)


def test_a_full_disk_keeps_the_old_report(run, monkeypatch):
    old = write_report(run).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ReportError, match=r"cannot write .*report\.html: No space left on device"):
        write_report(run)
    assert (run / "report.html").read_bytes() == old
    assert not list(run.glob(".report*"))


def test_a_missing_chart_library_is_named(run, monkeypatch):
    monkeypatch.setattr(page, "CHART_LIBRARY", "elsewhere.js")
    with pytest.raises(ReportError, match=r"needs Chart\.js, which the package chartkick holds .*pip install"):
        write_report(run)


def test_the_report_is_the_same_each_time(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize(
    "odd", [None, "text", [], {}, [{"a": 1}], True, -1, 0, 1e300, float("nan"), float("-inf")], ids=str
)
def test_odd_values_anywhere_still_make_a_page(tmp_path, monkeypatch, odd):
    monkeypatch.setattr(page, "chart_library", lambda: "")  # speed
    whole = full_result()
    for key, _ in list(leaves(whole)):
        result = copy.deepcopy(whole)
        *sections, leaf = key.split(".")
        place = result
        for section in sections:
            place = place[section]
        if leaf in ("schema", "status", "samples", "checks"):
            continue
        place[leaf] = odd
        record = read_run(make_run(tmp_path / "run", result))
        assert "What was run" in page.render(record), key
    for part, row in (("samples", 0), ("checks", 0)):
        for name in list(whole[part][row]):
            result = copy.deepcopy(whole)
            result[part][row][name] = odd
            assert "What was run" in page.render(read_run(make_run(tmp_path / "run", result))), (part, name)
            del result[part][row][name]
            assert "What was run" in page.render(read_run(make_run(tmp_path / "run", result))), (part, name)


def test_a_method_that_trains_the_whole_model_has_no_adapter(tmp_path):
    result = full_result()
    result["method"] |= {"name": "full", "facts": {"whole_model": True}}
    result["run"]["method"] = {"name": "full"}
    text = dom_of(make_run(tmp_path / "run", result)).text
    assert "Full fine-tuning took exact match" in text
    assert "model of 19.6 MB" in text


BY_CLASS = {
    "classes": {
        "calm": {"precision": 0.75, "recall": 0.6, "f1": 2 / 3, "rows": 5},
        "<b>loud": {"precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "rows": 3},
    },
    "confusion": [[3, 2], [1, 2]],
    "entities": {"PER": {"precision": 1.0, "recall": 0.25, "f1": 0.4, "rows": 8}},
}


def test_scores_by_class_and_which_is_taken_for_which(tmp_path):
    result = full_result()
    result["metrics"]["by_class"] = BY_CLASS
    made = dom_of(make_run(tmp_path / "run", result))
    for section in ("classes", "entities"):
        for name, scores in BY_CLASS[section].items():
            for one, value in scores.items():
                key = f"metrics.by_class.{section}.{name}.{one}"
                assert {json.loads(text) for text in made.figures[key]} == {value}
    text = " ".join(made.text.split())
    assert "calm 75% 60% 66.7% 5" in text
    assert "is, and was called calm <b>loud calm 3 2 <b>loud 1 2" in text


@pytest.mark.parametrize("odd", [None, "text", [], {"a": 1}, [[1, "a"]], 3, float("nan")], ids=str)
def test_odd_scores_by_class_still_make_a_page(tmp_path, monkeypatch, odd):
    monkeypatch.setattr(page, "chart_library", lambda: "")
    for changed in (odd, *({**BY_CLASS, name: odd} for name in BY_CLASS), {"classes": {"calm": odd}}):
        result = full_result()
        result["metrics"]["by_class"] = changed
        assert "What was run" in page.render(read_run(make_run(tmp_path / "run", result)))
