"""Tokenizers for tests: tiny ones with any special tokens and any template."""

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from microplane.data.tokenizers.tokenizer import Tokenizer


def tiny(special=("<eos>",), template=None, eos="<eos>", bos=None, adds_bos=False, merges=(), unk=None) -> Tokenizer:
    """Byte-level BPE. The bytes are the vocabulary, and `merges` what is merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(first + second for first, second in merges)]
    backend = Backend(models.BPE({piece: number for number, piece in enumerate(pieces)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend, special, template, eos, bos, adds_bos, unk)


def spaced(special=("<eos>",), template=None, eos="<eos>", bos=None, adds_bos=False, more=()) -> Tokenizer:
    """SentencePiece's way: a space is put before every text, and what is not in the vocabulary is <unk>."""
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in [*"▁abcdefghijklmnopqrstuvwxyz[]/|<>\n", *more])]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return _finish(backend, special, template, eos, bos, adds_bos, "<unk>")


def _finish(backend, special, template, eos, bos, adds_bos, unk) -> Tokenizer:
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if adds_bos:
        number = backend.token_to_id(bos)
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, number)])
    eos_ids = (backend.token_to_id(eos),) if eos else ()
    return Tokenizer(backend, {"bos_token": bos, "eos_token": eos, "unk_token": unk}, eos_ids, template)
