"""Files that are written whole or not at all."""

import contextlib
import glob
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError

from mv2v_jax.errors import InputError, first_line
from mv2v_jax.paths import exists, is_file, is_folder

try:
    import fcntl
except ImportError:  # On Windows nothing stops two processes from writing one file.
    fcntl = None  # type: ignore[assignment]

_PREFIX_BYTES = 100
# What `tempfile` puts between the prefix and the suffix.
_RANDOM = re.compile(r"[a-z0-9_]{8}\.part")
# No file takes so long to write.
_ORPHAN_SECONDS = 24 * 3600


def _remove_orphans(folder: Path, prefix: str) -> None:
    """Remove what killed processes left of the same file, long after they wrote it."""
    for path in folder.glob(f"{glob.escape(prefix)}*.part"):
        if _RANDOM.fullmatch(path.name.removeprefix(prefix)):
            # Another process may remove it at the same time, or own it.
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ORPHAN_SECONDS:
                    path.unlink()


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``final``; it is renamed to ``final`` when the block ends, or removed if it fails.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(final)
    # Not the whole name: with what is added it could be too long for the file system.
    prefix = os.fsdecode(b"." + os.fsencode(final.name)[:_PREFIX_BYTES] + b".")
    temporary: Path | None = None
    try:
        _remove_orphans(final.parent, prefix)
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=prefix, suffix=".part")
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


def lock_alone(file: BinaryIO, path: Path) -> bool:
    """Lock an open file until it is closed; whether no other process holds it, and it is still what is at ``path``."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # A process that held the lock may have finished, and renamed or replaced the file.
    return exists(path) and os.path.samestat(os.fstat(file.fileno()), path.stat())


def check_writable(final: Path) -> None:
    """Raise `InputError` if ``final`` cannot be written; call this before the work whose result it will hold."""
    if is_folder(final):
        raise InputError(f"{final} must be a file to write, found a folder")
    # The rename would replace a device such as /dev/null by the file.
    if exists(final) and not is_file(final):
        raise InputError(f"{final} must be a file to write, found a device or a pipe")
    if not is_folder(final.parent):
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
