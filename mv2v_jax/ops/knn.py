"""Nearest neighbours by inner product, block by block: no array ever pairs all queries with the whole bank."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import ROW, all_gather_columns, num_shards, pmax, shard

# Maximum number of entries in a block of similarities (16 MiB in float32): large enough for the matrix product to run
# at full speed, small enough to stay near the cache and to leave room under vmap.
BLOCK_ENTRIES = 2**22
BLOCK_ROWS = 512


# Number of entries represented by their maximum while the largest entries of a row are searched for.
_GROUP = 16
# Up to this many largest entries are found by taking a maximum repeatedly.
_MAX_MAXIMA = 4


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
    """Maximum number of queries in a block; at most half of them, so that no array is ever ``n x m``."""
    return max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // bank_rows, -(-num_queries // 2)))


def map_blocks(fun, queries: jax.Array, bank_rows: int):
    """Apply ``fun([b, d]) -> pytree of [b, ...]`` to blocks of ``queries [n, d]``, results joined: ``[n, ...]``."""
    num_queries = queries.shape[0]
    max_rows = block_rows(num_queries, bank_rows)
    num_blocks = -(-num_queries // max_rows)
    # Blocks of equal size with almost no padding, because padded rows cost as much as others.
    block = -(-num_queries // num_blocks)
    padded = jnp.pad(queries, ((0, num_blocks * block - num_queries), (0, 0)))
    blocks = jax.lax.map(fun, padded.reshape(num_blocks, block, -1))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_queries], blocks)


def rough_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x @ y.T`` of ``x [n, d]`` and ``y [m, d]``, with float32 rounded to bfloat16: enough to find neighbours.

    Products of unit rows have errors of about 2e-4. Sums are in float32. This is twice as fast as float32 products on
    processors with bfloat16 instructions. float64 stays exact.
    """
    if x.dtype != jnp.float32:
        return x @ y.T
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def nearness(queries: jax.Array, bank: jax.Array, *, num_groups: int) -> jax.Array:
    """Nearness of each query to a bank, ``[n]``: the bank is split into groups, and the largest products are averaged.

    This approximates the mean of the ``num_groups`` largest inner products, without a sort.

    Args:
        queries: ``[n, d]``.
        bank: ``[m, d]``, rows in random order; up to ``num_groups - 1`` rows at its end are left out.
        num_groups: number of groups of equal size; one per row where there are fewer rows.
    """
    num_groups = min(num_groups, bank.shape[0])
    size = bank.shape[0] // num_groups
    groups = bank[: size * num_groups].reshape(num_groups, size, -1)
    if num_shards(ROW) > 1:
        # Every device has some members of each group. Padding repeats the first member, which changes no maximum.
        groups = groups[:, shard(jnp.arange(size), ROW)]
    mine = groups.reshape(-1, bank.shape[1])

    def block_maxima(block):
        return rough_product(block, mine).reshape(-1, num_groups, groups.shape[1]).max(axis=2)

    return pmax(map_blocks(block_maxima, queries, mine.shape[0]), ROW).mean(axis=1)


def largest(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As `jax.lax.top_k` of ``values [n, m]``: for small ``k`` by taking the maximum ``k`` times.

    Maxima vectorise: on CPU two of them take a fifth of the time of a sort.
    """
    if k > _MAX_MAXIMA:
        return jax.lax.top_k(values, k)
    place = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    found = []
    for _ in range(k):
        maximum = values.max(axis=1, keepdims=True)
        index = jnp.where(values == maximum, place, values.shape[1]).min(axis=1, keepdims=True)
        found.append((maximum, index))
        values = jnp.where(place == index, -jnp.inf, values)
    maxima, indices = zip(*found, strict=True)
    return jnp.concatenate(maxima, axis=1), jnp.concatenate(indices, axis=1)


def _largest(similarity: jax.Array, k: int) -> Neighbors:
    """The ``k`` largest entries of every row of ``similarity [b, m]``, best first.

    `jax.lax.top_k` of group maxima selects ``k`` groups, a second `top_k` the entries of these groups. They hold the
    ``k`` largest entries, because an entry of another group is at most as large as ``k`` maxima. On CPU this takes less
    than half the time of one `top_k`.
    """
    num_rows, num_entries = similarity.shape
    num_groups = -(-num_entries // _GROUP)
    if num_groups < 2 * k:
        values, index = jax.lax.top_k(similarity, k)
        return Neighbors(similarity=values, index=index)
    padded = jnp.pad(similarity, ((0, 0), (0, num_groups * _GROUP - num_entries)), constant_values=-jnp.inf)
    # Group j holds the entries j, j + num_groups, ..., so that the maximum is taken over whole rows and vectorises.
    groups = padded.reshape(num_rows, _GROUP, num_groups)
    _, chosen = jax.lax.top_k(groups.max(axis=1), k)
    candidates = jnp.take_along_axis(groups, chosen[:, None, :], axis=2).reshape(num_rows, -1)
    offsets = jnp.arange(_GROUP, dtype=chosen.dtype)[None, :, None] * num_groups
    entries = (offsets + chosen[:, None, :]).reshape(num_rows, -1)
    values, place = jax.lax.top_k(candidates, k)
    return Neighbors(similarity=values, index=jnp.take_along_axis(entries, place, axis=1))


def merge_neighbors(found: Neighbors, num_neighbors: int) -> Neighbors:
    """Merge the neighbours that each device of the row axis found among its own rows of the bank: ``[n, k]``.

    They are merged by hand, because XLA's `top_k` over a sharded axis returns each device's own (JAX issue 19271).
    """
    if num_shards(ROW) == 1:
        return found
    found = all_gather_columns(found, ROW)
    similarity, place = largest(found.similarity, num_neighbors)
    return Neighbors(similarity=similarity, index=jnp.take_along_axis(found.index, place, axis=1))


def top_neighbors(queries: jax.Array, bank: jax.Array, *, num_neighbors: int) -> Neighbors:
    """The ``k`` bank rows of largest inner product with each query.

    Args:
        queries: ``[n, d]``.
        bank: ``[m, d]``; sharded over the devices of a mesh's row axis.
        num_neighbors: ``k``; ``m`` where the bank is smaller.
    """
    chex.assert_rank((queries, bank), 2)
    chex.assert_equal_shape_suffix((queries, bank), 1)
    k = min(num_neighbors, bank.shape[0])
    # Counted from one, so that zeros mark the padding after the last device's rows.
    place = shard(jnp.arange(1, bank.shape[0] + 1, dtype=jnp.int32), ROW)
    mine = shard(bank, ROW)

    def search(block):
        similarity = block @ mine.T
        if num_shards(ROW) == 1:
            return _largest(similarity, k)
        nearest = _largest(jnp.where(place > 0, similarity, -jnp.inf), min(k, mine.shape[0]))
        return Neighbors(similarity=nearest.similarity, index=jnp.maximum(place[nearest.index] - 1, 0))

    return merge_neighbors(map_blocks(search, queries, mine.shape[0]), k)


@pytree
class Partners:
    """Pseudo-partners of queries.

    Attributes:
        rows: ``[n, d_y]``, mean of the nearest bank rows of every query.
        similarity: ``[n]``, mean similarity of a query with these rows.
    """

    rows: jax.Array
    similarity: jax.Array


def neighbor_means(queries: jax.Array, bank: jax.Array, values: jax.Array, *, num_neighbors: int) -> Partners:
    """Mean of ``values [m, d_y]`` over the ``k`` bank rows nearest to each query.

    Args:
        queries: ``[n, d]``.
        bank: ``[m, d]``, rows the queries are compared with.
        values: ``[m, d_y]``, rows that are averaged; row i belongs to row i of the bank.
        num_neighbors: ``k``; ``m`` where the bank is smaller.
    """
    chex.assert_equal_shape_prefix((bank, values), 1)
    nearest = top_neighbors(queries, bank, num_neighbors=num_neighbors)
    rows = map_blocks(lambda index: values[index].mean(axis=1), nearest.index, bank.shape[0])
    return Partners(rows=rows, similarity=nearest.similarity.mean(axis=1))
