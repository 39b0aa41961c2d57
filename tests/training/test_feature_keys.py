"""The key under which features are kept is of everything that decides them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from microplane.data.progress import Silent
from microplane.data.store import Features, TokenDataset
from microplane.models.heads import ensure_head
from microplane.objectives.classification import Classification
from microplane.training import feature_cache
from microplane.training.feature_cache import FeatureCache
from tests.tiny import MemoryDataset, tiny_encoder

ROWS = MemoryDataset([([2, 3, 4], [False] * 3)])


def key(pooling="mean", compute=None, frozen=2, seed=0, fingerprint="memory", family="bert"):
    model = tiny_encoder(family, seed)
    ensure_head(model, "classification", ("a", "b"), pooling, 0)
    model.frozen, model.compute = frozen, compute
    ROWS.fingerprint = fingerprint
    return FeatureCache(Classification(), model).key(ROWS)


class Kept:
    """A feature cache that keeps nothing yet, and may keep a megabyte."""

    pooled, place = True, "there"

    def __init__(self, *given):
        self.filled = 0

    def open(self, rows, say):
        return None

    def bytes(self, rows):
        return 1_000_000

    def key(self, rows):
        return "key"

    def fill(self, rows, progress):
        return Features(np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("passes", "room", "off", "kept"),
    [
        (2, 1e9, False, True),
        (1.1, 1e9, False, True),
        (1, 1e9, False, False),
        (2, 3e6, False, False),
        (2, 1e9, True, False),
    ],
)
def test_features_are_kept_where_that_pays_and_there_is_room(monkeypatch, passes, room, off, kept):
    """For more than one pass, and in no more than a quarter of the free disk."""
    monkeypatch.setattr(feature_cache, "FeatureCache", Kept)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=int(room)))
    sets = {"training": TokenDataset.__new__(TokenDataset)}
    model = SimpleNamespace(frozen=2)
    found, info = feature_cache.cache_features(None, model, sets, passes, Silent(), off)
    assert (info is not None) == (found["training"].features is not None) == kept


def test_the_same_is_found_again():
    assert key() == key()


def test_whatever_decides_the_numbers_has_a_key_of_its_own():
    """Above all the pooling of the vectors, and the format that they are computed in over the same weights."""
    keys = [key(), key("cls"), key(compute=torch.bfloat16), key(frozen=1), key(seed=1), key(fingerprint="other")]
    assert len(set(keys)) == len(keys)


def test_what_a_head_makes_of_states_does_not_matter_below_a_boundary():
    assert key("mean", frozen=1) == key("cls", frozen=1)


def test_states_below_one_boundary_are_not_those_below_another():
    """Of three blocks, so that neither is that of pooled vectors."""
    assert key(frozen=1, family="modernbert") != key(frozen=2, family="modernbert")
