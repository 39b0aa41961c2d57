"""How likely a model holds given texts: what suites of multiple choice ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from microplane.data.batch_plan import packed_by_length
from microplane.data.progress import Progress
from microplane.models.contract import Model, in_eval_mode
from microplane.nn.rows import Pairs, Rows

BUDGET = 4096  # tokens computed at once
SCORED = 256  # positions whose logits exist at once: 50 MB of a vocabulary of 50,000


@torch.no_grad()
def log_likelihoods(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress | None = None
) -> list[tuple[float, bool]]:
    """Of each (context, continuation), token ids of at least one each: the sum of log p of the continuation's tokens,
    natural logarithm, and whether each of them is the likeliest at its place.

    A decoder reads the continuation behind the context; an encoder-decoder reads the context and writes the
    continuation. Contexts are taken as they are: whoever asks has cut what is too long.

    Args:
        progress: called with the numbers of finished pairs and of all.
    """
    lengths = np.array([len(context) + len(continuation) for context, continuation in pairs])
    found: dict[int, tuple[float, bool]] = {}
    with in_eval_mode(model):
        for indices in packed_by_length(lengths, BUDGET):
            batch = [pairs[index] for index in indices]
            rows, positions = _read(model, batch)
            hidden = model(rows.to(model.device))[positions.to(model.device)]
            targets = torch.tensor([token for _, wanted in batch for token in wanted], device=model.device)
            scores, likeliest = _scores(model, hidden, targets)
            counts = [len(wanted) for _, wanted in batch]
            sides = torch.split(scores, counts), torch.split(likeliest, counts)
            for index, own, tops in zip(indices, *sides, strict=True):
                found[index] = (float(own.double().sum()), bool(tops.all()))
            if progress:
                progress(len(found), len(pairs))
    return [found[index] for index in range(len(pairs))]


def _read(model: Model, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Rows | Pairs, Tensor]:
    """What the model reads, and the places (K,) of its output that predict the continuations' tokens."""
    pairs = model.KIND == "encoder-decoder"
    if pairs:
        forced = model.generation_rules.forced_bos
        begun = [model.config.decoder_start or 0, *([] if forced is None else [forced])]
        rows = [[*begun, *wanted[:-1]] for _, wanted in batch]
    else:
        rows = [[*context, *wanted][:-1] for context, wanted in batch]
    ends = np.cumsum([len(row) for row in rows]).tolist()
    places = [torch.arange(end - len(wanted), end) for end, (_, wanted) in zip(ends, batch, strict=True)]
    read = Rows.of(rows)
    return Pairs(Rows.of([context for context, _ in batch]), read) if pairs else read, torch.cat(places)


def _scores(model: Model, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target (K,), float32, and whether no token is likelier, from the states (K, D)."""
    scores, likeliest = [], []
    for states, wanted in zip(torch.split(hidden, SCORED), torch.split(targets, SCORED), strict=True):
        log_probs = torch.log_softmax(model.logits(states).float(), dim=-1)
        scores.append(log_probs.gather(1, wanted[:, None])[:, 0])
        likeliest.append(log_probs.argmax(dim=1) == wanted)
    return torch.cat(scores), torch.cat(likeliest)
