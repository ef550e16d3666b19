"""Centring and scaling to unit length, and what to remember for new rows."""

import math

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
        zero_rows: int32 scalar, rows of the data without length, before or after centring.
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


def present_rows(x: jax.Array) -> jax.Array:
    """Which rows of ``x [n, d]`` have a length: ``[n]`` bool. Zero rows, padding among them, take no part anywhere."""
    return jnp.any(x != 0, axis=1)


def mean_present(values: jax.Array, present: jax.Array) -> jax.Array:
    """Mean of ``values [n, ...]`` over the rows that are ``present [n]``; zero where none is."""
    counted = jnp.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
    per_row = max(1, math.prod(values.shape[1:]))
    return counted.sum() / jnp.maximum(present.sum() * per_row, 1).astype(values.dtype)


def fit_space(x: jax.Array, num_rows: jax.Array | int | None = None) -> Space:
    """Preprocess the fitting rows ``x [n, d]`` of one space; half precision comes out as float32.

    Args:
        x: raw rows.
        num_rows: how many of them are rows of the data, where the last ones are padding (`sizes.size_rows`).
    """
    chex.assert_rank(x, 2)
    num_rows = x.shape[0] if num_rows is None else num_rows
    x = x.astype(working_dtype(x.dtype))
    present = present_rows(x)
    num_present = jnp.maximum(present.sum(), 1).astype(x.dtype)
    # Zero rows add nothing to the sum, so only the count leaves them out.
    mean = x.sum(axis=0) / num_present
    rows = center_unit(x, mean)
    lengths = jnp.where(present, jnp.linalg.norm(x - mean[None], axis=1), 0)
    return Space(
        rows=rows,
        mean=mean,
        scale=lengths.sum() / num_present,
        zero_rows=jnp.asarray(num_rows, jnp.int32) - present_rows(rows).sum(dtype=jnp.int32),
    )


def draw_rows(key: jax.Array, x: jax.Array, num_rows: int, present: jax.Array) -> jax.Array:
    """Draw rows without replacement, zero rows last of all.

    Args:
        key: random key.
        x: ``[n, d]``.
        num_rows: how many; all of them, in order, where there are no more.
        present: ``[n]`` bool, `present_rows` of ``x``: looked up once, where rows are drawn again and again.
    """
    return x if num_rows >= x.shape[0] else x[shuffle_present(key, present)[:num_rows]]


def shuffle_present(key: jax.Array, present: jax.Array) -> jax.Array:
    """Indices ``[n]`` of rows in random order, those that are not ``present [n]`` last."""
    # One sort of random bits; jax.random.choice shuffles in two rounds to rule out ties, which do no harm here.
    bits = jax.random.bits(key, present.shape) >> 1
    return jnp.argsort(jnp.where(present, bits, jnp.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)))
