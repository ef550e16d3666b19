"""Data in few sizes: what is smaller is padded, what is larger is sampled, so that similar data compiles nothing new.

Padding is zero rows, which take no part in anything, behind the data. Both happen before anything is traced or copied
to a device: of a file only the rows that are drawn are held in memory. What they are centred by is the mean of all.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.data.scan import CheckedRows, Moments, scan_rows
from mv2v_jax.errors import InputError
from mv2v_jax.ops.masked import present_rows, working_dtype
from mv2v_jax.ops.sharding import BY_ROWS, EVERYWHERE, ROW, make_sharded

# At most an eighth of the rows are padding.
_SIZES_PER_DOUBLING = 8


# Summed together under a transformation, so that a long float32 sum loses little.
_SUM_ROWS = 1024


class PaddedRows(NamedTuple):
    """Rows of one space in one of the sizes.

    Attributes:
        rows: ``[padded_size(num_rows), d]`` jax array, zero rows last.
        num_rows: int32 scalar, how many are rows of the data.
        mean: ``[d]``, mean of all rows that have a length, where some were drawn; ``None`` where all are here.
        known: ``[padded_size(p), d]``, rows whose partners are known, zero rows last; ``None`` where there are none.
    """

    rows: jax.Array
    num_rows: jax.Array
    mean: jax.Array | None = None
    known: jax.Array | None = None


def padded_size(num_rows: int) -> int:
    """Smallest size from ``num_rows`` up; from 8 on, each doubling has eight of them, evenly spaced.

    Example:
        >>> [padded_size(num_rows) for num_rows in (5, 16, 17, 3_000, 60_000)]
        [5, 16, 18, 3072, 61440]
    """
    step = 1 << max(0, (num_rows - 1).bit_length() - _SIZES_PER_DOUBLING.bit_length())
    return -(-num_rows // step) * step


def sampled_rows(num_rows: int, most: int) -> np.ndarray | None:
    """``most`` of so many rows in the order they came in, the same ones for the same number; ``None`` for all."""
    if num_rows <= most:
        return None
    # Which rows is a matter of their number alone, as in `evidence.hold_out`: restarts can share them.
    return np.sort(np.random.default_rng(num_rows).choice(num_rows, most, replace=False))


def _mean_of_all(x: Any) -> Any:
    """Mean ``[d]`` of the rows of ``x [n, d]`` that have a length."""
    if isinstance(x, CheckedRows):
        return x.mean
    if not isinstance(x, jax.core.Tracer):
        moments = Moments()
        scan_rows(x, moments)
        return moments.mean
    values = x.astype(working_dtype(x.dtype))
    blocks = jnp.pad(values, ((0, -len(values) % _SUM_ROWS), (0, 0))).reshape(-1, _SUM_ROWS, values.shape[1])
    num_present = jnp.maximum(present_rows(x).sum(), 1).astype(values.dtype)
    return blocks.sum(axis=1).sum(axis=0) / num_present


def row_specs(x: PaddedRows) -> PaddedRows:
    """How `pad_rows` lays rows out over a mesh."""
    return jax.tree.map(lambda _: EVERYWHERE, x)._replace(rows=BY_ROWS)


def check_divisible(num_rows: int, most: int, mesh: Mesh | None) -> None:
    """Raise `InputError` where the devices along the row axis do not divide so many rows, drawn and padded."""
    padded = padded_size(min(num_rows, most))
    if mesh is not None and padded % mesh.shape[ROW]:
        raise InputError(
            f"the devices along the row axis must divide the padded rows, {padded}, found {mesh.shape[ROW]}; use a "
            "smaller power of two"
        )


def _spread_rows(x: Any, chosen: np.ndarray | None, mean: Any, known: Any, mesh: Mesh) -> PaddedRows:
    """Rows ``chosen`` of ``x``, padded, each process reading those of its own devices."""
    num_rows = x.shape[0] if chosen is None else len(chosen)
    shape = (padded_size(num_rows), x.shape[1])
    check_divisible(num_rows, num_rows, mesh)

    # Devices that search with the same rows ask for them one after the other.
    @functools.lru_cache(maxsize=1)
    def read_part(first, last):
        rows = np.asarray(x[first : min(last, num_rows)] if chosen is None else x[chosen[first:last]])
        return np.pad(rows, ((0, last - first - len(rows)), (0, 0)))

    def read(slices):
        first, last, _ = slices[0].indices(shape[0])
        return read_part(first, last)

    def everywhere(values):
        return make_sharded(values.shape, mesh, EVERYWHERE, lambda _: values)

    dtype = working_dtype(x.dtype)
    return PaddedRows(
        rows=make_sharded(shape, mesh, BY_ROWS, read),
        num_rows=everywhere(np.asarray(num_rows, np.int32)),
        mean=None if mean is None else everywhere(np.asarray(mean, dtype)),
        known=None if known is None else everywhere(np.asarray(known)),
    )


def _pad(rows: Any) -> Any:
    padding = ((0, padded_size(rows.shape[0]) - rows.shape[0]), (0, 0))
    # NumPy pads without compiling anything.
    return jnp.pad(rows, padding) if isinstance(rows, jax.Array) else np.pad(rows, padding)


def pad_rows(x: Any, most: int, mesh: Mesh | None = None, known: Any = None) -> PaddedRows:
    """Rows ``x [n, d]`` in one of the sizes, of at most ``most`` rows.

    Args:
        x: a NumPy or JAX array, a memory map, `rows.RowFiles`, or `CheckedRows` of any of them.
        most: rows to draw where there are more, and then their mean is that of all.
        mesh: over which to spread them, if any: then each process reads the rows of its own devices.
        known: ``[p, d]``, rows whose partners are known, if any.

    Raises:
        InputError: the devices along the mesh's row axis do not divide the padded rows.
    """
    chosen = sampled_rows(x.shape[0], most)
    mean = None if chosen is None else _mean_of_all(x)
    known = None if known is None or not known.shape[0] else _pad(known)
    if mesh is not None:
        return _spread_rows(x, chosen, mean, known, mesh)
    drawn = x if chosen is None else x[chosen]
    num_rows = drawn.shape[0]
    padded = jnp.asarray(_pad(drawn.rows if isinstance(drawn, CheckedRows) else drawn))
    return PaddedRows(
        rows=padded,
        num_rows=jnp.asarray(num_rows, jnp.int32),
        mean=None if mean is None else jnp.asarray(mean, working_dtype(padded.dtype)),
        known=None if known is None else jnp.asarray(known),
    )
