"""Rows that are put together from what is known of their shape are those that come of rendering each."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from tokenizers import AddedToken, processors

from microplane.data.reading.example import Example, Message
from microplane.data.rendering import causal
from microplane.data.rendering.causal import CausalRenderer
from microplane.data.rendering.chat_template import ChatTemplate
from microplane.data.rendering.layout import Added, layout_of
from microplane.data.rendering.symbolic import render
from microplane.errors import DataError
from tests.tiny_tokenizers import spaced, tiny

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>", "</think>")
ASKED = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
TURN = "<|{{ m.role }}|>\n{{ TEXT }}<|end|>\n"


def loop(body: str, before: str = "", behind: str = ASKED) -> str:
    return before + "{% for m in messages %}" + body + "{% endfor %}" + behind


def turn(text: str) -> str:
    return TURN.replace("TEXT", text)


# How templates go about the texts of messages, and how far that is known: the tokens of all that they write themselves
# ("plan"), their text ("layout"), or nothing, so that each row is rendered.
TEMPLATES = {
    "as it is": (loop(turn("m.content")), "plan"),
    "joined": (loop("{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>' + '\n' }}"), "plan"),
    "joined by ~": (loop("{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>' }}"), "plan"),
    "trimmed": (loop(turn("m.content | trim"), "{{ bos_token }}"), "plan"),
    "stripped": (loop(turn("m.content.strip()")), "plan"),
    "one end stripped": (loop(turn("m.content.lstrip('\n') if loop.last else m.content")), "plan"),
    "a system prompt of its own": (
        loop(turn("m.content"), "{% if messages[0].role != 'system' %}<|system|>\nBe good.<|end|>\n{% endif %}"),
        "plan",
    ),
    "the system prompt in the first question": (
        "{% if messages[0].role == 'system' %}{% set rules = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set rules = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
        "{% for m in rest %}<|{{ m.role }}|>{{ (rules if loop.first else '') + m.content | trim }}<|end|>{% endfor %}"
        + ASKED.replace("\n", ""),
        "plan",
    ),
    "a macro": (
        "{% macro said(m) %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endmacro %}"
        + loop("{{ said(m) }}", behind="{% if add_generation_prompt %}<|assistant|>{% endif %}"),
        "plan",
    ),
    "a block that is kept": (
        loop("{% set said %}{{ m.content }}<|end|>{% endset %}<|{{ m.role }}|>\n{{ said }}"), "plan"
    ),
    "a filtered block": (loop("<|{{ m.role }}|>\n{% filter trim %}{{ m.content }}<|end|>\n{% endfilter %}"), "plan"),
    "thoughts of earlier answers left out": (
        loop(turn("m.content.split('</think>')[-1] if '</think>' in m.content and not loop.last else m.content")),
        "plan",
    ),
    "a kind of text for itself": (
        loop(turn("'/' + m.content if m.content.startswith('!') or m.content == 'stop' else m.content")),
        "plan",
    ),
    "an end for itself": (loop(turn("m.content + '.' if not m.content.endswith('.') else m.content")), "layout"),
    "only texts": (loop(turn("m.content if m.content is string else raise_exception('no text')")), "plan"),
    "no special tokens": (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA: {% else %}{{ m.content }}\n\n"
        "{% endif %}{% endfor %}",
        "layout",
    ),
    "a line before the end": (loop(turn("m.content + '\n'")), "layout"),
    "marked answers": (
        loop("<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
             "{% endgeneration %}\n{% else %}{{ m.content }}<|end|>\n{% endif %}"),
        "plan",
    ),
    "by its length": (loop(turn("m.content if m.content | length < 20 else m.content[:20] + '...'")), ""),
    "in capitals": (loop(turn("m.content | upper if m.role == 'user' else m.content")), ""),
    "letter by letter": (
        loop(turn("m.content") + "{% for letter in m.content %}{{ loop.index0 % 1 }}{% endfor %}"), ""
    ),
    "replaced": (loop(turn("m.content | replace('a', 'b') if m.role == 'user' else m.content")), ""),
    "as JSON": (loop(turn("m.content | tojson if m.role == 'user' else m.content")), ""),
    "counted in words": (loop(turn("m.content ~ (m.content.split() | length)")), ""),
    "compared": (loop(turn("m.content if m.content != messages[0].content else m.content + ' again'")), ""),
    "twice": (loop(turn("m.content + m.content if m.role == 'user' else m.content")), ""),
    "thoughts put before each answer": (
        loop(turn("('<think></think>' if m.role == 'assistant' else '') + m.content"), behind=ASKED), "layout"
    ),
    "thoughts put before the last answer": (
        loop(turn("('<think></think>' if m.role == 'assistant' and loop.last else '') + m.content")), "layout"
    ),
    "the number of messages": (loop(turn("m.content"), before="{{ messages | length }}"), ""),
    "as a number": (loop(turn("m.content") + "{{ m.content | int }}"), ""),
    "as a key": (loop(turn("m.content") + "{{ {'stop': 'x'}[m.content] }}"), ""),
    "by chance": (loop(turn("m.content") + "{{ ['x'] | random }}"), ""),
}  # fmt: skip
PARTS = (
    *(
        "hello",
        "a",
        "b b",
        "stop",
        "!no",
        "what is it?",
        "fine.",
        "chào bạn",
        "e\u0301te\u0301",
        "\U000f0000x",
        "12 + 3",
    ),
    *(" spaced ", "\n\nline", "end\n", "\t", "two\n\nlines", "{{ m }}", "Q: x\nA: y", "¶§¶", "'", "\\n", "日本"),
)
RARE = ("<|end|>", "</s>", "<think>", "</think>", "<|user|>", " ", "", "<|", "|>", "<think>hm</think>fine", "</s> </s>")


def said(draw: random.Random) -> str:
    parts = [draw.choice(RARE if draw.random() < 0.04 else PARTS) for _ in range(draw.randint(1, 4))]
    return draw.choice(("", " ")).join(parts)


def talks(draw: random.Random, count: int) -> list[Example]:
    """Of few shapes, some with what makes a conversation another one."""
    shapes = [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user", "assistant")]
    found = []
    for number in range(count):
        roles = draw.choice((*shapes, ("user", "assistant", "user")) if number % 20 == 0 else shapes)
        messages = [Message(role, said(draw), draw.random() < 0.9) for role in roles]
        messages[-1] = replace(messages[-1], trained=number % 15 > 0)
        if number % 12 == 0:
            more = draw.choice(({"thoughts": "hm"}, {"extra": {"name": "Ann"}}))
            messages[-1] = replace(messages[-1], **more)
        tools = ({"name": "lamp"},) if number % 25 == 24 else ()
        found.append(Example(tuple(messages), None, f"x.jsonl:{number}", tools=tools))
    return found


def outcome(renderer: CausalRenderer, example: Example, most: int):
    try:
        return renderer.rows(example, most, most)
    except DataError as error:
        return str(error)


def trimmed(template):
    """Whose places leave out the white space that tokens begin with."""
    tokenizer = tiny(SPECIAL, template, eos="<|end|>", bos="<s>", merges=[("Ċ", "Ċ"), ("Ġ", "a"), ("h", "e")])
    tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def plain(template):
    return tiny(SPECIAL, template, eos="<|end|>", bos="<s>", merges=[("l", "l"), ("Ċ", "Ċ"), (">", "Ċ")])


def with_space_before(template):
    return spaced(SPECIAL, template, eos="<|end|>", bos="<s>")


@pytest.mark.parametrize("make", [plain, trimmed, with_space_before])
@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_are_those_of_rendering_each(name, make, monkeypatch):
    tokenizer = make(TEMPLATES[name][0])
    known, rendered = CausalRenderer(tokenizer), CausalRenderer(tokenizer)
    monkeypatch.setattr(rendered, "_known", lambda messages: None)
    draw = random.Random(name)
    for example in talks(draw, 150):
        most = draw.choice((8, 30, 1000))
        assert outcome(known, example, most) == outcome(rendered, example, most), example


def how_far(renderer: CausalRenderer) -> str:
    for number in range(causal.OFTEN + causal.PROVED):
        messages = (Message("user", f"ask {number}"), Message("assistant", f"say {number}"))
        renderer.rows(Example(messages, None, ""), 999, 999)
    (shape,) = renderer._shapes.values()
    return "plan" if shape.plan else "layout" if shape.layout else ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_how_much_is_known_of_a_template(name):
    assert how_far(CausalRenderer(plain(TEMPLATES[name][0]))) == TEMPLATES[name][1]


def test_without_a_template_prompt_and_answer_are_put_together_too(monkeypatch):
    for tokenizer in (
        plain(None),
        tiny(("<s>", "</s>"), eos="</s>", bos="<s>", adds_bos=True),
        with_space_before(None),
    ):
        known, rendered = CausalRenderer(tokenizer, "plain"), CausalRenderer(tokenizer, "plain")
        monkeypatch.setattr(rendered, "_known", lambda messages: None)
        for example in talks(random.Random(1), 200):
            assert outcome(known, example, 40) == outcome(rendered, example, 40), example
    assert how_far(CausalRenderer(plain(None), "plain")) == "plan"


def alike(template: str, count: int = 25, make=plain) -> None:
    known, rendered = CausalRenderer(make(template)), CausalRenderer(make(template))
    rendered._known = lambda messages: None  # type: ignore[method-assign]
    for example in talks(random.Random(template), count):
        assert outcome(known, example, 1000) == outcome(rendered, example, 1000), (template, example)


METHODS = [name for name in dir(str) if not name.startswith("_")]


@pytest.mark.parametrize("text", ["m.content", "('x' + m.content)", "(m.content ~ 'x')"])
def test_whatever_a_template_does_to_a_text_rows_are_those_of_rendering_each(text):
    """All filters and tests of Jinja and all methods of texts, of which few are known."""
    for name in sorted(set(DEFAULT_FILTERS) - {"random"}):
        alike(loop(turn(f"{text} | {name}")))
    for name in sorted(filter(str.isidentifier, DEFAULT_TESTS)):
        alike(loop(turn(f"m.content if {text} is {name} else 'no'")))
        alike(loop(turn(f"m.content if {text} is {name}('a') else 'no'")))
    for name in METHODS:
        alike(loop(turn(f"{text}.{name}()")))
        alike(loop(turn(f"m.content if {text}.{name}('a') else 'no'")))


OPERATORS = (
    *("{} == 'stop'", "'stop' != {}", "{} < 'h'", "'h' >= {}", "'a' in {}", "{} in ['stop', 'hello']", "{} in 'hello'"),
    *("not {}", "{} and 'a' in {}", "{}[0] == 'h'", "{}[-1:] == '.'", "({} * 2) | length > 20", "'%s' % {} == 'a'"),
    *("{} == messages[0].content", "{} in messages | map(attribute='content')", "{} is sameas messages[0].content"),
    *("[{}] == ['stop']", "dict(a={}) == {'a': 'stop'}", "{} | attr('upper') is defined", "{}.text is defined"),
    *("messages | selectattr('content', 'equalto', 'stop') | list", "messages | map(attribute='content') | join == ''"),
    *("messages | groupby('content') | length > 1", "messages | sort(attribute='content') | first == m"),
    *("messages | unique(attribute='content') | list | length > 1", "m.items() | list | length > 2"),
    *("cycler('a', {}).next() == 'stop'", "'{}'.format({}) == 'a'", "{} | string == 'stop'", "m | tojson == ''"),
    *("{} | default('') | trim == ''", "{} | d('x', true) == 'a'"),
)  # fmt: skip


@pytest.mark.parametrize("asked", OPERATORS)
def test_whatever_a_template_asks_of_a_text_rows_are_those_of_rendering_each(asked):
    for text in ("m.content", "(m.content | trim)", "('<' + m.content)"):
        alike(loop(turn(f"m.content if {asked.replace('{}', text)} else m.content + '!'")))


def test_a_template_that_looks_at_the_clock_is_rendered_each_time():
    clock = loop(turn("m.content"), before="{{ strftime_now('%d') }}")
    assert how_far(CausalRenderer(plain(clock))) == ""
    assert how_far(CausalRenderer(plain(clock).with_date("2026-11-28"))) == "plan"


@pytest.mark.parametrize(
    ("others", "parts"),
    [
        ([], True),
        (["<|user|>", "end|", "<|", "<|en", "||>"], True),
        (["x<|end|>"], False),  # which is found first where an x stands before it
        (["x<|"], False),
        (["<|end|>\n"], False),
        (["|<"], False),
    ],
)
def test_a_special_token_parts_texts_where_no_other_can_begin_before_it_or_go_on(others, parts):
    tokens = {0: AddedToken("<|end|>", special=True, normalized=False)}
    tokens |= {number: AddedToken(text, normalized=False) for number, text in enumerate(others, 1)}
    assert Added(tokens, [0]).parts(0) == ("<|end|>" if parts else "")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_a_token_that_looks_beside_it_parts_no_texts(flag):
    token = AddedToken("<|end|>", special=True, **{"normalized": False, flag: True})
    assert Added({7: token}, [7]).parts(7) == ""
    assert Added({7: AddedToken("<|end|>", normalized=False)}, []).parts(7) == ""  # it is no special one


@pytest.mark.parametrize("other", ["o<|end|>", "<|end|>\n", "\n\n", ">\n", "<|user|>\nhello"])
def test_tokens_that_reach_into_the_texts_beside_them_are_found(other):
    def make(template):
        tokenizer = plain(template)
        tokenizer.backend.add_tokens([AddedToken(other, normalized=False)])
        return tokenizer

    alike(loop(turn("m.content")), 100, make)


def test_texts_are_brought_into_their_form_together_with_what_stands_beside_them():
    def make(template):
        return plain(template).with_unicode("nfc")

    template = loop("<|{{ m.role }}|>\ne{{ m.content }}\u0301<|end|>\n")
    known, rendered = CausalRenderer(make(template)), CausalRenderer(make(template))
    rendered._known = lambda messages: None  # type: ignore[method-assign]
    for text in ["\u0301", "a", "\u0323\u0301", "x\u0301"] * 4:
        example = Example((Message("user", text), Message("assistant", text)), None, "")
        assert known.rows(example, 99, 99) == rendered.rows(example, 99, 99)


def test_of_many_shapes_a_few_are_known(monkeypatch):
    monkeypatch.setattr(causal, "SHAPES", 2)
    renderer = CausalRenderer(plain(TEMPLATES["as it is"][0]))
    for turns in range(1, 6):
        messages = (Message("user", "ask"), Message("assistant", "say")) * turns
        for _ in range(causal.OFTEN + 1):
            (row,) = renderer.rows(Example(messages, None, ""), 999, 999)
            assert sum(row.targets) == 4 * turns
    assert len(renderer._shapes) == 2


def test_a_plan_that_is_proved_wrong_is_dropped(monkeypatch):
    """As one by a tokenizer that is not what it seems."""
    renderer, rendered = (CausalRenderer(plain(TEMPLATES["as it is"][0])) for _ in range(2))
    monkeypatch.setattr(rendered, "_known", lambda messages: None)
    monkeypatch.setattr(renderer, "_part_ids", lambda text: (5,))
    for example in talks(random.Random(3), 100):
        assert outcome(renderer, example, 99) == outcome(rendered, example, 99)
    assert all(shape.plan is None for shape in renderer._shapes.values())


@pytest.mark.parametrize(
    "asked",
    [
        *("m.content == messages[0].content", "m.content | attr('upper') is defined", "m.content | length > 3"),
        *("m.content | int > 3", "m.content in {'stop': 1}", "m.content[0] is defined", "'%s' % m.content == 'a'"),
    ],
)
def test_what_depends_on_more_than_can_be_told_is_not_known_at_all(asked):
    """Not even until a row proves it wrong."""
    assert render(loop("{{ 'a' if " + asked + " else 'b' }}"), {}, ["user", "assistant"]) is None
    assert render(loop("{{ m.content }}"), {}, ["user", "assistant"]) == ((0, 1), frozenset())


def test_an_answer_that_stands_otherwise_once_it_is_history_has_no_layout():
    template = ChatTemplate(TEMPLATES["thoughts put before the last answer"][0], {})
    talk = [Message("user", "ask"), Message("assistant", "say")]
    assert layout_of(template, talk) is not None
    assert layout_of(template, talk * 2) is None


def test_tokens_of_short_texts_are_kept_and_of_long_ones_are_not():
    encode = CausalRenderer(plain(TEMPLATES["as it is"][0]))._part_ids
    for text, kept in (("Be good. " * 20, True), ("Be good. " * 1_000, False)):
        assert encode(text) == encode(text)
        assert (encode(text) is encode(text)) == kept
