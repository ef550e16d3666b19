"""Candidate partners of the rows of two spaces, in both directions, from one pass over their similarities.

Half of the products of two searches, and no sorting: similarities go into groups, and a row keeps the largest of each.
A row that is nearest is never lost; the second nearest is where both are in one group, which happens to one in some
hundreds.

Which member of its group a maximum was is written into the last bits of the number itself. So all of it is comparing
numbers, which compilers turn into vector instructions; looking places up afterwards would cost more than the product.
The product is rough (`neighbors.rough_product`): its error is a tenth of what lies between a row's nearest neighbours.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.knn import Neighbors, block_rows, rough_product, top_neighbors
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import ROW, all_gather, num_shards, shard

# So many groups that few of the nearest rows share one, and so few that looking through their maxima costs little.
_MIN_GROUPS = 256


_GROUPS_PER_NEIGHBOR = 16


# Less than the inner product of any two rows of unit length.
_NOBODY = -2.0


def _write_place(similarity: jax.Array, place: int, num_places: int) -> jax.Array:
    """Numbers with ``place`` in their last bits, as many as ``num_places`` need."""
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
    """Largest entries of groups of rows (axis 0) or columns (1) of ``similarity [b, m]``, with their places written in.

    Member ``j`` of group ``i`` is row or column ``j * num_groups + i``, with ``num_groups = ceil(size / group)``. A
    maximum over slices is elementwise, unlike a reduction, and vectorises.
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

    A maximum of zero is that of a row without length. It has no bits for a place and counts as nobody's; the group's
    other rows are no nearer than a right angle, and nobody misses them.
    """
    number = jnp.arange(maxima.shape[1], dtype=jnp.int32)[None]
    index = _read_place(maxima, group) * maxima.shape[1] + number
    is_zero = jnp.abs(maxima) < jnp.finfo(maxima.dtype).tiny
    return Neighbors(similarity=jnp.where(is_zero, _NOBODY, maxima), index=jnp.where(is_zero, number, index))


def _group_size(num_rows: int, num_neighbors: int) -> int:
    return num_rows // max(_MIN_GROUPS, _GROUPS_PER_NEIGHBOR * num_neighbors)


@pytree
class Candidates:
    """More rows than are wanted, in both directions.

    Attributes:
        x_to_y: `Neighbors` of the rows of X; `all_of_x` puts what is made of them in the order of X.
        y_to_x: `Neighbors` of the rows of Y, those of other devices' rows of X with a similarity of minus infinity.
        blocks: int32 numbers of the blocks of X that this device has, -1 for none; ``None`` where rows are few, and
            lie as in X.
        num_blocks: how many blocks there are.
        num_x: rows of X.
    """

    x_to_y: Neighbors
    y_to_x: Neighbors
    blocks: jax.Array | None
    num_blocks: int
    num_x: int

    def all_of_x(self, values):
        """Arrays ``[., ...]`` of the rows of ``x_to_y`` as those of all rows of X in their order: ``[n, ...]``."""
        if self.blocks is None:
            return values
        num_mine = self.blocks.shape[0]

        def in_order(array):
            blocks = all_gather(array.reshape(num_mine, -1, *array.shape[1:]), ROW, self.num_blocks)
            return blocks.swapaxes(0, 1).reshape(-1, *array.shape[1:])[: self.num_x]

        return jax.tree.map(in_order, values)

    @property
    def is_spread(self) -> bool:
        """Whether other devices have other rows of X."""
        return self.blocks is not None and num_shards(ROW) > 1


def find_candidates(x: jax.Array, y: jax.Array, *, num_neighbors: int, min_candidates: int) -> Candidates:
    """Rows of ``y [m, d]`` of large inner product for every row of ``x [n, d]``, and back: more than are wanted.

    All rows are of unit length; those without length, which padding is, are nobody's candidates while there are others.
    Where both sides are large, the nearest row of each of some hundred groups, in no order: the nearest of all is among
    them, and few of the next ``num_neighbors`` are missed; over a mesh's row axis the rows of X are spread. Else
    exactly the ``max(num_neighbors, fewest)`` nearest, best first.
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
    # Groups of rows of X lie within a block, which has a whole number of them.
    num_blocks = -(-num_x // block_rows(num_x, num_y))
    groups_per_block = -(-num_x // (num_blocks * group_x))
    block = groups_per_block * group_x
    num_blocks = -(-num_x // block)
    # Block b has the rows b, b + num_blocks, ...: rows that lie side by side in a file are often alike, and would lose
    # each other in a group.
    padded = jnp.pad(x, ((0, num_blocks * block - num_x), (0, 0))).reshape(block, num_blocks, -1)

    def search(number):
        similarity = rough_product(padded[:, number], y)
        return _group_maxima(similarity, group_y, 1), _group_maxima(similarity, group_x, 0)

    # Counted from one, so that no block is there twice where devices are more than fill: a row would meet its nearest
    # twice.
    blocks = shard(jnp.arange(1, num_blocks + 1, dtype=jnp.int32), ROW) - 1
    forward, backward = jax.lax.map(search, jnp.maximum(blocks, 0))
    if num_shards(ROW) > 1:
        missing = jnp.full((num_blocks, *backward.shape[1:]), -jnp.inf, backward.dtype)
        backward = missing.at[jnp.where(blocks < 0, num_blocks, blocks)].set(backward, mode="drop")
    # Groups in the order of their first rows, as those of Y are: whoever bundles them may count on it.
    backward = backward.transpose(2, 1, 0).reshape(num_y, -1)
    return Candidates(
        x_to_y=_named(forward.reshape(-1, forward.shape[2]), group_y),
        y_to_x=_named(backward, group_x),
        blocks=blocks,
        num_blocks=num_blocks,
        num_x=num_x,
    )
