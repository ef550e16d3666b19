"""Centring and scaling to unit length, and what to remember for new rows."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.pytree import pytree


@pytree
class Space:
    """Fitting rows of one embedding space, ready to be aligned.

    Attributes:
        rows: ``[n, d]``, centred rows of unit length; rows that had no length are zero.
        mean: ``[d]``, mean of the rows that have a length.
        scale: scalar, mean length of the centred rows before they were scaled.
        zero_rows: int32 scalar, rows without length, before or after centring.
    """

    rows: jax.Array
    mean: jax.Array
    scale: jax.Array
    zero_rows: jax.Array


def unit_rows(x: jax.Array) -> jax.Array:
    """Scale the last axis to length 1; vectors of zero length stay zero and have a zero gradient."""
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    has_length = squared > 0
    return jnp.where(has_length, x * jax.lax.rsqrt(jnp.where(has_length, squared, 1)), 0)


def working_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Half precision is computed in float32; float32 and float64 stay what they are."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def center_unit(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Centre rows ``x [n, d]`` with a known ``mean [d]`` and scale them to unit length, in the dtype of the mean.

    Rows of zeros carry nothing, so they stay zero instead of becoming the direction of ``-mean``.
    """
    x = x.astype(mean.dtype)
    return jnp.where(jnp.any(x != 0, axis=-1, keepdims=True), unit_rows(x - mean[None]), 0)


def fit_space(x: jax.Array) -> Space:
    """Preprocess the fitting rows ``x [n, d]`` of one space; half precision comes out as float32."""
    chex.assert_rank(x, 2)
    x = x.astype(working_dtype(x.dtype))
    present = jnp.any(x != 0, axis=1)
    num_present = jnp.maximum(present.sum(), 1).astype(x.dtype)
    # Zero rows add nothing to the sum, so only the count leaves them out.
    mean = x.sum(axis=0) / num_present
    rows = center_unit(x, mean)
    lengths = jnp.where(present, jnp.linalg.norm(x - mean[None], axis=1), 0)
    return Space(
        rows=rows,
        mean=mean,
        scale=lengths.sum() / num_present,
        zero_rows=jnp.sum(~jnp.any(rows != 0, axis=1)).astype(jnp.int32),
    )


def draw_rows(key: jax.Array, x: jax.Array, num_rows: int) -> jax.Array:
    """Draw ``num_rows`` rows of ``x [n, d]`` without replacement; all of them, in order, where there are no more."""
    if num_rows >= x.shape[0]:
        return x
    # One sort of random bits; jax.random.choice shuffles in two rounds to rule out ties, which do no harm here.
    return x[jnp.argsort(jax.random.bits(key, (x.shape[0],)))[:num_rows]]
