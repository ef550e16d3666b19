"""Blocked nearest neighbours against the whole n x m matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unit
from hypothesis import given, settings
from hypothesis import strategies as st

from mv2v_jax import neighbors
from mv2v_jax.neighbors import neighbor_means, top_neighbors


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
    monkeypatch.setattr(neighbors, "_BLOCK_ROWS", block_rows)
    # Shapes of its own, because the size is read while tracing.
    check(*clouds(1, 10 + block_rows % 4, 8), 3)


def test_a_large_bank_shrinks_the_block(monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK_ENTRIES", 24)
    blocks = []
    queries = jnp.arange(20.0).reshape(10, 2)
    found = neighbors.map_blocks(lambda block: blocks.append(block.shape) or block + 1, queries, 8)
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
