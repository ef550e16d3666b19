"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mv2v_jax.errors import InputError, first_line


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
