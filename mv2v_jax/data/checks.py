"""Errors for users, raised before anything compiles; nothing here runs inside a compiled function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.config import Config
from mv2v_jax.data.npy_rows import RowFiles
from mv2v_jax.data.scan import CheckedRows, Moments, check_rows, refuse_not_finite, refuse_values, scan_rows
from mv2v_jax.errors import InputError

_DTYPES = tuple(jnp.dtype(dtype) for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64))


def check_shape(array: Any, name: str, *, min_rows: int = 1) -> None:
    """Raise `InputError` unless ``array`` is a floating-point matrix of at least ``min_rows`` rows."""
    if array.ndim != 2:
        raise InputError(f"{name} must be two-dimensional, one embedding a row, found shape {list(array.shape)}")
    # Not any floating dtype: JAX takes no long double, no foreign byte order, and no float8 in arithmetic.
    if array.dtype not in _DTYPES:
        raise InputError(f"{name} must hold floating-point embeddings, found dtype {array.dtype}")
    if array.shape[0] < min_rows:
        raise InputError(f"{name} must have at least {min_rows} rows, found {array.shape[0]}")
    if array.shape[1] < 1:
        raise InputError(f"{name} must have at least one column, found shape {list(array.shape)}")


def check_finite(array: Any, name: str) -> None:
    """Raise `InputError` where rows hold NaN or infinity, with the first such row and how many there are."""
    moments = Moments()
    scan_rows(array, moments)
    refuse_not_finite(array, name, moments)


def check_pairs(pairs: Any, x: Any, y: Any, names: tuple[str, str] = ("pairs[0]", "pairs[1]")) -> tuple[Any, Any]:
    """Check known pairs of rows like those of ``x`` and ``y``, and return both sides; nothing for nothing.

    Args:
        pairs: rows ``[p, d_x]`` and ``[p, d_y]``, or ``None``.
        x: ``[n, d_x]``.
        y: ``[m, d_y]``.
        names: what errors call both sides.

    Raises:
        InputError: not two sides, of one number of rows, of the dimensions of ``x`` and ``y``; and, where they are
            concrete, NaN, infinity or rows too long or too short to square.
    """
    if pairs is None:
        return None, None
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise InputError(
            "pairs must be two matrices, (x_pairs, y_pairs), row i of one the partner of row i of the other"
        )
    sides = [side if isinstance(side, jax.Array) else np.asarray(side) for side in pairs]
    for side, rows, name in zip(sides, (x, y), names, strict=True):
        check_shape(side, name, min_rows=0)
        if side.shape[1] != rows.shape[1]:
            raise InputError(f"{name} must have {rows.shape[1]} columns, as the rows to align, found {side.shape[1]}")
        if not isinstance(side, jax.core.Tracer) and side.shape[0]:
            moments = Moments()
            scan_rows(side, moments)
            refuse_values(side, name, moments)
    if sides[0].shape[0] != sides[1].shape[0]:
        raise InputError(
            f"{names[1]} must have a row for each of the {sides[0].shape[0]} of {names[0]}, found {sides[1].shape[0]}"
        )
    return sides[0], sides[1]


def check_fitting_rows(x: Any, name: str, config: Config) -> Any:
    """Check one space's fitting rows and return them; lists become NumPy arrays.

    Shapes and dtypes are always checked; the values only where they are concrete, not under a transformation, and in
    one pass. Rows of which a fit will draw some (`sizes.pad_rows`) come back as `CheckedRows`, with the mean of all.
    """
    rows = x if isinstance(x, (jax.Array, RowFiles, CheckedRows)) else np.asarray(x)
    # Every anchor set clusters these rows into num_clusters.
    check_shape(rows, name, min_rows=config.num_clusters)
    if isinstance(rows, (jax.core.Tracer, CheckedRows)):
        return rows
    checked = check_rows(rows, name)
    return checked if rows.shape[0] > config.max_rows else rows
