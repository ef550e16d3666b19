"""Maps between several spaces against planted frames: consistent maps stay, broken maps are repaired."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count_compilations, make_map, semi_orthogonal

from mv2v_jax.alignment.several_spaces import SyncConfig, synchronize
from mv2v_jax.config import Config
from mv2v_jax.errors import InputError

# Compiling takes nearly all of the time.
DIMS = {"a": 8, "b": 6, "c": 8, "d": 8, "e": 6}


def planted(dims, noise=0.0, seed=0):
    """Noisy maps for all pairs of spaces over one common space of the largest dimension, and the exact maps."""
    rng = np.random.default_rng(seed)
    largest = max(dims.values())
    # All small spaces have the same directions of the common space, so that rotations between them exist.
    frames = {name: semi_orthogonal(rng, d, d) @ np.eye(d, largest) for name, d in dims.items()}
    exact = {(a, b): frames[a] @ frames[b].T for a, b in itertools.permutations(dims, 2)}
    means = {name: rng.standard_normal(d) for name, d in dims.items()}
    maps = {
        (a, b): make_map(
            exact[a, b] + noise * rng.standard_normal(exact[a, b].shape), means[a], means[b], dims[a], dims[b]
        )
        for a, b in itertools.combinations(dims, 2)
    }
    return maps, exact


def broken(maps, pair, seed=1):
    W = semi_orthogonal(np.random.default_rng(seed), *maps[pair].W.shape)
    return {**maps, pair: dataclasses.replace(maps[pair], W=jnp.asarray(W, jnp.float32))}


def worst(found, exact):
    return max(float(jnp.linalg.norm(found.maps[pair].W - W)) for pair, W in exact.items())


def test_consistent_maps_stay_and_all_ways_agree():
    maps, exact = planted(DIMS)
    found = synchronize(maps)
    assert worst(found, exact) < 1e-4
    np.testing.assert_allclose(list(found.agreement.values()), 1, atol=1e-5)
    assert not any(found.wrong.values())
    for name, d in DIMS.items():
        np.testing.assert_allclose(found.frames[name] @ found.frames[name].T, np.eye(d), atol=1e-5)
    # Spaces as large as the common space lose no directions.
    there = found.maps["a", "c"].W @ found.maps["c", "d"].W
    np.testing.assert_allclose(there, found.maps["a", "d"].W, atol=1e-5)
    np.testing.assert_allclose(found.maps["b", "a"].W, found.maps["a", "b"].W.T, atol=1e-6)
    for (a, b), linear_map in found.maps.items():
        first = next(given for pair, given in maps.items() if a in pair)
        given = first.source if next(p for p in maps if a in p)[0] == a else first.target
        np.testing.assert_allclose(linear_map.source.mean, given.mean, rtol=1e-5)
        assert float(linear_map.target.scale) == pytest.approx(DIMS[b])


def test_noise_is_averaged_away():
    maps, exact = planted(DIMS, noise=0.1)
    found = synchronize(maps)
    ours = np.mean([jnp.linalg.norm(found.maps[pair].W - exact[pair]) for pair in maps])
    given = np.mean([jnp.linalg.norm(np.asarray(semi(maps[pair].W)) - exact[pair]) for pair in maps])
    assert ours < 0.8 * given


def semi(W):
    u, _, vt = np.linalg.svd(np.asarray(W), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("pair", [("a", "c"), ("a", "b"), ("b", "e")])
def test_the_broken_map_is_found_and_repaired(pair):
    maps, exact = planted(DIMS, noise=0.03)
    found = synchronize(broken(maps, pair))
    assert [name for name, wrong in found.wrong.items() if wrong] == [pair]
    residual = found.cycle_residual
    assert max(residual, key=residual.get) == pair
    assert float(residual[pair]) > 3 * max(float(value) for name, value in residual.items() if name != pair)
    assert float(found.weight[pair]) < 0.1
    assert float(jnp.linalg.norm(found.maps[pair].W - exact[pair])) < 0.3
    # With equal weights the broken map bends the others.
    bent = synchronize(broken(maps, pair), SyncConfig(weight_power=0.0))
    assert worst(found, exact) < worst(bent, exact)


def test_a_chain_in_any_direction_is_as_good_as_all_pairs():
    maps, exact = planted(DIMS)
    turned = [("b", "a"), ("b", "c"), ("d", "c"), ("d", "e")]
    chain = {pair: make_map(exact[pair]) for pair in turned}
    found = synchronize(chain, SyncConfig(num_rounds=30))  # Detours over small spaces need more rounds.
    for pair in chain:
        np.testing.assert_allclose(found.maps[pair].W, exact[pair], atol=5e-3)
    # Without a cycle no map can be found wrong.
    np.testing.assert_array_equal(list(found.cycle_residual.values()), 0)
    np.testing.assert_allclose(list(found.agreement.values()), 1, atol=1e-4)
    both = {("a", "b"): maps["a", "b"], ("b", "a"): chain["b", "a"]}
    np.testing.assert_allclose(synchronize(both).maps["a", "b"].W, exact["a", "b"], atol=1e-4)


def test_with_the_smallest_dimension_all_ways_agree():
    maps, _ = planted(DIMS, noise=0.05)
    found = synchronize(maps, SyncConfig(num_dims=6)).maps
    for a, b, c in itertools.permutations(DIMS, 3):
        np.testing.assert_allclose(found[a, b].W @ found[b, c].W, found[a, c].W, atol=1e-4)


def test_other_values_compile_nothing_and_vmap_equals_loop():
    maps = [planted(DIMS, noise=0.05, seed=seed)[0] for seed in (0, 1)]
    each = [synchronize(given) for given in maps]
    with count_compilations() as again:
        synchronize(maps[1], SyncConfig(weight_power=1.0))
    assert not again
    stacked = jax.vmap(synchronize)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps))
    for index in (0, 1):
        for pair in each[index].maps:
            np.testing.assert_allclose(stacked.maps[pair].W[index], each[index].maps[pair].W, atol=1e-3)
            assert stacked.maps[pair].W.dtype == jnp.float32


def test_errors_say_what_is_wrong():
    maps, _ = planted({"a": 4, "b": 3, "c": 4, "d": 4})
    ab, cd = maps["a", "b"], maps["c", "d"]
    for given, message in [
        ({}, "at least one map"),
        ({("a", "a"): ab}, "pairs of different spaces"),
        ({"ab": ab}, "pairs of different spaces"),
        ({("a", "b"): ab, ("b", "a"): ab}, r"found 4; is this the map from 'a' to 'b'\?"),
        ({("a", "b"): ab.W}, r"maps\[\('a', 'b'\)\] must be a LinearMap, found"),
        ({("a", "b"): jax.tree.map(lambda leaf: leaf[None], ab)}, r"one map, found shape \[1, 4, 3\]"),
        ([ab, cd], "maps must be a dict of a LinearMap per pair of spaces, found list"),
        (
            {("a", "b"): ab, ("b", "c"): cd},
            r"\('b', 'c'\)\] must have 3 dimensions for space 'b', as another map has, found 4",
        ),
        ({("a", "b"): ab, ("c", "d"): cd}, "no chain from 'a' to 'c'"),
    ]:
        with pytest.raises(InputError, match=message):
            synchronize(given)
    with pytest.raises(InputError, match="num_dims must be from 0 to 4, found 99"):
        synchronize(maps, SyncConfig(num_dims=99))
    with pytest.raises(InputError, match="config must be a SyncConfig, found Config"):
        synchronize(maps, Config())
