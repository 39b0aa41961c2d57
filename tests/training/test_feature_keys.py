"""The key under which features are kept is of everything that decides them."""

from __future__ import annotations

import torch

from microplane.models.heads import ensure_head
from microplane.objectives.classification import Classification
from microplane.training.feature_cache import FeatureCache
from tests.tiny import MemoryDataset, tiny_encoder

ROWS = MemoryDataset([([2, 3, 4], [False] * 3)])


def key(pooling="mean", compute=None, frozen=2, seed=0, fingerprint="memory", family="bert"):
    model = tiny_encoder(family, seed)
    ensure_head(model, "classification", ("a", "b"), pooling, 0)
    model.frozen, model.compute = frozen, compute
    ROWS.fingerprint = fingerprint
    return FeatureCache(Classification(), model).key(ROWS)


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
