"""Arrow columns of vectors as NumPy matrices."""

from typing import Any

import numpy as np

from mv2v_jax.errors import InputError

_LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")


def _storage(kind: Any) -> Any:
    """The type that an extension type, such as a tensor of one shape, is stored as."""
    return getattr(kind, "storage_type", kind)


def is_vector(kind: Any) -> bool:
    """Whether an Arrow type is a list of numbers, of any of the five kinds of list."""
    from pyarrow import types

    kind = _storage(kind)
    # list_view is younger than the oldest pyarrow that is supported.
    if not any(getattr(types, check, lambda _: False)(kind) for check in _LISTS):
        return False
    return types.is_floating(kind.value_type) or types.is_integer(kind.value_type)


def vectors_of(column: Any, name: str) -> np.ndarray:
    """The rows of an Arrow column of vectors, ``[n, d]`` in the dtype of its numbers.

    Args:
        column: an array or a chunked array of lists, of any kind.
        name: what an error message calls it.

    Raises:
        InputError: it holds no lists of numbers, a null, or lists of several lengths.
    """
    import pyarrow

    if not is_vector(column.type):
        raise InputError(f"{name} must hold a list of numbers in every row, found {column.type}")
    if isinstance(column, pyarrow.ChunkedArray):
        # Joined, a list column of more than 2^31 numbers would overflow its offsets.
        parts = [vectors_of(chunk, name) for chunk in column.chunks if len(chunk)]
        widths = sorted({part.shape[1] for part in parts})
        if len(widths) > 1:
            raise _of_several_lengths(name, widths[0], widths[-1])
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    if column.null_count:
        raise InputError(f"{name} must have a list in every row, found {column.null_count} nulls")
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    values = column.flatten()
    if values.null_count:
        raise InputError(f"lists of {name} must hold numbers, found {values.null_count} nulls")
    if not pyarrow.types.is_fixed_size_list(column.type):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() != lengths.max():
            raise _of_several_lengths(name, lengths.min(), lengths.max())
    rows = values.to_numpy(zero_copy_only=False)
    return rows.reshape(len(column), -1) if len(column) else rows.reshape(0, 0)


def _of_several_lengths(name: str, least: int, most: int) -> InputError:
    return InputError(f"lists of {name} must have one length, found {least} to {most}")
