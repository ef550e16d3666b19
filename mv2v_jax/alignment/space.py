"""The fitting rows of one embedding space: centred, of unit length, and split into fitted and held-out rows."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.masked import center_unit, present_rows, working_dtype
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import order_rows
from mv2v_jax.ops.sharding import ROW, all_gather, num_shards, psum


@pytree
class Space:
    """Fitting rows of one embedding space, ready to be aligned.

    Attributes:
        rows: ``[n, d]``, centred rows of unit length; rows that had no length are zero.
        mean: ``[d]``, mean of the rows that have a length; of all of them where ``rows`` were drawn from more.
        scale: scalar, mean length of the centred rows before they were scaled.
        zero_rows: int32 scalar, rows of the data without length, before or after centring.
        known: ``[p, d]``, rows whose partners are known, as ``rows`` are; ``None`` where there are none.
    """

    rows: jax.Array
    mean: jax.Array
    scale: jax.Array
    zero_rows: jax.Array
    known: jax.Array | None = None


def fit_space(
    x: jax.Array,
    num_rows: jax.Array | int | None = None,
    mean: jax.Array | None = None,
    known: jax.Array | None = None,
) -> Space:
    """Preprocess the fitting rows ``x [n, d]`` of one space; half precision comes out as float32.

    Args:
        x: raw rows; over a mesh's row axis each device has its share of them, and gets all of the space.
        num_rows: how many of them are rows of the data, where the last ones are padding (`sizes.pad_rows`).
        mean: ``[d]``, what to centre by, where these rows were drawn from more and the mean of all is known.
        known: ``[p, d]`` raw rows whose partners in the other space are known, if any; they fit no mean.
    """
    chex.assert_rank(x, 2)
    num_all = x.shape[0] * num_shards(ROW)
    num_rows = num_all if num_rows is None else num_rows
    x = x.astype(working_dtype(x.dtype))
    present = present_rows(x)
    # Zero rows add nothing to the sum, so only the count leaves them out.
    num_present, sums = psum((present.sum(), x.sum(axis=0)), ROW)
    num_present = jnp.maximum(num_present, 1).astype(x.dtype)
    mean = sums / num_present if mean is None else mean
    rows = all_gather(center_unit(x, mean), ROW, num_all)
    lengths = jnp.where(present, jnp.linalg.norm(x - mean[None], axis=1), 0)
    return Space(
        rows=rows,
        mean=mean,
        scale=psum(lengths.sum(), ROW) / num_present,
        zero_rows=jnp.asarray(num_rows, jnp.int32) - present_rows(rows).sum(dtype=jnp.int32),
        known=None if known is None else center_unit(known, mean),
    )


@pytree
class HoldOut:
    """One space in two parts.

    Attributes:
        fitted: ``[n - h, d]`` rows to fit with.
        held_out: ``[h, d]`` rows to score with.
    """

    fitted: jax.Array
    held_out: jax.Array


def num_held_out(num_rows: int, most: int) -> int:
    """How many of ``num_rows`` rows are kept out of the fit: ``most``, but no more than a tenth."""
    return min(most, num_rows // 10)


def hold_out(space: Space, num_rows: int) -> HoldOut:
    """Keep ``num_rows`` rows of a space out of the fit, at most a tenth of them; zero rows only if there are no others.

    Which rows depends on their number alone: every restart is scored on the same rows, whatever its key.
    """
    n = space.rows.shape[0]
    num_held = num_held_out(n, num_rows)
    (order,) = order_rows(jax.random.key(n), space.rows)
    shuffled = space.rows[order.index]
    return HoldOut(fitted=shuffled[num_held:], held_out=shuffled[:num_held])
