"""Arrays as users pass them, on NumPy alone."""

from typing import Any

import numpy as np

from mv2v_jax.errors import InputError, first_line
from mv2v_jax.objects.convert import to_numpy


def as_host_array(value: Any, name: str) -> np.ndarray:
    """Anything that a user passes as rows, as a NumPy array in the byte order of this machine; see `to_numpy`.

    Raises:
        InputError: rows of different lengths, a masked array with a value left out, or what is no array at all.

    Example:
        >>> as_host_array([[1.0, 2.0]], "x").shape
        (1, 2)
    """
    value = to_numpy(value, name)
    if isinstance(value, np.ma.MaskedArray):
        left_out = int(np.ma.count_masked(value))
        if left_out:
            raise InputError(f"{name} must have a value everywhere, found {left_out} masked ones; drop or fill them")
        value = value.data
    try:
        array = np.asarray(value)
    except Exception as error:
        # Other libraries' arrays raise what they like: a tensor on another device, lists of different lengths.
        found = f"{type(value).__name__}: {first_line(error)}"
        raise InputError(f"{name} must be a matrix of numbers, found {found}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
