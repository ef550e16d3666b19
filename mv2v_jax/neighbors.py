"""Nearest neighbours by inner product, block by block: no array ever pairs all queries with the whole bank."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.pytree import pytree

# A block of similarities holds at most this many entries (16 MiB in float32): large enough for the matrix product to
# run at full speed, small enough to stay near the cache and to leave room under vmap.
_BLOCK_ENTRIES = 2**22
_BLOCK_ROWS = 512


@pytree
class Neighbors:
    """The nearest bank rows of every query, best first.

    Attributes:
        similarity: ``[n, k]``.
        index: ``[n, k]`` int32, rows of the bank.
    """

    similarity: jax.Array
    index: jax.Array


def map_blocks(fun, queries: jax.Array, bank_rows: int):
    """Apply ``fun([b, d]) -> pytree of [b, ...]`` to blocks of ``queries [n, d]`` and join the results, ``[n, ...]``.

    Blocks hold at most half of the queries, so that not even a small problem sees an ``n x m`` array.
    """
    num_queries = queries.shape[0]
    most_rows = max(1, min(_BLOCK_ROWS, _BLOCK_ENTRIES // bank_rows, -(-num_queries // 2)))
    num_blocks = -(-num_queries // most_rows)
    # Blocks of one size with next to no padding: padded rows cost as much as others.
    block = -(-num_queries // num_blocks)
    padded = jnp.pad(queries, ((0, num_blocks * block - num_queries), (0, 0)))
    blocks = jax.lax.map(fun, padded.reshape(num_blocks, block, -1))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_queries], blocks)


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
    similarity, index = map_blocks(lambda block: jax.lax.top_k(block @ bank.T, k), queries, bank.shape[0])
    return Neighbors(similarity=similarity, index=index)


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
        similarity, index = jax.lax.top_k(block @ bank.T, k)
        return Partners(rows=values[index].mean(axis=1), similarity=similarity.mean(axis=1))

    return map_blocks(partners, queries, bank.shape[0])
