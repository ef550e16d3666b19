"""Embeddings from files in several formats. No file is ever unpickled."""

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mv2v_jax.data.row_files import RowFiles, open_rows
from mv2v_jax.data.tensor_files import check_header
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.paths import exists, is_file, is_folder


def _choose_key(path: Path, keys: list[str], key: str | None) -> str:
    """The requested key, or the only one in the file."""
    if key is None and len(keys) == 1:
        return keys[0]
    if not keys:
        raise InputError(f"{path} must hold an array of embeddings, found none")
    known = ", ".join(sorted(keys))
    if key is None:
        raise InputError(f"{path} holds several arrays, name one as {path.name}:KEY; found {known}")
    if key not in keys:
        raise InputError(f"{path} must hold an array named {key}, found {known}")
    return key


def _load_npy(path: Path, key: str | None) -> RowFiles:
    if key is not None:
        raise InputError(f"{path} must be given without a key, because it holds one array; found the key {key}")
    return open_rows(path)


def _check_unpacked(path: Path, name: str) -> None:
    """Raise `InputError` if an array of an archive takes more memory than there is: a few bytes can hold terabytes."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member.file_size for member in archive.infolist()}
    size, memory = members.get(f"{name}.npy", members.get(name, 0)), _memory_bytes()
    if size > memory:
        raise InputError(
            f"{path} must fit into the {memory:,} bytes of memory, found {size:,} bytes in {name}; save it as .npy, of "
            "which only the rows in use are read"
        )


def _memory_bytes() -> float:
    """Memory of this machine; infinity where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _load_npz(path: Path, key: str | None) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a complete zip archive")
    with np.load(path, allow_pickle=False) as archive:
        name = _choose_key(path, list(archive.files), key)
        _check_unpacked(path, name)
        array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds a file that is not an array")
    return array


def _load_safetensors(path: Path, key: str | None) -> np.ndarray:
    check_header(path)
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(_choose_key(path, list(file.keys()), key))


def _load_torch(path: Path, key: str | None) -> np.ndarray:
    try:
        import torch
    except ImportError as error:
        raise InputError(f'{path} needs PyTorch: pip install "mv2v_jax[torch]"') from error
    try:
        # weights_only accepts tensors and plain containers only: no code in the file is run.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read, it must hold tensors only: {first_line(error)}") from error
    if isinstance(loaded, dict):
        loaded = loaded[_choose_key(path, [name for name, value in loaded.items() if torch.is_tensor(value)], key)]
    if not torch.is_tensor(loaded):
        raise InputError(f"{path} must hold a tensor or a dict of tensors, found {type(loaded).__name__}")
    # NumPy has no bfloat16; float32 represents every bfloat16 value.
    return (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).detach().numpy()


_LOADERS: dict[str, Callable[[Path, str | None], Any]] = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".safetensors": _load_safetensors,
    ".pt": _load_torch,
}


def _split_key(source: str | Path) -> tuple[Path, str | None]:
    """Split ``FILE:KEY`` into its parts, unless there is a file of that whole name."""
    path, colon, key = str(source).rpartition(":")
    if colon and not exists(Path(source)) and Path(path).suffix.lower() in _LOADERS:
        return Path(path), key
    return Path(source), None


def file_of(source: str | Path) -> Path:
    """The file or folder of ``source``, without the key of an array."""
    return _split_key(source)[0]


def load_array(source: str | Path) -> np.ndarray | RowFiles:
    """Read one array of embeddings, or open it if it can stay on disk; `stores.sources` reads tables and stores too.

    Args:
        source: a ``.npy`` file, a folder of ``.npy`` shards, or a ``.npz``, ``.safetensors`` or ``.pt`` file. If a file
            holds several arrays, ``FILE:KEY`` names one.

    Returns:
        For ``.npy`` files and folders, `RowFiles` ``(n, d)``, which reads no row yet. For other files, the array with
        the shape and dtype it is stored in; bfloat16 in a ``.pt`` file becomes float32. No value is checked.

    Raises:
        InputError: the file is missing, damaged, cut short, of an unknown format, or would have to be unpickled; it
            lacks the key, or holds several arrays and no key is given; a folder is not one that `open_rows` opens.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "both.npz"
        >>> np.savez(path, minilm=np.ones((3, 2), np.float16), wordllama=np.zeros((4, 5), np.float32))
        >>> rows = load_array(f"{path}:minilm")
        >>> rows.shape, rows.dtype
        ((3, 2), dtype('float16'))
    """
    path, key = _split_key(source)
    if is_folder(path):
        return open_rows(path)
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise InputError(
            f"{path} must be one of {', '.join(_LOADERS)}, a table such as .parquet, .arrow, .jsonl or .csv, or a "
            f"store such as lancedb:PATH/TABLE, found suffix {path.suffix or 'none'}"
        )
    if not is_file(path):
        raise InputError(f"{path} must be a file, found nothing of that name")
    try:
        rows = loader(path, key)
        return rows.astype(rows.dtype.newbyteorder("="), copy=False) if isinstance(rows, np.ndarray) else rows
    except InputError:
        raise
    except Exception as error:
        # Damaged bytes can raise any error of a format's library, even zlib.error or AttributeError.
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise InputError(f"{path} must hold numbers, found an object array, which is not unpickled") from error
        raise InputError(f"{path} cannot be read, it is damaged or cut short: {first_line(error)}") from error
