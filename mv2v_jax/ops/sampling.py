"""Random rows without replacement: shuffled once, then drawn again and again without a sort."""

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
    keys = jax.random.split(jax.random.fold_in(key, _NO_STEP), len(spaces))
    return tuple(_order(key, present_rows(x)) for key, x in zip(keys, spaces, strict=True))


def _order(key: jax.Array, present: jax.Array) -> RowOrder:
    # One sort of random bits. jax.random.choice shuffles twice to rule out ties, which are harmless here.
    bits = jax.random.bits(key, present.shape) >> 1
    index = jnp.argsort(jnp.where(present, bits, jnp.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)))
    return RowOrder(index=index.astype(jnp.int32), num_present=present.sum(dtype=jnp.int32))


def draw_rows(key: jax.Array, x: jax.Array, num_rows: int, order: RowOrder) -> jax.Array:
    """Draw rows without replacement, zero rows last: consecutive rows of a random order, from a random start.

    Args:
        key: random key.
        x: ``[n, d]``.
        num_rows: number of rows to draw; all rows in their own order where there are no more.
        order: `order_rows` of ``x``, made once for many draws.
    """
    if num_rows >= x.shape[0]:
        return x
    num_present = jnp.maximum(order.num_present, 1)
    start = jax.random.randint(key, (), 0, num_present, jnp.int32)
    place = jnp.arange(num_rows, dtype=jnp.int32)
    return x[order.index[jnp.where(place < order.num_present, (start + place) % num_present, place)]]
