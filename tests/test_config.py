"""The presets hold what was published."""

import dataclasses

import jax
import pytest

from mv2v_jax import PRESETS, Config

PUBLISHED = {
    "num_clusters": 20,
    "num_anchor_sets": 30,
    "kept_sets": 30,
    "num_starts": 30,
    "anchor_rows": 10_000,
    "num_neighbors": 50,
    "match_neighbors": 50,
    "refine_clusters": 500,
    "smoothing": 0.5,
    "anneal_steps": 0,
    "csls_steps": 0,
    "whole_steps": 0,
    "project": False,
    "search_dims": 0,
    "whitening_power": 0.0,
}


@pytest.mark.parametrize(("preset", "steps", "rows"), [("notebook", 100, 1_000), ("paper", 75, 10_000)])
def test_published_values(preset, steps, rows):
    config = PRESETS[preset]()
    expected = {**PUBLISHED, "match_steps": steps, "match_rows": rows}
    assert {name: getattr(config, name) for name in expected} == expected


def test_fast_does_less_of_everything_than_the_default():
    fast, default = PRESETS["fast"](), Config()
    assert 0 < fast.whole_steps < default.whole_steps
    assert 0 < fast.whole_rows < default.whole_rows
    more = [
        field.name for field in dataclasses.fields(Config) if getattr(fast, field.name) > getattr(default, field.name)
    ]
    assert more == []


def test_floats_are_traced_and_the_rest_is_static():
    leaves = jax.tree.leaves(Config())
    assert leaves == [getattr(Config(), field.name) for field in dataclasses.fields(Config) if field.type is float]
    assert hash(jax.tree.structure(Config())) == hash(jax.tree.structure(Config(smoothing=0.1)))
    assert jax.tree.structure(Config()) != jax.tree.structure(Config(num_clusters=7))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().num_clusters = 3
