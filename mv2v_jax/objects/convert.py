"""Vectors that other libraries hold, as NumPy arrays. No library is imported: whoever passes an object has it."""

from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.objects.arrow import vectors_of


def to_numpy(value: Any, name: str) -> Any:
    """A tensor, a series or a column of vectors as a NumPy array; anything else as it is.

    Args:
        value: a PyTorch tensor (bfloat16 becomes float32, gradients and devices do not matter); a pandas or polars
            Series of vectors, or a frame with a number per column; an Arrow array of lists; a column of a Hugging Face
            dataset; an array of arrays; a list of any of these.
        name: what an error message calls it.

    Raises:
        InputError: rows of several lengths, missing rows, a sparse matrix, or a frame with columns of vectors.
    """
    library = type(value).__module__.partition(".")[0]
    convert = _CONVERTERS.get(library)
    if convert is not None:
        value = convert(value, name)
    if isinstance(value, (list, tuple)) and value and type(value[0]).__module__.partition(".")[0] in _CONVERTERS:
        value = _stack([to_numpy(row, name) for row in value], name)
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1 and len(value):
        value = _stack(list(value), name)
    return value


def _stack(rows: list[Any], name: str) -> np.ndarray:
    """Rows of one length as a matrix."""
    missing = next((number for number, row in enumerate(rows) if row is None or np.ndim(row) == 0), None)
    if missing is not None:
        raise InputError(f"{name} must have a vector in every row, found {rows[missing]!r} in row {missing}")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise InputError(f"{name} must hold rows of one length, found {lengths[0]} to {lengths[-1]}")
    return np.stack([np.asarray(row) for row in rows])


def _from_torch(value: Any, name: str) -> Any:
    if not hasattr(value, "detach"):
        return value
    if value.layout.__str__() != "torch.strided":
        raise InputError(f"{name} must be a dense tensor, found {value.layout}; pass tensor.to_dense()")
    value = value.detach().cpu()
    # NumPy has no bfloat16; float32 represents every bfloat16 value.
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def _from_frame(value: Any, name: str) -> Any:
    """A series of vectors, or a frame with a number per column, of pandas or polars."""
    if type(value).__name__ == "DataFrame":
        matrix = value.to_numpy()
        if matrix.dtype == object:
            columns = ", ".join(map(str, value.columns))
            raise InputError(
                f"{name} must be a frame with a number in every column, or one column of vectors; found the columns "
                f"{columns}; pass frame['COLUMN']"
            )
        return matrix
    return value.to_numpy() if hasattr(value, "to_numpy") else value


def _from_arrow(value: Any, name: str) -> Any:
    return vectors_of(value, name) if hasattr(value, "type") else value


def _from_datasets(value: Any, name: str) -> Any:
    """A column of a dataset, which reads lists or, if the dataset is formatted so, arrays."""
    return value[:] if type(value).__name__ == "Column" else value


def _from_scipy(value: Any, name: str) -> Any:
    if hasattr(value, "toarray"):
        raise InputError(f"{name} must be a dense matrix, found {type(value).__name__}; pass matrix.toarray()")
    return value


_CONVERTERS = {
    "torch": _from_torch,
    "pandas": _from_frame,
    "polars": _from_frame,
    "pyarrow": _from_arrow,
    "datasets": _from_datasets,
    "scipy": _from_scipy,
}
