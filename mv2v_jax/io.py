"""Reading embeddings and maps, writing files whole or not at all. Nothing is ever unpickled."""

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mv2v_jax import __version__
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.measure import CheckedRows, Digest, ask, join_digest
from mv2v_jax.rows import RowFiles, open_rows
from mv2v_jax.types import LinearMap
from mv2v_jax.validate import check_finite

_FORMAT = "mv2v_jax linear map 1"


def _choose_key(path: Path, keys: list[str], key: str | None) -> str:
    """The key asked for, or the only one there is."""
    if key is None and len(keys) == 1:
        return keys[0]
    if not keys:
        raise InputError(f"{path} must hold an array of embeddings (in Parquet, a list column), found none")
    known = ", ".join(sorted(keys))
    if key is None:
        raise InputError(f"{path} holds several arrays, name one as {path.name}:KEY; found {known}")
    if key not in keys:
        raise InputError(f"{path} must hold an array named {key}, found {known}")
    return key


def _load_npy(path: Path, key: str | None) -> RowFiles:
    if key is not None:
        raise InputError(f"{path} holds one array without a name, found the key {key}")
    return open_rows(path)


def _load_npz(path: Path, key: str | None) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a whole zip archive")
    with np.load(path, allow_pickle=False) as archive:
        array = archive[_choose_key(path, list(archive.files), key)]
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds a file that is not an array")
    return array


def _load_safetensors(path: Path, key: str | None) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(_choose_key(path, list(file.keys()), key))


def _load_parquet(path: Path, key: str | None) -> np.ndarray:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f'{path} needs pyarrow: pip install "mv2v_jax[parquet]"') from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        is_list = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
        lists = [field.name for field in schema if any(check(field.type) for check in is_list)]
        name = _choose_key(path, lists, key)
        column = file.read([name]).column(name).combine_chunks()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {first_line(error)}") from error
    if column.null_count:
        raise InputError(f"{path}: column {name} must have a list in every row, found {column.null_count} nulls")
    values = column.flatten()
    if values.null_count:
        raise InputError(f"{path}: lists of column {name} must hold numbers, found {values.null_count} nulls")
    rows = values.to_numpy(zero_copy_only=False)
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise InputError(f"{path}: lists of column {name} must have one length, found {lengths[0]} to {lengths[-1]}")
    return rows.reshape(len(column), -1) if len(column) else rows.reshape(0, 0)


def _load_torch(path: Path, key: str | None) -> np.ndarray:
    try:
        import torch
    except ImportError as error:
        raise InputError(f'{path} needs PyTorch: pip install "mv2v_jax[torch]"') from error
    try:
        # weights_only refuses everything but tensors and plain containers: nothing in the file is run.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as tensors alone: {first_line(error)}") from error
    if isinstance(loaded, dict):
        loaded = loaded[_choose_key(path, [name for name, value in loaded.items() if torch.is_tensor(value)], key)]
    if not torch.is_tensor(loaded):
        raise InputError(f"{path} must hold a tensor or a dict of tensors, found {type(loaded).__name__}")
    # NumPy has no bfloat16 of its own; float32 holds every bfloat16.
    return (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).detach().numpy()


_LOADERS: dict[str, Callable[[Path, str | None], Any]] = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".safetensors": _load_safetensors,
    ".parquet": _load_parquet,
    ".pt": _load_torch,
}


def _split_key(source: str) -> tuple[Path, str | None]:
    """``file:key`` into its parts, unless a file of that whole name exists."""
    path, colon, key = source.rpartition(":")
    if colon and not Path(source).exists() and Path(path).suffix.lower() in _LOADERS:
        return Path(path), key
    return Path(source), None


def file_of(source: str) -> Path:
    """The file or folder that ``source`` names, without the key of an array."""
    return _split_key(source)[0]


def load_embeddings(source: str) -> np.ndarray | RowFiles:
    """Read one array of embeddings, or open it where it can stay on disk.

    Args:
        source: ``.npy``, a folder of ``.npy`` shards, ``.npz``, ``.safetensors``, ``.parquet`` (a list column) or
            ``.pt``. Where a file holds several arrays, ``FILE:KEY`` names one.

    Returns:
        The array as it is stored, whatever its shape and dtype; `rows.RowFiles`, which reads nothing yet, for ``.npy``
        and folders.

    Raises:
        InputError: the file is missing, truncated, of an unknown kind, would have to be unpickled, or lacks the key; of
            a folder, what `rows.open_rows` says.
    """
    path, key = _split_key(source)
    if path.is_dir():
        return open_rows(path)
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise InputError(f"{path} must be one of {', '.join(_LOADERS)}, found suffix {path.suffix or 'none'}")
    if not path.is_file():
        raise InputError(f"{path} must be a file, found nothing of that name")
    try:
        return loader(path, key)
    except InputError:
        raise
    except Exception as error:
        # Damaged bytes raise whatever the format's library stumbles over, down to zlib.error and AttributeError.
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise InputError(f"{path} must hold numbers, found an object array, which is not unpickled") from error
        raise InputError(f"{path} cannot be read, it is damaged or cut short: {first_line(error)}") from error


def digest(rows: Any) -> str:
    """`RowStatistics.digest` of ``rows [n, d]``."""
    if isinstance(rows, CheckedRows) and rows.digest is not None:
        return rows.digest
    found = Digest()
    ask(rows, found)
    return join_digest(rows, found.finish())


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside ``final``, renamed to it when the block ends and removed when it fails."""
    check_writable(final)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files that only their owner may read.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(final)
    except (OSError, SafetensorError) as error:
        # A full disk is an error of its own kind to safetensors.
        raise InputError(f"{final} cannot be written: {first_line(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(final: Path) -> None:
    """Raise `InputError` where ``final`` could not be written, before any work is done for it."""
    if final.is_dir():
        raise InputError(f"{final} must be a file to write, found a folder")
    # The rename would replace a device, /dev/null for one, by the file.
    if final.exists() and not final.is_file():
        raise InputError(f"{final} must be a file to write, found a device or a pipe")
    if not final.parent.is_dir():
        raise InputError(f"{final} cannot be written: there is no folder {final.parent}")
    try:
        with tempfile.TemporaryFile(dir=final.parent):
            pass
    except OSError as error:
        raise InputError(f"{final} cannot be written: {error.strerror or error}") from error


def save_npy(path: Path, rows: np.ndarray) -> None:
    """Write an array as ``.npy``; the file appears whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows)


def save_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """Write arrays as safetensors, named by their place; the file appears whole or not at all."""
    with atomic_path(path) as temporary:
        save_file({str(place): array for place, array in enumerate(arrays)}, temporary)


def load_arrays(path: Path, shapes: list[tuple[tuple[int, ...], Any]]) -> list[np.ndarray]:
    """Read what `save_arrays` wrote, of known shapes and dtypes.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = [file.get_tensor(str(place)) for place in range(len(shapes))]
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}); remove it and resume") from error
    if [(array.shape, array.dtype) for array in arrays] != [(shape, np.dtype(dtype)) for shape, dtype in shapes]:
        raise InputError(f"{path} must hold searches of this study, found other shapes; remove it and resume")
    return arrays


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
