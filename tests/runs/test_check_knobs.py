"""Which knobs are refused, and which are said to give way, at the bounds of each."""

from __future__ import annotations

import pytest

from microplane.config.build import assemble
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.method import attach_method
from microplane.models.heads import ensure_head
from microplane.runs.check_knobs import MOST_THREADS, check_knobs, check_knobs_for_model
from tests.tiny import tiny


def told(**given: object) -> list[str]:
    knobs = assemble(given={name.replace("__", "."): value for name, value in given.items()})
    return check_knobs(knobs, make_method(knobs.method))


def test_answers_that_are_written_use_all_their_knobs():
    assert told(eval__rows=30, eval__metrics=("chrf",), eval__max_new_tokens=4, eval__shots=2) == []
    said = told(eval__rows=0, eval__metrics=("chrf",), eval__shots=2)
    assert [line.split(" = ")[0] for line in said] == ["eval.metrics", "eval.shots"]


def test_more_threads_than_processors_may_be_tried_up_to_a_bound(monkeypatch):
    monkeypatch.setattr("microplane.runs.check_knobs.usable_cores", lambda: 3)
    assert told(train__threads=3 * MOST_THREADS) == []
    with pytest.raises(ConfigError, match=r"train\.threads = 25: this process may run on 3 processors"):
        told(train__threads=3 * MOST_THREADS + 1)


@pytest.mark.parametrize(("head", "refused"), [(False, True), (True, False)])
def test_decay_is_refused_only_where_nothing_decays(head, refused):
    """Norms never do; a head that trains beside them does."""
    model, knobs = tiny(), assemble(given={"train.weight_decay": 0.1, "method.name": "norms"})
    if head:
        ensure_head(model, "classification", ("a", "b"), "auto", 0)
    method = make_method("norms")
    attach_method(method, model)
    if refused:
        with pytest.raises(ConfigError, match=r"train\.weight_decay = 0\.1: what norms trains is never decayed"):
            check_knobs_for_model(knobs, method, model)
    else:
        check_knobs_for_model(knobs, method, model)
