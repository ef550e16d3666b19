"""A linear map as a safetensors file."""

from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.data.map_tensors import read_tensors, write_tensors
from mv2v_jax.linear_map import Centering, LinearMap, check_map, map_parts
from mv2v_jax.profiles.profile import profile_rows


def map_tensors(linear_map: LinearMap) -> dict[str, np.ndarray]:
    """The arrays of a map by their names in a file."""
    return {name: np.asarray(array) for name, array in map_parts(linear_map).items()}


def save_map(
    path: str | Path,
    linear_map: LinearMap,
    metadata: dict[str, Any] | None = None,
    *,
    rows: tuple[Any, Any] | None = None,
) -> None:
    """Write a map as safetensors: tensors ``W``, ``mean_x``, ``mean_y``, ``scale_x``, ``scale_y``, and metadata.

    Args:
        path: file to write, ending in ``.safetensors``; it is written whole or not at all.
        linear_map: a `LinearMap` of one map: ``W [d_x, d_y]``, means ``[d_x]`` and ``[d_y]``, scalar scales. The file
            keeps their dtypes.
        metadata: facts about the map, for example its verdict; any value that JSON can hold. Text is stored as it is,
            other values as JSON.
        rows: the rows ``x [n, d_x]`` and ``y [m, d_y]`` that the map was fitted on. The file then remembers what they
            look like, and ``mv2v apply`` and `mv2v_jax.portable.PortableMap.find_mismatch` recognise rows of another
            space. At most 4,096 rows of each are read.

    Raises:
        InputError: ``linear_map`` is not one map; it holds NaN or infinity, numbers that are no floats, only zeros, or
            numbers too large to square; or the file cannot be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> path = Path(tempfile.mkdtemp()) / "map.safetensors"
        >>> save_map(path, LinearMap(W=jnp.eye(2), source=centering, target=centering), {"note": "identity"})
        >>> load_map(path)[1]["note"]
        'identity'
    """
    check_map(linear_map)
    profiles = (None, None) if rows is None else (profile_rows(rows[0]), profile_rows(rows[1]))
    write_tensors(Path(path), map_tensors(linear_map), metadata or {}, profiles)


def load_map(path: str | Path) -> tuple[LinearMap, dict[str, str]]:
    """Read a map that `save_map` wrote.

    Args:
        path: a safetensors file with tensors ``W [d_x, d_y]``, ``mean_x [d_x]``, ``mean_y [d_y]``, and the scalars
            ``scale_x`` and ``scale_y``.

    Returns:
        The `LinearMap`, NumPy arrays in the dtypes of the file, and the metadata as text. `json.loads` reads values
        that were not text.

    Raises:
        InputError: there is no such file, it is not a map or is damaged, it was written in a later format, its shapes
            do not fit together, or its numbers are such as `save_map` refuses.

    Example:
        >>> import json, tempfile, jax.numpy as jnp
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> path = Path(tempfile.mkdtemp()) / "map.safetensors"
        >>> save_map(path, LinearMap(W=jnp.eye(2), source=centering, target=centering), {"score": 0.5})
        >>> linear_map, metadata = load_map(path)
        >>> linear_map.W.shape, json.loads(metadata["score"])
        ((2, 2), 0.5)
    """
    tensors, metadata = read_tensors(Path(path))
    source = Centering(mean=tensors["mean_x"], scale=tensors["scale_x"])
    target = Centering(mean=tensors["mean_y"], scale=tensors["scale_y"])
    return LinearMap(W=tensors["W"], source=source, target=target), metadata
