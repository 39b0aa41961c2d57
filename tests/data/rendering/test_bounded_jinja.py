"""A chat template that does not end is refused in seconds; the ones that people use loop as ever."""

from __future__ import annotations

import time

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from microplane.data.reading.example import Message
from microplane.data.rendering.chat_template import ChatTemplate
from microplane.errors import DataError

ASK = [Message("user", "hello"), Message("assistant", "hi")]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "loops more than 1,000,000"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{{ loop.index }}{% endfor %}{% endfor %}", "loops more"),
        ("{% macro m(n) %}{% for b in range(9) %}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}", "refuses"),
        ("{{ 'a' * 10 ** 12 }}", "repeats a text or a list"),
        ("{% set l = [1] * 99999999 %}", "repeats a text or a list"),
        ("{{ 9 ** 999999999 }}", "asks for the power"),
    ],
)
def test_a_template_without_end_is_refused(template, told):
    started = time.monotonic()
    with pytest.raises(DataError, match=told):
        ChatTemplate(template, {}).text(ASK)
    assert time.monotonic() - started < 20


def test_loops_are_as_they_were():
    template = (
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ m.role[0] }}"
        "{{ loop.first }}{{ loop.last }}{{ loop.previtem is defined }}{% if loop.nextitem %}+{% endif %}"
        "{% for letter in m.content %}{{ letter }}{{ loop.revindex }}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% endfor %}{% else %}none{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for x in nothing %}{% else %}empty{% endfor %}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 2.5 * 2 }}"
    )
    plain = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).from_string(template)
    wanted = plain.render(messages=[{"role": message.role, "content": message.content} for message in ASK])
    for _ in range(3):  # counted anew each time
        assert ChatTemplate(template, {}).text(ASK) == wanted


def test_each_rendering_is_counted_by_itself():
    template = ChatTemplate("{% for a in range(60000) %}{% endfor %}x", {})
    assert {template.text(ASK) for _ in range(20)} == {"x"}


def test_the_places_in_a_loop_are_all_that_is_not_looked_at_twice():
    asked = "".join(f"{{{{ loop.{name} is defined }}}} " for name in ("__class__", "_iterator", "first", "cycle"))
    template = "{% for m in [1, 2] %}" + asked + "{{ loop.cycle('a', 'b') }}{% endfor %}"
    plain = ImmutableSandboxedEnvironment().from_string(template).render()
    assert ChatTemplate(template, {}).text(ASK) == plain == "False False True True aFalse False True True b"
