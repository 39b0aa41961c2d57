"""The tokenizer of DeBERTa-v2 and v3: a SentencePiece model, `spm.model`, and BERT's special tokens around a text."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, processors

from microplane.data.tokenizers.bert_roberta import BERT
from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.data.tokenizers.normaliser import SentencePieceRules
from microplane.data.tokenizers.sentencepiece import build, read_model, take_rules
from microplane.errors import ModelError

FILE, FAMILY = "spm.model", "deberta-v2"
CLASSES = ("DebertaV2Tokenizer", "DebertaV2TokenizerFast")
OTHERWISE = ("do_lower_case", "split_by_punct")  # which no released checkpoint asks for


def is_deberta(folder: TokenizerFolder) -> bool:
    """Whether the folder has such a model, with the settings that are known here."""
    named = folder.config.get("tokenizer_class")
    ours = named in CLASSES if named else folder.model_config.get("model_type") == FAMILY
    return ours and folder.has(FILE) and not any(folder.config.get(setting) for setting in OTHERWISE)


def build_deberta(folder: TokenizerFolder) -> tuple[Tokenizer, dict[str, str], SentencePieceRules]:
    """The backend, its special tokens by their names, and its rules.

    Raises:
        ModelError: if the file is damaged, or lacks a special token.
    """
    pieces, _ = read_model(folder.path / FILE)
    named, _ = folder.special_tokens(tuple(BERT))
    own = {name: named.get(name) or usual for name, usual in BERT.items()}
    backend = build(pieces)
    lacking = [text for name, text in own.items() if name != "mask_token" and backend.token_to_id(text) is None]
    if lacking:
        raise ModelError(f"{folder.path / FILE} lacks the special tokens {', '.join(lacking)}")
    marks = [AddedToken(text, normalized=False, special=True) for text in own.values()]
    backend.add_special_tokens(marks)  # the mask is behind the pieces
    begin, end = own["cls_token"], own["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(text, backend.token_to_id(text)) for text in (begin, end)],
    )
    return backend, own, take_rules(backend, pieces)
