"""Blocked nearest neighbours against the whole n x m matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rough_error, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from mv2v_jax.ops import knn
from mv2v_jax.ops.knn import largest, nearness, neighbor_means, rough_product, top_neighbors


def brute_force(queries, bank, k):
    """The whole matrix, in float64: indices best first, and their similarities."""
    similarity = np.float64(queries) @ np.float64(bank).T
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(similarity, index, axis=1)


def find(queries, bank, values, k):
    return top_neighbors(queries, bank, num_neighbors=k), neighbor_means(queries, bank, values, num_neighbors=k)


def check(queries, bank, values, k):
    index, similarity = brute_force(queries, bank, k)
    found, partners = jax.jit(find, static_argnums=3)(queries, bank, values, k)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-5)
    np.testing.assert_allclose(partners.rows, values[index].mean(1), atol=1e-5)
    np.testing.assert_allclose(partners.similarity, similarity.mean(1), atol=1e-5)


def clouds(seed, n, m, d=4, d_values=3):
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=shape).astype(np.float32) for shape in ((n, d), (m, d), (m, d_values))]
    return unit(rows[0]), unit(rows[1]), rows[2]


# 1,100 queries make three blocks, the last one padded; 513 leave one row over.
@pytest.mark.parametrize(("n", "m", "k"), [(1, 9, 3), (2, 9, 1), (7, 3, 5), (513, 11, 2), (1100, 20, 4), (5, 1, 1)])
def test_equals_the_whole_matrix(n, m, k):
    check(*clouds(0, n, m), k)


@pytest.mark.parametrize("block_rows", [1, 4, 102])
def test_the_size_of_a_block_changes_nothing(monkeypatch, block_rows):
    monkeypatch.setattr(knn, "BLOCK_ROWS", block_rows)
    # Shapes of its own, because the size is read while tracing.
    check(*clouds(1, 10 + block_rows % 4, 8), 3)


def test_a_large_bank_shrinks_the_block(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_ENTRIES", 24)
    blocks = []
    queries = jnp.arange(20.0).reshape(10, 2)
    found = knn.map_blocks(lambda block: blocks.append(block.shape) or block + 1, queries, 8)
    assert set(blocks) == {(3, 2)}
    np.testing.assert_array_equal(found, queries + 1)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(sizes=st.sampled_from([(1, 1), (3, 8), (8, 3), (9, 9)]), k=st.sampled_from([1, 4]), seed=st.integers(0, 10))
def test_any_shape(sizes, k, seed):
    check(*clouds(seed, *sizes), k)


def test_permuting_rows_permutes_the_result():
    queries, bank, values = clouds(3, 10, 8)
    order, bank_order = np.random.default_rng(0).permutation(10), np.random.default_rng(1).permutation(8)
    plain = neighbor_means(jnp.asarray(queries), jnp.asarray(bank), jnp.asarray(values), num_neighbors=3)
    shuffled = neighbor_means(
        jnp.asarray(queries[order]), jnp.asarray(bank[bank_order]), jnp.asarray(values[bank_order]), num_neighbors=3
    )
    np.testing.assert_allclose(shuffled.rows, plain.rows[order], atol=1e-6)


@pytest.mark.parametrize("num_neighbors", [1, 10, 31])
def test_a_long_bank_is_searched_in_groups_without_losing_any(rng, num_neighbors):
    queries, bank = rng.normal(size=(9, 5)).astype(np.float32), rng.normal(size=(1_003, 5)).astype(np.float32)
    # The largest entries side by side and all of one group: no group may hide more than its maximum.
    bank[:40] += 3
    bank[::63] += 2
    similarity = queries.astype(np.float64) @ bank.T.astype(np.float64)
    expected = -np.sort(-similarity, axis=1)[:, :num_neighbors]
    found = top_neighbors(jnp.asarray(queries), jnp.asarray(bank), num_neighbors=num_neighbors)
    np.testing.assert_allclose(found.similarity, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(similarity, np.asarray(found.index), 1), expected, atol=1e-5)


both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def unit_clouds(seed, n, m, d, dtype):
    return tuple(rows.astype(dtype) for rows in clouds(seed, n, m, d)[:2])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("d", [1, 3, 64, 384])
def test_a_rough_product_is_that_of_bfloat16_rows(d, compiled):
    x, y = unit_clouds(5, 70, 90, d, np.float32)
    product = (jax.jit(rough_product) if compiled else rough_product)(jnp.asarray(x), jnp.asarray(y))
    exact = np.float64(x) @ np.float64(y).T
    assert product.dtype == np.float32
    assert (np.abs(product - exact) <= rough_error(x, y)).all()
    # Errors are not all in one direction: the more numbers there are in a row, the smaller they are together.
    assert np.sqrt(np.mean((product - exact) ** 2)) < 2.0**-8 / np.sqrt(d)
    # Sums are no rougher than float32's: either of these rows or, where a compiler keeps more bits, of the given ones.
    rounded = [np.float64(np.asarray(jnp.asarray(rows, jnp.bfloat16), np.float32)) for rows in (x, y)]
    assert min(np.abs(product - oracle).max() for oracle in (rounded[0] @ rounded[1].T, exact)) < 1e-6


def test_a_product_in_double_precision_is_not_rough():
    with jax.enable_x64(True):
        x, y = unit_clouds(6, 70, 90, 64, np.float64)
        product = rough_product(jnp.asarray(x), jnp.asarray(y))
        assert product.dtype == np.float64
        np.testing.assert_allclose(product, x @ y.T, atol=1e-14)


def nearness_in_numpy(queries, bank, num_groups):
    """In float64: the mean over consecutive parts of the maximum per part; rows left over are left out."""
    num_groups = min(num_groups, len(bank))
    length = len(bank) // num_groups
    parts = [np.float64(bank)[first * length : (first + 1) * length] for first in range(num_groups)]
    return np.mean([(np.float64(queries) @ part.T).max(axis=1) for part in parts], axis=0)


# Parts that come out even, and that leave nine rows over; more parts than rows; several blocks of queries.
@pytest.mark.parametrize(
    ("n", "m", "num_groups"),
    [(7, 40, 10), (7, 49, 10), (1, 1, 10), (5, 4, 10), (5, 10, 10), (9, 31, 1), (1_100, 57, 5)],
)
@both_dtypes
def test_nearness_against_numpy(n, m, num_groups, dtype):
    with jax.enable_x64(dtype == np.float64):
        queries, bank = unit_clouds(7, n, m, 8, dtype)
        found = np.asarray(jax.jit(nearness, static_argnames="num_groups")(queries, bank, num_groups=num_groups))
    assert (found.shape, found.dtype) == ((n,), dtype)
    expected = nearness_in_numpy(queries, bank, num_groups)
    # The error of a maximum is at most the largest error among its terms.
    assert (np.abs(found - expected) <= rough_error(queries, bank).max(axis=1)).all()
    if dtype == np.float64:
        np.testing.assert_allclose(found, expected, atol=1e-14)


def test_nearness_is_about_the_mean_of_the_nearest(rng):
    """Never more, and hardly less where rows are many and in no order."""
    with jax.enable_x64(True):
        queries, bank = unit_clouds(8, 50, 4_000, 8, np.float64)
        found = np.asarray(nearness(jnp.asarray(queries), jnp.asarray(bank), num_groups=10))
    nearest = np.sort(queries @ bank.T, axis=1)[:, -10:].mean(axis=1)
    assert (found <= nearest + 1e-12).all()
    assert np.mean(nearest - found) < 0.03
    assert np.mean(nearest - (queries @ bank.T).mean(axis=1)) > 0.5


@pytest.mark.parametrize("k", [1, 2, knn._MAX_MAXIMA, knn._MAX_MAXIMA + 1, 11, 12])
@both_dtypes
def test_the_largest_against_numpy(rng, k, dtype):
    values = rng.normal(size=(9, 12)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found, index = jax.jit(largest, static_argnums=1)(jnp.asarray(values), k)
    assert (found.shape, found.dtype, index.dtype) == ((9, k), dtype, np.int32)
    np.testing.assert_array_equal(found, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(index, np.argsort(-values, axis=1)[:, :k])


@pytest.mark.parametrize("k", range(1, knn._MAX_MAXIMA + 3))
def test_the_largest_of_equals_are_different_ones(rng, k):
    """The first of them, and never one twice."""
    values = np.concatenate([rng.integers(-1, 2, size=(30, 8)), np.zeros((1, 8)), np.full((1, 8), -3)]).astype(
        np.float32
    )
    found, index = largest(jnp.asarray(values), k)
    np.testing.assert_array_equal(index, np.argsort(-values, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(found, np.take_along_axis(values, np.asarray(index), axis=1))
    assert all(len(set(row)) == k for row in np.asarray(index))
    for ours, theirs in zip((found, index), jax.lax.top_k(jnp.asarray(values), k), strict=True):
        np.testing.assert_array_equal(ours, theirs)
