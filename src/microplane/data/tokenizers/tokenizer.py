"""Text to token ids and back: one class over the `tokenizers` library, whatever file the vocabulary came from."""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from microplane.data.tokenizers.byte_text import decoded, plain_added, text_of
from microplane.data.tokenizers.folder import CONFIG, TokenizerFolder
from microplane.data.tokenizers.language_codes import Languages
from microplane.data.tokenizers.normaliser import (
    SPACE,
    Kept,
    Normalised,
    Normaliser,
    SentencePieceRules,
    UnicodeForm,
    in_form,
)
from microplane.data.tokenizers.segmenter import Segmentation, joiner
from microplane.files import write_aside, write_json

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
PADS = ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>")  # in order of preference
LETTERS = "é ü ñ å č ź ơ ư ế ộ ỷ ё й が ぱ 한".split()  # that can also be written with their marks apart
LETTERS_APART = [unicodedata.normalize("NFD", letter) for letter in LETTERS]
RARE = "\U00010380"  # a letter of Ugaritic, which no normalisation touches
WORD_FILES = ("vocab.txt", "bpe.codes")  # PhoBERT's
OVERLAP = 0.25  # of a window, that it shares with the one before


class Encoded(NamedTuple):
    """Tokens of one text or of two."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # the characters, from and to, of each in its text; 0, 0 of special tokens
    types: list[int]  # which segment each belongs to
    cut: bool  # whether something was lost to the greatest length


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each of one or two texts is kept, so that together they fill `room`, and the shorter is cut last."""
    if len(lengths) == 1 or sum(lengths) <= room:
        return [min(length, room) for length in lengths]
    first, second = lengths
    least = room // 2
    keep = room - second if second <= least else min(first, room - least)
    return [keep, room - keep]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, its special tokens and its chat template."""

    backend: Backend
    special_tokens: Mapping[str, str | None] = field(default_factory=dict)  # of `NAMED`, for chat templates
    eos_ids: tuple[int, ...] = ()  # all that end an answer, the tokenizer's own first
    chat_template: str | None = None  # Jinja
    target: Tokenizer | None = None  # of what is written, where it differs from that of what is read
    unmatchable_prefix: str = ""  # of tokens that the SentencePiece model of this text does not make
    source: TokenizerFolder | None = None  # the folder that it was read from, whose files are saved as they are
    rules: SentencePieceRules | None = None  # of a SentencePiece model
    unicode: UnicodeForm = "as-is"  # into which every text is brought
    segment: Segmentation = "none"  # of texts that are not rendered, into words
    date: str | None = None  # that a chat template is told, as 2026-11-28; None: the day of asking
    languages: Languages | None = None  # of what is read and written, where the vocabulary has tokens of them
    known: int | None = None  # tokens that the model has rows for, where the backend makes more; those are unknown

    def __post_init__(self) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()
        named = {name: self.special_tokens.get(name) for name in NAMED}
        named = {
            name: text if text and self.backend.token_to_id(text) is not None else None for name, text in named.items()
        }
        mark_special(self.backend, [text for text in named.values() if text])
        named["pad_token"] = self._pad(named["pad_token"], named["eos_token"])
        object.__setattr__(self, "special_tokens", named)

    def _pad(self, pad: str | None, eos: str | None) -> str | None:
        """Never the stop token if there is another: whoever masks the pad would mask the stop token too."""
        if pad and pad != eos:
            return pad
        others = (text for text in PADS if text != eos and self.backend.token_to_id(text) is not None)
        return next(others, pad)

    @cached_property
    def tool_template(self) -> str | None:
        """The chat template of conversations that offer tools, where the folder has one beside that of all others."""
        source = self.source
        return None if source is None or self.chat_template != source.chat_template() else source.tool_template()

    @property
    def vocab_size(self) -> int:
        return self.known or self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def unk_id(self) -> int | None:
        return self._id("unk_token")

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, None if it is not in the vocabulary."""
        found = self.backend.token_to_id(token)
        if found is None and self.unmatchable_prefix:
            found = self.backend.token_to_id(self.unmatchable_prefix + token)
        return None if found is None or (self.known is not None and found >= self.known) else found

    @property
    def pad_id(self) -> int | None:
        return self._id("pad_token")

    def ending_with(self, token: int) -> Tokenizer:
        """With another end token, where nothing else than stopping follows from it: a tokenizer that puts its end token
        behind every text, or into a template, keeps it."""
        old, new = self.special_tokens["eos_token"], self.backend.id_to_token(token)
        puts_it = old is not None and self.backend.token_to_id(old) in self.encode("a")
        if new is None or new == old or puts_it or "eos_token" in (self.chat_template or ""):
            return self
        ends = tuple(dict.fromkeys([token, *self.eos_ids]))
        return replace(self, special_tokens={**self.special_tokens, "eos_token": new}, eos_ids=ends)

    def padded_apart(self) -> Tokenizer:
        """With a token for padding that no text ends with; with none, where the vocabulary has no such token."""
        last = self.encode("a")[-1:]
        named = [self.special_tokens[name] for name in ("pad_token", "unk_token", "bos_token", "eos_token")]
        others = [
            token.content for _, token in sorted(self.backend.get_added_tokens_decoder().items()) if token.special
        ]
        texts = [text for text in (named[0], *PADS, *named[1:], *others) if text]
        pad = next((text for text in texts if self.backend.token_to_id(text) not in (None, *last)), None)
        return replace(self, special_tokens={**self.special_tokens, "pad_token": pad})

    def _id(self, name: str) -> int | None:
        text = self.special_tokens[name]
        return None if text is None else self.backend.token_to_id(text)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids. `special` puts what the model wants (BOS) around the text; special tokens that are written in the
        text are recognised either way, unless the folder's `split_special_tokens` says that they are text like any."""
        return self._ids(self.backend.encode(self._normaliser(text).text, add_special_tokens=special))

    @cached_property
    def of_templates(self) -> Tokenizer:
        """The same for rendered conversations, whose special tokens are those of a template: they are recognised, also
        where the folder's `split_special_tokens` says that those of a text are text."""
        if not self.backend.encode_special_tokens:
            return self
        backend = Backend.from_str(self.backend.to_str())  # which does not hold that switch
        return replace(self, backend=backend)

    def with_unicode(self, form: UnicodeForm | Literal["auto"]) -> Tokenizer:
        """The same for texts that are brought into a Unicode form first; `auto` as the knob `data.unicode`."""
        if form == "auto":
            as_it_is = replace(self, unicode="as-is")
            whole, apart = (any(map(as_it_is._knows, letters)) for letters in (LETTERS, LETTERS_APART))
            form = "as-is" if apart and not whole else "nfc"
        target = self.target.with_unicode(form) if self.target else None
        return self if form == self.unicode else replace(self, unicode=form, target=target)

    def with_segment(self, segment: Segmentation) -> Tokenizer:
        """The same for texts whose words are joined first, as the knob `data.segment`.

        Raises:
            ConfigError: if the package for it is not installed.
        """
        joiner(segment)
        return self if segment == self.segment else replace(self, segment=segment)

    def with_date(self, date: str | None) -> Tokenizer:
        """The same with the day that the chat template is told, where it asks for one, as the knob `data.date`."""
        if "strftime_now" not in (self.chat_template or ""):
            return self
        return replace(self, date=datetime.now().date().isoformat() if date == "auto" else date)

    @property
    def expects_segments(self) -> bool:
        """Whether it belongs to a model that was trained on words joined by _."""
        return self.source is not None and self.source.has(*WORD_FILES)

    def _knows(self, text: str) -> bool:
        """Whether no token of a text is unknown."""
        return self.unk_id not in self.encode(text, special=False)

    def leaves_out(self, character: str) -> bool:
        """Whether a character vanishes from texts: merges (BPE) have no token for it, nor one for the unknown."""
        merges = self.backend.model
        mute = isinstance(merges, BPE) and merges.unk_token is None
        return mute and self.encode(f"a{character}a", special=False) == self.encode("aa", special=False)

    def in_form(self, text: str) -> str:
        """A text in the Unicode form that all texts are brought into."""
        return in_form(text, self.unicode)

    @cached_property
    def _normaliser(self) -> Normaliser:
        own = self.rules.own if self.rules else ()
        added = self.backend.get_added_tokens_decoder().values()
        kept = Kept.of(token for token in added if token.content not in own)
        return Normaliser(self.unicode, self.segment, self.rules, kept)

    def _ids(self, encoding: Encoding) -> list[int]:
        """What no row of the model stands for is unknown. What is unknown to a SentencePiece model may yet have an id,
        as a token that another one makes."""
        ids: list[int] = encoding.ids
        unknown = self.unk_id if self.known is not None or self.unmatchable_prefix else None
        if self.known is not None and unknown is not None:
            ids = [token if token < self.known else unknown for token in ids]
        if not self.unmatchable_prefix or unknown not in ids:
            return ids
        found = (self.backend.token_to_id(self.unmatchable_prefix + token) for token in encoding.tokens)
        return [token if token != unknown or other is None else other for token, other in zip(ids, found, strict=True)]

    def broken_words(self, texts: Iterable[str], pieces: int = 3) -> tuple[list[str], int]:
        """The words of some texts that the vocabulary cuts into more than so many pieces, and how many words there are;
        each word once."""
        words = sorted({word for text in texts for word in text.split()})
        return [word for word in words if len(self.encode(f" {word}", special=False)) > pieces], len(words)

    def encode_target(self, text: str) -> list[int]:
        """Token ids of what an encoder-decoder shall write."""
        return self.for_targets.encode(text, special=True)

    @property
    def for_targets(self) -> Tokenizer:
        """The tokenizer of what is written, where it differs from that of what is read."""
        return self.target or self

    def encode_pair(self, text: str, second: str = "", max_length: int | None = None, placed: bool = True) -> Encoded:
        """One text, or two that belong together, with the special tokens that the model wants around and between them.

        What is longer than `max_length` loses its end; of two texts, always the longer one loses a token.

        Args:
            placed: whether the offsets are asked for, which costs time; there are none otherwise.
        """
        given, texts = self._cut(text, second, placed)
        return self._joined(given, texts, max_length, placed)

    def _cut(self, text: str, second: str, placed: bool = False) -> tuple[list[Normalised], list[Encoding]]:
        """One or two texts as they are cut into tokens, and the tokens of each, with nothing around them."""
        parts = (text, second) if second else (text,)
        given = [self._normaliser(part, placed=placed, words=True) for part in parts]
        return given, [self.backend.encode(part.text, add_special_tokens=False) for part in given]

    def _joined(
        self, given: Sequence[Normalised], texts: Sequence[Encoding], max_length: int | None, placed: bool = False
    ) -> Encoded:
        """What `_cut` gave as one row, see `encode_pair`."""
        lengths, room = [len(part) for part in texts], self._room(max_length, len(texts))
        cut = sum(lengths) > room
        if cut:
            for part, keep in zip(texts, shares(lengths, room), strict=True):
                part.truncate(keep)
        whole = self.backend.post_process(texts[0], texts[1] if len(texts) == 2 else None)
        offsets = _given_places(whole, given, texts) if placed else []
        return Encoded(self._ids(whole), offsets, whole.type_ids, cut)

    def _room(self, max_length: int | None, texts: int) -> int:
        """Tokens of one or two texts beside the special ones."""
        return max(0, (max_length or sys.maxsize) - self.backend.num_special_tokens_to_add(texts == 2))

    def encode_windows(self, text: str, second: str, max_length: int) -> list[Encoded]:
        """The same of a text that may be longer, without offsets: rows of `max_length` tokens at most, which overlap.

        Of two texts the shorter stands whole in each row; where it takes more than half of one, both lose their ends.
        """
        given, texts = self._cut(text, second)
        lengths, room = [len(part) for part in texts], self._room(max_length, len(texts))
        longer = max(range(len(texts)), key=lengths.__getitem__)
        keep = room - (sum(lengths) - lengths[longer])
        if sum(lengths) <= room or keep < room / 2 or keep < 2:
            return [self._joined(given, texts, max_length)]
        texts[longer].truncate(keep, stride=int(keep * OVERLAP))
        found = []
        for window in [texts[longer], *texts[longer].overflowing]:
            own = [window if place == longer else part for place, part in enumerate(texts)]
            whole = self.backend.post_process(own[0], own[1] if second else None)
            found.append(Encoded(self._ids(whole), [], whole.type_ids, False))
        return found

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the characters, from and to, that each stands for."""
        given = self._normaliser(text, placed=True)
        encoding = self.backend.encode(given.text, add_special_tokens=special)
        return self._ids(encoding), given.all_given(encoding.offsets)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return decoded(self.backend, ids, skip_special, self._plain_added)

    def piece(self, token: int) -> str:
        """One token for display, with its spaces as spaces; in its own spelling where it is part of a character."""
        text = self.backend.id_to_token(token)
        if text is None:
            return f"<{token}>"
        if token in self._added:
            return text
        if not self.byte_level:
            return text.removeprefix(self.unmatchable_prefix).replace(SPACE, " ")
        return text_of(text)

    @cached_property
    def _added(self) -> set[int]:
        return set(self.backend.get_added_tokens_decoder())

    @cached_property
    def _plain_added(self) -> dict[int, AddedToken]:
        return plain_added(self.backend) if self.byte_level else {}

    @cached_property
    def byte_level(self) -> bool:
        return '"type":"ByteLevel"' in self._description.split('"model":')[0]

    @cached_property
    def _description(self) -> str:
        return self.rules.description(self.backend) if self.rules else self.backend.to_str()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all that decides ids and rendering."""
        form = [name for name in (self.unicode, self.segment, self.date) if name not in ("as-is", "none", None)]
        form += ["split_special_tokens"] if self.backend.encode_special_tokens else []
        form += [self.tool_template] if self.tool_template else []
        parts = json.dumps([dict(self.special_tokens), self.chat_template, *form], sort_keys=True)
        written = f"\n{self.target.fingerprint}" if self.target else ""
        return hashlib.sha256(f"{self._description}\n{parts}{written}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write files that transformers opens with equal ids, settings and template.

        What was read from a folder is written as it lay there, and only what was chosen otherwise since is changed: the
        token for padding, the end token, the chat template. Of a GGUF file a tokenizer.json is made.
        """
        if self.source is not None:
            changes = self._changes(self.source)
            if self.source.has_sentencepiece_alone:  # which not everybody can read
                write_aside(folder / "tokenizer.json", self._description.encode())
                changes |= {name: text for name, text in self.special_tokens.items() if text} | changes
            self.source.copy(folder, changes)
            return
        config: dict[str, Any] = {name: text for name, text in self.special_tokens.items() if text}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        write_aside(folder / "tokenizer.json", self._description.encode())
        write_json(folder / CONFIG, config)

    def _changes(self, source: TokenizerFolder) -> dict[str, Any]:
        told, _ = source.special_tokens(NAMED)
        named = {name: self.special_tokens[name] for name in ("eos_token", "pad_token")}
        changes: dict[str, Any] = {name: text for name, text in named.items() if text and text != told[name]}
        if self.chat_template != source.chat_template():
            changes["chat_template"] = self.chat_template
        if (chosen := self.languages) is not None:
            sides = {"src_lang": chosen.source, "tgt_lang": chosen.target}
            changes |= {name: code for name, code in sides.items() if code and code != source.config.get(name)}
        return changes


def _given_places(whole: Encoding, given: Sequence[Normalised], texts: Sequence[Encoding]) -> list[tuple[int, int]]:
    """The places of tokens in the texts as they were given; special tokens around them are no part of any text."""
    if all(one.places is None for one in given):
        return whole.offsets
    of_text = chain.from_iterable([own] * len(part) for own, part in zip(given, texts, strict=True))
    marked = zip(whole.offsets, whole.special_tokens_mask, strict=True)
    return [place if special else next(of_text).given(*place) for place, special in marked]


def mark_special(backend: Backend, texts: Iterable[str]) -> None:
    """Have tokens that are in the vocabulary recognised whole in a text, and skipped by decoding."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    wanted = [text for text in dict.fromkeys(texts) if text not in known and backend.token_to_id(text) is not None]
    if wanted:
        backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in wanted])


def surround(backend: Backend, before: str | None, behind: str | None) -> None:
    """Put BOS before and EOS behind every text, where given and in the vocabulary."""
    ids = {text: backend.token_to_id(text) for text in (before, behind) if text}
    known = {text: token for text, token in ids.items() if token is not None}
    single = [part for part in (before, "$A", behind) if part == "$A" or part in known]
    backend.post_processor = TemplateProcessing(single=single, special_tokens=list(known.items()))
