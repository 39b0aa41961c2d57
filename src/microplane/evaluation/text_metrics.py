"""What a generated answer is worth: predictions against targets, text against text.

Shares lie in 0..1; `bleu` and `chrf` in 0..100, as sacreBLEU gives them. It is imported where it is used: a run that
needs no BLEU does not load it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from microplane.config.extensions import Registry
from microplane.errors import ConfigError, nearest
from microplane.evaluation import f1
from microplane.evaluation.rouge import rouge_l, rouge_n

Texts = Sequence[str]

LABEL_CHARACTERS = 50  # a target longer than this is a text, not a label
LABEL_WORDS = 5
LABEL_KINDS = 100  # more distinct targets than this are texts
BLEU_WORDS = 4  # BLEU counts runs of up to four words: of shorter texts it is 0, however right they are

# Blocks of scripts that put no space between words: Thai, Lao, Myanmar, Khmer, kana, Han with its extensions.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def score(names: Sequence[str], predictions: Texts, targets: Texts) -> dict[str, float]:
    """The figures of these metrics; `auto` stands for what `choose` takes, `rouge` gives three figures.

    No rows give no figures.

    Raises:
        ConfigError: for a metric that does not exist.
    """
    check(names)
    assert len(predictions) == len(targets), f"{len(predictions)} predictions for {len(targets)} targets"
    if not targets:
        return {}
    wanted = [name for given in names for name in (choose(targets) if given == "auto" else (given,))]
    figures: dict[str, float] = {}
    for name in dict.fromkeys(wanted):
        figures |= METRICS[name](predictions, targets)
    return figures


LOWER_IS_BETTER = ("loss", "perplexity", "rmse")
SHARES = ("exact_match", "json_valid", "json_equal", "accuracy", "macro_f1", "rouge1", "rouge2", "rougeL")  # in 0..1


def lower_is_better(figures: Iterable[str]) -> list[str]:
    """Those of the figures of which less is better. A metric that a package adds says it by an attribute of its
    function, `lower_is_better = True`, which holds for the figure of its name and those that begin `NAME_`.
    """
    added = [name for name in METRICS if name not in _BUILT_IN and getattr(METRICS[name], "lower_is_better", False)]
    return [
        figure
        for figure in figures
        if figure in LOWER_IS_BETTER or any(figure == name or figure.startswith(f"{name}_") for name in added)
    ]


def check(names: Iterable[str]) -> None:
    """Refuse names of metrics that do not exist, before a run rather than after it.

    Raises:
        ConfigError: naming the nearest metric and all of them.
    """
    known = ["auto", *METRICS]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no metric {name!r}.{nearest(name, known)} Metrics: {', '.join(known)}")


def choose(targets: Texts) -> tuple[str, ...]:
    """The metrics that suit these targets: JSON, labels out of a small set, or free text, most of it long enough for
    BLEU or not."""
    if targets and all(text.strip()[:1] in ("{", "[") and canonical_json(text) is not None for text in targets):
        return ("exact_match", "json_valid", "json_equal")
    if _are_labels({normalised(text) for text in targets}, len(targets)):
        return ("accuracy", "macro_f1")
    long = sum(len(text.split()) >= BLEU_WORDS for text in targets)
    return ("exact_match", "rouge", "bleu", "chrf") if 2 * long >= len(targets) else ("exact_match", "rouge", "chrf")


def _are_labels(kinds: set[str], rows: int) -> bool:
    """Short, few, and repeated: at most two in three targets are new ones."""
    short = all(len(kind) <= LABEL_CHARACTERS and len(kind.split()) <= LABEL_WORDS for kind in kinds)
    return short and 0 < len(kinds) <= LABEL_KINDS and 3 * len(kinds) <= 2 * rows


def normalised(label: str) -> str:
    """A label without the differences that do not count: case, and white space around and between words."""
    return " ".join(label.split()).casefold()


def canonical_json(text: str) -> str | None:
    """The same string for equal JSON values, None for what is not JSON.

    Keys are sorted, and 1.0 is 1; but true is not 1, as it is in Python. NaN and Infinity are not JSON.
    """
    try:
        value = json.loads(text, parse_float=_number, parse_constant=_refuse)
        return json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):  # RecursionError: ten thousand opening brackets
        return None


def _number(digits: str) -> float | int:
    value = float(digits)
    return int(value) if value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def exact_match(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Share of predictions that equal their target, white space at the ends aside."""
    return {"exact_match": _share(p.strip() == t.strip() for p, t in zip(predictions, targets, strict=True))}


def json_valid(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Share of predictions that are JSON."""
    return {"json_valid": _share(canonical_json(text) is not None for text in predictions)}


def json_equal(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Share of predictions whose JSON value equals the target's; the order of keys is free."""
    pairs = ((canonical_json(p), canonical_json(t)) for p, t in zip(predictions, targets, strict=True))
    return {"json_equal": _share(p is not None and p == t for p, t in pairs)}


def accuracy(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Share of predictions that are the right label, by `normalised`."""
    return {"accuracy": _share(normalised(p) == normalised(t) for p, t in zip(predictions, targets, strict=True))}


def macro_f1(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Mean over the targets' labels of each one's F1. A prediction that is none of them misses its own label only."""
    return {"macro_f1": f1.macro_f1([normalised(p) for p in predictions], [normalised(t) for t in targets])}


def rouge(predictions: Texts, targets: Texts) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L: mean F over the rows, without stemming.

    The usual tokenizer (of the package rouge-score) keeps a-z and 0-9 only, so that Greek scores 0 and `été` becomes
    `t`. Ours splits ASCII text at the same places and keeps the letters of every script (see `words`).
    """
    pairs = [(words(prediction), words(target)) for prediction, target in zip(predictions, targets, strict=True)]
    return {
        "rouge1": _mean([rouge_n(prediction, target, 1) for prediction, target in pairs]),
        "rouge2": _mean([rouge_n(prediction, target, 2) for prediction, target in pairs]),
        "rougeL": _mean([rouge_l(prediction, target) for prediction, target in pairs]),
    }


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and their marks; single characters where a script has no spaces."""
    return "".join(_spaced(character) for character in unicodedata.normalize("NFC", text.lower())).split()


def _spaced(character: str) -> str:
    if unicodedata.category(character)[0] not in "LMN":
        return " "
    return f" {character} " if any(low <= ord(character) <= high for low, high in UNSPACED) else character


def bleu(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Corpus BLEU of sacreBLEU with its default 13a tokenizer, which sees a Chinese sentence as one word: see chrF."""
    from sacrebleu import corpus_bleu

    return {"bleu": corpus_bleu(list(predictions), [list(targets)], force=True).score}


def chrf(predictions: Texts, targets: Texts) -> dict[str, float]:
    """Corpus chrF2 of sacreBLEU: character n-grams, so any script."""
    from sacrebleu import corpus_chrf

    return {"chrf": corpus_chrf(list(predictions), [list(targets)]).score}


def _share(hits: Iterable[bool]) -> float:
    return _mean(list(hits))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


Metric = Callable[[Texts, Texts], dict[str, float]]

_BUILT_IN: dict[str, Metric] = {
    "exact_match": exact_match,
    "json_valid": json_valid,
    "json_equal": json_equal,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "rouge": rouge,
    "bleu": bleu,
    "chrf": chrf,
}


def _checked(name: str, found: object) -> Metric:
    """Raises: TypeError, if what a package calls a metric cannot be called."""
    if not callable(found):
        raise TypeError("which is no function of predictions and targets")
    return found


METRICS: Mapping[str, Metric] = Registry("microplane.metrics", _BUILT_IN, _checked)
