"""Nearest neighbours by inner product, block by block: no array ever pairs all queries with the whole bank."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.pytree import pytree

# A block of similarities holds at most this many entries (16 MiB in float32): large enough for the matrix product to
# run at full speed, small enough to stay near the cache and to leave room under vmap.
_BLOCK_ENTRIES = 2**22
_BLOCK_ROWS = 512
# Entries whose maximum stands for them when the largest of a row are looked for.
_GROUP = 16


@pytree
class Neighbors:
    """The nearest bank rows of every query, best first.

    Attributes:
        similarity: ``[n, k]``.
        index: ``[n, k]`` int32, rows of the bank.
    """

    similarity: jax.Array
    index: jax.Array


def block_rows(num_queries: int, bank_rows: int) -> int:
    """Most queries in a block: at most half of them, so that not even a small problem sees an ``n x m`` array."""
    return max(1, min(_BLOCK_ROWS, _BLOCK_ENTRIES // bank_rows, -(-num_queries // 2)))


def map_blocks(fun, queries: jax.Array, bank_rows: int):
    """Apply ``fun([b, d]) -> pytree of [b, ...]`` to blocks of ``queries [n, d]``, results joined: ``[n, ...]``."""
    num_queries = queries.shape[0]
    most_rows = block_rows(num_queries, bank_rows)
    num_blocks = -(-num_queries // most_rows)
    # Blocks of one size with next to no padding: padded rows cost as much as others.
    block = -(-num_queries // num_blocks)
    padded = jnp.pad(queries, ((0, num_blocks * block - num_queries), (0, 0)))
    blocks = jax.lax.map(fun, padded.reshape(num_blocks, block, -1))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_queries], blocks)


def _largest(similarity: jax.Array, k: int) -> Neighbors:
    """The ``k`` largest entries of every row of ``similarity [b, m]``, best first.

    `jax.lax.top_k` of group maxima and then of the groups it names: they hold the ``k`` largest entries, because no
    entry of another group is larger than ``k`` maxima. On CPU this takes less than half the time of one `top_k`.
    """
    num_rows, num_entries = similarity.shape
    num_groups = -(-num_entries // _GROUP)
    if num_groups < 2 * k:
        values, index = jax.lax.top_k(similarity, k)
        return Neighbors(similarity=values, index=index)
    padded = jnp.pad(similarity, ((0, 0), (0, num_groups * _GROUP - num_entries)), constant_values=-jnp.inf)
    # Group j holds the entries j, j + num_groups, ...: a maximum over whole rows of numbers, which vectorises.
    groups = padded.reshape(num_rows, _GROUP, num_groups)
    _, chosen = jax.lax.top_k(groups.max(axis=1), k)
    candidates = jnp.take_along_axis(groups, chosen[:, None, :], axis=2).reshape(num_rows, -1)
    offsets = jnp.arange(_GROUP, dtype=chosen.dtype)[None, :, None] * num_groups
    entries = (offsets + chosen[:, None, :]).reshape(num_rows, -1)
    values, place = jax.lax.top_k(candidates, k)
    return Neighbors(similarity=values, index=jnp.take_along_axis(entries, place, axis=1))


def top_neighbors(queries: jax.Array, bank: jax.Array, *, num_neighbors: int) -> Neighbors:
    """The ``k`` bank rows of largest inner product with each query.

    Args:
        queries: ``[n, d]``.
        bank: ``[m, d]``.
        num_neighbors: ``k``; cut to ``m`` where the bank is smaller.
    """
    chex.assert_rank((queries, bank), 2)
    chex.assert_equal_shape_suffix((queries, bank), 1)
    k = min(num_neighbors, bank.shape[0])
    return map_blocks(lambda block: _largest(block @ bank.T, k), queries, bank.shape[0])


@pytree
class Partners:
    """Pseudo-partners of some rows.

    Attributes:
        rows: ``[n, d_y]``, mean of the nearest bank rows of every query.
        similarity: ``[n]``, mean similarity of a query with them.
    """

    rows: jax.Array
    similarity: jax.Array


def neighbor_means(queries: jax.Array, bank: jax.Array, values: jax.Array, *, num_neighbors: int) -> Partners:
    """Mean of ``values [m, d_y]`` over the ``k`` bank rows nearest to each query.

    Args:
        queries: ``[n, d]``.
        bank: ``[m, d]``, what the queries are compared with.
        values: ``[m, d_y]``, what is averaged; row i belongs to row i of the bank.
        num_neighbors: ``k``; cut to ``m`` where the bank is smaller.
    """
    chex.assert_equal_shape_prefix((bank, values), 1)
    k = min(num_neighbors, bank.shape[0])

    def partners(block):
        nearest = _largest(block @ bank.T, k)
        return Partners(rows=values[nearest.index].mean(axis=1), similarity=nearest.similarity.mean(axis=1))

    return map_blocks(partners, queries, bank.shape[0])
