"""What the JSON files beside a vocabulary say: special tokens, stop tokens, added tokens, the chat template.

Each file is read once. Every value is checked for its type, since these files come from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microplane.errors import ModelError
from microplane.files import read_object

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
STOPS = ("generation_config.json", "config.json")  # the model's files that name its stop tokens


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder in Hugging Face layout, and its JSON files; what is not there is empty."""

    path: Path
    config: Mapping[str, Any]  # tokenizer_config.json
    model_config: Mapping[str, Any]  # config.json
    generation_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens_json: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> TokenizerFolder:
        """Raises: ModelError, if a file cannot be read, or is no JSON object."""
        names = (CONFIG, STOPS[1], STOPS[0], SPECIAL_TOKENS, ADDED_TOKENS)
        return cls(path, *(read_object(path / name, ModelError, absent={}) for name in names))

    def has(self, *names: str) -> bool:
        """Whether all of these files are there."""
        return all((self.path / name).is_file() for name in names)

    def special_tokens(
        self, names: tuple[str, ...], own: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, str | None], list[str]]:
        """The tokens of `names`, and further ones without a name.

        tokenizer_config.json goes before special_tokens_map.json, and that before `own`, which the vocabulary's own
        file says.
        """
        told = {**(own or {}), **self.special_tokens_map, **self.config}
        named = {name: self._content(name, told.get(name)) for name in names}
        key = "additional_special_tokens" if told.get("additional_special_tokens") else "extra_special_tokens"
        extra = told.get(key) or []
        listed = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else [extra]
        return named, [text for token in listed if (text := self._content(key, token))]

    def _content(self, key: str, token: Any) -> str | None:
        """A special token may stand as text or with its flags."""
        text = token.get("content") if isinstance(token, dict) else token
        if text is None or isinstance(text, str):
            return text
        raise self._wrong(CONFIG, key, token, "the text of a token")

    def stop_ids(self) -> list[int]:
        """All ids that generation_config.json and config.json let generation stop at."""
        found: list[int] = []
        for name, told in zip(STOPS, (self.generation_config, self.model_config), strict=True):
            inner = told.get("text_config")
            ids = told.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
            listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if not all(type(token) is int for token in listed):
                raise self._wrong(name, "eos_token_id", ids, "the id of a token, or a list of them")
            found += listed
        return found

    def chat_template(self) -> str | None:
        """The Jinja text, from a file of its own or out of the configuration, where several may stand by name."""
        file = self.path / TEMPLATE
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"cannot read the chat template {file}: {error}") from None
        template = told = self.config.get("chat_template")
        if isinstance(told, list):
            named = {entry.get("name"): entry.get("template") for entry in told if isinstance(entry, dict)}
            template = named.get("default") or next(iter(named.values()), told or None)
        if template is None or isinstance(template, str):
            return template
        raise self._wrong(CONFIG, "chat_template", told, "a template, or a list of them by name")

    def added_tokens(self) -> list[tuple[int, dict[str, Any]]]:
        """Tokens behind the vocabulary of a tokenizer.model: (id, its content and flags), by id."""
        told = self.config.get("added_tokens_decoder") or {}
        try:
            added = {int(token): {**fields, "content": str(fields["content"])} for token, fields in told.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._wrong(CONFIG, "added_tokens_decoder", told, "ids, and the content of each") from None
        more = self.added_tokens_json
        if not all(type(token) is int for token in more.values()):
            raise ModelError(f"{self.path / ADDED_TOKENS} must hold tokens and their ids, but has {str(more)[:60]}")
        added |= {token: {"content": text} for text, token in more.items() if token not in added}
        return sorted(added.items(), key=lambda item: item[0])

    def _wrong(self, file: str, key: str, value: Any, expected: str) -> ModelError:
        return ModelError(f"{self.path / file} has {key} = {str(value)[:60]}: expected {expected}")
