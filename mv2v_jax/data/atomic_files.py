"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from mv2v_jax.errors import InputError, first_line


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``final``; it is renamed to ``final`` when the block ends, or removed if it fails.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(final)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(final)
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk by an error class of its own.
        raise InputError(f"{final} cannot be written: {first_line(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(final: Path) -> None:
    """Raise `InputError` if ``final`` cannot be written; call this before the work whose result it will hold."""
    if final.is_dir():
        raise InputError(f"{final} must be a file to write, found a folder")
    # The rename would replace a device such as /dev/null by the file.
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
    """Write an array as ``.npy``, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows)
