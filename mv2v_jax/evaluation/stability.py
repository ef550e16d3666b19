"""How far several fits of the same data agree: pair by pair, in basins, and row by row.

A fit ends in a basin: maps that are one alignment up to the noise of their draws. Restarts that found the truth agree
with each other; those that did not are wrong each in its own way, or together where the data has a near-symmetry. How
many end together and which rows keep their partner says how stable an answer is. No label is used.
"""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.alignment.restarts import map_agreement
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.checks import check_shape
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.knn import top_neighbors
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.pytree import pytree

# Maps of one basin agree by nearly 1, those of different ones by next to nothing; anything between tells them apart.
SAME_BASIN = 0.5


# Rows whose nearest rows are compared, rows these are looked for among, directions whose images are compared.
_PROBED_ROWS = 1_024


_BANK_ROWS = 8_192


_LEADING_DIRECTIONS = 16


@pytree
class Stability:
    """What `stability` returns, for ``r`` maps and ``p`` probed rows.

    Attributes:
        agreement: ``[r, r]``, cosine of the maps as they move the rows of X: 1 for maps that are equal there.
        distance: ``[r, r]``, relative Frobenius distance, ``||W_i - W_j|| / sqrt(||W_i|| ||W_j||)``.
        angle: ``[r, r]``, largest principal angle, in radians, between where two maps put the leading directions of X.
        neighbors: ``[r, r]``, share of the probed rows that two maps give the same nearest row of Y.
        basin: ``[r]`` int32, which basin a map is in, the largest being 0: the connected components of maps whose
            agreement is at least `SAME_BASIN`.
        basin_size: ``[r]`` int32, maps by basin, 0 from the first number on that no basin has.
        row_stability: ``[p]``, share of the maps of the largest basin that give a probed row the nearest row it has
            most often; 0 for a row without length. Row ``i`` is row ``i`` of X.
    """

    agreement: jax.Array
    distance: jax.Array
    angle: jax.Array
    neighbors: jax.Array
    basin: jax.Array
    basin_size: jax.Array
    row_stability: jax.Array


def find_basins(agreement: jax.Array, least: float = SAME_BASIN) -> tuple[jax.Array, jax.Array]:
    """Connected components of maps that agree ``[r, r]`` by at least ``least``: their numbers and sizes, both ``[r]``.

    The largest is number 0; of two of one size, the one with the earlier map comes first.
    """
    num_maps = agreement.shape[0]
    joined = (agreement >= least) | jnp.eye(num_maps, dtype=bool)

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
    """Largest principal angle between the images of the leading directions of ``x`` under each pair of maps."""
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
def measure_stability(W: jax.Array, x: jax.Array, y: jax.Array) -> Stability:
    """`stability` of maps ``W [r, d_x, d_y]`` between centred unit rows ``x [n, d_x]`` and ``y [m, d_y]``."""
    chex.assert_rank((W, x, y), (3, 2, 2))
    probed, bank = x[:_PROBED_ROWS], y[:_BANK_ROWS]
    present = present_rows(probed)
    nearest = jax.lax.map(lambda one: top_neighbors(unit_rows(probed @ one), bank, num_neighbors=1).index[:, 0], W)
    agreement = map_agreement(W, x)
    basin, basin_size = find_basins(agreement)
    members = basin == 0

    def share(same):
        return mean_present(same.astype(W.dtype), present)

    def votes(own):
        return jnp.sum((nearest == own[None]) & members[:, None], axis=0)

    # A map outside of the basin may have a nearest row that the members vote for; it is theirs all the same.
    most = jnp.max(jax.lax.map(votes, nearest), axis=0)
    return Stability(
        agreement=agreement,
        distance=_distances(W),
        angle=_angles(W, x),
        neighbors=jax.lax.map(lambda own: jax.vmap(lambda other: share(own == other))(nearest), nearest),
        basin=basin,
        basin_size=basin_size,
        row_stability=jnp.where(present, most, 0) / jnp.maximum(members.sum(), 1).astype(W.dtype),
    )


def stability(maps: LinearMap, x: jax.Array, y: jax.Array) -> Stability:
    """Compare fits of the same data: a pure function.

    Args:
        maps: `LinearMap` whose fields are ``[r, ...]``: ``align_restarts(..., keep="all").maps``, or those of a vmapped
            `align`.
        x: ``[n, d_x]`` raw rows of the source; the first 1,024 are probed for their nearest rows.
        y: ``[m, d_y]`` raw rows of the target; the first 8,192 are what these are looked for among.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    if maps.W.ndim != 3:
        raise InputError(f"maps must hold W [r, d_x, d_y], several maps, found shape {list(maps.W.shape)}")
    for rows, name, columns in ((x, "x", maps.W.shape[1]), (y, "y", maps.W.shape[2])):
        check_shape(rows, name)
        if rows.shape[1] != columns:
            raise InputError(f"{name} must have {columns} columns for these maps, found {rows.shape[1]}")
    return measure_stability(maps.W, fit_space(jnp.asarray(x)).rows, fit_space(jnp.asarray(y)).rows)
