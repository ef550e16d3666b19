"""Candidate partners of the rows of two spaces, in both directions, from one pass over their similarities.

One pass takes half of the products of two searches, and nothing is sorted: similarities are divided into groups, and a
row keeps the largest of each group. The nearest row is never lost. The second nearest is lost where both are in one
group, which happens to one row in a few hundred.

The place of a maximum within its group is written into the last bits of the number itself. So the whole search consists
of comparisons, which compilers vectorise; looking up places afterwards would cost more than the product. The product is
rough (`knn.rough_product`): its error is a tenth of the gap between a row's nearest neighbours.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.knn import Neighbors, block_rows, rough_product, top_neighbors
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import ROW, all_gather, num_shards, shard

# Enough groups that few of the nearest rows share one, and few enough that searching their maxima costs little.
_MIN_GROUPS = 256
_GROUPS_PER_NEIGHBOR = 16
# Less than the inner product of any two unit rows.
_NO_SIMILARITY = -2.0


def _write_place(similarity: jax.Array, place: int, num_places: int) -> jax.Array:
    """Numbers with ``place`` written into their last bits, as many bits as ``num_places`` needs."""
    bits = (num_places - 1).bit_length()
    integer = jnp.int64 if similarity.dtype == jnp.float64 else jnp.int32
    number = jax.lax.bitcast_convert_type(similarity, integer)
    return jax.lax.bitcast_convert_type((number & -(1 << bits)) | place, similarity.dtype)


def _read_place(similarity: jax.Array, num_places: int) -> jax.Array:
    bits = (num_places - 1).bit_length()
    integer = jnp.int64 if similarity.dtype == jnp.float64 else jnp.int32
    number = jax.lax.bitcast_convert_type(similarity, integer)
    return (number & ((1 << bits) - 1)).astype(jnp.int32)


def _group_maxima(similarity: jax.Array, group: int, axis: int) -> jax.Array:
    """Maxima over groups of rows (axis 0) or columns (1) of ``similarity [b, m]``, with their places written in.

    Member ``j`` of group ``i`` is row or column ``j * num_groups + i``, with ``num_groups = ceil(size / group)``. The
    maximum over slices is elementwise and vectorises; a reduction would not.
    """
    size = similarity.shape[axis]
    num_groups = -(-size // group)

    def members(place):
        first, last = min(place * num_groups, size), min((place + 1) * num_groups, size)
        entries = jax.lax.slice_in_dim(similarity, first, last, axis=axis)
        padding = [(0, 0), (0, 0)]
        padding[axis] = (0, num_groups - (last - first))
        return jnp.pad(_write_place(entries, place, group), padding, constant_values=-jnp.inf)

    return functools.reduce(jnp.maximum, map(members, range(group)))


def _named(maxima: jax.Array, group: int) -> Neighbors:
    """Maxima of groups ``[n, num_groups]`` with the rows they belong to.

    A maximum of zero belongs to a zero row. It has no bits for a place and is discarded. The other rows of its group
    have a similarity of at most zero, so nothing of use is lost.
    """
    number = jnp.arange(maxima.shape[1], dtype=jnp.int32)[None]
    index = _read_place(maxima, group) * maxima.shape[1] + number
    is_zero = jnp.abs(maxima) < jnp.finfo(maxima.dtype).tiny
    return Neighbors(similarity=jnp.where(is_zero, _NO_SIMILARITY, maxima), index=jnp.where(is_zero, number, index))


def _group_size(num_rows: int, num_neighbors: int) -> int:
    return num_rows // max(_MIN_GROUPS, _GROUPS_PER_NEIGHBOR * num_neighbors)


@pytree
class Candidates:
    """Candidates in both directions, more per row than are wanted.

    Attributes:
        x_to_y: `Neighbors` of the rows of X, block by block; `all_of_x` restores the order of X.
        y_to_x: `Neighbors` of the rows of Y; rows of X on other devices have a similarity of minus infinity.
        blocks: int32 numbers of the blocks of X on this device; -1 is padding. ``None`` if there are few rows, and then
            ``x_to_y`` is in the order of X already.
        num_blocks: number of blocks on all devices.
        num_x: number of rows of X.
    """

    x_to_y: Neighbors
    y_to_x: Neighbors
    blocks: jax.Array | None
    num_blocks: int
    num_x: int

    def all_of_x(self, values):
        """Arrays with one entry per row of ``x_to_y``, gathered and sorted into the order of X: ``[n, ...]``."""
        if self.blocks is None:
            return values
        num_mine = self.blocks.shape[0]

        def in_order(array):
            blocks = all_gather(array.reshape(num_mine, -1, *array.shape[1:]), ROW, self.num_blocks)
            return blocks.swapaxes(0, 1).reshape(-1, *array.shape[1:])[: self.num_x]

        return jax.tree.map(in_order, values)

    @property
    def is_spread(self) -> bool:
        """Whether the rows of X are sharded over devices."""
        return self.blocks is not None and num_shards(ROW) > 1


def find_candidates(x: jax.Array, y: jax.Array, *, num_neighbors: int, min_candidates: int) -> Candidates:
    """Candidates among ``y [m, d]`` for every row of ``x [n, d]``, and back, by inner product.

    All rows have unit length or are zero; zero rows, such as padding, are candidates only where there are no others.
    Where both sides are large, the candidates are the nearest row of each of a few hundred groups, unsorted. They
    include the nearest row of all and most of the next ``num_neighbors``. Over a mesh's row axis the rows of X are
    sharded. Where a side is small, they are exactly the ``max(num_neighbors, min_candidates)`` nearest, best first.
    """
    chex.assert_rank((x, y), 2)
    chex.assert_equal_shape_suffix((x, y), 1)
    num_x, num_y = x.shape[0], y.shape[0]
    group_y = _group_size(num_y, num_neighbors)
    group_x = _group_size(num_x, num_neighbors)
    if min(group_x, group_y) < 2:
        wanted = max(num_neighbors, min_candidates)
        return Candidates(
            x_to_y=top_neighbors(x, y, num_neighbors=wanted),
            y_to_x=top_neighbors(y, x, num_neighbors=wanted),
            blocks=None,
            num_blocks=0,
            num_x=num_x,
        )
    # Groups of rows of X do not cross blocks, so a block has a whole number of groups.
    num_blocks = -(-num_x // block_rows(num_x, num_y))
    groups_per_block = -(-num_x // (num_blocks * group_x))
    block = groups_per_block * group_x
    num_blocks = -(-num_x // block)
    # Block b has the rows b, b + num_blocks, ...: neighbouring rows of a file are often alike, and those that share a
    # group hide each other.
    padded = jnp.pad(x, ((0, num_blocks * block - num_x), (0, 0))).reshape(block, num_blocks, -1)

    def search(number):
        similarity = rough_product(padded[:, number], y)
        return _group_maxima(similarity, group_y, 1), _group_maxima(similarity, group_x, 0)

    # Counted from one, so that padding is not mistaken for block 0, whose rows would then be found twice.
    blocks = shard(jnp.arange(1, num_blocks + 1, dtype=jnp.int32), ROW) - 1
    forward, backward = jax.lax.map(search, jnp.maximum(blocks, 0))
    if num_shards(ROW) > 1:
        missing = jnp.full((num_blocks, *backward.shape[1:]), -jnp.inf, backward.dtype)
        backward = missing.at[jnp.where(blocks < 0, num_blocks, blocks)].set(backward, mode="drop")
    # Groups in the order of their first rows, as for Y; `csls` relies on it when it bundles groups.
    backward = backward.transpose(2, 1, 0).reshape(num_y, -1)
    return Candidates(
        x_to_y=_named(forward.reshape(-1, forward.shape[2]), group_y),
        y_to_x=_named(backward, group_x),
        blocks=blocks,
        num_blocks=num_blocks,
        num_x=num_x,
    )
