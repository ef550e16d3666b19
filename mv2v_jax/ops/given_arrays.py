"""Arrays as users pass them: what is accepted, and what is refused before anything is traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.host_arrays import as_host_array

_DTYPES = tuple(jnp.dtype(dtype) for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64))


def as_array(value: Any, name: str) -> Any:
    """A JAX array as it is; anything else that a user passes as rows, by `as_host_array`."""
    return value if isinstance(value, jax.Array) else as_host_array(value, name)


def as_matrix(value: Any, name: str, *, min_rows: int = 0) -> jax.Array:
    """What a user passes as rows ``[n, d]``, as a JAX array; raises `InputError` as `as_array` and `check_shape` do."""
    array = as_array(value, name)
    check_shape(array, name, min_rows=min_rows)
    return to_device(array)


def to_device(array: Any) -> jax.Array:
    """A JAX array in a dtype that JAX has; what overflows there becomes infinity without a warning."""
    with np.errstate(all="ignore"):
        return jnp.asarray(array)


def check_shape(array: Any, name: str, *, min_rows: int = 1) -> None:
    """Raise `InputError` unless ``array`` is a floating-point matrix with at least ``min_rows`` rows and one column."""
    if array.ndim != 2:
        raise InputError(f"{name} must be two-dimensional, one embedding per row, found shape {list(array.shape)}")
    # JAX has no long double, and computes nothing in float8.
    if array.dtype not in _DTYPES:
        raise InputError(f"{name} must hold floating-point embeddings, found dtype {array.dtype}")
    if array.shape[0] < min_rows:
        expected = "1 row" if min_rows == 1 else f"{min_rows} rows"
        raise InputError(f"{name} must have at least {expected}, found {array.shape[0]}")
    if array.shape[1] < 1:
        raise InputError(f"{name} must have at least one column, found shape {list(array.shape)}")


def check_columns(
    rows: Any, name: str, num_columns: int, why: str, *, other: int | None = None, min_rows: int = 1
) -> None:
    """Raise `InputError` unless ``rows`` are a floating-point matrix ``[n, num_columns]``.

    Args:
        rows: an array, traced or not.
        name: what the message calls it.
        num_columns: expected number of columns.
        why: where the number comes from, such as "for this map".
        other: number of columns that the other space has; the message then asks whether x and y were swapped.
        min_rows: minimum number of rows.
    """
    check_shape(rows, name, min_rows=min_rows)
    if rows.shape[1] != num_columns:
        hint = "; were x and y swapped?" if rows.shape[1] == other else ""
        raise InputError(f"{name} must have {num_columns} columns {why}, found {rows.shape[1]}{hint}")
