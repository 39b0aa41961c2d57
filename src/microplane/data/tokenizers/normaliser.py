"""What is done to a text before its vocabulary sees it: a Unicode form, and the rules of SentencePiece.

A letter with marks can be written as one character or as a letter and its marks apart, which most vocabularies cut into
other tokens. A Unicode form (UAX #15) makes the two equal.

A SentencePiece model has a table of rules and switches for white space (arXiv 1808.06226, section 3.2). The
`tokenizers` library applies the table to a letter with all its marks at once and loses the second mark, so the
package's own normaliser is used.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from sentencepiece import SentencePieceNormalizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import Normalizer, Precompiled
from tokenizers.normalizers import Sequence as Steps
from tokenizers.pre_tokenizers import PreTokenizer

from microplane.data.tokenizers.segmenter import JOINT, Segmentation, joiner

UnicodeForm = Literal["as-is", "nfc", "nfkc"]
Place = tuple[int, int]
SPACE = "▁"  # how SentencePiece writes a space


class Normalised(NamedTuple):
    """A text as the vocabulary sees it."""

    text: str
    places: list[Place] | None  # for each character, from and to in the text as it was given; None: nothing moved

    def given(self, start: int, end: int) -> Place:
        """The place in the text as it was given, of a part of `text`."""
        if self.places is None or start == end:
            return start, end
        return self.places[start][0], self.places[end - 1][1]

    def all_given(self, places: list[Place]) -> list[Place]:
        """The same of many parts."""
        return places if self.places is None else [self.given(*place) for place in places]

    def followed_by(self, later: Normalised) -> Normalised:
        """What both did."""
        if later.places is None:
            return Normalised(later.text, self.places)
        return Normalised(later.text, [self.given(*place) for place in later.places])


def in_form(text: str, form: UnicodeForm) -> str:
    """The text in a Unicode form."""
    if form == "as-is" or text.isascii():
        return text
    standard: Literal["NFC", "NFKC"] = "NFC" if form == "nfc" else "NFKC"
    return text if unicodedata.is_normalized(standard, text) else unicodedata.normalize(standard, text)


def in_form_with_places(text: str, form: UnicodeForm) -> Normalised:
    """As `in_form`, and what became what."""
    if in_form(text, form) == text:
        return Normalised(text, None)
    written: list[str] = []
    places: list[Place] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and not _stand_apart(text[start:end], text[end], form):
            continue
        part = in_form(text[start:end], form)
        written.append(part)
        places += [(start, end)] * len(part)
        start = end
    return Normalised("".join(written), places)


def _stand_apart(before: str, character: str, form: UnicodeForm) -> bool:
    """Whether a character and what is before it can be brought into the form one by one."""
    if unicodedata.combining(character):
        return False
    return in_form(before + character, form) == in_form(before, form) + in_form(character, form)


@dataclass(frozen=True)
class SentencePieceRules:
    """The rules of a SentencePiece model, taken out of the `tokenizers` library's pipeline.

    Args:
        load: makes the package's normaliser; it is told whether to put a space before the text.
        prefix: before what that is done: "first" the text alone, unless it begins with a space; "always" also what is
            behind a special token; "never".
        suffix: put behind a text, where a model has the space behind a word.
        own: texts of tokens that the package's normaliser knows and leaves as they are.
        pipeline: what the library does instead, for whoever has only a tokenizer.json.
    """

    load: Callable[[bool], SentencePieceNormalizer]
    prefix: str
    suffix: str
    pipeline: tuple[Normalizer | None, PreTokenizer | None]
    own: frozenset[str] = frozenset()
    _loaded: dict[bool, SentencePieceNormalizer] = field(default_factory=dict, repr=False)

    def normaliser(self, text: str, first: bool) -> SentencePieceNormalizer:
        """For a text, or, if not `first`, for what of it is behind a special token."""
        spaced = text.startswith((" ", SPACE))
        prefixed = self.prefix == "always" or (self.prefix == "first" and first and not spaced)
        if prefixed not in self._loaded:
            self._loaded[prefixed] = self.load(prefixed)
        return self._loaded[prefixed]

    def description(self, backend: Backend) -> str:
        """The tokenizer.json of a backend that was rid of the library's own steps, with them."""
        left = backend.normalizer, backend.pre_tokenizer
        backend.normalizer, backend.pre_tokenizer = self.pipeline
        try:
            return backend.to_str()
        finally:
            backend.normalizer, backend.pre_tokenizer = left


def rules_of_model(backend: Backend, model: bytes, prefix: str, suffix: str, own: Iterable[str]) -> SentencePieceRules:
    """Take the rules of a SentencePiece model out of a backend, which then only has to cut.

    Args:
        model: the file's bytes.
        own: its user-defined pieces.
    """

    def load(prefixed: bool) -> SentencePieceNormalizer:
        return SentencePieceNormalizer(model_proto=model, add_dummy_prefix=prefixed)

    return SentencePieceRules(load, prefix, suffix, (backend.normalizer, backend.pre_tokenizer), frozenset(own))


def rules_of_json(backend: Backend) -> SentencePieceRules | None:
    """Take the table of rules out of the pipeline of a tokenizer.json, where it is the first step there."""
    whole = backend.normalizer
    steps = [whole[place] for place in range(len(whole))] if isinstance(whole, Steps) else [whole]
    if not steps or not isinstance(steps[0], Precompiled):
        return None
    table = base64.b64decode(json.loads(steps[0].__getstate__())["precompiled_charsmap"] or "")
    if not table:
        return None
    spec = b"\x12" + _varint(len(table)) + table  # field 2 of the message NormalizerSpec

    def load(prefixed: bool) -> SentencePieceNormalizer:
        return SentencePieceNormalizer(
            normalizer_spec=spec, add_dummy_prefix=prefixed, escape_whitespaces=False, remove_extra_whitespaces=False
        )

    rules = SentencePieceRules(load, "never", "", (whole, backend.pre_tokenizer))
    backend.normalizer = Steps(steps[1:]) if steps[1:] else None
    return rules


def _varint(number: int) -> bytes:
    """As protocol buffers write the length of a field."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


@dataclass(frozen=True)
class Kept:
    """Added tokens, which are looked for in a text as it was given: they stay as they are, and nothing becomes one.

    Args:
        pattern: finds them.
        lstrip, rstrip: those that take the white space before or behind them.
    """

    pattern: re.Pattern[str]
    lstrip: frozenset[str]
    rstrip: frozenset[str]

    @classmethod
    def of(cls, tokens: Iterable[AddedToken]) -> Kept | None:
        longest_first = sorted(tokens, key=lambda token: (-len(token.content), token.content))
        if not longest_first:
            return None
        words = [
            rf"(?<!\w){text}(?!\w)" if token.single_word else text
            for token in longest_first
            for text in [re.escape(token.content)]
        ]
        return cls(
            re.compile(f"({'|'.join(words)})"),
            frozenset(token.content for token in longest_first if token.lstrip),
            frozenset(token.content for token in longest_first if token.rstrip),
        )

    def split(self, text: str) -> list[str]:
        """What is between the tokens, and every second one a token with the white space that it takes."""
        parts = self.pattern.split(text)
        for place in range(1, len(parts), 2):
            token, before, behind = parts[place], parts[place - 1], parts[place + 1]
            if token in self.lstrip:
                parts[place - 1] = before.rstrip()
            if token in self.rstrip:
                parts[place + 1] = behind.lstrip()
            taken = before[len(parts[place - 1]) :], behind[: len(behind) - len(parts[place + 1])]
            parts[place] = taken[0] + token + taken[1]
        return parts


def in_words(text: str, segmentation: Segmentation) -> Normalised:
    """A text with its words joined by `JOINT`, and what became what."""
    if segmentation == "none" or not text.strip():
        return Normalised(text, None)
    joined = joiner(segmentation)(text)
    places: list[Place] = []
    at = 0
    for character in joined:
        while at < len(text) and text[at].isspace() and not (character.isspace() or character == JOINT):
            at += 1
        if at < len(text) and (character == text[at] or text[at].isspace()):
            places.append((at, at + 1))
            at += 1
        elif character.isspace():  # that was put beside a punctuation mark
            places.append((max(0, at - 1), max(1, at)))
        else:  # something else than spaces was changed
            return Normalised(text, None)
    return Normalised(joined, places)


@dataclass(frozen=True)
class Normaliser:
    """All that is done to a text before the vocabulary sees it."""

    form: UnicodeForm
    segmentation: Segmentation
    rules: SentencePieceRules | None
    kept: Kept | None

    def __call__(self, text: str, placed: bool = False, words: bool = False) -> Normalised:
        """A text as the vocabulary sees it.

        Args:
            placed: whether the places are asked for, which costs time.
            words: whether its words are joined; a text that was rendered, with marks of its own, is left as it is.
        """
        segmentation = self.segmentation if words else "none"
        if self.rules is None and segmentation == "none" and in_form(text, self.form) == text:
            return Normalised(text, None)
        if self.kept is None or self.kept.pattern.search(text) is None:
            return self._part(text, segmentation, True, placed)
        written: list[str] = []
        places: list[Place] = []
        at = 0
        for token, found in enumerate(self.kept.split(text)):
            part = Normalised(found, None) if token % 2 else self._part(found, segmentation, not token, placed)
            written.append(part.text)
            own = part.places or [(place, place + 1) for place in range(len(part.text))]
            places += [(at + start, at + end) for start, end in own]
            at += len(found)
        return Normalised("".join(written), places if placed else None)

    def _part(self, text: str, segmentation: Segmentation, first: bool, placed: bool) -> Normalised:
        """The text, or what of it is between two added tokens."""
        if not text:
            return Normalised(text, None)
        done = in_form_with_places(text, self.form) if placed else Normalised(in_form(text, self.form), None)
        if segmentation != "none":
            done = done.followed_by(in_words(done.text, segmentation))
        if self.rules is not None:
            done = _by_rules(done, self.rules, first, placed)
        return Normalised(text, None) if self.kept is not None and self.kept.pattern.search(done.text) else done


def _by_rules(formed: Normalised, rules: SentencePieceRules, first: bool, placed: bool) -> Normalised:
    normaliser = rules.normaliser(formed.text, first)
    if not placed:
        text = normaliser.normalize(formed.text)
        return Normalised(text + rules.suffix if text else text, None)
    text, starts = normaliser.normalize(formed.text, with_offsets=True)
    places: list[Place] = []
    end = starts[-1]
    for start, following in reversed([*pairwise(starts)]):
        end = following if following > start else end  # of what became several characters, each is the whole
        places.append(formed.given(start, end))
    places = places[::-1] + [places[0]] * len(rules.suffix if text else "")
    return Normalised(text + rules.suffix if text else text, places)
