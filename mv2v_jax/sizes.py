"""Data in few sizes: what is smaller is padded, what is larger is sampled, so that similar data compiles nothing new.

Padding is zero rows, which take no part in anything, behind the data. Both happen before anything is traced or copied
to a device: of a file only the rows that are drawn are held in memory. What they are centred by is the mean of all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.measure import CheckedRows, Moments, ask
from mv2v_jax.preprocess import present_rows, working_dtype

# At most an eighth of the rows are padding.
_SIZES_PER_DOUBLING = 8
# Summed together under a transformation, so that a long float32 sum loses little.
_SUM_ROWS = 1024


class SizedRows(NamedTuple):
    """Rows of one space in one of the sizes.

    Attributes:
        rows: ``[padded_size(num_rows), d]`` jax array, zero rows last.
        num_rows: int32 scalar, how many are rows of the data.
        mean: ``[d]``, mean of all rows that have a length, where some were drawn; ``None`` where all are here.
    """

    rows: jax.Array
    num_rows: jax.Array
    mean: jax.Array | None = None


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


def _mean_of_all(x: Any) -> Any:
    """Mean ``[d]`` of the rows of ``x [n, d]`` that have a length."""
    if isinstance(x, CheckedRows):
        return x.mean
    if not isinstance(x, jax.core.Tracer):
        moments = Moments()
        ask(x, moments)
        return moments.mean
    values = x.astype(working_dtype(x.dtype))
    blocks = jnp.pad(values, ((0, -len(values) % _SUM_ROWS), (0, 0))).reshape(-1, _SUM_ROWS, values.shape[1])
    num_present = jnp.maximum(present_rows(x).sum(), 1).astype(values.dtype)
    return blocks.sum(axis=1).sum(axis=0) / num_present


def size_rows(x: Any, most: int) -> SizedRows:
    """Rows ``x [n, d]`` in one of the sizes, of at most ``most`` rows.

    Args:
        x: a NumPy or JAX array, a memory map, `rows.RowFiles`, or `CheckedRows` of any of them.
        most: rows to draw where there are more, and then their mean is that of all.
    """
    mean = _mean_of_all(x) if x.shape[0] > most else None
    drawn = _sampled(x, most)
    num_rows = drawn.shape[0]
    padding = ((0, padded_size(num_rows) - num_rows), (0, 0))
    drawn = drawn.rows if isinstance(drawn, CheckedRows) else drawn
    # NumPy pads without compiling anything.
    padded = jnp.pad(drawn, padding) if isinstance(drawn, jax.Array) else jnp.asarray(np.pad(drawn, padding))
    return SizedRows(
        rows=padded,
        num_rows=jnp.asarray(num_rows, jnp.int32),
        mean=None if mean is None else jnp.asarray(mean, working_dtype(padded.dtype)),
    )
