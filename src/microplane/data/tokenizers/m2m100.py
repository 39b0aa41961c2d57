"""M2M100's vocabulary: a SentencePiece model, a table of ids, and behind it a token for each language.

The table (vocab.json) decides on ids. The languages are in no file: which there are, and in which order, is known of
each release (`language_codes` in tokenizer_config.json).
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer

from microplane.data.tokenizers.folder import CONFIG, TokenizerFolder
from microplane.data.tokenizers.normaliser import SentencePieceRules
from microplane.data.tokenizers.sentencepiece import build_in_order, in_order_of, read_model
from microplane.errors import ModelError
from microplane.files import read_object

MODEL, TABLE = "sentencepiece.bpe.model", "vocab.json"
CLASS = "M2M100Tokenizer"
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
CODES = {
    "m2m100": (
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr "
        "ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa "
        "pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu "
    ).split(),
    "wmt21": "en ha is ja cs ru zh de".split(),
}


def is_m2m100(folder: TokenizerFolder) -> bool:
    named, kind = folder.config.get("tokenizer_class"), folder.model_config.get("model_type")
    return folder.has(MODEL, TABLE) and (named == CLASS if named else kind == "m2m_100")


def build_m2m100(folder: TokenizerFolder) -> tuple[Tokenizer, Mapping[str, str], SentencePieceRules]:
    """The backend, its special tokens by their names, and its rules.

    Raises:
        ModelError: if a file is damaged, or names languages that are not known.
    """
    release = folder.config.get("language_codes", "m2m100")
    if release not in CODES:
        raise ModelError(f"{folder.path / CONFIG} has language_codes = {release!r}: known are {', '.join(CODES)}")
    ids = read_object(folder.path / TABLE, ModelError)
    if sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise ModelError(
            f"{folder.path / TABLE} must give its {len(ids)} pieces the ids 0 to {len(ids) - 1}, each once"
        )
    told, _ = folder.special_tokens(tuple(SPECIAL))
    special = {name: told[name] or text for name, text in SPECIAL.items()}
    if lacking := [text for text in dict.fromkeys(special.values()) if text not in ids]:
        raise ModelError(f"{folder.path / TABLE} lacks the special tokens {', '.join(lacking)}")
    languages = [f"__{code}__" for code in CODES[release]]
    table = [*sorted(ids, key=lambda text: ids[text]), *languages]
    pieces, _ = read_model(folder.path / MODEL)
    control = [*(text for text in special.values() if text != special["unk_token"]), *languages]
    backend, rules = build_in_order(in_order_of(table, pieces, special["unk_token"], control))
    return backend, special, rules
