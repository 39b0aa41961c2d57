"""What the JSON files beside a tokenizer say: special tokens, stop tokens, added tokens, the chat template.

Every value is checked for its type, since these files come from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microplane.errors import ModelError
from microplane.files import read_object

CONFIG = "tokenizer_config.json"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty if the file is not there.

    Raises:
        ModelError: if it cannot be read, or is something else.
    """
    return read_object(file, ModelError, absent={})


def _wrong(file: Path, key: str, value: Any, expected: str) -> ModelError:
    return ModelError(f"{file} has {key} = {str(value)[:60]}: expected {expected}")


def special_tokens(
    folder: Path, config: Mapping[str, Any], names: tuple[str, ...]
) -> tuple[dict[str, str | None], list[str]]:
    """The tokens of `names`, and further ones without a name. `config` goes before special_tokens_map.json."""
    told = read_json(folder / "special_tokens_map.json") | dict(config)
    named = {name: _content(folder, name, told.get(name)) for name in names}
    key = "additional_special_tokens" if told.get("additional_special_tokens") else "extra_special_tokens"
    extra = told.get(key) or []
    listed = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else [extra]
    return named, [text for token in listed if (text := _content(folder, key, token))]


def _content(folder: Path, key: str, token: Any) -> str | None:
    """A special token may stand as text or with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is None or isinstance(text, str):
        return text
    raise _wrong(folder / CONFIG, key, token, "the text of a token")


def stop_ids_of_model(folder: Path) -> list[int]:
    """All ids that generation_config.json and config.json let generation stop at."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        told = read_json(folder / name)
        inner = told.get("text_config")
        ids = told.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(token) is int for token in listed):
            raise _wrong(folder / name, "eos_token_id", ids, "the id of a token, or a list of them")
        found += listed
    return found


def chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The Jinja text, from a file of its own or out of `config`, where several may stand by name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read the chat template {file}: {error}") from None
    template = told = config.get("chat_template")
    if isinstance(told, list):
        named = {entry.get("name"): entry.get("template") for entry in told if isinstance(entry, dict)}
        template = named.get("default") or next(iter(named.values()), told or None)
    if template is None or isinstance(template, str):
        return template
    raise _wrong(folder / CONFIG, "chat_template", told, "a template, or a list of them by name")


def added_tokens(folder: Path, config: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Tokens behind the vocabulary of a tokenizer.model: (id, its content and flags), by id."""
    told = config.get("added_tokens_decoder") or {}
    try:
        added = {int(token): {**fields, "content": str(fields["content"])} for token, fields in told.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _wrong(folder / CONFIG, "added_tokens_decoder", told, "ids, and the content of each") from None
    more = read_json(folder / "added_tokens.json")
    if not all(type(token) is int for token in more.values()):
        raise ModelError(f"{folder / 'added_tokens.json'} must hold tokens and their ids, but has {str(more)[:60]}")
    added |= {token: {"content": text} for text, token in more.items() if token not in added}
    return sorted(added.items(), key=lambda item: item[0])
