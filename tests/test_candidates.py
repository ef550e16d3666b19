"""Candidates in both directions against the whole n x m matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equations, unit

from mv2v_jax import candidates
from mv2v_jax.candidates import find_candidates


def clouds(n, m, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(n, d))), unit(rng.normal(size=(m, d)))


def find(x, y, k):
    """Both directions as pairs of our candidates and all similarities."""
    found = jax.jit(find_candidates, static_argnames="num_neighbors")(x, y, num_neighbors=k)
    similarity = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
    return (found.x_to_y, similarity), (found.y_to_x, similarity.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (7, 3, 5), (300, 1_250, 4), (61, 53, 53)])
def test_few_rows_are_searched_exactly(shape, dtype):
    n, m, k = shape
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(rows, dtype) for rows in clouds(n, m))
        for side, similarity in find(x, y, k):
            order = np.argsort(-similarity, axis=1)[:, :k]
            np.testing.assert_array_equal(side.index, order)
            np.testing.assert_allclose(side.similarity, np.take_along_axis(similarity, order, 1), atol=1e-6)
            assert side.similarity.dtype == dtype


# Sizes that no number of groups or blocks divides; the last block of the second is mostly filling.
@pytest.mark.parametrize(("n", "m"), [(1_030, 1_300), (2_049, 777)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_many_rows_the_nearest_is_found_and_few_others_are_missed(n, m, dtype):
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(rows, dtype) for rows in clouds(n, m))
        for side, similarity in find(x, y, 10):
            index = np.asarray(side.index)
            assert (np.diff(side.similarity, axis=1) <= 0).all()
            assert all(len(set(row)) == 10 for row in index)
            np.testing.assert_allclose(side.similarity, np.take_along_axis(similarity, index, 1), atol=1e-5)
            np.testing.assert_allclose(side.similarity[:, 0], similarity.max(axis=1), atol=1e-5)
            wanted = np.argsort(-similarity, axis=1)[:, :10]
            recall = np.mean([len(set(ours) & set(theirs)) for ours, theirs in zip(index, wanted, strict=True)]) / 10
            assert 0.95 < recall <= 1


def test_alike_rows_that_lie_side_by_side_are_found(monkeypatch):
    """Files are sorted: near rows must not end in one group."""
    monkeypatch.setattr(candidates, "_FEWEST_GROUPS", 64)
    angle = np.linspace(0, np.pi / 2, 1_024)
    curve = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    for side, similarity in find(jnp.asarray(curve), jnp.asarray(curve), 4):
        found = np.take_along_axis(similarity, np.asarray(side.index), 1)
        np.testing.assert_allclose(found, -np.sort(-similarity, axis=1)[:, :4], atol=1e-6)


@pytest.mark.parametrize("block_entries", [1_300, 30_000])
def test_the_size_of_a_block_changes_nothing_for_rows_of_x(monkeypatch, block_entries):
    x, y = clouds(517, 1_300, seed=1)
    (whole, _), _ = find(jnp.asarray(x), jnp.asarray(y), 3)
    monkeypatch.setattr("mv2v_jax.neighbors._BLOCK_ENTRIES", block_entries)
    jax.clear_caches()
    (blocked, _), (back, similarity) = find(jnp.asarray(x), jnp.asarray(y), 3)
    np.testing.assert_array_equal(blocked.index, whole.index)
    np.testing.assert_allclose(back.similarity[:, 0], similarity.max(axis=1), atol=1e-5)


def test_rows_without_length_name_rows_that_exist():
    x, y = np.zeros((700, 4), np.float32), clouds(900, 4, d=4)[0].astype(np.float32)
    for side, similarity in find(jnp.asarray(x), jnp.asarray(y), 5):
        assert np.isfinite(side.similarity).all()
        assert (np.asarray(side.index) < similarity.shape[1]).all()
        assert (np.asarray(side.index) >= 0).all()


def test_no_array_pairs_all_rows_of_both_spaces():
    x, y = (jnp.zeros((rows, 4)) for rows in (1_200, 1_100))
    jaxpr = jax.make_jaxpr(lambda x, y: find_candidates(x, y, num_neighbors=3))(x, y).jaxpr
    sizes = [int(np.prod(v.aval.shape)) for e in equations(jaxpr) for v in e.outvars]
    assert 1_200 * 4 < max(sizes) < 1_200 * 1_100 / 2
