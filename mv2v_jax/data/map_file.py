"""A linear map as a safetensors file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mv2v_jax.data.checks import check_finite
from mv2v_jax.data.files import atomic_path
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.version import __version__

_FORMAT = "mv2v_jax linear map 1"


def save_map(path: str | Path, linear_map: LinearMap, metadata: dict[str, Any] | None = None) -> None:
    """Write a map as safetensors: one tensor per field of `LinearMap`, provenance in the metadata.

    Args:
        path: file to write; it appears whole or not at all.
        linear_map: the map.
        metadata: anything JSON can hold; each value is stored as JSON text unless it is text already.

    Raises:
        InputError: the map is not finite, or the file cannot be written.
    """
    stored = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (metadata or {}).items()}
    stored |= {"format": _FORMAT, "mv2v_jax_version": __version__}
    tensors = {field.name: np.asarray(getattr(linear_map, field.name)) for field in dataclasses.fields(LinearMap)}
    for name, tensor in tensors.items():
        check_finite(tensor.reshape(1, -1), f"the map for {path}: {name}")
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=stored)


def load_map(path: str | Path) -> tuple[LinearMap, dict[str, str]]:
    """Read a map that `save_map` wrote, and its metadata.

    Raises:
        InputError: not a map, damaged, of shapes that do not fit together, or not finite.
    """
    names = [field.name for field in dataclasses.fields(LinearMap)]
    if not Path(path).is_file():
        raise InputError(f"{path} must be a map that mv2v align wrote, found no file of that name")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            missing = sorted(set(names) - set(file.keys()))
            if missing:
                raise InputError(f"{path} must be a map that mv2v align wrote, found no tensor {', '.join(missing)}")
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} must be a map that mv2v align wrote, found: {first_line(error)}") from error
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    d_x, d_y = shapes["W"] if len(shapes["W"]) == 2 else (0, 0)
    if shapes != {"W": [d_x, d_y], "mean_x": [d_x], "mean_y": [d_y], "scale_x": [], "scale_y": []}:
        raise InputError(f"{path} must hold W [d_x, d_y], means [d_x] and [d_y] and two scalars, found {shapes}")
    for name, tensor in tensors.items():
        check_finite(tensor.reshape(1, -1), f"{path}: {name}")
    return LinearMap(**tensors), metadata
