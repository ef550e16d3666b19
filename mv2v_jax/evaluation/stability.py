"""How much several fits of the same data agree: pair by pair, in basins, and row by row.

A fit ends in a basin: a set of maps that are the same alignment up to the noise of their draws. Restarts that found the
truth agree with each other. Wrong restarts usually differ from each other, but they can agree if the data has a
near-symmetry. The size of the largest basin, and the share of maps under which rows keep their nearest row, measure how
stable a result is. No true pair is used.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.alignment.choose import map_agreement
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.checks import check_map_rows
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.given_arrays import as_matrix
from mv2v_jax.ops.knn import top_neighbors
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.pytree import pytree

# Minimum agreement of neighbouring maps of a basin. Maps of one basin agree by nearly 1, maps of different basins by
# almost 0, so any value between separates them.
SAME_BASIN = 0.5

# Number of rows of X whose nearest rows are compared, of rows of Y that are searched for them, and of directions of X
# whose images are compared.
_PROBED_ROWS = 1_024
_BANK_ROWS = 8_192
_LEADING_DIRECTIONS = 16


@pytree
class Stability:
    """Result of `measure_stability` for ``r`` maps and ``p`` probed rows.

    Attributes:
        agreement: ``[r, r]``, cosine between the images of the rows of X under two maps; 1 if the images are equal.
        distance: ``[r, r]``, relative Frobenius distance, ``||W_i - W_j|| / sqrt(||W_i|| ||W_j||)``.
        angle: ``[r, r]``, largest principal angle between the images of the leading directions of X, in radians.
        neighbors: ``[r, r]``, share of the probed rows that have the same nearest row of Y under two maps.
        basin: ``[r]`` int32, the basin of each map. Basins are connected components of maps whose agreement is at least
            `SAME_BASIN`, numbered by size; 0 is the largest.
        basin_size: ``[r]`` int32, number of maps in each basin; 0 for numbers that no basin has.
        row_stability: ``[p]``, share of all maps under which a probed row has its most frequent nearest row; 0 for a
            zero row. Entry ``i`` belongs to row ``i`` of X.
        row_partner: ``[p]`` int32, number of that nearest row of Y; the first map's, where several are as frequent.
    """

    agreement: jax.Array
    distance: jax.Array
    angle: jax.Array
    neighbors: jax.Array
    basin: jax.Array
    basin_size: jax.Array
    row_stability: jax.Array
    row_partner: jax.Array


def find_basins(agreement: jax.Array, min_agreement: float = SAME_BASIN) -> tuple[jax.Array, jax.Array]:
    """Connected components of maps with an ``agreement [r, r]`` of at least ``min_agreement``.

    Returns:
        The number of the basin of each map, and the size of each basin, both ``[r]`` int32. Basins are numbered from 0
        by size, the largest first; of two basins of equal size the one with the earlier map comes first.

    Example:
        >>> import jax.numpy as jnp
        >>> agreement = jnp.array([[1.0, 0.1, 0.0], [0.1, 1.0, 0.9], [0.0, 0.9, 1.0]])
        >>> [part.tolist() for part in find_basins(agreement)]
        [[1, 0, 0], [2, 1, 0]]
    """
    num_maps = agreement.shape[0]
    joined = (agreement >= min_agreement) | jnp.eye(num_maps, dtype=bool)

    def spread(labels):
        return jnp.where(joined, labels[None], num_maps).min(axis=1)

    def spreads(labels):
        return jnp.any(spread(labels) != labels)

    labels = jax.lax.while_loop(spreads, spread, jnp.arange(num_maps))
    size = jnp.zeros(num_maps, jnp.int32).at[labels].add(1)
    order = jnp.argsort(-size, stable=True)
    number = jnp.zeros(num_maps, jnp.int32).at[order].set(jnp.arange(num_maps, dtype=jnp.int32))
    return number[labels], size[order]


def _angles(W: jax.Array, x: jax.Array) -> jax.Array:
    """Largest principal angle between the images of the leading directions of ``x``, for each pair of maps."""
    num_directions = min(_LEADING_DIRECTIONS, *W.shape[1:])
    leading = jnp.linalg.eigh(x.T @ x)[1][:, -num_directions:]
    images = jnp.linalg.qr(jnp.einsum("rab,ak->rbk", W, leading))[0]

    def with_others(image):
        cosines = jnp.linalg.svd(jnp.einsum("bk,rbl->rkl", image, images), compute_uv=False)
        return jnp.arccos(jnp.clip(cosines.min(axis=1), 0, 1))

    return jax.lax.map(with_others, images)


def _distances(W: jax.Array) -> jax.Array:
    flat = W.reshape(W.shape[0], -1)
    inner = flat @ flat.T
    squared = jnp.diagonal(inner)
    lengths = jnp.maximum(jnp.sqrt(squared[:, None] * squared[None]), jnp.finfo(W.dtype).tiny)
    return jnp.sqrt(jnp.maximum(squared[:, None] + squared[None] - 2 * inner, 0) / lengths)


@jax.jit
def compare_maps(W: jax.Array, x: jax.Array, y: jax.Array) -> Stability:
    """`measure_stability` for maps ``W [r, d_x, d_y]`` between centred unit rows ``x [n, d_x]`` and ``y [m, d_y]``."""
    chex.assert_rank((W, x, y), (3, 2, 2))
    probed, bank = x[:_PROBED_ROWS], y[:_BANK_ROWS]
    present = present_rows(probed)
    nearest = jax.lax.map(lambda one: top_neighbors(unit_rows(probed @ one), bank, num_neighbors=1).index[:, 0], W)
    agreement = map_agreement(W, x)
    basin, basin_size = find_basins(agreement)

    def share(same):
        return mean_present(same.astype(W.dtype), present)

    votes = jax.lax.map(lambda own: jnp.sum(nearest == own[None], axis=0), nearest)
    most = votes.argmax(axis=0)
    max_votes = votes.max(axis=0).astype(W.dtype)
    return Stability(
        agreement=agreement,
        distance=_distances(W),
        angle=_angles(W, x),
        neighbors=jax.lax.map(lambda own: jax.vmap(lambda other: share(own == other))(nearest), nearest),
        basin=basin,
        basin_size=basin_size,
        row_stability=jnp.where(present, max_votes / W.shape[0], 0),
        row_partner=jnp.take_along_axis(nearest, most[None], axis=0)[0].astype(jnp.int32),
    )


def measure_stability(maps: LinearMap, x: Any, y: Any) -> Stability:
    """Compare several fits of the same data. A pure function.

    Args:
        maps: a `LinearMap` whose arrays have a first axis of length ``r``: ``align_restarts(..., keep="all").maps``, or
            the map of a vmapped `align`.
        x: ``[n, d_x]`` raw rows of the source, any floating dtype. The nearest rows of the first 1,024 are compared.
        y: ``[m, d_y]`` raw rows of the target. The nearest rows are among the first 8,192.

    Returns:
        `Stability`.

    Raises:
        InputError: wrong class, shape or dtype, or ``x`` and ``y`` swapped.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mv2v_jax import Centering
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 30, 4))
        >>> centering = Centering(mean=jnp.zeros((3, 4)), scale=jnp.ones(3))
        >>> W = jnp.stack([jnp.eye(4), jnp.eye(4), -jnp.eye(4)])
        >>> measure_stability(LinearMap(W=W, source=centering, target=centering), x, y).basin.tolist()
        [0, 0, 1]
    """
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    check_map_rows(maps, x, y, several=True)
    return compare_maps(maps.W, fit_space(x).rows, fit_space(y).rows)
