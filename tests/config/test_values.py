"""Values as people type them: words that YAML 1.1 has a meaning of its own for, and texts that look like YAML."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from microplane.cli.problems import refuse_empty
from microplane.config import yaml_text
from microplane.config.build import assemble, build, read_yaml
from microplane.config.knobs import RunKnobs
from microplane.config.section import Knobs, kinds_of
from microplane.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            (word, word)
            for word in ("no", "NO", "yes", "on", "off", "y", "n", "1:30", "12:30:45", "2026-11-28", "0x", "=")
        ),
        *(("010", 10), ("09", 9), ("0o17", 15), ("-0x1f", -31), ("0b11", 3), ("1_000", 1000), ("+5", 5)),
        *((".5", 0.5), ("5.", 5.0), ("1_0.5", 10.5), ("-1E+2", -100.0), ("True", True), ("false", False), ("~", None)),
        ("[no, 010, {on: off}]", ["no", 10, {"on": "off"}]),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    assert yaml_text.parse(text) == value
    assert type(yaml_text.parse(text)) is type(value)


WORDS = ["no", "010", "09", "0o10", "1:30", "2026-11-28", "1_0", "on", "12e45", "0x1f", ".inf", "=", "<<", "true", "~"]


@pytest.mark.parametrize("word", WORDS)
def test_what_is_written_is_read_back_as_text(word):
    assert yaml_text.parse(yaml_text.dump({word: word})) == {word: word}


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        *((word, word) for word in ("2024", "no", "12e45", "1:30", "[a", "{a: b}", "*a", "- a", "# Rules", "|")),
        ("Rules: be brief", "Rules: be brief"),
        ("C # major", "C # major"),
        ("one\ntwo\n\nthree", "one\ntwo\n\nthree"),
        ('"a\\nb # c"', "a\nb # c"),
        ("'it''s'", "it's"),
        ("''", ""),
        ("null", None),
        ("~", None),
    ],
)
def test_a_knob_of_text_is_what_was_typed(typed, text):
    knobs = assemble(assignments=[f"data.system={typed}", f"model.revision={typed}"])
    assert (knobs.data.system, knobs.model.revision) == (text, text)


def test_of_other_knobs_words_are_words_too(tmp_path):
    given = ["train.class_weights={yes: 2, no: 1, true: 3}", "data.no_label=[no, true, -1]", "data.skip_bad_rows=yes"]
    knobs = assemble(assignments=[*given, "train.feature_cache=off", "data.date=2026-11-28"])
    assert knobs.train.class_weights == {"yes": 2, "no": 1, "true": 3}
    assert knobs.data.no_label == ("no", "true", "-1")
    assert (knobs.data.skip_bad_rows, knobs.train.feature_cache, knobs.data.date) == (True, "off", "2026-11-28")
    (tmp_path / "c.yaml").write_text("data: {target_language: no, date: 2026-11-28}\ntrain: {seed: 010}\n")
    knobs = build(RunKnobs, read_yaml(tmp_path / "c.yaml"))
    assert (knobs.data.target_language, knobs.data.date, knobs.train.seed) == ("no", "2026-11-28", 10)


class _Some(Knobs):
    whole: int = 1
    shares: tuple[float, ...] | None = None
    either: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    switch: bool = False
    both: bool | int = 0
    word: str = ""


@pytest.mark.parametrize("values", [{"whole": True}, {"shares": [0.5, False]}, {"either": True}])
def test_a_truth_is_no_number(values):
    with pytest.raises(ConfigError, match="must be a number, not true or false"):
        build(_Some, values)


def test_where_a_truth_is_meant_it_stays():
    kept = build(_Some, {"switch": True, "both": True, "whole": 3, "shares": [1, 0.5]})
    assert (kept.switch, kept.both, kept.whole, kept.shares) == (True, True, 3, (1.0, 0.5))
    assert kinds_of(dict[str, float] | Literal["none"]) == {dict, str, float, "none"}


@pytest.mark.parametrize(
    "arguments",
    [["train", "--lr", ""], ["train", "--lr="], ["eval", "run", "-s", " "], ["plan", "m", "--methods", "\t"]],
)
def test_an_option_with_nothing_behind_it_is_not_passed_over(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        refuse_empty(arguments)
    assert ended.value.code == 2
    assert "nothing stands behind -" in capsys.readouterr().err


def test_what_may_be_empty_is():
    refuse_empty(["generate", "run", "--system", "", "--", "--lr", ""])
    refuse_empty(["generate", "", "--set", "system=''", "--system="])
