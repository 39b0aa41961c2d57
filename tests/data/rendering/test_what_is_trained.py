"""What is trained is what generation has to write at that place: answers that a template renders otherwise as history,
thoughts, calls of tools, answers with a weight, texts that were rendered already."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from microplane.data.reading.example import Example, Message
from microplane.data.rendering.causal import causal_renderer
from microplane.data.rendering.seq2seq import Seq2SeqRenderer
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import DataError
from tests.tiny import CHATML, SHALLOW, save_tiny_folder

SPECIAL = ("<s>", "<eos>", "<t>", "</t>")
# As DeepSeek-R1's: no answer keeps its thought; generation opens one, or does not.
FORGETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content.split('</think>')[-1] }}<eos>"
    "{% else %}[Q]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)
FORGETS_OPENED = FORGETS.replace("%}[A]{% endif", "%}[A]<think>\n{% endif")
# As Qwen3's: only what follows the last question has thoughts, and always some.
RECENT = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<t>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% set thought = m.reasoning_content or (parts[0].split('<think>')[-1] if parts | length > 1 else '') %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought | trim }}\n</think>\n\n{% endif %}{{ parts[-1] | trim }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}</t>\n{% endfor %}{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}</t>\n{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}{% for tool in tools %}<tool>{{ tool | tojson }}{% endfor %}{% endif %}" + RECENT


def said(*turns: str | Message, tools=()) -> Example:
    messages = [t if isinstance(t, Message) else Message(("user", "assistant")[i % 2], t) for i, t in enumerate(turns)]
    return Example(tuple(messages), None, "x:1", tools=tuple(tools))


def answer(content: str, thoughts: str = "", trained: bool = True, **extra) -> Message:
    return Message("assistant", content, trained, thoughts, extra)


def rows(tokenizer, example: Example, template: str = "auto") -> list[str]:
    """Each row with what is trained in brackets."""
    found = []
    for row in causal_renderer(tokenizer, template).rows(example, 10_000, 10_000):
        text, inside, run = "", False, []
        for token, target in [*zip(row.ids, row.targets, strict=True), (None, False)]:
            if target != inside or token is None:
                text += tokenizer.decode(run, skip_special=False) + ("⟧" if inside else "⟦" if target else "")
                inside, run = target, []
            run.append(token)
        found.append(text)
    return found


@pytest.fixture
def model(make_tiny):
    return lambda template: make_tiny(SPECIAL, template, bos="<s>")


def test_an_answer_that_looks_otherwise_as_history_is_a_row_of_its_own(model):
    example = said("q", "<think>hm</think>a", "r", "<think>so</think>b", "s", "c")
    first = "<t>user\nq</t>\n<t>assistant\n"
    second = f"{first}a</t>\n<t>user\nr</t>\n<t>assistant\n"
    third = f"{second}b</t>\n<t>user\ns</t>\n<t>assistant\n"
    assert rows(model(RECENT), example) == [
        f"{first}⟦<think>\nhm\n</think>\n\na</t>⟧\n"[:-1],
        f"{second}⟦<think>\nso\n</think>\n\nb</t>⟧\n"[:-1],
        f"{third}⟦<think>\n\n</think>\n\nc</t>⟧\n"[:-1],
    ]


def test_answers_that_look_the_same_as_history_share_a_row(model):
    assert rows(model(PLAIN), said("q", "a", "r", "b")) == [
        "<t>user\nq</t>\n<t>assistant\n⟦a</t>⟧\n<t>user\nr</t>\n<t>assistant\n⟦b</t>⟧"
    ]


def test_every_row_begins_with_the_prompt_of_its_answer(model):
    tokenizer = model(RECENT)
    example = said("q", answer("a", "hm"), "r", "b", "s", answer("c", "so"))
    renderer = causal_renderer(tokenizer)
    for number, row in zip((1, 3, 5), renderer.rows(example, 10_000, 10_000), strict=True):
        prompt = renderer.prompt(example.messages[:number])
        assert row.ids[: len(prompt)] == prompt
        assert row.targets == [place >= len(prompt) for place in range(len(row.ids))]


@pytest.mark.parametrize("key", ["content", "thoughts"])
def test_thoughts_are_trained_where_the_template_renders_them(model, key):
    message = answer("<think>hm</think>a") if key == "content" else answer("a", "hm")
    assert rows(model(RECENT), said("q", message)) == ["<t>user\nq</t>\n<t>assistant\n⟦<think>\nhm\n</think>\n\na</t>⟧"]


def test_what_the_template_forgets_is_trained_as_it_is_written(model):
    thought = "<think>\nhm\n</think>\n\na"
    assert rows(model(FORGETS), said("q", thought)) == [f"<s>[Q]q[A]⟦{thought}<eos>⟧"]
    assert rows(model(FORGETS_OPENED), said("q", thought)) == ["<s>[Q]q[A]<think>\n⟦hm\n</think>\n\na<eos>⟧"]
    assert rows(model(FORGETS_OPENED), said("q", answer("a", "hm"))) == ["<s>[Q]q[A]<think>\n⟦hm\n</think>\n\na<eos>⟧"]
    assert rows(model(FORGETS), said("q", thought, "r", "b")) == [
        f"<s>[Q]q[A]⟦{thought}<eos>⟧",
        "<s>[Q]q[A]\n\na<eos>[Q]r[A]⟦b<eos>⟧",
    ]


def test_thoughts_without_a_place_are_refused(model, make_tiny, t5_tokenizer):
    for tokenizer in (model(FORGETS), model(PLAIN)):
        with pytest.raises(
            DataError, match="no place for the thoughts of message 2; possible: write them into its text"
        ):
            rows(tokenizer, said("q", answer("a", "hm")))
    with pytest.raises(DataError, match=r"data.template=plain has no place for thoughts"):
        rows(make_tiny(), said("q", answer("a", "hm")))
    with pytest.raises(DataError, match="an encoder-decoder's row has no place for thoughts"):
        Seq2SeqRenderer(load_tokenizer(t5_tokenizer)).rows(said("q", answer("a", "hm")), 99, 99)


def test_a_short_thought_does_not_hide_in_a_long_answer(model):
    with pytest.raises(DataError, match="no place for the thoughts"):
        rows(model(PLAIN), said("q", answer("the light of the hall is on and " * 9, "on it")))


def test_answers_with_weight_nothing_are_not_trained(model, make_tiny):
    example = said("q", answer("a", trained=False), "r", "b", "s", answer("c", trained=False))
    assert rows(model(PLAIN), example) == ["<t>user\nq</t>\n<t>assistant\na</t>\n<t>user\nr</t>\n<t>assistant\n⟦b</t>⟧"]
    assert rows(make_tiny(), example) == ["q\na<eos>\nr\n⟦b<eos>⟧"]
    nothing = said("q", answer("a", trained=False))
    assert [row.count for row in causal_renderer(model(PLAIN)).rows(nothing, 99, 99)] == [0]


def test_an_encoder_decoder_learns_the_last_answer_that_is_trained(t5_tokenizer):
    tokenizer = load_tokenizer(t5_tokenizer)
    example = said("one", "two", "three", answer("four", trained=False))
    (row,) = Seq2SeqRenderer(tokenizer).rows(example, 99, 99)
    assert tokenizer.decode(row.ids[: row.source_length]) == "one"
    assert tokenizer.decode(row.ids[row.source_length :]) == "two"


# Tools and names

CALL = {"type": "function", "function": {"name": "light", "arguments": {"on": True}}}
TOOL = {"type": "function", "function": {"name": "light", "description": "switch"}}


def test_calls_are_trained_where_the_template_renders_them(model):
    example = said("q", answer("", tool_calls=[CALL]), Message("tool", "ok"), answer("done"), tools=[TOOL])
    (first, second) = rows(model(TOOLS.replace("loop.index0 > ns.last", "loop.last")), example)
    assert first.startswith('<tool>{"type": "function", "function": {"name": "light"')
    called = '<call>{"name": "light", "arguments": {"on": true}}</call></t>'
    assert first.endswith(f"<t>assistant\n⟦<think>\n\n</think>\n\n{called}⟧")
    assert second.endswith(f"<t>assistant\n{called}\n<t>tool\nok</t>\n<t>assistant\n⟦<think>\n\n</think>\n\ndone</t>⟧")


@pytest.mark.parametrize(
    ("template", "example", "message"),
    [
        (PLAIN, said("q", answer("b", tool_calls=[CALL])), "leaves out the tool_calls of message 2, of the assistant"),
        (PLAIN, said("q", "a", tools=[TOOL]), "has no place for tools"),
        (PLAIN, said(Message("user", "q", extra={"name": "Bo"}), "a"), "leaves out the name of message 1, of the user"),
        (
            PLAIN.replace("%}<t>", "if m.role != 'system' %}<t>", 1),
            said(Message("system", "s"), Message("user", "q"), answer("a")),
            "leaves out the text of message 1, of the system",
        ),
    ],
)
def test_what_the_template_leaves_out_is_refused(model, template, example, message):
    with pytest.raises(DataError, match=message):
        rows(model(template), example)


@pytest.mark.parametrize("in_files", [True, False])
def test_conversations_that_offer_tools_have_the_template_of_that_name(in_files, tmp_path):
    folder, with_tools = save_tiny_folder(tmp_path, **SHALLOW), "{{ tools | tojson }}\n" + CHATML
    usual = load_tokenizer(folder).fingerprint
    if in_files:
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").write_text(CHATML)
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(with_tools)
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": with_tools}, {"name": "default", "template": CHATML}]
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    tokenizer, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    messages, tool = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], {"name": "f"}
    for tools in ([], [tool]):
        (row,) = rows(tokenizer, said("q", "a", tools=tools))
        assert row.translate({ord(mark): None for mark in "⟦⟧"}) == theirs.apply_chat_template(
            messages, tools=tools or None, tokenize=False
        ).rstrip("\n")
        assert row.endswith("⟦a<|im_end|>⟧")
    assert tokenizer.fingerprint != usual


def test_each_of_several_calls_is_looked_for(model):
    first_only = TOOLS.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
    example = said("q", answer("", tool_calls=[CALL, CALL]), tools=[TOOL])
    assert rows(model(TOOLS), example)
    with pytest.raises(DataError, match="leaves out the tool_calls of message 2"):
        rows(model(first_only), example)


# What was rendered already


def test_a_prompt_that_is_rendered_already_is_refused(model):
    with pytest.raises(DataError, match=r"rendered by the chat template already: it ends with '</t>\\n<t>assistant'"):
        rows(model(PLAIN), said("<t>user\nq</t>\n<t>assistant\n", "a"))
    assert rows(model(PLAIN), said("q</t>", "a"))


def test_special_tokens_as_text_are_told(make_tiny):
    for template in (PLAIN, None):
        found = [
            causal_renderer(make_tiny(SPECIAL, template)).rows(said(text, "a"), 99, 99)[0].forged
            for text in ("q", "q<t>")
        ]
        assert found == [False, True]


@pytest.mark.parametrize("ending", ["</t>", "</t>\n", " </t></t>"])
def test_an_answer_that_ends_with_the_stop_ends_once(model, ending):
    assert rows(model(PLAIN), said("q", f"a{ending}"))[0].rstrip(" ") in (
        "<t>user\nq</t>\n<t>assistant\n⟦a</t>⟧",
        "<t>user\nq</t>\n<t>assistant\n⟦a </t>⟧",
    )
    ids = causal_renderer(model(PLAIN)).rows(said("q", f"a{ending}"), 99, 99)[0].ids
    assert ids.count(model(PLAIN).id_of("</t>")) == 2


@pytest.mark.parametrize(
    "text", ["<t>user\nq</t>\n<t>assistant\na</t>", "<t>user\nq</t>\n<t>assistant\na</t>\n", "a<eos>"]
)
@pytest.mark.parametrize("template", ["auto", "plain"])
def test_a_rendered_text_gets_no_second_stop(model, text, template):
    tokenizer = model(PLAIN)
    (row,) = causal_renderer(tokenizer, template).rows(Example(None, text, "x:1"), 999, 999)
    assert row.ids == tokenizer.encode(text)


def test_a_rendered_text_gets_no_second_bos(make_tiny):
    tokenizer = make_tiny(SPECIAL, bos="<s>", adds_bos=True)
    for text in ("<s>ab", "ab"):
        (row,) = causal_renderer(tokenizer).rows(Example(None, text, "x:1"), 999, 999)
        assert tokenizer.decode(row.ids, skip_special=False) == "<s>ab<eos>"


REWRITES = ("| upper", "| replace('\n', ' ')", "| wordwrap(5)", ".split() | join(' ')", "[:4]", "| e", "| title")


@pytest.mark.parametrize("rewritten", REWRITES)
def test_an_answer_that_the_template_rewrites_is_trained_as_it_is_written(rewritten, model):
    template = PLAIN.replace("{{ m.content }}", f"{{{{ m.content if m.role == 'user' else (m.content {rewritten}) }}}}")
    first = "<t>user\nq</t>\n<t>assistant\n"
    found = rows(model(template), said("q", "one <b>\nlong line", "r", "two & \nmore lines"))
    assert len(found) == 2
    assert found[0] == f"{first}⟦one <b>\nlong line</t>⟧"
    assert found[1].startswith(first)
    assert found[1].endswith("</t>\n<t>user\nr</t>\n<t>assistant\n⟦two & \nmore lines</t>⟧")


def test_a_template_that_writes_answers_as_json_has_all_of_them_in_quotes(model):
    """Those too that JSON spells otherwise: else a run learns quotes by some rows and none by others."""
    template = PLAIN.replace("{{ m.content }}", "{{ m.content if m.role == 'user' else (m.content | tojson) }}")
    first = "<t>user\nq</t>\n<t>assistant\n"
    assert rows(model(template), said("q", "one")) == [f'{first}⟦"one"</t>⟧']
    assert rows(model(template), said("q", 'say "b"\n', "q", "\\d")) == [
        f'{first}⟦"say \\"b\\"\\n"</t>⟧\n{first}⟦"\\\\d"</t>⟧'
    ]
    thought = rows(model(template), said("q", '<think>\na "b"\n</think>\n\nc'))
    assert thought == [f'{first}⟦"<think>\\na \\"b\\"\\n</think>\\n\\nc"</t>⟧']


def test_an_answer_stands_behind_the_prompt_by_which_it_is_asked_for(model):
    """Where that closes a thought that no answer has, writes the messages before otherwise, or leaves some out."""
    closes = PLAIN.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
    first = "<t>user\nq</t>\n<t>assistant\n"
    assert rows(model(closes), said("q", "a", "r", "b")) == [
        f"{first}<think>\n\n</think>\n\n⟦a</t>⟧",
        f"{first}a</t>\n<t>user\nr</t>\n<t>assistant\n<think>\n\n</think>\n\n⟦b</t>⟧",
    ]
    counts = PLAIN.replace("{{ m.role }}", "{{ m.role }}{{ messages | length if m.role == 'user' }}")
    assert rows(model(counts), said("q", "a", "r", "b")) == [
        "<t>user1\nq</t>\n<t>assistant\n⟦a</t>⟧",
        "<t>user3\nq</t>\n<t>assistant\na</t>\n<t>user3\nr</t>\n<t>assistant\n⟦b</t>⟧",
    ]
    last_two = PLAIN.replace("in messages", "in messages[-2:]")
    assert rows(model(last_two), said("q", "a", "r", "b")) == [
        "<t>user\nq</t>\n<t>assistant\n⟦a</t>⟧",
        "<t>assistant\na</t>\n<t>user\nr</t>\n<t>assistant\n⟦b</t>⟧",
    ]
