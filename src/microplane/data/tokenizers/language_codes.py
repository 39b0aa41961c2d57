"""Languages of multilingual translation models: each is a token that stands with what is read and what is written.

| class | codes | what is read | what is written |
|---|---|---|---|
| NllbTokenizer | eng_Latn | `eng_Latn X </s>` | `fra_Latn Y </s>` |
| M2M100Tokenizer | en | `__en__ X </s>` | `__fr__ Y </s>` |
| MBart50Tokenizer | en_XX | `en_XX X </s>` | `fr_XX Y </s>` |
| MBartTokenizer | en_XX | `X </s> en_XX` | `Y </s>`, and the decoder starts with `fr_XX` |

In the first three the decoder starts as ever, and the language is the first token that is written. The labels that
transformers makes for mBART have the language behind their end too, where nothing is written any more: it is not
trained here. NLLB's `legacy_behaviour` reads as mBART does.
"""

from __future__ import annotations

from dataclasses import dataclass

from microplane.errors import ConfigError


@dataclass(frozen=True)
class Scheme:
    """Where a class of tokenizers puts its languages."""

    pattern: str  # of their tokens; its group is the code
    spelled: str = "{}"  # the token of a code
    behind: bool = False  # the language of what is read stands behind its end token, else at its front
    starts: bool = False  # the decoder starts with the language to write in, else that is the first token written


BART_CODE = r"([a-z]{2,3}_[A-Z]{2})"
SCHEMES = {
    "NllbTokenizer": Scheme(r"([a-z]{3}_[A-Z][a-z]{3})"),
    "M2M100Tokenizer": Scheme(r"__([a-z]{2,3})__", "__{}__"),
    "MBart50Tokenizer": Scheme(BART_CODE),
    "MBartTokenizer": Scheme(BART_CODE, behind=True, starts=True),
}
KNOBS = {"source": "data.source_language", "target": "data.target_language"}


@dataclass(frozen=True)
class Languages:
    """Of one tokenizer: its codes, and the two that were chosen, None where nobody said."""

    scheme: Scheme
    codes: tuple[str, ...]
    source: str | None = None
    target: str | None = None

    def token(self, code: str) -> str:
        return self.scheme.spelled.format(code)

    def need(self, side: str) -> str:
        """The code of a side that has to be known.

        Raises:
            ConfigError: if nobody said it.
        """
        code: str | None = getattr(self, side)
        if code is None:
            what = "reads each text with the token of its language" if side == "source" else "writes in a language"
            raise ConfigError(
                f"{KNOBS[side]} is not set, and this model {what}: set it to one of its {len(self.codes)} codes, such "
                f"as {', '.join(self.codes[:4])} (microplane generate --{side}-language)"
            )
        return code
