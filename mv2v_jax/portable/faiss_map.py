"""A map in front of a FAISS index."""

from typing import Any

import numpy as np

from mv2v_jax.errors import InputError, import_extra
from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.portable.numpy_map import PortableMap


def to_faiss(linear_map: PortableMap, index: Any, *, frame: Frame = "target", inverse: bool = False) -> Any:
    """A `faiss.IndexPreTransform` that maps queries and then searches ``index``, which stays as it is.

    The result finds what ``index`` finds for ``linear_map.apply(queries)``. FAISS writes and reads it as one file. Rows
    that are added to it are mapped as well; native rows are added to ``index``. FAISS knows no exception for zero rows:
    they are centred like all others.

    Args:
        linear_map: from `load` or `from_map`.
        index: a FAISS index of rows of the space that queries are mapped into.
        frame: as for `PortableMap.apply`; ``"target"`` suits an index of raw rows.
        inverse: queries are rows of the target, and the index holds rows of the source.

    Raises:
        InputError: FAISS is not installed, the index has another dimension, or unknown frame.
    """
    check_frame(frame)
    faiss = import_extra("faiss", "faiss", "to_faiss")
    linear_map = linear_map.invert() if inverse else linear_map
    d_x, d_y = linear_map.W.shape
    if index.d != d_y:
        raise InputError(f"index must have {d_y} dimensions, as the rows of this map, found {index.d}")
    steps = [
        _shift(faiss, -linear_map.mean_x),
        faiss.NormalizationTransform(d_x),
        _multiply(faiss, linear_map.W),
        faiss.NormalizationTransform(d_y),
    ]
    if frame == "target":
        steps += [_multiply(faiss, np.eye(d_y) * linear_map.scale_y), _shift(faiss, linear_map.mean_y)]
    found = faiss.IndexPreTransform(index)
    for step in reversed(steps):
        found.prepend_transform(step)
    return found


def _shift(faiss: Any, offset: np.ndarray) -> Any:
    step = faiss.CenteringTransform(len(offset))
    faiss.copy_array_to_vector(np.asarray(-offset, np.float32), step.mean)
    step.is_trained = True
    return step


def _multiply(faiss: Any, matrix: np.ndarray) -> Any:
    step = faiss.LinearTransform(*matrix.shape, False)
    faiss.copy_array_to_vector(np.asarray(matrix.T, np.float32).ravel(), step.A)
    step.is_trained = True
    return step
