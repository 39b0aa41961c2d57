"""What is minimised: sums over the trained tokens, or over the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from microplane.models.contract import Model
from microplane.models.heads import head_loss, task_scores
from microplane.nn.ops.linear_cross_entropy import chunked_cross_entropy, linear_cross_entropy
from microplane.nn.rows import Rows

if TYPE_CHECKING:
    pass
from microplane.objectives.batch import Batch, LabelBatch


def loss_sum(model: Model, batch: Batch | LabelBatch, label_smoothing: float = 0.0) -> Tensor:
    """The sum of -log p over the trained tokens, or of the head's loss over the labels, float32."""
    if isinstance(batch, LabelBatch):
        assert model.task_head is not None, "rows with labels need a task head"
        return head_loss(task_scores(model, batch.rows, batch.kept), batch.labels, model.task_head.config.task)
    if batch.kept is None:
        hidden = model(batch.rows)  # (T, D)
    else:
        assert isinstance(batch.rows, Rows), "of pairs nothing is kept"
        hidden = model.upper(batch.kept, batch.rows, model.frozen)
    if len(batch.before) < len(hidden):
        hidden = hidden.index_select(0, batch.before)  # (K, D): logits exist at the trained positions only
    if model.head is None or isinstance(model.head, nn.Linear):
        softcap, bias = model.config.final_logit_softcapping, model.head_bias
        return linear_cross_entropy(hidden, model.head_weight, batch.targets, softcap, label_smoothing, bias)
    return chunked_cross_entropy(hidden, model.logits, batch.targets, label_smoothing)
