"""What names a linear layer: a role, a name, its end, a pattern of either, here or as Hugging Face spells it."""

from __future__ import annotations

import pytest

from microplane.errors import ConfigError
from microplane.methods.targets import fits, target_sites
from tests.tiny import tiny


@pytest.mark.parametrize(
    ("target", "fit"),
    [
        ("layers.0.attention.q", True),
        ("attention.q", True),
        ("tion.q", False),
        ("layers.[01].*.q", True),
        ("0.*.q", True),
        ("attention.?", True),
        ("tention.?", False),
        ("*.k", False),
    ],
)
def test_a_name_its_end_or_a_pattern_of_either(target, fit):
    assert fits(target, "layers.0.attention.q") is fit


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("q", {"layers.0.attention.q", "layers.1.attention.q"}),
        ("self_attn.q_proj", {"layers.0.attention.q", "layers.1.attention.q"}),
        ("model.layers.1.mlp.down_proj", {"layers.1.mlp.down"}),
        ("layers.1.mlp.*_proj", {f"layers.1.mlp.{role}" for role in ("gate", "up", "down")}),
        ("0.mlp.up", {"layers.0.mlp.up"}),
    ],
)
def test_layers_by_both_kinds_of_names(target, found):
    assert set(target_sites(tiny(), [target])) == found


def test_all_is_every_layer_but_the_head():
    untied = tiny("llama-untied")
    every = set(target_sites(untied, ["all"]))
    assert "head" not in every
    assert every | {"head"} == set(target_sites(untied, ["all", "head"]))
    assert len(every) == 7 * len(untied.layers)


def test_what_names_nothing_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"'qq' name no linear layer; this model has down, gate, k, o, q, up, v"):
        target_sites(tiny(), ["q", "qq"])
    with pytest.raises(ConfigError, match="targets is empty"):
        target_sites(tiny(), [])
