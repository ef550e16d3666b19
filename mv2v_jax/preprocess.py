"""Centring and scaling to unit length, and what to remember for new rows."""

import math

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.mesh import ROW, num_parts, total, whole
from mv2v_jax.pytree import pytree

# No stage takes a step of this number.
_NO_STEP = 2**31 - 1


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


def fit_space(
    x: jax.Array,
    num_rows: jax.Array | int | None = None,
    mean: jax.Array | None = None,
    known: jax.Array | None = None,
) -> Space:
    """Preprocess the fitting rows ``x [n, d]`` of one space; half precision comes out as float32.

    Args:
        x: raw rows; over a mesh's row axis each device has its share of them, and gets all of the space.
        num_rows: how many of them are rows of the data, where the last ones are padding (`sizes.size_rows`).
        mean: ``[d]``, what to centre by, where these rows were drawn from more and the mean of all is known.
        known: ``[p, d]`` raw rows whose partners in the other space are known, if any; they fit no mean.
    """
    chex.assert_rank(x, 2)
    num_all = x.shape[0] * num_parts(ROW)
    num_rows = num_all if num_rows is None else num_rows
    x = x.astype(working_dtype(x.dtype))
    present = present_rows(x)
    # Zero rows add nothing to the sum, so only the count leaves them out.
    num_present, sums = total((present.sum(), x.sum(axis=0)), ROW)
    num_present = jnp.maximum(num_present, 1).astype(x.dtype)
    mean = sums / num_present if mean is None else mean
    rows = whole(center_unit(x, mean), ROW, num_all)
    lengths = jnp.where(present, jnp.linalg.norm(x - mean[None], axis=1), 0)
    return Space(
        rows=rows,
        mean=mean,
        scale=total(lengths.sum(), ROW) / num_present,
        zero_rows=jnp.asarray(num_rows, jnp.int32) - present_rows(rows).sum(dtype=jnp.int32),
        known=None if known is None else center_unit(known, mean),
    )


@pytree
class RowOrder:
    """Rows of a space in random order, so that drawing some of them sorts nothing.

    Attributes:
        index: ``[n]`` int32, rows that have a length first.
        num_present: int32 scalar, how many these are.
    """

    index: jax.Array
    num_present: jax.Array


def order_rows(key: jax.Array, *spaces: jax.Array) -> tuple[RowOrder, ...]:
    """Shuffle the rows of each space ``[n, d]``, zero rows last.

    Stages fold the number of a step into the same key; what is drawn here has nothing in common with their draws.
    """
    keys = jax.random.split(jax.random.fold_in(key, _NO_STEP), len(spaces))
    return tuple(_order(key, present_rows(x)) for key, x in zip(keys, spaces, strict=True))


def _order(key: jax.Array, present: jax.Array) -> RowOrder:
    # One sort of random bits; jax.random.choice shuffles in two rounds to rule out ties, which do no harm here.
    bits = jax.random.bits(key, present.shape) >> 1
    index = jnp.argsort(jnp.where(present, bits, jnp.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)))
    return RowOrder(index=index.astype(jnp.int32), num_present=present.sum(dtype=jnp.int32))


def draw_rows(key: jax.Array, x: jax.Array, num_rows: int, order: RowOrder) -> jax.Array:
    """Draw rows without replacement, zero rows last of all: those that follow each other in an order, from anywhere.

    Args:
        key: random key.
        x: ``[n, d]``.
        num_rows: how many; all of them, as they lie, where there are no more.
        order: `order_rows` of ``x``, shuffled once where rows are drawn again and again.
    """
    if num_rows >= x.shape[0]:
        return x
    num_present = jnp.maximum(order.num_present, 1)
    start = jax.random.randint(key, (), 0, num_present, jnp.int32)
    place = jnp.arange(num_rows, dtype=jnp.int32)
    return x[order.index[jnp.where(place < order.num_present, (start + place) % num_present, place)]]
