"""Arrays of rows of which some are zero or far too long: unit length, means and masks."""

import math

import jax
import jax.numpy as jnp

# Static word vectors reach 4.4 times their median length; transformers hardly exceed it.
MAX_TIMES_MEDIAN = 5.0


def unit_rows(x: jax.Array) -> jax.Array:
    """Scale the last axis to length 1; vectors of zero length stay zero and have a zero gradient."""
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    has_length = squared > 0
    return jnp.where(has_length, x * jax.lax.rsqrt(jnp.where(has_length, squared, 1)), 0)


def working_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Half precision is computed in float32; float32 and float64 stay what they are."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def squarable_rows(x: jax.Array) -> jax.Array:
    """Scale every row by a power of two, so that its square neither overflows nor vanishes.

    A power of two rounds nothing: unit rows of the result are those of ``x``, bit for bit, wherever those can be
    computed at all.
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    limit = jnp.finfo(x.dtype).maxexp - 2
    exponent = jnp.clip(-jnp.frexp(largest)[1], -limit, limit)
    return x * jnp.ldexp(jnp.ones((), x.dtype), exponent)


def center_unit(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Centre rows ``x [n, d]`` with a known ``mean [d]`` and scale them to unit length, in the dtype of the mean.

    Zero rows stay zero; centring would turn them into the direction of ``-mean``.
    """
    x = x.astype(mean.dtype)
    return jnp.where(jnp.any(x != 0, axis=-1, keepdims=True), unit_rows(squarable_rows(x - mean[None])), 0)


def present_rows(x: jax.Array) -> jax.Array:
    """Which rows of ``x [n, d]`` are not zero: ``[n]`` bool. Zero rows, such as padding, take no part in any stage."""
    return jnp.any(x != 0, axis=1)


def row_lengths(x: jax.Array) -> jax.Array:
    """Lengths ``[n]`` of rows ``x [n, d]``, in the working dtype."""
    return jnp.linalg.norm(x.astype(working_dtype(x.dtype)), axis=1)


def median_length(lengths: jax.Array) -> jax.Array:
    """Median of the ``lengths [n]`` that are not zero, the lower one of two; infinity where all are zero."""
    is_present = lengths > 0
    ordered = jnp.sort(jnp.where(is_present, lengths, jnp.inf))
    return ordered[(jnp.maximum(is_present.sum(), 1) - 1) // 2]


def shorten_rows(x: jax.Array, median: jax.Array) -> jax.Array:
    """Scale rows ``x [n, d]`` of more than `MAX_TIMES_MEDIAN` times the ``median`` length down to that length.

    Without it a single row could determine the mean of all. Such rows get the median length and not the limit, because
    together they could still move the mean. All other rows stay the same, bit for bit.
    """
    lengths = row_lengths(x)[:, None]
    return jnp.where(lengths > MAX_TIMES_MEDIAN * median, x * (median / lengths).astype(x.dtype), x)


def mean_present(values: jax.Array, present: jax.Array) -> jax.Array:
    """Mean of ``values [n, ...]`` over the rows that are ``present [n]``; zero where there are none."""
    counted = jnp.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
    per_row = max(1, math.prod(values.shape[1:]))
    return counted.sum() / jnp.maximum(present.sum() * per_row, 1).astype(values.dtype)
