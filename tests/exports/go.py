"""An evaluator of the few constructs of Go's text/template that are written: texts, fields, if, else, range, eq."""

from __future__ import annotations

import re
from typing import Any

ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def evaluate(template: str, data: dict[str, Any]) -> str:
    parts = ACTION.split(template)  # texts at even places, actions at odd ones
    tokens = [(bool(n % 2), part) for n, part in enumerate(parts)]
    text, rest = _block(tokens, data, True)
    assert not rest
    return text


def _block(tokens: list, data: dict[str, Any], live: bool) -> tuple[str, list]:
    """Up to the end, or an else or end of the block around, which stays."""
    out = ""
    while tokens:
        (action, part), *rest = tokens
        if not action:
            out, tokens = out + (part if live else ""), rest
        elif part.startswith("if "):
            text, tokens = _condition(part[3:], rest, data, live)
            out += text
        elif part.startswith("range "):
            items, bodies = _value(part[6:], data) if live else [], []
            for item in items:
                bodies.append(_block(rest, item, True)[0])
            _, [(_, end), *tokens] = _block(rest, {}, False)
            assert end == "end"
            out += "".join(bodies)
        elif part == "end" or part.startswith("else"):
            return out, tokens
        else:
            out, tokens = out + (str(_value(part, data)) if live else ""), rest
    return out, []


def _condition(test: str, tokens: list, data: dict[str, Any], live: bool) -> tuple[str, list]:
    holds = live and bool(_value(test, data))
    out, [(_, word), *rest] = _block(tokens, data, holds)
    if word.startswith("else if "):
        text, rest = _condition(word[8:], rest, data, live and not holds)
        return out + text, rest
    if word == "else":
        text, [(_, word), *rest] = _block(rest, data, live and not holds)
        out += text
    assert word == "end"
    return out, rest


def _value(expression: str, data: dict[str, Any]) -> Any:
    if compared := re.fullmatch(r'eq (\.\w+) "(.*)"', expression):
        return _value(compared[1], data) == compared[2]
    assert re.fullmatch(r"\.\w+", expression), expression
    return data[expression[1:]]
