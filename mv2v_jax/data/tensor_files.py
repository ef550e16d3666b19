"""safetensors files with the same bytes for the same tensors, and what the tensors of a map must be. NumPy alone."""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mv2v_jax.data.atomic_files import atomic_path
from mv2v_jax.errors import InputError

MAP_FORMAT = "mv2v_jax linear map 1"
_ANY_MAP_FORMAT = MAP_FORMAT.rsplit(" ", 1)[0]
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# That of safetensors.
_MAX_HEADER_BYTES = 100_000_000
# Norms whose square float32 can hold.
_SMALLEST, _LARGEST = 1e-15, 1e15


def save_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, with its metadata in the order of their names.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        # safetensors writes the memory of an array, whatever its strides.
        save_file({name: np.asarray(t, order="C") for name, t in tensors.items()}, temporary, metadata=metadata)
        if metadata:
            _sort_metadata(temporary)


def check_header(path: Path) -> None:
    """Raise `ValueError` if a name occurs twice in the header of a safetensors file: readers differ in which they take.

    The header is read as far as it can be; what else is wrong with it, safetensors reports.
    """

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"its header has the name {max(names, key=names.count)!r} twice")
        return found

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, _MAX_HEADER_BYTES))
    try:
        json.loads(header, object_pairs_hook=refuse_twice)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header, which safetensors writes in an order that differs from process to process."""
    with path.open("rb+") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(written) > size:
            raise OSError("its header cannot be sorted")
        file.seek(8, os.SEEK_SET)
        file.write(written.ljust(size))


def check_map_tensors(tensors: Mapping[str, np.ndarray], name: str) -> None:
    """Raise `InputError` unless the tensors of a map are floating-point, finite, and of a size that can be squared.

    Args:
        tensors: ``W``, ``mean_x``, ``mean_y``, ``scale_x`` and ``scale_y``.
        name: what an error message calls the map.
    """
    for part, tensor in tensors.items():
        if tensor.dtype.name not in _DTYPES:
            raise InputError(f"{name}: {part} must hold floating-point numbers, found {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise InputError(f"{name}: {part} must be finite, found NaN or infinity")
    for part, tensor in tensors.items():
        values = tensor.astype(np.float64)
        norm = math.sqrt(float(np.vdot(values, values)))
        # A mean may be zero; a map or a scale of zero would map all rows to one point.
        smallest = 0 if part.startswith("mean") else _SMALLEST
        if not smallest <= norm <= _LARGEST:
            raise InputError(f"{name}: {part} must have a norm from {smallest:g} to {_LARGEST:g}, found {norm:.3g}")
    for part in ("scale_x", "scale_y"):
        if tensors[part] < 0:
            raise InputError(f"{name}: {part} must be positive, found {float(tensors[part]):.3g}")


def check_map_format(metadata: Mapping[str, str], path: Path) -> None:
    """Raise `InputError` if a map was written in another version of the format; without a version it is accepted."""
    found = metadata.get("format", MAP_FORMAT)
    if found != MAP_FORMAT and found.startswith(_ANY_MAP_FORMAT):
        raise InputError(
            f"{path} must have the format {MAP_FORMAT!r}, found {found!r}; use a later version of mv2v_jax"
        )
