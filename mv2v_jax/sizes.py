"""Data in few sizes: what is smaller is padded, what is larger is sampled, so that similar data compiles nothing new.

Padding is zero rows, which take no part in anything, behind the data. Both happen before anything is traced or copied
to a device: a memory-mapped file is read where rows are drawn, and never copied whole.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# At most an eighth of the rows are padding.
_SIZES_PER_DOUBLING = 8


class SizedRows(NamedTuple):
    """Rows of one space in one of the sizes.

    Attributes:
        rows: ``[padded_size(num_rows), d]`` jax array, zero rows last.
        num_rows: int32 scalar, how many are rows of the data.
    """

    rows: jax.Array
    num_rows: jax.Array


def padded_size(num_rows: int) -> int:
    """Smallest size from ``num_rows`` up; from 8 on, each doubling has eight of them, evenly spaced.

    Example:
        >>> [padded_size(num_rows) for num_rows in (5, 16, 17, 3_000, 60_000)]
        [5, 16, 18, 3072, 61440]
    """
    step = 1 << max(0, (num_rows - 1).bit_length() - _SIZES_PER_DOUBLING.bit_length())
    return -(-num_rows // step) * step


def _sampled(x: Any, most: int) -> Any:
    """``most`` rows of ``x [n, d]`` in the order they came in, the same ones for the same ``n``; all if no more."""
    n = x.shape[0]
    if n <= most:
        return x
    # Which rows is a matter of their number alone, as in `evidence.hold_out`: restarts can share them.
    chosen = np.sort(np.random.default_rng(n).choice(n, most, replace=False))
    return x[chosen]


def size_rows(x: Any, most: int) -> SizedRows:
    """Rows ``x [n, d]``, NumPy's or JAX's, in one of the sizes, of at most ``most`` rows."""
    drawn = _sampled(x, most)
    num_rows = drawn.shape[0]
    padding = ((0, padded_size(num_rows) - num_rows), (0, 0))
    # NumPy pads without compiling anything.
    padded = jnp.pad(drawn, padding) if isinstance(drawn, jax.Array) else jnp.asarray(np.pad(drawn, padding))
    return SizedRows(rows=padded, num_rows=jnp.asarray(num_rows, jnp.int32))
