"""The template library: every wording of every family, options, few-shot prompts, and families that do not fit."""

import re

import pytest

from microplane.config.build import build, read_yaml
from microplane.data.mixtures.task_templates import (
    FOLDER,
    Family,
    OptionStyle,
    families,
    family,
    join_shots,
    list_families,
    option_styles,
)
from microplane.errors import ConfigError

ALL = [
    (name, number, template, turned)
    for name, kind in families().items()
    for turned, templates in ((False, kind.templates), (True, kind.inverted))
    for number, template in enumerate(templates, 1)
]
BLOCK = "Options:\n- first\n- second"


def sentinels(kind: Family) -> dict[str, str]:
    """Text for each field that stands nowhere in a template, with braces that must stay."""
    return {name: f"<<{name}>> {{x}}" for name in kind.fields}


def test_the_promised_families_are_there():
    promised = {"sentiment", "topic", "nli", "qa_context", "qa_closed", "summarisation", "translation", "definition"}
    assert promised | {"command", "dialogue", "reasoning"} <= set(families())
    assert all(len(kind.templates) >= 10 and len(kind.inverted) >= 3 for kind in families().values())


@pytest.mark.parametrize(("name", "number", "template", "turned"), ALL, ids=lambda value: str(value)[:20])
def test_a_template_shows_its_fields_and_never_the_answer(name, number, template, turned):
    values = sentinels(family(name))
    inputs, targets = template.render(values)
    assert "{options}" not in inputs
    assert "\n\n\n" not in inputs + targets  # it stands between exemplars
    assert (inputs, targets) == (inputs.strip(), targets.strip())
    read = {field for field in values if f"<<{field}>> {{x}}" in inputs}
    written = {field for field in values if f"<<{field}>> {{x}}" in targets}
    assert read
    assert written
    assert not read & written
    assert family(name).answer in (read if turned else written)
    assert family(name).answer not in (written if turned else read)


@pytest.mark.parametrize(("name", "number", "template", "turned"), ALL, ids=lambda value: str(value)[:20])
def test_options_stand_in_the_input_once_and_above_a_cue(name, number, template, turned):
    kind = family(name)
    if turned or kind.options == "none":
        return
    inputs, targets = template.render(sentinels(kind), BLOCK)
    assert inputs.count(BLOCK) == 1
    assert BLOCK not in targets
    bare = template.render(sentinels(kind))[0]
    if bare.endswith(":"):  # what asks for the answer is the last thing read
        assert inputs.splitlines()[-1] == bare.splitlines()[-1]


def test_no_two_templates_of_a_family_say_the_same():
    for kind in families().values():
        said = [
            re.sub(r"\W+", " ", t.inputs.replace("{options}", "")).lower() for t in (*kind.templates, *kind.inverted)
        ]
        assert len(set(said)) == len(said)


def test_every_field_is_shown_by_some_template():
    for kind in families().values():
        used = {name for t in kind.templates for name in kind.fields if f"{{{name}}}" in t.inputs + t.targets}
        assert used == set(kind.fields)


def test_without_options_nothing_is_left_of_their_line():
    template = family("nli").templates[1]
    values = {"premise": "It rains.", "hypothesis": "It is {options}.", "label": "no"}
    assert template.render(values)[0] == "Premise: It rains.\nHypothesis: It is {options}.\nRelation:"
    shown = template.render(values, "Options:\n- yes\n- no")[0]
    assert shown == "Premise: It rains.\nHypothesis: It is {options}.\nOptions:\n- yes\n- no\nRelation:"


def test_options_are_listed_in_every_style():
    shown = [style.show(["yes", "{no}"]) for style in option_styles()]
    assert len(set(shown)) == len(shown) >= 5
    assert all("yes" in text and "{no}" in text for text in shown)
    assert "Choose from:\n(A) yes\n(B) {no}" in shown
    many = OptionStyle(head="", item="{letter}{option}", between=" ").show([""] * 54)
    assert many.split()[25:28] == ["Z", "AA", "AB"]
    assert many.endswith(" BB")


# Few-shot prompts


def test_exemplars_are_joined_with_the_separators_of_flan():
    assert join_shots([("a", "1"), ("b", "2")], "c", 100) == ("a\n\n1\n\n\nb\n\n2\n\n\nc", 2)


@pytest.mark.parametrize(("longest", "count"), [(18, 2), (17, 1), (10, 1), (9, 0), (1, 0)])
def test_exemplars_that_do_not_fit_are_left_out_from_the_end(longest, count):
    prompt, kept = join_shots([("aaa", "1"), ("bb", "2")], "c", longest)
    assert kept == count
    assert prompt == ["c", "aaa\n\n1\n\n\nc", "aaa\n\n1\n\n\nbb\n\n2\n\n\nc"][count]
    assert len(prompt) <= max(longest, 1)


def test_a_separator_within_a_text_does_not_look_like_one():
    prompt, _ = join_shots([("a\n\n\n\nb", "1\n\n\n2")], "c\n\n\nd", 100)
    assert prompt.split("\n\n\n") == ["a\n\nb\n\n1\n\n2", "c\n\nd"]


# Families that do not fit


def wrong(**changes) -> str:
    values = read_yaml(FOLDER / "topic.yaml") | changes
    with pytest.raises(ConfigError) as caught:
        build(Family, values, where="topic.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "class"}, "answer 'class' is none of the fields text, label"),
        ({"templates": ["{text}", "{text}"]}, "the template '{text}' is there twice"),
        ({"templates": ["{txt}"]}, "has the place {txt}, which is no field"),
        ({"templates": ["{text} {label}"]}, "shows {label}, which is asked for"),
        ({"templates": ["What?"]}, "must hold a field in its inputs and one in its targets"),
        ({"templates": [{"inputs": "{label}", "targets": "{text}"}]}, "must hold {label} in its targets"),
        ({"inverted": [{"inputs": "{text}", "targets": "{label}"}]}, "must hold {label} in its inputs"),
        ({"templates": ["{text} {options}"]}, "has {options} where none are listed, or not on a line"),
        ({"options": "none", "templates": ["{text}\n{options}"]}, "has {options} where none are listed"),
        ({"templates": ["{text} }"]}, "has a brace without a name; expected places such as {text}"),
        ({"templates": []}, "templates = "),
        ({"options": "maybe"}, "options = 'maybe': must be 'needed', 'optional' or 'none'"),
        ({"templats": []}, "there is no such knob. Did you mean 'templates'?"),
    ],
)
def test_a_family_that_does_not_fit_is_refused(changes, message):
    assert message in wrong(**changes)


def test_a_style_without_its_option_is_refused():
    with pytest.raises(ConfigError, match="must hold {option}"):
        build(OptionStyle, {"head": "", "item": "- {label}", "between": ""})


def test_an_unknown_family_is_named_with_what_there_is():
    with pytest.raises(ConfigError, match="no family of templates 'sentimnt'. Did you mean 'sentiment'?.*qa_closed"):
        family("sentimnt")


def test_the_list_of_families_says_what_each_needs():
    assert "nli: whether one statement follows" in list_families()
    assert "  hypothesis: the statement to be judged" in list_families()


def test_options_go_on_behind_the_26th():
    style = OptionStyle(head="", item="{letter} {number} {option}", between="|")
    listed = style.show(["x"] * 28).split("|")
    assert [listed[at] for at in (0, 25, 26, 27)] == ["A 1 x", "Z 26 x", "AA 27 x", "AB 28 x"]
