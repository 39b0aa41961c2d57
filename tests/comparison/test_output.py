"""The table as people read it: within 80 columns, stars where a difference is certain, and scores of single rows."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

import pytest

from microplane.comparison import output
from microplane.comparison.result import command_of
from microplane.comparison.scoring import choose, metrics_of
from microplane.config.build import split_assignment
from microplane.errors import ConfigError


def result(share=True, name="lora"):
    gap = {"value": 0.0123, "low": 0.001, "high": 0.024, "identical": False, "told_apart": True}
    row = {
        "method": name,
        "score": {"value": 0.846, "low": 0.82, "high": 0.871},
        "to_reference": gap,
        "lr": 3.16e-4,
        "seconds": 3723.0,
        "peak_memory_bytes": 1_234_000_000,
        "trainable_parameters": 589_824,
        "adapter_bytes": 2_400_000,
        "forgetting": {"before": 3.2, "after": 3.2312, "difference": 0.0312, "by_seed": [0.0312]},
        "speed": {"per_second": 312.4, "unit": "tokens", "merged": True},
        "ways": ["hf", "gguf"],
    }
    row |= dict.fromkeys(set(output.FIGURES) - row.keys(), 1.5)
    base = {"name": "TF-IDF + logistic regression", "score": {"value": 0.789, "low": 0.76, "high": 0.81}}
    return {
        "methods": [row],
        "failed": [{"method": "vera", "reason": "a | in a reason"}],
        "baselines": [base],
        "reference": "lora",
        "search": {name: {"edge": "highest"}},
        "metric": {"name": "accuracy", "rows": 1260, "share": share, "lower_is_better": False},
        "answer": {"sentences": ["A first line.", "A second."], "claims": 6},
        "notes": ["Test rows: as given."],
        "learning_curve": {"sentence": "Whether more rows would help cannot be told."},
        "command": "microplane compare minilm reviews.csv",
    }


@pytest.mark.parametrize("name", ["lora", "a-method-of-a-package-with-a-long-name"])
def test_the_table_fits_a_terminal(name):
    lines = output.terminal(result(name=name))
    table = [line for line in lines if not line.startswith(("*", "!", "In use", "Forgetting", "  "))]
    assert all(len(line) <= 80 for line in lines)
    assert len(table) == 4
    told = " ".join(" ".join(lines).split())
    assert told.endswith(f"Forgetting (loss on general text, after less before): {name} +0.031")
    assert f"In use: {name} 312 tokens/s" in told
    assert "84.6%" in table[1]
    assert "82.0 to 87.1" in table[1]
    assert "+1.2 *" in table[1]
    assert "0.000316!" in table[1]
    assert table[2].split() == ["vera", "failed"]
    assert table[3].startswith("TF-IDF + logist")
    assert ".." in table[3]


def test_markdown_and_csv_have_all_rows():
    text = output.markdown(result())
    assert text.startswith("**A first line.**\nA second.\nWhether more rows would help cannot be told.\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in rows}) == 1
    assert "- vera failed: a | in a reason" in text
    head, first, base = output.comma_separated(result()).splitlines()
    assert head.startswith("name,kind,score,low,high,lr,seconds")
    assert first.startswith("lora,method,0.846,0.82,0.871,0.000316,3723.0")
    told = dict(zip(head.split(","), first.split(","), strict=True))
    assert (told["forgetting"], told["speed_per_second"], told["speed_unit"]) == ("0.0312", "312.4", "tokens")
    assert told["ways"] == "hf gguf"
    assert text.splitlines()[6].endswith("| 2.4 MB | 1.5 | 312 tokens/s | +1.5 | +0.031 | hf, gguf |")
    assert base == "TF-IDF + logistic regression,baseline,0.789,0.76,0.81"


@pytest.mark.parametrize(
    ("value", "changes", "said"),
    [
        (0.0123, {}, "+1.2"),
        (-0.05, {"told_apart": True}, "-5.0 *"),
        (-1e-9, {}, "+0.0"),
        (0.0, {"identical": True}, "same"),
    ],
)
def test_a_difference_is_said(value, changes, said):
    found = {"value": value, "identical": False, "told_apart": False} | changes
    assert output.difference_cell(output.words_of(result()), found) == said


JSON = ['{"a": 1}', '{"a": 2}']
LABELS = ["yes", "no", "yes", "yes"]
TEXTS = ["a whole sentence about something", "another one that is not like it"]


@pytest.mark.parametrize(("targets", "first"), [(JSON, "exact_match"), (LABELS, "accuracy"), (TEXTS, "rougeL")])
def test_the_usual_metric_suits_the_answers(targets, first):
    assert metrics_of(None, targets)[0].name == first


def test_scores_are_of_single_rows():
    assert choose("json_equal", None, JSON).of(['{ "a":1}', "{}"], JSON).tolist() == [1.0, 0.0]
    assert choose(None, None, LABELS).of(["YES", "yes", "", "yes"], LABELS).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert choose("chrf", None, TEXTS).of(TEXTS, TEXTS).tolist() == pytest.approx([1.0, 1.0])
    assert choose(None, "regression", []).of(["1, 2", "3"], ["2, 4", "3"]).tolist() == [1.5, 0.0]
    assert choose(None, "tokens", []).of(["A B", "O"], ["A O", "O"]).tolist() == [0.5, 1.0]
    assert choose(None, "multilabel", []).of(["a, b", "a"], ["a, b", "b"]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", ["macro_f1", "bleu", "acuracy"])
def test_a_metric_that_rows_do_not_have_is_refused(name):
    with pytest.raises(ConfigError, match=f"--metric {name}: rows for classification cannot be compared by it"):
        choose(name, "classification", [])


def test_of_one_method_no_star_is_explained():
    alone = result()
    alone["methods"][0]["to_reference"] = None
    assert output.star(alone) == ""
    assert not any(line.startswith("*:") for line in output.terminal(alone))
    assert "told apart" not in output.markdown(alone)
    assert "mean of the seeds.\n" in output.markdown(alone)
    one_claim = result() | {"answer": {"sentences": ["A."], "claims": 1}}
    assert "(Holm over one comparison, 5% in all)" in output.star(one_claim)
    assert "(Holm over 6 comparisons, 5% in all)" in output.star(result())


@pytest.mark.parametrize("name", ["lora", "bottleneck"])
def test_long_figures_take_the_place_of_the_last_columns(name):
    """As errors of large numbers have them."""
    wide = result(share=False, name=name)
    wide["methods"][0] |= {
        "score": {"value": 123456.0, "low": 101234.0, "high": 145678.0},
        "to_reference": {"value": -12345.0, "identical": False, "told_apart": True},
    }
    first, row, *_ = output.terminal(wide)
    assert len(first) <= 80 >= len(row)
    assert row.startswith(f"{name} ")
    assert "101,234 to 145,678" in row
    assert first.split()[:1] == ["method"]


@pytest.mark.parametrize(
    "value",
    ["a: b", "yes", "3", 3, 1e-5, 2.5, True, None, ["q", "v"], [-100], {"text": "t", "label": None}, "it's", ""],
)
def test_the_command_is_read_back_as_it_was_meant(value):
    plan = SimpleNamespace(
        model="m", data="d", methods=("lora",), budget=None, seeds=3, metric=None, general=None, learning_curve=False,
        set={"data.fields": value},
    )  # fmt: skip
    *_, last = shlex.split(command_of(plan))
    assert split_assignment(last) == ("data.fields", value)
