import datetime
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microplane.data.chat import ChatTemplate
from microplane.data.formats import Example, Message, recognise
from microplane.data.template import fit, last_run, layout, prompt_ids, render, stop_ids
from microplane.errors import DataError

MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DEFAULT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n"
)


def talk(*contents: str, system: str | None = None) -> Example:
    """User and assistant in turn."""
    messages = [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    if system is not None:
        messages.insert(0, Message("system", system))
    return Example(tuple(messages), None, "x.jsonl:1")


def marked(tokenizer, example: Example, template="auto", system=None) -> str:
    """The rendered text with what is trained in brackets."""
    ids, trained = render(example, tokenizer, template, system)
    assert len(ids) == len(trained)
    text, inside, run = "", False, []
    for token, target in [*zip(ids, trained, strict=True), (None, False)]:
        if target != inside or token is None:
            text += tokenizer.decode(run, skip_special=False) + ("" if target == inside else "⟧" if inside else "⟦")
            inside, run = target, []
        run.append(token)
    return text


# Golden ids on SmolLM2

ROWS = [
    {"prompt": "Hi", "completion": "Hello"},
    {"instruction": "Greet", "input": "Bob", "output": "Hi Bob"},
    {"inputs": "a b", "targets": "b a"},
    {"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    {
        "conversations": [
            {"from": "human", "value": "1"},
            {"from": "gpt", "value": "2"},
            {"from": "human", "value": "3"},
            {"from": "gpt", "value": "4"},
        ]
    },
    {"text": "Fine film.", "label": 1},
    {"text": "Once upon a time"},
]
SYSTEM = [1, 9690, 198]
GOLDEN = json.loads("[]")


@pytest.mark.parametrize(("row", "golden"), list(zip(ROWS, GOLDEN, strict=False)))
def test_ids_and_mask_of_each_format(smol, row, golden):
    """Ids are those that transformers gives for the same conversation; negative ones are trained."""
    ids, trained = render(recognise([row], "x").example(row, "x:1"), smol)
    assert [-token if target else token for token, target in zip(ids, trained, strict=True)] == golden
