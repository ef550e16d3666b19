"""The fitting rows of both embedding spaces: centred, of unit length, and split into fitted and held-out rows."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.alignment.seeds import Seeds, pair_seeds
from mv2v_jax.linear_map import Centering
from mv2v_jax.ops.masked import (
    center_unit,
    median_length,
    present_rows,
    row_lengths,
    shorten_rows,
    unit_rows,
    working_dtype,
)
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import order_rows
from mv2v_jax.ops.sharding import ROW, all_gather, num_shards, psum


@pytree
class Space:
    """Fitting rows of one embedding space, ready to be aligned.

    Attributes:
        rows: ``[n, d]``, centred rows of unit length; rows of length zero stay zero.
        centering: `Centering` of the nonzero rows; of the whole data set where ``rows`` are a sample of it.
        zero_rows: int32 scalar, number of rows of the data that are zero before or after centring.
        seeds: ``[p, d]``, this side of the known pairs, centred unit rows like ``rows``; ``None`` without pairs.
    """

    rows: jax.Array
    centering: Centering
    zero_rows: jax.Array
    seeds: jax.Array | None = None


@pytree
class TwoSpaces:
    """Rows of both spaces that one stage works on. Row i of ``x`` has nothing to do with row i of ``y``.

    Attributes:
        x: ``[n, d_x]`` centred unit rows of the source.
        y: ``[m, d_y]`` centred unit rows of the target.
        seeds: `Seeds` in the same coordinates; ``None`` without known pairs.
    """

    x: jax.Array
    y: jax.Array
    seeds: Seeds | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows of the smaller space."""
        return min(self.x.shape[0], self.y.shape[0])


def fit_space(
    x: jax.Array,
    num_rows: jax.Array | int | None = None,
    mean: jax.Array | None = None,
    seeds: jax.Array | None = None,
) -> Space:
    """Preprocess the fitting rows ``x [n, d]`` of one space; half precision comes out as float32.

    Rows that are much longer than the median row are shortened first (`shorten_rows`), so that no few rows determine
    the mean and the scale of all.

    Args:
        x: raw rows. Over a mesh's row axis each device passes its share of them and gets all rows of the space.
        num_rows: number of rows of the data, where the last rows are padding (`padding.pad_rows`).
        mean: ``[d]``, mean of the whole data set, where these rows are a sample of it.
        seeds: ``[p, d]`` raw rows whose partners in the other space are known, if any; the mean ignores them.
    """
    chex.assert_rank(x, 2)
    num_all = x.shape[0] * num_shards(ROW)
    num_rows = num_all if num_rows is None else num_rows
    x = x.astype(working_dtype(x.dtype))
    median = median_length(all_gather(row_lengths(x), ROW, num_all))
    x = shorten_rows(x, median)
    present = present_rows(x)
    # Zero rows add nothing to the sum, so only the count leaves them out.
    num_present, sums = psum((present.sum(), x.sum(axis=0)), ROW)
    num_present = jnp.maximum(num_present, 1).astype(x.dtype)
    mean = sums / num_present if mean is None else mean
    rows = all_gather(center_unit(x, mean), ROW, num_all)
    lengths = jnp.where(present, jnp.linalg.norm(x - mean[None], axis=1), 0)
    return Space(
        rows=rows,
        centering=Centering(mean=mean, scale=psum(lengths.sum(), ROW) / num_present),
        zero_rows=jnp.asarray(num_rows, jnp.int32) - present_rows(rows).sum(dtype=jnp.int32),
        seeds=None if seeds is None else center_unit(shorten_rows(seeds.astype(mean.dtype), median), mean),
    )


def join_spaces(source: Space, target: Space) -> TwoSpaces:
    """All rows of both spaces, with their known pairs if there are any."""
    return TwoSpaces(x=source.rows, y=target.rows, seeds=pair_seeds(source.seeds, target.seeds))


def num_held_out(num_rows: int, max_rows: int) -> int:
    """Number of rows kept out of a fit of ``num_rows`` rows: ``max_rows``, but at most a tenth of them."""
    return min(max_rows, num_rows // 10)


def split_rows(rows: jax.Array, max_rows: int) -> tuple[jax.Array, jax.Array]:
    """Split ``rows [n, d]`` at random: the numbers of the fitted rows ``[n - h]`` and of the held-out rows ``[h]``.

    Zero rows are held out only if there are no others. The split depends on ``n`` alone, so that every restart is
    scored on the same rows, whatever its key.
    """
    num_held = num_held_out(rows.shape[0], max_rows)
    (order,) = order_rows(jax.random.key(rows.shape[0]), rows)
    return order.index[num_held:], order.index[:num_held]


def hold_out(rows: jax.Array, max_rows: int) -> tuple[jax.Array, jax.Array]:
    """The fitted rows ``[n - h, d]`` and the held-out rows ``[h, d]`` that `split_rows` numbers."""
    fitted, held_out = split_rows(rows, max_rows)
    return rows[fitted], rows[held_out]


# A search compares rows in the principal directions of both spaces. It needs only clusters and the rough position of
# rows, which the directions of largest variance determine. On MiniLM and WordLlama, a search in 128 directions takes
# less than half of the time. Settling uses all directions and ends at the same map.


@pytree
class Subspace:
    """Orthonormal directions of both spaces, and what rows and matrices are in their coordinates.

    Attributes:
        x: ``[d_x, r_x]`` directions of the source; ``None`` for all of them, which changes nothing.
        y: ``[d_y, r_y]`` directions of the target; ``None`` likewise.
    """

    x: jax.Array | None
    y: jax.Array | None

    def project(self, rows: TwoSpaces) -> TwoSpaces:
        """Rows of both spaces in these coordinates, of unit length again."""
        seeds = rows.seeds
        return TwoSpaces(
            x=_coordinates(rows.x, self.x),
            y=_coordinates(rows.y, self.y),
            seeds=None if seeds is None else Seeds(x=_coordinates(seeds.x, self.x), y=_coordinates(seeds.y, self.y)),
        )

    def restrict(self, matrix: jax.Array) -> jax.Array:
        """A matrix between whole spaces ``[d_x, d_y]`` as one between coordinates, ``[r_x, r_y]``."""
        if self.x is not None:
            matrix = self.x.T @ matrix
        return matrix if self.y is None else matrix @ self.y

    def extend(self, matrix: jax.Array) -> jax.Array:
        """A matrix between coordinates ``[r_x, r_y]`` as one between whole spaces, ``[d_x, d_y]``."""
        if self.x is not None:
            matrix = self.x @ matrix
        return matrix if self.y is None else matrix @ self.y.T


def principal_subspace(rows: TwoSpaces, num_dims: int) -> Subspace:
    """The ``num_dims`` directions of largest variance of each space; all directions for 0 or where there are fewer."""
    return Subspace(x=_principal_directions(rows.x, num_dims), y=_principal_directions(rows.y, num_dims))


def _principal_directions(rows: jax.Array, num_dims: int) -> jax.Array | None:
    if num_dims == 0 or num_dims >= rows.shape[1]:
        return None
    return jnp.linalg.eigh(rows.T @ rows)[1][:, -num_dims:]


def _coordinates(rows: jax.Array, directions: jax.Array | None) -> jax.Array:
    return rows if directions is None else unit_rows(rows @ directions)
