"""Which of head-only, LoRA and full fine-tuning fits the data, in words, by its size and the balance of its classes.

Rules of thumb, not theorems: a head on frozen features has few weights to overfit with; LoRA changes every block with
few weights; full fine-tuning can learn the most and needs rows for it. The bounds are round numbers of ours. Whoever
wants to know for sure measures all three on the same rows.
"""

from __future__ import annotations

from microplane.data.preparing.summary import DataSummary

FEW, MANY = 500, 10_000  # rows below which a head alone fits, and from which full does
NEAR = 0.1  # of the loss with shuffled answers, saved by the right ones: from here on a task is near
RARE = 20  # rows of a class below which it can hardly be learnt, or measured
LOPSIDED = 0.8  # share of the commonest class from which accuracy says little


def advise(summary: DataSummary, method: str, new_weights: bool = False, near: float | None = None) -> list[str]:
    """Sentences on which method fits and why, and on classes that are too rare or too common.

    Args:
        method: the one that was chosen; nothing is said of it where it is the one that fits.
        new_weights: the model is not a trained one.
        near: as of `fitting`.
    """
    rows = summary.rows["train"]
    fits, why = fitting(summary, near)
    if new_weights:
        fits, why = "full", "the weights are new, and what does not train of them stays random"
    advice = f"{rows:,} training rows: {fits} fits, for {why}"
    lines = [advice if method == fits else f"{advice}; {method} was chosen"]
    return lines + _balance(summary)


def fitting(summary: DataSummary, near: float | None = None) -> tuple[str, str]:
    """The method that fits, and why.

    Args:
        near: how near the task is to what the model does already, as `evaluation.nearness` has it, where that is known.
    """
    rows, counts = summary.rows["train"], summary.label_counts.get("train", {})
    smallest = min(counts.values(), default=0)
    labelled = summary.task is not None
    if labelled and rows < FEW and (near is None or near >= NEAR):
        return "head-only", f"below {FEW:,} rows a head on frozen features has the fewest weights to overfit with"
    if summary.task == "classification" and counts and smallest < RARE:
        name = min(counts, key=lambda name: (counts[name], name))
        return "lora", f"it changes all blocks with few weights, and the class {name!r} has {smallest} rows only"
    if rows < MANY:
        return "lora", f"it changes all blocks with few weights, which below {MANY:,} rows are enough"
    if near is not None and near >= NEAR:
        return "lora", "it changes all blocks with few weights, and the task is near to what the model does already"
    return "full", f"from {MANY:,} rows on there is enough to move every weight; lora costs less and is often as good"


def _balance(summary: DataSummary) -> list[str]:
    counts = summary.label_counts.get("train", {})
    total = sum(counts.values())
    if summary.task != "classification" or not total:
        return []
    common = max(counts, key=lambda name: (counts[name], name))
    lines = []
    if (share := counts[common] / total) >= LOPSIDED:
        lines.append(
            f"always answering {common!r} would be right for {share:.0%} of the training rows: look at macro F1 rather "
            "than at accuracy; train.class_weights=balanced lets all classes count the same"
        )
    if rare := sorted(name for name, count in counts.items() if count < RARE):
        shown = ", ".join(rare[:6]) + (f" and {len(rare) - 6} more" if len(rare) > 6 else "")
        subject = "class has" if len(rare) == 1 else "classes have"
        lines.append(f"{len(rare)} {subject} fewer than {RARE} training rows, too few to learn or to measure: {shown}")
    return lines
