"""Random rows without replacement: shuffled once, then drawn again and again without a sort.

On CPU every call of a random function adds some ten kernels to a compiled program, and they are large where the
numbers have several axes. So one call serves several spaces, and numbers are drawn in one row and then reshaped.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mv2v_jax.ops.masked import present_rows
from mv2v_jax.ops.pytree import pytree

# A step number that no stage reaches.
_NO_STEP = 2**31 - 1


@pytree
class RowOrder:
    """The rows of a space in random order, so that each draw needs no sort.

    Attributes:
        index: ``[n]`` int32, nonzero rows first.
        num_present: int32 scalar, number of nonzero rows.
    """

    index: jax.Array
    num_present: jax.Array


def order_rows(key: jax.Array, *spaces: jax.Array) -> tuple[RowOrder, ...]:
    """Shuffle the rows of each space ``[n, d]``, zero rows last.

    Stages fold step numbers into the same key; these draws are independent of theirs.
    """
    sizes = [x.shape[0] for x in spaces]
    bits = jax.random.bits(jax.random.fold_in(key, _NO_STEP), (sum(sizes),), jnp.uint32) >> 1
    ends = list(itertools.accumulate(sizes))
    return tuple(_order(of_x, present_rows(x)) for of_x, x in zip(jnp.split(bits, ends[:-1]), spaces, strict=True))


def _order(bits: jax.Array, present: jax.Array) -> RowOrder:
    # One sort of random bits. jax.random.choice shuffles twice to rule out ties, which are harmless here.
    index = jnp.argsort(jnp.where(present, bits, jnp.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)))
    return RowOrder(index=index.astype(jnp.int32), num_present=present.sum(dtype=jnp.int32))


def draw_rows(
    key: jax.Array, spaces: Sequence[jax.Array], sizes: Sequence[int], orders: Sequence[RowOrder]
) -> tuple[jax.Array, ...]:
    """Draw rows without replacement, zero rows last: consecutive rows of a random order, from a random start.

    Args:
        key: random key.
        spaces: each ``[n, ...]``; row numbers ``[n]`` serve to draw these alone.
        sizes: number of rows to draw from each space; all rows in their own order where there are no more.
        orders: `order_rows` of the spaces, made once for many draws.
    """
    numbers = jax.random.bits(key, (len(spaces),), jnp.uint32)
    return tuple(_draw(*of_space) for of_space in zip(numbers, spaces, sizes, orders, strict=True))


def _draw(number: jax.Array, x: jax.Array, num_rows: int, order: RowOrder) -> jax.Array:
    if num_rows >= x.shape[0]:
        return x
    num_present = jnp.maximum(order.num_present, 1)
    start = (number % num_present.astype(number.dtype)).astype(jnp.int32)
    place = jnp.arange(num_rows, dtype=jnp.int32)
    return x[order.index[jnp.where(place < order.num_present, (start + place) % num_present, place)]]
