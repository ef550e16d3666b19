"""Vectors as lists of numbers through a map, which is how frameworks pass them."""

from collections.abc import Sequence

import numpy as np

from mv2v_jax.portable.numpy_map import PortableMap


class MappedTexts:
    """Maps lists of vectors into the raw frame of the other space.

    Args:
        linear_map: the map.
        inverse: map from the target of the map to its source.
        unit: scale the mapped vectors to length 1.
    """

    def __init__(self, linear_map: PortableMap, *, inverse: bool, unit: bool) -> None:
        self._map = linear_map.invert() if inverse else linear_map
        self._unit = unit

    def __call__(self, vectors: Sequence[Sequence[float]]) -> list[list[float]]:
        if not len(vectors):
            return []
        mapped = self._map.apply(np.asarray(vectors, np.float32), frame="target")
        if self._unit:
            mapped = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        return mapped.tolist()
