"""Words of a language that puts spaces between syllables, joined as its models were trained on them.

Vietnamese by pyvi, which changes nothing but spaces (and composes letters); underthesea also moves tone marks, which
gives other tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

from microplane.errors import ConfigError

Segmentation = Literal["none", "vi"]
JOINT = "_"


@cache
def joiner(segmentation: Segmentation) -> Callable[[str], str]:
    """Joins the syllables of each word of a text.

    Raises:
        ConfigError: if the package for it is not installed.
    """
    if segmentation == "none":
        return lambda text: text
    try:
        from pyvi import ViTokenizer
    except ImportError:
        raise ConfigError(
            "data.segment=vi needs the package pyvi, which is not installed: pip install 'microplane[vi]'"
        ) from None
    join: Callable[[str], str] = ViTokenizer.tokenize
    return join
