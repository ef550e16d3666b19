"""Keeps what is compiled in a folder, so that the next process on data of similar size compiles nothing.

JAX reads and writes the entries. What JAX leaves open is done here: damaged entries are removed, a folder that cannot
be written to costs a warning and not the result, and the folder does not grow without bound.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# One config and one size of data take about 2 MiB.
MAX_BYTES = 256 * 2**20
# JAX warns where it cannot read or write an entry, and compiles.
_FAILURE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': \w+: (.*)", re.DOTALL)

# The name of an entry: a module, a hash, and what JAX appends.
_ENTRY = re.compile(r"-[0-9a-f]{64}-(cache|atime)$")


def default_folder() -> Path | None:
    """The folder of this package in the user's cache folder (XDG Base Directory); ``None`` for a user without one."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The standard ignores relative paths.
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "mv2v_jax"


def keep_compiled(folder: Path, warn: Callable[[str], None]) -> None:
    """Keep all that this process compiles in ``folder``, even what compiles faster than JAX's minimum of a second.

    Several processes can share the folder. It must be trusted, because its entries are programs.

    Args:
        folder: made if it is missing, for this user alone.
        warn: called with one sentence, at most once, if nothing can be kept in ``folder``.
    """
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_oldest(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    show, warned = warnings.showwarning, False

    def handle(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        nonlocal warned
        failure = _FAILURE.match(str(message))
        if failure is None:
            show(message, *args, **kwargs)
        elif not (failure[1] == "reading" and _remove_entries(folder, failure[2])) and not warned:
            warned = True
            warn(f"what is compiled cannot be kept in {folder}, found {failure[3].strip()}; the result is the same")

    warnings.filterwarnings("always", message="Error (reading|writing) persistent compilation cache")
    warnings.showwarning = handle


def _entries(folder: Path, module: str = "") -> list[Path]:
    """JAX's files in ``folder``, all or those of a module; other files are none of ours."""
    return [path for path in folder.iterdir() if path.name.startswith(module) and _ENTRY.search(path.name)]


def _remove_entries(folder: Path, module: str) -> bool:
    """Remove all entries of a module, one of which is damaged, so that JAX writes it again; whether there were any."""
    try:
        entries = _entries(folder, f"{module}-")
        for path in entries:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return bool(entries)


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Where the entries take more than ``max_bytes``, remove those used longest ago until half of it is free."""
    # Another process may remove the same files.
    with contextlib.suppress(OSError):
        files = [(path, path.stat()) for path in _entries(folder)]
        total = sum(status.st_size for _, status in files)
        if total <= max_bytes:
            return
        for path, status in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime)):
            path.unlink(missing_ok=True)
            total -= status.st_size
            if total <= max_bytes / 2:
                return
