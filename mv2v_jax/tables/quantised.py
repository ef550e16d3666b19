"""Quantised rows, as sentence-transformers and Cohere write them, turned back into floats.

int8 and uint8: a code per number. With the ranges of each dimension, as ``quantize_embeddings`` of
sentence-transformers computes them, code ``c`` of dimension ``j`` is ``low[j] + c * (high[j] - low[j]) / 255``, where
int8 codes are 128 less. Without ranges, as Cohere writes them, all dimensions have one scale, and codes are taken as
they are: a map does not depend on the scale of a space.

binary and ubinary: eight signs per byte, in the bit order of ``numpy.packbits``; binary bytes are 128 less, as int8.
"""

from typing import Literal, get_args

import numpy as np

from mv2v_jax.errors import InputError

Quantised = Literal["int8", "uint8", "binary", "ubinary"]
_STORED = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}


def dequantise(codes: np.ndarray, kind: Quantised, ranges: np.ndarray | None = None, name: str = "rows") -> np.ndarray:
    """Float32 rows ``[n, d]`` of quantised ones.

    Args:
        codes: ``[n, d]`` int8 or uint8; ``[n, d / 8]`` for binary and ubinary.
        kind: how they are quantised.
        ranges: ``[2, d]``, minimum and maximum of each dimension; for int8 and uint8.
        name: what an error message calls the rows.

    Raises:
        InputError: codes of another dtype, ranges of another shape, or ranges for signs.

    Example:
        >>> dequantise(np.array([[0, 255]], np.uint8), "uint8", np.array([[-1.0, 0.0], [1.0, 2.0]]))
        array([[-1.,  2.]], dtype=float32)
    """
    if kind not in get_args(Quantised):
        raise InputError(f"{name} must be quantised as {', '.join(get_args(Quantised))}, found {kind}")
    if codes.dtype != _STORED[kind]:
        raise InputError(f"{name} must hold {np.dtype(_STORED[kind])} to be quantised as {kind}, found {codes.dtype}")
    if kind in ("binary", "ubinary"):
        if ranges is not None:
            raise InputError(f"{name} hold signs as {kind}, which have no ranges; leave the ranges out")
        bits = np.unpackbits(codes.view(np.uint8) ^ np.uint8(128 if kind == "binary" else 0), axis=1)
        return bits.astype(np.float32) * 2 - 1
    values = codes.astype(np.float32)
    if ranges is None:
        return values
    if ranges.shape != (2, codes.shape[1]):
        raise InputError(
            f"the ranges of {name} must be [2, {codes.shape[1]}], minimum and maximum of each dimension, found "
            f"{list(ranges.shape)}"
        )
    low, high = ranges.astype(np.float32)
    return (values + (128 if kind == "int8" else 0)) * ((high - low) / 255) + low
