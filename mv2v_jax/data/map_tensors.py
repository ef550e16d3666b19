"""The arrays of a map in its safetensors file, on NumPy alone, so that a map can be used where there is no JAX."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mv2v_jax.data.output_paths import check_suffix
from mv2v_jax.data.tensor_files import MAP_FORMAT, check_header, check_map_format, check_map_tensors, save_tensors
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.paths import is_file
from mv2v_jax.profiles.profile import Profiles, is_whole, profile_tensors, profiles_from
from mv2v_jax.version import __version__

TENSOR_NAMES = ("W", "mean_x", "mean_y", "scale_x", "scale_y")


def as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Facts about a map as its file keeps them: text as it is, other values as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def write_tensors(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any], profiles: Profiles = (None, None)
) -> None:
    """Write the tensors of `TENSOR_NAMES`, the profiles of both spaces, and metadata: text as it is, others as JSON.

    Raises:
        InputError: the name does not end in .safetensors, a tensor is such as `check_map_tensors` refuses, or the
            file cannot be written.
    """
    check_suffix(path, ".safetensors")
    stored = as_text(metadata) | {"format": MAP_FORMAT, "mv2v_jax_version": __version__}
    check_map_tensors(tensors, f"the map for {path}")
    save_tensors(path, tensors | profile_tensors(profiles), stored)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; what is wrong with it becomes an `InputError`."""
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except InputError:
        raise
    # NumPy lacks some dtypes that a file of this format can have.
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} must be a map that mv2v align wrote, found: {first_line(error)}") from error


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read what `write_tensors` wrote: the tensors of `TENSOR_NAMES`, and the metadata as text.

    Raises:
        InputError: there is no such file, it is not a map or is damaged, it has a later format, its shapes do not fit
            together, or a tensor is such as `check_map_tensors` refuses.
    """
    if not is_file(path):
        raise InputError(f"{path} must be a map that mv2v align wrote, found no file of that name")
    with _opened(path) as file:
        metadata = file.metadata() or {}
        missing = sorted(set(TENSOR_NAMES) - set(file.keys()))
        if missing:
            raise InputError(f"{path} must be a map that mv2v align wrote, found no tensor {', '.join(missing)}")
        tensors = {name: file.get_tensor(name) for name in TENSOR_NAMES}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    d_x, d_y = shapes["W"] if len(shapes["W"]) == 2 else (0, 0)
    if shapes != {"W": [d_x, d_y], "mean_x": [d_x], "mean_y": [d_y], "scale_x": [], "scale_y": []}:
        raise InputError(f"{path} must hold W [d_x, d_y], means [d_x] and [d_y] and two scalars, found {shapes}")
    check_map_format(metadata, path)
    check_map_tensors(tensors, str(path))
    return tensors, metadata


def read_profiles(path: Path) -> Profiles:
    """The profiles of source and target in a file that `read_tensors` reads; ``None`` where it holds none."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in set(file.keys()) - {"W"}}
    profiles = profiles_from(tensors)
    for side, profile in zip("xy", profiles, strict=True):
        if profile is not None and not is_whole(profile, len(tensors[f"mean_{side}"])):
            raise InputError(
                f"{path} must hold finite profiles of the dimensions of its means, found another; fit it again"
            )
    return profiles
