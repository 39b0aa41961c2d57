"""A list of messages -> who said what: roles as the field spells them, and the keys of a message beside its text.

Keys that say something of training or of the answer are honoured, or the row is refused. Others are passed over, and
named once among what is not used. null is nothing, under any key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from microplane.data.reading.bad_rows import RowError, show
from microplane.data.reading.example import Message, Role
from microplane.data.reading.values import filled_text, get, is_filled, read_json, text
from microplane.errors import DataError

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "developer": "system",
}
TRAINED = (
    *("weight", "train", "trained", "training", "trainable", "is_trained", "train_on_turn"),
    *("loss", "loss_mask", "loss_weight"),
)
UNCLEAR = ("mask", "masked", "ignore", "skip", "train_detail")  # of training, in one tool this and in another that
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
_EXTRA = ("name", "tool_call_id")  # what templates know, as it stands
ARGUMENTS = ("arguments", "args", "parameters", "input")  # of a call, in one tool or another
CALL = "function_call"  # a key of an answer; or the role of one that does nothing but call tools
_KNOWN = {"role", "from", "content", "value", *TRAINED, *THOUGHTS, *_EXTRA, "tool_calls", CALL}


def conversation(values: Mapping[str, Any], key: str, passed_over: dict[str, None]) -> list[Message]:
    """The messages below one key of a row.

    Args:
        passed_over: takes up the keys of messages that are not used.

    Raises:
        RowError: for what is no conversation, and for what cannot be honoured.
    """
    items = _by_message(read_json(get(values, key, "a list of messages")))
    if not isinstance(items, list):
        kind = "null" if items is None else "not a list"
        raise RowError(kind, f"key {key!r} is {show(items)}, expected a list of {{role, content}}")
    messages = _messages(items, key, passed_over)
    _check_order(messages, key)
    return messages


def _by_message(items: Any) -> Any:
    """A list of messages where a list of each of their keys stands, as `datasets` keeps them; else what is there."""
    lists = {key: value for key, value in items.items() if value is not None} if isinstance(items, dict) else {}
    if (
        not lists
        or not all(isinstance(value, list) for value in lists.values())
        or len({*map(len, lists.values())}) > 1
    ):
        return items
    return [dict(zip(lists, message, strict=True)) for message in zip(*lists.values(), strict=True)]


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, as far as can be seen without reading them."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def prompt_and_completion(
    values: Mapping[str, Any], prompt: str, completion: str, passed_over: dict[str, None]
) -> list[Message]:
    """The conversation of a row whose prompt or completion, or both, are lists of messages. Answers in the prompt stand
    there to be read; those of the completion are trained.

    Raises:
        RowError: as `conversation`.
    """
    before = _side(values, prompt, "user", passed_over)
    after = _side(values, completion, "assistant", passed_over)
    if all(message.role != "assistant" for message in after):
        has = ", ".join(message.role for message in after)
        raise RowError("no assistant message", f"key {completion!r} holds {has}, expected an assistant message")
    messages = [replace(said, trained=False) if said.role == "assistant" else said for said in before] + after
    _check_order(messages, f"{prompt} + {completion}")
    return messages


def _side(values: Mapping[str, Any], key: str, role: Role, passed_over: dict[str, None]) -> list[Message]:
    """Messages, or one of `role` where a text stands."""
    said = get(values, key, "text, or a list of messages")
    if is_conversation(said):
        return _messages(said, key, passed_over)
    return [Message(role, filled_text(values, key, "answer" if role == "assistant" else "prompt"))]


def _messages(items: list[Any], key: str, passed_over: dict[str, None]) -> list[Message]:
    return [_message(item, f"{key}[{number}]", key, passed_over) for number, item in enumerate(items)]


def turns_before(values: Mapping[str, Any], key: str) -> list[Message]:
    """Earlier turns of a row: a list of pairs, of what was asked and what was answered.

    Raises:
        RowError: for anything else.
    """
    items = read_json(values.get(key))
    if not is_filled(items):
        return []
    if not isinstance(items, list):
        raise RowError("wrong history", f"key {key!r} is {show(items)}, expected a list of [instruction, answer]")
    return [message for number, item in enumerate(items) for message in _turn(item, f"{key}[{number}]")]


def _turn(item: Any, place: str) -> list[Message]:
    if not isinstance(item, list | tuple) or len(item) != 2:
        expected = "expected [instruction, answer]; messages with roles belong into a column `messages`"
        raise RowError("wrong history", f"{place} is {show(item)}, {expected}")
    asked, answered = (text(said, f"{place}[{number}]") for number, said in enumerate(item))
    for said, part in ((asked, "prompt"), (answered, "answer")):
        if not said.strip():
            raise RowError(f"empty {part}", f"{place} is {show(item)}, expected an instruction and an answer")
    return [Message("user", asked), Message("assistant", answered)]


def _message(item: Any, place: str, key: str, passed_over: dict[str, None]) -> Message:
    if not isinstance(item, dict):
        raise RowError("not a message", f"{place} is {show(item)}, expected {{role, content}}")
    _check_keys(item, place)
    name = _under(item, "role", "from", place)
    if item.get(name) == CALL:
        item = _spelled_call(item, name, place)
    spelled = get(item, name, f"the role of {place}")
    role = _ROLES.get(spelled.lower()) if isinstance(spelled, str) else None
    if role is None:
        raise RowError("unknown role", f"{place}.{name} is {show(spelled)}, expected {', '.join(_ROLES)}")
    calls = _calls(item, place, role)
    under = "content" if calls and "value" not in item else _under(item, "content", "value", place)
    content = _content(item, under, place, optional=bool(calls))
    if not content.strip() and role in ("user", "assistant") and not calls:
        part = "answer" if role == "assistant" else "prompt"
        raise RowError(f"empty {part}", f"{place}.{under} is {show(content)}, expected the {part}")
    extra: dict[str, Any] = {
        known: text(item[known], f"{place}.{known}") for known in _EXTRA if is_filled(item.get(known))
    }
    if calls:
        extra["tool_calls"] = calls
    for other, value in item.items():
        if other not in _KNOWN and is_filled(value):
            passed_over[f"{key}[].{other}"] = None
    return Message(role, content, _trained(item, place, role), _thoughts(item, place, role), extra)


def _under(item: Mapping[str, Any], usual: str, other: str, place: str) -> str:
    """The one of two names of the same thing that something stands under; the tables of the field have null under the
    other, where files of two kinds were put together.

    Raises:
        RowError: if two things stand there.
    """
    first, second = item.get(usual), item.get(other)
    known = _ROLES if usual == "role" else {}
    said = {known.get(one.lower(), one) if isinstance(one, str) else str(one) for one in (first, second)}
    if is_filled(first) and is_filled(second) and len(said) > 1:
        raise RowError(
            "said twice", f"{place}.{usual} is {show(first)} and {place}.{other} {show(second)}, expected one of them"
        )
    return usual if is_filled(first) or (usual in item and not is_filled(second)) else other


def _check_keys(item: Mapping[str, Any], place: str) -> None:
    """Refuse keys of which it is not clear what they say of training, and known ones in other capitals."""
    for key, value in item.items():
        if not is_filled(value):
            continue
        plain = key.strip().lower()
        if plain in UNCLEAR:
            raise RowError(
                "unclear key",
                f"{place}.{key} is {show(value)}, which tools read in different ways; say with `weight` (0 or 1) "
                "whether an answer is trained, or leave the key out",
            )
        if plain != key and plain in _KNOWN:
            raise RowError("unclear key", f"{place} has the key {key!r}, expected {plain!r}")


def _spelled_call(item: Mapping[str, Any], name: str, place: str) -> Mapping[str, Any]:
    """A message that is a call of tools by its role, as an answer that calls them."""
    under = "value" if "value" in item else "content"
    said = item.get(under)
    try:
        calls = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        calls = None
    if not isinstance(calls, dict | list) or not calls:
        expected = 'the call as JSON: {"name": ..., "arguments": {...}}, or a list of such'
        raise RowError("wrong tool call", f"{place}.{under} is {show(said)}, expected {expected}")
    kept = {key: value for key, value in item.items() if key != under}
    return kept | {name: "assistant", "tool_calls": calls if isinstance(calls, list) else [calls], under: None}


def _content(item: Mapping[str, Any], key: str, place: str, optional: bool) -> str:
    if optional and item.get(key) is None:
        return ""
    content = get(item, key, f"the text of {place}")
    return _joined(content, f"{place}.{key}") if isinstance(content, list) else text(content, f"{place}.{key}")


def _joined(parts: list[Any], place: str) -> str:
    """The text of a content that is a list of `{"type": "text", "text": ...}`."""
    texts = []
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type", "text") != "text" or "text" not in part:
            raise RowError("not text", f'{place}[{number}] is {show(part)}, expected {{"type": "text", "text": ...}}')
        texts.append(text(part["text"], f"{place}[{number}].text"))
    return "".join(texts)


def _trained(item: Mapping[str, Any], place: str, role: Role) -> bool:
    """Whether an answer is to be learnt: true or 1, false or 0, under any of the names for that."""
    said = {key: item[key] for key in TRAINED if item.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                "wrong weight",
                f"{place}.{key} is {show(value)}, expected 0 or 1 (false or true): an answer is trained or not; if the "
                "key means something else, rename it",
            )
        if value and role != "assistant":
            raise RowError(
                "wrong weight",
                f"{place}.{key} is {show(value)}, but only the assistant's messages are trained; leave the key out of "
                f"the {role}'s",
            )
    if len({bool(value) for value in said.values()}) > 1:
        raise RowError("wrong weight", f"{place} says with {' and '.join(said)} that it is trained and that it is not")
    return all(said.values())


def _thoughts(item: Mapping[str, Any], place: str, role: Role) -> str:
    found = {key: text(item[key], f"{place}.{key}") for key in THOUGHTS if is_filled(item.get(key))}
    if found and role != "assistant":
        raise RowError("misplaced thought", f"{place}.{next(iter(found))} is of the {role}; only answers have thoughts")
    if len(set(found.values())) > 1:
        raise RowError("two thoughts", f"{place} holds different thoughts: {' and '.join(found)}; expected one")
    return next(iter(found.values()), "")


def tool_calls(calls: Any, role: str, place: str) -> list[Any]:
    """The calls of a message that stands in no file, as templates expect them.

    Args:
        place: what it is called in an error.

    Raises:
        DataError: for what is no list of calls by the assistant.
    """
    try:
        return _calls({"tool_calls": calls}, place, _ROLES[role])
    except RowError as error:
        raise DataError(str(error)) from None


def _calls(item: Mapping[str, Any], place: str, role: Role) -> list[Any]:
    """The tool calls of an answer, with their arguments as objects, as templates expect them."""
    calls = item.get("tool_calls")
    if is_filled(item.get(CALL)):
        if is_filled(calls):
            raise RowError("wrong tool call", f"{place} holds tool_calls and function_call; expected one of them")
        calls = [{"type": "function", "function": item[CALL]}]
    calls = read_json(calls)
    if not is_filled(calls):
        return []
    if role != "assistant" or not isinstance(calls, list):
        has = f"{place}.tool_calls is {show(calls)}" + ("" if role == "assistant" else f" of the {role}")
        raise RowError("wrong tool call", f"{has}, expected a list of calls by the assistant")
    return [_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = read_json(call.get("function", call), "{") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(
            "wrong tool call",
            f'{place} is {show(call)}, expected {{"type": "function", "function": {{"name": ..., "arguments": ...}}}}',
        )
    if function is call:  # not nested: what is not of the function is of the call
        beside = {key: value for key, value in call.items() if key not in ("name", "type", *ARGUMENTS)}
        function = {key: value for key, value in call.items() if key not in (*beside, "type")}
    else:
        beside = {key: value for key, value in call.items() if key not in ("function", *function)}
    rest = {key: value for key, value in function.items() if key not in ARGUMENTS}
    return {"type": "function"} | beside | {"function": rest | {"arguments": _arguments(function, place)}}


def _arguments(function: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a function is called with, under any of the names for that."""
    said = {key: read_json(function[key], "{") for key in ARGUMENTS if is_filled(function.get(key))}
    for key, value in said.items():
        if not isinstance(value, dict):
            expected = "expected an object, or one as JSON"
            raise RowError("wrong tool call", f"{place}.{key} is {show(function[key])}, {expected}")
    if any(value != other for value in said.values() for other in said.values()):
        raise RowError("wrong tool call", f"{place} holds different {' and '.join(said)}; expected one of them")
    return next(iter(said.values()), {})


def tools_of(values: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    """The tools that a row offers: a list of their descriptions, or that as JSON text; none where nothing is there.

    Raises:
        RowError: for anything else.
    """
    value = read_json(values.get(key))
    if not is_filled(value):
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        found = show(values[key])
        raise RowError("wrong tools", f"key {key!r} is {found}, expected a list of objects that describe tools")
    return tuple(value)


def _check_order(messages: list[Message], key: str) -> None:
    """Refuse what is not: perhaps one system message, then user and assistant in turn, the assistant last. Where it
    calls tools, what these give follows, and the assistant again."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        has = ", ".join(roles) or "no message"
        raise RowError("no assistant message", f"key {key!r} holds {has}, expected at least one assistant message")
    start = 1 if roles[0] == "system" else 0
    expected: tuple[str, ...] = ("user",)
    for number, (role, message) in enumerate(zip(roles[start:], messages[start:], strict=True), start):
        if role not in expected:
            raise RowError("wrong role order", f"{key}[{number}] is from the {role}, expected the {expected[0]}")
        called = "tool_calls" in message.extra
        expected = {"user": ("assistant",), "tool": ("assistant", "tool")}.get(role, ("tool",) if called else ("user",))
    if roles[-1] != "assistant":
        raise RowError("wrong role order", f"{key} ends with the {roles[-1]}, expected the assistant's answer")
