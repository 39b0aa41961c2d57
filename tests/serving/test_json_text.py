"""What may follow in an object that is being written: exactly what `json.loads` would still take."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplane.serving.json_text import State

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_object_can_be_written_and_only_its_end_is_whole(value, indent, ascii):
    text, state = json.dumps(value, indent=indent, ensure_ascii=ascii), State()
    for place, character in enumerate(text):
        assert not state.is_whole
        state = state.read(character)
        assert state is not None, text[: place + 1]
    assert state.is_whole


@given(OBJECTS, st.integers(0, 200), st.sampled_from('{}[]",:-.0eEtn \\u\n'), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_is_taken_as_whole_is_json_and_the_rest_is_not(value, place, other, put_in):
    text = json.dumps(value)
    place %= len(text)
    text = text[:place] + other + text[place + (not put_in) :]
    state = State().read(text)
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    assert (state is not None and state.is_whole) == is_object


BROKEN = [
    *("[", "1", '"a"', "{,", "{]", '{"a"}', '{"a":01', '{"a":1,}', '{"a":+1', '{"a":.5', '{"a":nul}', '{"a":-}'),
    *('{"a":"\\x', '{"a":"\\u12g', '{"a":"\n', '{"a":1}}', '{"a":1]', '{"a":[1}', '{"a":[1 2'),
    *('{"a":1.}', '{"a":1e}', '{"a":1e+}', '{"a":00'),
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_breaks_it_cannot_follow(text):
    assert State().read(text) is None
