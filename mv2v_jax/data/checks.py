"""Checks of what users pass, made before anything compiles. Nothing here runs inside a compiled function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.config import Config
from mv2v_jax.data.row_files import RowFiles
from mv2v_jax.data.scan import (
    Accumulator,
    CheckedRows,
    Difference,
    Digest,
    Duplicates,
    Moments,
    OnRows,
    RowStatistics,
    join_digest,
    length_range,
    sampled_median_length,
    scan_rows,
)
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import check_map
from mv2v_jax.ops.given_arrays import as_array, check_columns, check_shape

# ----------------------------------------------------------------------------------------------------------- arguments


def check_key(key: Any) -> None:
    """Raise `InputError` unless ``key`` is one random key, from `jax.random.key` or the older `jax.random.PRNGKey`."""
    is_array = isinstance(key, (jax.Array, np.ndarray))
    is_typed = is_array and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    is_old = is_array and key.dtype == jnp.uint32
    if (is_typed and key.ndim == 0) or (is_old and key.ndim == 1):
        return
    if is_array:
        found = f"an array of {key.dtype}{list(key.shape)}"
    else:
        found = repr(key) if key is None or isinstance(key, (bool, int, float, str)) else f"a {type(key).__name__}"
    hint = "; use jax.vmap over several keys" if is_typed or is_old else "; the key comes before x and y"
    raise InputError(f"key must be one random key, such as jax.random.key(0), found {found}{hint}")


def check_finite(array: Any, name: str) -> None:
    """Raise `InputError` if rows hold NaN or infinity; the message names the first such row and their number."""
    moments = Moments()
    scan_rows(array, moments)
    refuse_not_finite(array, name, moments)


def check_pairs(pairs: Any, x: Any, y: Any, names: tuple[str, str] = ("pairs[0]", "pairs[1]")) -> tuple[Any, Any]:
    """Check known pairs, and return the rows of each space; ``(None, None)`` without pairs.

    Args:
        pairs: rows ``[p, d_x]`` and ``[p, d_y]``, or ``None``.
        x: ``[n, d_x]``.
        y: ``[m, d_y]``.
        names: what an error message calls the two.

    Raises:
        InputError: not two matrices, with different numbers of rows, or with other dimensions than ``x`` and ``y``;
            and, where they are concrete, NaN, infinity, or rows too long or too short to square.
    """
    if pairs is None:
        return None, None
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise InputError(
            "pairs must be two matrices, (x_pairs, y_pairs), row i of one the partner of row i of the other"
        )
    sides = [as_array(side, name) for side, name in zip(pairs, names, strict=True)]
    for side, rows, name in zip(sides, (x, y), names, strict=True):
        check_shape(side, name, min_rows=0)
        if side.shape[1] != rows.shape[1]:
            raise InputError(f"{name} must have {rows.shape[1]} columns, as the rows to align, found {side.shape[1]}")
        if not isinstance(side, jax.core.Tracer) and side.shape[0]:
            check_values(side, name)
    check_paired(sides[0], sides[1], names)
    return sides[0], sides[1]


def check_paired(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> None:
    """Raise `InputError` unless ``x`` and ``y`` have the same number of rows."""
    if x.shape[0] != y.shape[0]:
        raise InputError(f"{names[1]} must have a row for each of the {x.shape[0]} of {names[0]}, found {y.shape[0]}")


def check_map_rows(linear_map: Any, x: Any, y: Any, *, several: bool = False) -> None:
    """Raise `InputError` unless raw rows ``x [n, d_x]`` and ``y [m, d_y]`` fit a map; reads classes and shapes only."""
    name, why = ("maps", "for these maps") if several else ("linear_map", "for this map")
    d_x, d_y = check_map(linear_map, name, several=several)
    check_columns(x, "x", d_x, why, other=d_y)
    check_columns(y, "y", d_y, why, other=d_x)


def check_fitting_rows(x: Any, name: str, config: Config) -> Any:
    """Check the fitting rows of one space and return them; lists become NumPy arrays.

    Values are checked where they are concrete, not under a transformation. Rows that a fit will sample, because they
    are more than ``config.max_rows``, come back as `CheckedRows` with the mean of all.
    """
    rows = x if isinstance(x, (RowFiles, CheckedRows)) else as_array(x, name)
    # Every anchor set clusters these rows.
    check_shape(rows, name, min_rows=config.anchors.num_clusters)
    if isinstance(rows, (jax.core.Tracer, CheckedRows)):
        return rows
    checked = check_rows(rows, name)
    return checked if rows.shape[0] > config.max_rows else rows


# -------------------------------------------------------------------------------------------------------------- values


def check_values(rows: Any, name: str, *accumulators: Accumulator, on_rows: OnRows | None = None) -> Moments:
    """Raise `InputError` unless ``rows [n, d]`` are finite and in range; other accumulators see the same pass."""
    moments = Moments(sampled_median_length(rows))
    scan_rows(rows, moments, *accumulators, on_rows=on_rows)
    refuse_not_finite(rows, name, moments)
    refuse_too_long(rows, name, moments)
    refuse_too_short(rows, name, moments)
    return moments


def check_rows(rows: Any, name: str) -> CheckedRows:
    """Check in one pass that ``rows [n, d]`` are finite, in range and not all equal.

    Raises:
        InputError: they are not; the message names the first bad row, with its shard if there are several.
    """
    difference = Difference()
    moments = check_values(rows, name, difference)
    refuse_equal(rows, name, difference)
    return CheckedRows(rows=rows, mean=moments.mean)


def describe_rows(rows: Any, name: str, on_rows: OnRows | None = None) -> RowStatistics:
    """Check ``rows [n, d]`` as `check_rows` does, and describe them, in one pass that keeps eight bytes per row.

    Args:
        rows: float16, bfloat16, float32 or float64; an array, a memory map or `RowFiles`.
        name: what an error message calls them.
        on_rows: called after every block with the number of rows seen and the number of rows to see.

    Raises:
        InputError: NaN, infinity, rows too long or too short to square, all rows equal, or a file that can no longer
            be read.
    """
    difference, digest, duplicates = Difference(), Digest(), Duplicates(rows)
    moments = check_values(rows, name, difference, digest, duplicates, on_rows=on_rows)
    refuse_equal(rows, name, difference)
    return RowStatistics(
        mean=moments.mean,
        mean_norm=moments.mean_norm,
        num_zero=moments.num_zero,
        num_duplicates=duplicates.count(),
        digest=join_digest(rows, digest.finish()),
    )


def name_row(rows: Any, row: int) -> str:
    """What an error message calls a row: its number, or its shard and its number there."""
    return rows.place(row) if isinstance(rows, RowFiles) else f"row {row}"


def refuse_not_finite(rows: Any, name: str, moments: Moments) -> None:
    """Raise `InputError` if a row holds NaN or infinity."""
    if moments.first_not_finite is not None:
        raise InputError(
            f"{name} must be finite, found NaN or infinity in {moments.num_not_finite} rows, first in "
            f"{name_row(rows, moments.first_not_finite)}"
        )


def refuse_too_long(rows: Any, name: str, moments: Moments) -> None:
    """Raise `InputError` if a row is so long that its square is infinite."""
    if moments.first_too_long is not None:
        raise InputError(_out_of_range(rows, name, f"a longer one, first in {name_row(rows, moments.first_too_long)}"))


def refuse_too_short(rows: Any, name: str, moments: Moments | RowStatistics) -> None:
    """Raise `InputError` if all rows together are so short, on average, that their squares vanish."""
    if moments.num_zero < rows.shape[0] and moments.mean_norm < length_range(rows.dtype)[0]:
        raise InputError(_out_of_range(rows, name, f"a mean length of {moments.mean_norm:.1e}"))


def _out_of_range(rows: Any, name: str, found: str) -> str:
    shortest, longest = length_range(rows.dtype)
    return (
        f"{name} must hold rows of lengths from {shortest:.0e} to {longest:.0e}, which can be squared, found {found}; "
        "multiply all rows by one constant, which changes no rotation"
    )


def refuse_equal(rows: Any, name: str, difference: Difference) -> None:
    """Raise `InputError` if all nonzero rows are equal: there is no geometry to align."""
    if not difference.found:
        raise InputError(f"{name} must hold different rows, found {rows.shape[0]} equal ones (zero rows aside)")
