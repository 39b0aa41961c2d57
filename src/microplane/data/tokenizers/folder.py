"""What the JSON files beside a vocabulary say: special tokens, stop tokens, added tokens, the chat template.

Each file is read once. Every value is checked for its type, since these files come from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microplane.errors import ModelError
from microplane.files import read_object, write_aside, write_json

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
NAMED_TEMPLATES, OF_PROCESSOR = "additional_chat_templates", "chat_template.json"
OF_TOOLS = "tool_use"  # the name of the template of conversations with tools
TEMPLATES = (TEMPLATE, f"{NAMED_TEMPLATES}/default.jinja")
STOPS = ("generation_config.json", "config.json")  # the model's files that name its stop tokens
EXTRA = ("extra_special_tokens", "additional_special_tokens")  # further ones, by the newer and the older name
EVERY_NAME = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model*", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("*.spm", "vocab.*", "merges.txt", "bpe.codes", "dict.txt", "target_vocab.json"),
)
FILES = (*VOCABULARIES, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE, f"{NAMED_TEMPLATES}/*.jinja", OF_PROCESSOR)


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder in Hugging Face layout, and its JSON files; what is not there is empty."""

    path: Path
    config: Mapping[str, Any]  # tokenizer_config.json
    model_config: Mapping[str, Any]  # config.json
    generation_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens_json: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)  # special tokens by name, as the vocabulary's own file says

    @classmethod
    def read(cls, path: Path) -> TokenizerFolder:
        """Raises: ModelError, if a file cannot be read, or is no JSON object."""
        names = (CONFIG, STOPS[1], STOPS[0], SPECIAL_TOKENS, ADDED_TOKENS)
        return cls(path, *(read_object(path / name, ModelError, absent={}) for name in names))

    def has(self, *names: str) -> bool:
        """Whether all of these files are there."""
        return all((self.path / name).is_file() for name in names)

    @property
    def has_vocabulary(self) -> bool:
        """Whether any file is there that a tokenizer is made of, and not settings alone."""
        return any(any(self.path.glob(pattern)) for pattern in VOCABULARIES)

    @property
    def has_sentencepiece_alone(self) -> bool:
        """Whether the vocabulary is a SentencePiece model, of one side, without a tokenizer.json."""
        return not self.has("tokenizer.json") and (self.has("tokenizer.model") or self.has("spiece.model"))

    @property
    def tells(self) -> bool:
        """Whether anything of a tokenizer is there."""
        told = self.config or self.special_tokens_map
        return self.has_vocabulary or bool(told) or any(map(self.has, (*TEMPLATES, OF_PROCESSOR)))

    def copy(self, to: Path, changes: Mapping[str, Any]) -> None:
        """Write the tokenizer's files as they are into another folder, but for `changes` of its settings.

        Args:
            changes: fields of tokenizer_config.json; a `chat_template` among them replaces every other one.
        """
        for file in sorted(file for pattern in FILES for file in self.path.glob(pattern)):
            if not ("chat_template" in changes and file.suffix == ".jinja"):
                write_aside(to / file.relative_to(self.path), file.read_bytes())
        if changes:
            write_json(to / CONFIG, {**self.config, **changes})
        if stale := {name: changes[name] for name in self.special_tokens_map if name in changes}:
            write_json(to / SPECIAL_TOKENS, {**self.special_tokens_map, **stale})

    @property
    def _told(self) -> dict[str, Any]:
        """What is said of special tokens, in the order of transformers: special_tokens_map.json is of folders that were
        written before tokenizer_config.json had an added_tokens_decoder."""
        return {**self.own, **self.config, **self._older}

    @property
    def _older(self) -> Mapping[str, Any]:
        return {} if "added_tokens_decoder" in self.config else self.special_tokens_map

    def special_tokens(self, names: tuple[str, ...]) -> tuple[dict[str, str | None], list[str]]:
        """The tokens of `names`, and further ones without a name."""
        told = self._told
        named = {name: self._content(name, told.get(name)) for name in names}
        key, extra = self._extra()
        return named, [text for token in extra if (text := self._content(key, token))]

    def _extra(self) -> tuple[str, list[Any]]:
        """Further special tokens, and the field that they are of. Unlike a named token, a list of tokenizer_config.json
        goes before that of special_tokens_map.json, under its newer name before its older one."""
        places = [(told, key) for told in (self.config, self._older, self.own) for key in EXTRA if told.get(key)]
        told, key = next(iter(places), (self.config, EXTRA[0]))
        extra = told.get(key) or []
        found = list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else [extra]
        if told is self.config:
            more = self._older.get(EXTRA[0])
            found = [*found, *(more if isinstance(more, list) else [])]
        return key, [*found, *self._of_the_model()]

    def _of_the_model(self) -> list[Any]:
        """Special tokens under a name of the model's own, such as image_token."""
        named = ((key, token) for key, token in self._told.items() if key.endswith("_token") and key not in EVERY_NAME)
        return [token for _, token in named if isinstance(token, str) or _is_added_token(token)]

    def all_special_tokens(self) -> dict[str, dict[str, Any]]:
        """Every special token, with a name or without: its text, and its flags where they are given."""
        told, (key, extra) = self._told, self._extra()
        found = [(name, told.get(name)) for name in EVERY_NAME] + [(key, token) for token in extra]
        given = [(self._content(name, token), token) for name, token in found]
        return {text: {**(token if isinstance(token, dict) else {}), "special": True} for text, token in given if text}

    def _content(self, key: str, token: Any) -> str | None:
        """A special token may stand as text or with its flags."""
        text = token.get("content") if isinstance(token, dict) else token
        if text is None or isinstance(text, str):
            return text
        raise self._wrong(CONFIG, key, token, "the text of a token")

    def stop_ids(self) -> list[int]:
        """All ids that generation_config.json and config.json let generation stop at."""
        return [token for name in STOPS for token in self._ends(name)]

    def stops_in_transformers(self) -> list[int]:
        """Those of them at which transformers stops: config.json counts where there is no other file alone."""
        return self._ends(STOPS[0] if self.generation_config else STOPS[1])

    def _ends(self, name: str) -> list[int]:
        """The stop tokens of one of the model's files."""
        told = dict(zip(STOPS, (self.generation_config, self.model_config), strict=True))[name]
        ids = _of_text(told, "eos_token_id")
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(token) is int for token in listed):
            raise self._wrong(name, "eos_token_id", ids, "the id of a token, or a list of them")
        return listed

    def chat_template(self) -> str | None:
        """The Jinja text, from a file of its own or out of the configuration, where several may stand by name; last out
        of the file that processors of several kinds of input have it in."""
        for file in (self.path / name for name in TEMPLATES):
            if file.is_file():
                return _text_of(file)
        template = told = self.config.get("chat_template")
        if told is None:
            template = told = read_object(self.path / OF_PROCESSOR, ModelError, absent={}).get("chat_template")
        if isinstance(told, list):
            named = _named(told)
            template = named.get("default") or next(iter(named.values()), told or None)
        if template is None or isinstance(template, str):
            return template
        raise self._wrong(CONFIG, "chat_template", told, "a template, or a list of them by name")

    def tool_template(self) -> str | None:
        """The Jinja text of conversations that offer tools, where it is another one, by its name: out of a file, or out
        of the configuration where no template has a file."""
        if (file := self.path / NAMED_TEMPLATES / f"{OF_TOOLS}.jinja").is_file():
            return _text_of(file)
        template = None if any(map(self.has, TEMPLATES)) else _named(self.config.get("chat_template")).get(OF_TOOLS)
        return template if isinstance(template, str) else None

    def added_tokens(self) -> list[tuple[int, dict[str, Any]]]:
        """Tokens that were added to the vocabulary, of tokenizer_config.json or, in folders from before that
        had them, of added_tokens.json: (id, its content and flags), by id."""
        if "added_tokens_decoder" not in self.config:
            return self._older_added_tokens()
        told = self.config["added_tokens_decoder"] or {}
        try:
            added = {int(token): {**fields, "content": str(fields["content"])} for token, fields in told.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._wrong(CONFIG, "added_tokens_decoder", told, "ids, and the content of each") from None
        return sorted(added.items(), key=lambda item: item[0])

    def _older_added_tokens(self) -> list[tuple[int, dict[str, Any]]]:
        told = self.added_tokens_json
        if not all(type(token) is int for token in told.values()):
            raise ModelError(f"{self.path / ADDED_TOKENS} must hold tokens and their ids, but has {str(told)[:60]}")
        special = self.all_special_tokens()
        flags = {
            text: {"content": text, "special": text in special, "normalized": text not in special} for text in told
        }
        return sorted(((token, flags[text]) for text, token in told.items()), key=lambda item: item[0])

    @property
    def rows(self) -> int | None:
        """How many tokens the model has an embedding for, where config.json says it."""
        told = _of_text(self.model_config, "vocab_size")
        return told if type(told) is int else None

    @property
    def decoder_start(self) -> int | None:
        """The token that an encoder-decoder's answer begins with before it is written, where config.json says it."""
        decoder = self.model_config.get("decoder")
        inner = decoder.get("bos_token_id") if isinstance(decoder, dict) else None
        told = self.model_config.get("decoder_start_token_id", inner)
        return told if type(told) is int else None

    def _wrong(self, file: str, key: str, value: Any, expected: str) -> ModelError:
        return ModelError(f"{self.path / file} has {key} = {str(value)[:60]}: expected {expected}")


def _named(templates: Any) -> dict[Any, Any]:
    """The templates of a list, by their names."""
    entries = templates if isinstance(templates, list) else []
    return {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the chat template {file}: {error}") from None


def _is_added_token(value: Any) -> bool:
    return isinstance(value, dict) and value.get("__type") == "AddedToken"


def _of_text(config: Mapping[str, Any], name: str) -> Any:
    """A field of a config.json, or of its part that writes text."""
    if name in config:
        return config[name]
    parts = (config.get("text_config"), config.get("decoder"))
    return next((part[name] for part in parts if isinstance(part, dict) and name in part), None)
