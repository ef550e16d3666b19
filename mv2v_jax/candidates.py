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

from mv2v_jax.neighbors import Neighbors, block_rows, rough_product, top_neighbors
from mv2v_jax.pytree import pytree

# So many groups that few of the nearest rows share one, and so few that looking through their maxima costs little.
_FEWEST_GROUPS = 256
_GROUPS_PER_NEIGHBOR = 16


@pytree
class Matches:
    """Partners in both directions.

    Attributes:
        x_to_y: `Neighbors` of the rows of X.
        y_to_x: `Neighbors` of the rows of Y.
    """

    x_to_y: Neighbors
    y_to_x: Neighbors


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


def _group_maxima(similarity: jax.Array, group: int) -> jax.Array:
    """Largest entries of groups of columns, ``[b, m]`` to ``[b, ceil(m / group)]``, with their places written in.

    Entry ``j`` of group ``i`` is column ``j * num_groups + i``. A maximum over slices is elementwise, unlike a
    reduction, and vectorises.
    """
    num_groups = -(-similarity.shape[1] // group)
    slices = [similarity[:, j * num_groups : (j + 1) * num_groups] for j in range(group)]
    written = [_write_place(entries, place, group) for place, entries in enumerate(slices)]
    padded = [
        jnp.pad(entries, ((0, 0), (0, num_groups - entries.shape[1])), constant_values=-jnp.inf) for entries in written
    ]
    return functools.reduce(jnp.maximum, padded)


def _group_size(num_rows: int, num_neighbors: int) -> int:
    return num_rows // max(_FEWEST_GROUPS, _GROUPS_PER_NEIGHBOR * num_neighbors)


def find_candidates(x: jax.Array, y: jax.Array, *, num_neighbors: int, fewest: int) -> Matches:
    """Rows of ``y [m, d]`` of large inner product for every row of ``x [n, d]``, and back: more than are wanted.

    Where both sides are large, the nearest row of each of some hundred groups, in no order: the nearest of all is among
    them, and few of the next ``num_neighbors`` are missed. Else exactly the ``max(num_neighbors, fewest)`` nearest,
    best first.
    """
    chex.assert_rank((x, y), 2)
    chex.assert_equal_shape_suffix((x, y), 1)
    num_x, num_y = x.shape[0], y.shape[0]
    group_y = _group_size(num_y, num_neighbors)
    group_x = _group_size(num_x, num_neighbors)
    if min(group_x, group_y) < 2:
        wanted = max(num_neighbors, fewest)
        return Matches(
            x_to_y=top_neighbors(x, y, num_neighbors=wanted), y_to_x=top_neighbors(y, x, num_neighbors=wanted)
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
        # Rows that only fill the last block are nobody's neighbours.
        present = (jnp.arange(block) * num_blocks + number < num_x)[:, None]
        slices = [
            jnp.where(
                present[j * groups_per_block : (j + 1) * groups_per_block],
                _write_place(similarity[j * groups_per_block : (j + 1) * groups_per_block], j, group_x),
                -jnp.inf,
            )
            for j in range(group_x)
        ]
        return _group_maxima(similarity, group_y), functools.reduce(jnp.maximum, slices)

    forward, backward = jax.lax.map(search, jnp.arange(num_blocks))
    forward = forward.swapaxes(0, 1).reshape(num_blocks * block, -1)[:num_x]
    group = jnp.arange(forward.shape[1], dtype=jnp.int32)[None]
    x_to_y = Neighbors(similarity=forward, index=_read_place(forward, group_y) * forward.shape[1] + group)
    backward = backward.reshape(-1, num_y).T
    # Groups are numbered block by block.
    group = jnp.arange(backward.shape[1], dtype=jnp.int32)[None]
    place = _read_place(backward, group_x) * groups_per_block + group % groups_per_block
    y_to_x = Neighbors(similarity=backward, index=place * num_blocks + group // groups_per_block)
    return Matches(x_to_y=x_to_y, y_to_x=y_to_x)
