"""General text, on which it is measured what a model forgets while it learns other rows.

A decoder predicts each next token of the text; an encoder-decoder the spans that are taken out of it, or its end where
the vocabulary has no signs for spans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path

from microplane.config.knobs import DataKnobs, RunKnobs
from microplane.data.mixtures.render import Progress as Reading
from microplane.data.preparing.load_splits import load_rows
from microplane.data.progress import Progress
from microplane.data.reading.formats import TEXT
from microplane.data.reading.read import check_file
from microplane.data.store import Dataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.evaluation.evaluate import evaluate_loss
from microplane.files import cache_dir, write_aside
from microplane.inference.check_ids import check_ids
from microplane.models.contract import Model
from microplane.objectives.base import AnyObjective
from microplane.objectives.select import candidates
from microplane.runs.max_length import within_context

DEFAULT = "default"
MAX_LENGTH = 256  # tokens of a row; a longer text is cut into rows
PLAIN = ".txt"


@dataclass(frozen=True)
class General:
    """General text as rows of tokens, the same for all models of a vocabulary.

    Args:
        text: `default`, or the file.
        objective: by which it is predicted.
    """

    text: str
    rows: Dataset
    objective: AnyObjective

    @property
    def tokens(self) -> int:
        """That are predicted."""
        return int(self.rows.trained_counts.sum())

    def loss(self, model: Model, batch_tokens: int, progress: Progress | None = None) -> float:
        """The mean of -log p over these tokens, in nats."""
        return evaluate_loss(self.objective, model, self.rows, batch_tokens, progress)


def open_general(
    knobs: RunKnobs, shapes: Model, tokenizer: Tokenizer, taken: int = 0, progress: Reading | None = None
) -> General | None:
    """The text of `eval.general`; None where none is asked for.

    Args:
        shapes: the model that writes, with or without its weights, and without a task head.
        taken: vectors that the method puts before each row.

    Raises:
        DataError: for a file that cannot be read, or holds no text.
        ModelError: for tokens that the model does not have.
    """
    text = knobs.eval.general
    if text is None:
        return None
    spans = shapes.KIND == "encoder-decoder" and tokenizer.id_of("<extra_id_0>") is None
    data = DataKnobs(
        train=str(_rows_of(text)),
        format=TEXT,
        task="answers",
        objective="prefix_lm" if spans else "auto",
        max_length=MAX_LENGTH,
        max_unknown=1.0,
    )
    data = within_context(data, shapes.config.context, taken, lambda line: None)
    rows, objective, _ = load_rows(data, tokenizer, candidates(shapes, data), progress)
    check_ids(shapes, tokenizer, [rows.highest_id])
    return General(text, rows, objective)


def _rows_of(text: str) -> Path:
    """The file of its rows. Of plain text they are in the cache, in a folder named by their content."""
    path = Path(text).expanduser()
    if text == DEFAULT:
        content = resources.files("microplane.runs").joinpath("general.txt").read_text(encoding="utf-8")
        paragraphs = content.splitlines()
    elif path.suffix.lower() == PLAIN:
        paragraphs = list(_paragraphs(path))
    else:
        return path
    rows = "".join(json.dumps({"text": paragraph}, ensure_ascii=False) + "\n" for paragraph in paragraphs).encode()
    place = cache_dir() / "data" / sha256(rows).hexdigest()[:32] / "general.jsonl"
    with suppress(OSError):
        if place.read_bytes() == rows:
            return place
    write_aside(place, rows)
    return place


def _paragraphs(path: Path) -> Iterator[str]:
    """What empty lines part; every line where there is none.

    Raises:
        DataError: for a file that is not there, is empty, or is no UTF-8 text.
    """
    check_file(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"eval.general = {path}: byte {error.start} is no UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"eval.general = {path} cannot be read: {error.strerror or error}") from None
    parts = [part for part in re.split(r"\n\s*\n", content) if part.strip()]
    if not parts:
        raise DataError(f"eval.general = {path} holds no text")
    yield from (part.strip() for part in (parts if len(parts) > 1 else content.splitlines()) if part.strip())
