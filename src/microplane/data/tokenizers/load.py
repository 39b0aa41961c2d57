"""The tokenizer of a model folder or a GGUF file, by the files that it has."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from microplane.data.tokenizers.bert_roberta import build_from_files
from microplane.data.tokenizers.deberta import build_deberta, is_deberta
from microplane.data.tokenizers.folder import CONFIG, EVERY_NAME, TokenizerFolder
from microplane.data.tokenizers.gguf import KEY, build_from_gguf, ends, puts_bos, puts_eos, special_id
from microplane.data.tokenizers.m2m100 import build_m2m100, is_m2m100
from microplane.data.tokenizers.marian import SOURCE, SPECIAL, build_marian
from microplane.data.tokenizers.normaliser import SentencePieceRules, rules_of_json
from microplane.data.tokenizers.sentencepiece import UNMATCHABLE, Pieces, build, read_model, take_rules
from microplane.data.tokenizers.t5 import BYTES, SPIECE, build_bytes, build_spiece, is_spiece
from microplane.data.tokenizers.tokenizer import NAMED, RARE, Tokenizer, mark_special, surround
from microplane.data.tokenizers.transformers_classes import SAFE_CLASS, open_in_transformers, replaced
from microplane.data.tokenizers.vietnamese import build_vietnamese
from microplane.errors import ModelError, notice
from microplane.models.files.gguf_format import read_header

JSON, MODEL = "tokenizer.json", "tokenizer.model"
LETTERS_AND_SIGNS = string.ascii_letters + string.digits + string.punctuation


def load_tokenizer(path: Path, adapter: Path | None = None) -> Tokenizer:
    """The tokenizer of a folder in Hugging Face layout or of a .gguf file.

    In a folder it is a tokenizer.json, tokenizer.model or spiece.model, DeBERTa's spm.model, the plain vocabulary of
    BERT or RoBERTa, M2M100's vocab.json with its model, or Marian's source.spm and target.spm; ByT5's needs no file,
    only to be named.

    Args:
        adapter: a folder whose own tokenizer, template or end token go before the base's: what was trained with it.

    Raises:
        ModelError: if there is none, or it is damaged or not supported.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        base = partial(_load_gguf, path)
    elif path.is_dir():
        base = partial(_load_folder, TokenizerFolder.read(path))
    else:
        raise ModelError(f"there is no tokenizer at {path}: give a model folder or a .gguf file")
    own = TokenizerFolder.read(adapter) if adapter is not None else None
    return base() if own is None or not own.tells else _of_adapter(own, base)


def _of_adapter(own: TokenizerFolder, base: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that was saved beside an adapter, or the base's with the settings that were. An answer may also end
    as those of the base do, whose files say it."""
    tokenizer = base()
    if not own.has_vocabulary:
        named, _ = own.special_tokens(NAMED)
        special = {**tokenizer.special_tokens, **{name: text for name, text in named.items() if text}}
        template = own.chat_template() or tokenizer.chat_template
        changed = replace(tokenizer, special_tokens=special, chat_template=template)
        end = changed.id_of(special["eos_token"] or "")
        stops = [*([] if end is None else [end]), *own.stop_ids(), *tokenizer.eos_ids]
        return replace(changed, eos_ids=tuple(dict.fromkeys(stops)))
    source = tokenizer.source
    model_config = own.model_config or (source.model_config if source else {})
    loaded = _load_folder(replace(own, model_config={**model_config, "eos_token_id": None}))
    stops = [stop for stop in (*loaded.eos_ids, *own.stop_ids(), *tokenizer.eos_ids) if stop < loaded.vocab_size]
    return replace(loaded, eos_ids=tuple(dict.fromkeys(stops)))


def _load_folder(folder: TokenizerFolder) -> Tokenizer:
    if folder.has(SOURCE):
        return _load_marian(folder)
    if listed := build_vietnamese(folder):
        tokenizer = _tokenizer(listed.backend, listed.special, folder, listed.rules)
        return replace(tokenizer, known=listed.known, unmatchable_prefix=listed.unmatchable_prefix)
    if folder.has(JSON):
        return _load_json(folder)
    if is_m2m100(folder):
        backend, special, rules = build_m2m100(folder)
        tokenizer = _tokenizer(backend, special, folder, rules)
        surround(backend, None, tokenizer.special_tokens["eos_token"])
        return replace(tokenizer, unmatchable_prefix=UNMATCHABLE)
    if folder.has(MODEL):
        return _load_sentencepiece(folder)
    if is_deberta(folder):
        backend, own, rules = build_deberta(folder)
        return _tokenizer(backend, own, folder, rules)
    if is_spiece(folder):
        return _load_t5(folder, *build_spiece(folder))
    if (folder.config.get("tokenizer_class") or folder.model_config.get("tokenizer_class")) in BYTES:
        return _load_t5(folder, *build_bytes(folder))
    if built := build_from_files(folder):
        return _tokenizer(*built, folder)
    if folder.has_vocabulary:
        return _load_through_transformers(folder)
    raise ModelError(
        f"{folder.path} has no tokenizer: expected {JSON}, {MODEL} or {SPIECE} beside the weights, or"
        f" tokenizer_class = {BYTES[0]} in {CONFIG}"
    )


def _load_through_transformers(folder: TokenizerFolder) -> Tokenizer:
    """A vocabulary in files of another family: transformers' own class makes a pipeline of the `tokenizers` library.

    Raises:
        ModelError: if it cannot, or is not installed.
    """
    kind = folder.config.get("tokenizer_class") or folder.model_config.get("model_type") or "an unnamed"
    way = f"{folder.path} has its vocabulary in files of the {kind} kind, and no {JSON}"
    if find_spec("transformers") is None:
        raise ModelError(f"{way}; transformers may read it: pip install 'microplane[transformers]'")
    try:
        theirs = open_in_transformers(folder.path)
        backend = Backend.from_str(theirs.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises whatever its parts do
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{way}; transformers cannot make one of them either ({reason[0][:200]})") from None
    named = {name: token for name in EVERY_NAME if isinstance(token := getattr(theirs, name, None), str)}
    return _tokenizer(backend, named, folder, rules_of_json(backend))


def _load_gguf(path: Path) -> Tokenizer:
    file = read_header(path)
    backend = build_from_gguf(file)
    texts, told = file.metadata[f"{KEY}tokens"], file.metadata
    numbers = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids, stops = {name: special_id(file, key) for name, key in numbers.items()}, ends(file)
    for token in [*ids.values(), *stops]:
        if token is not None and (type(token) is not int or not 0 <= token < len(texts)):
            raise ModelError(
                f"{path} is damaged: it names {token!r} as a special token, and has the tokens 0 to {len(texts) - 1}"
            )
    named = {name: None if token is None else texts[token] for name, token in ids.items()}
    mark_special(backend, [text for text in named.values() if text])
    put = {"bos": puts_bos(file), "eos": puts_eos(file)}
    for name, wanted in put.items():
        if f"{KEY}add_{name}_token" in told and wanted and named[f"{name}_token"] is None:
            raise ModelError(f"{path} is damaged: it says {KEY}add_{name}_token, and has no {KEY}{name}_token_id")
    surround(backend, *(named[f"{name}_token"] if wanted else None for name, wanted in put.items()))
    template = told.get("tokenizer.chat_template")
    tokenizer = Tokenizer(backend, named, tuple(stops), template if isinstance(template, str) else None)
    _tell_left_out(tokenizer, path)
    return tokenizer


def _load_json(folder: TokenizerFolder) -> Tokenizer:
    file = folder.path / JSON
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{file} is damaged or not a {JSON} ({error}). Fetch it again") from None
    if parts := replaced(backend, folder.config):
        notice(
            f"tokenizer {file}: {folder.config['tokenizer_class']}, which {CONFIG} names, has transformers replace "
            f"{parts}, so that its ids may be others. Here the file counts; for the same there, name {SAFE_CLASS}"
        )
    for _, told in folder.added_tokens():
        _add(backend, told["content"], told, folder)
    _add_special(backend, folder)
    # add_bos_token and add_eos_token of the config are for tokenizer.model; here tokenizer.json itself decides
    tokenizer = _tokenizer(backend, {}, folder, rules_of_json(backend))
    _tell_left_out(tokenizer, file)
    return tokenizer


def _tell_left_out(tokenizer: Tokenizer, file: Path) -> None:
    if tokenizer.leaves_out(RARE):
        gone = "".join(filter(tokenizer.leaves_out, LETTERS_AND_SIGNS))
        why = " (it falls back to bytes, and has no tokens of them)" if tokenizer.backend.model.byte_fallback else ""
        notice(
            f"tokenizer {file}: characters that are not in its vocabulary are left out of every text{why}: not even as "
            f"unknown are they read or written. Of those on a keyboard these are: {gone or 'none'}"
        )


def _load_sentencepiece(folder: TokenizerFolder) -> Tokenizer:
    pieces, ids = read_model(folder.path / MODEL)
    config = folder.config
    pieces = replace(pieces, prefix=_prefix(pieces, config))
    backend = build(pieces)
    _add_tokens(backend, folder)
    _add_special(backend, folder)
    own = {f"{name}_token": pieces.texts[token] for name, token in ids.items()}
    tokenizer = _tokenizer(backend, own, folder, take_rules(backend, pieces))
    named = tokenizer.special_tokens
    bos = named["bos_token"] if config.get("add_bos_token") else None
    surround(backend, bos, named["eos_token"] if config.get("add_eos_token") else None)
    return tokenizer


def _load_marian(folder: TokenizerFolder) -> Tokenizer:
    named, _ = replace(folder, own=SPECIAL).special_tokens(NAMED)
    sides = build_marian(folder, {name: named[name] for name in SPECIAL})
    for backend in (sides.source, sides.target):
        surround(backend, None, named["eos_token"])
    target = _tokenizer(sides.target, SPECIAL, folder, sides.target_rules)
    target = replace(target, unmatchable_prefix=UNMATCHABLE)
    source = _tokenizer(sides.source, SPECIAL, folder, sides.source_rules)
    return replace(source, eos_ids=target.eos_ids, target=target, unmatchable_prefix=UNMATCHABLE)


def _load_t5(
    folder: TokenizerFolder, backend: Backend, own: Mapping[str, str], rules: SentencePieceRules | None = None
) -> Tokenizer:
    tokenizer = _tokenizer(backend, own, folder, rules)
    surround(backend, None, tokenizer.special_tokens["eos_token"])
    return tokenizer


def _prefix(pieces: Pieces, config: Mapping[str, Any]) -> str:
    """Where a space is put, by the switches of transformers' LlamaTokenizer; as the model itself says without them."""
    if not config.get("add_prefix_space", pieces.prefix != "never"):
        return "never"
    return "always" if config.get("legacy") or pieces.squeeze else "first"


def _add_tokens(backend: Backend, folder: TokenizerFolder) -> None:
    """Tokens that fine-tuning added behind the vocabulary of a tokenizer.model."""
    for token, told in folder.added_tokens():
        backend.add_tokens([AddedToken(told["content"], **_flags(told))])
        if (got := backend.token_to_id(told["content"])) != token:
            raise ModelError(
                f"{folder.path / CONFIG} gives {told['content']!r} the id {token}, but behind the pieces of {MODEL}"
                f" it is {got}: they do not belong together"
            )


def _add_special(backend: Backend, folder: TokenizerFolder) -> None:
    """Special tokens that only the JSON files know; what the vocabulary has as a plain token becomes one."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for text, told in folder.all_special_tokens().items():
        if text not in known:
            _add(backend, text, told, folder)


def _add(backend: Backend, text: str, told: Mapping[str, Any], folder: TokenizerFolder) -> None:
    """As transformers adds a token: one that the vocabulary has keeps its id. None for which the model has no row."""
    if backend.token_to_id(text) is not None or folder.rows is None or backend.get_vocab_size() < folder.rows:
        backend.add_tokens([AddedToken(text, **_flags(told))])


def _flags(told: Mapping[str, Any]) -> dict[str, bool]:
    return {key: bool(told.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}


def _tokenizer(
    backend: Backend, own: Mapping[str, str], folder: TokenizerFolder, rules: SentencePieceRules | None = None
) -> Tokenizer:
    """With what the folder's JSON files say of special tokens and the template; `own` is what the vocabulary says."""
    folder = replace(folder, own=own)
    named, extra = folder.special_tokens(NAMED)
    mark_special(backend, extra)
    backend.encode_special_tokens = bool(folder.config.get("split_special_tokens"))  # those that stand in a text
    eos = backend.token_to_id(named["eos_token"]) if named["eos_token"] else None
    stops = [token for token in (eos, *folder.stop_ids()) if token is not None]
    return Tokenizer(backend, named, tuple(dict.fromkeys(stops)), folder.chat_template(), source=folder, rules=rules)
