"""What is said and refused of knobs where several processes train, or one that was to be several."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.runs import others


def told(size: int, begun: bool = False, method: str = "full", **knobs: object) -> list[str]:
    return others.check_knobs(TrainKnobs(**knobs), make_method(method), SimpleNamespace(size=size), begun)


def test_that_nothing_is_lowered_is_said_to_several_alone():
    assert told(1, micro_tokens="auto") == []
    [line] = told(2, micro_tokens="auto")
    assert line.startswith("train.micro_tokens: 2,048 throughout")
    assert told(2, micro_tokens=512) == []


def test_a_model_is_shared_with_somebody_or_the_run_was_begun_so():
    with pytest.raises(ConfigError, match="shares a model out to several processes, and this is one"):
        told(1, shard=True)
    assert told(1, begun=True, shard=True) == ["train.shard: this process is alone, so it holds the whole model"]
    assert told(2, shard=True) == []
    with pytest.raises(ConfigError):
        told(2, method="lora", shard=True)


@pytest.mark.parametrize("shard", [False, True])
def test_all_must_have_the_same_data_model_versions_and_commit(shard, monkeypatch):
    asked, heap = {}, []
    monkeypatch.setattr(others, "keep_no_large_pieces", lambda: heap.append(1))
    monkeypatch.setattr(others.provenance, "describe", lambda: {"microplane": "1", "commit": "c", "date": "today"})
    prepared = SimpleNamespace(identity=lambda: {"data": "d"}, config=SimpleNamespace(train=TrainKnobs(shard=shard)))
    ranks = SimpleNamespace(size=2, first_alone=nullcontext, check_same=lambda what, known: asked.update(known))
    assert others.prepared_alike(ranks, lambda: prepared) is prepared
    assert asked == {"data": "d", "microplane": "1", "commit": "c"}
    assert len(heap) == shard
