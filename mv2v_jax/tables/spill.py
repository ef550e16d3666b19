"""Rows that come in batches, copied to a temporary file, so that they can be read in any order in bounded memory."""

import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mv2v_jax.data.row_files import RowFiles, Shard
from mv2v_jax.errors import InputError, first_line

_HANDLES = Path("/proc/self/fd")


def spill(batches: Iterable[np.ndarray], name: str) -> RowFiles:
    """Copy batches ``[b, d]`` to a file in the folder of temporary files, which goes with the rows returned.

    On Linux the file has no name from the start, so that even a killed process leaves nothing.

    Args:
        batches: rows of one width and dtype; converted to the byte order of this machine.
        name: what an error message calls the rows.

    Raises:
        InputError: there is no row, the batches differ in width or dtype, or the disk is full.
    """
    handle, path = tempfile.mkstemp(prefix="mv2v_rows_", suffix=".bin")
    count, width, dtype = 0, 0, np.dtype(np.float32)
    try:
        with os.fdopen(handle, "wb") as file:
            for batch in batches:
                native = batch.dtype.newbyteorder("=")
                if not count:
                    width, dtype = batch.shape[1], native
                if batch.shape[1] != width or native != dtype:
                    raise InputError(
                        f"{name} must hold rows of {width} numbers in {dtype} throughout, found {batch.shape[1]} in "
                        f"{native}"
                    )
                file.write(np.ascontiguousarray(batch, dtype).view(np.uint8).data)
                count += len(batch)
        if not count:
            raise InputError(f"{name} must hold at least one row, found none")
    except OSError as error:
        os.unlink(path)
        raise InputError(
            f"{name} cannot be copied to a temporary file: {first_line(error)}; name a folder with more space in the "
            "variable TMPDIR"
        ) from error
    except BaseException:
        os.unlink(path)
        raise
    return SpilledRows(_hide(Path(path)), (count, width), dtype)


class SpilledRows(RowFiles):
    """Rows in a temporary file, which is removed when they are no longer needed."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        super().__init__([Shard(path=path, offset=0, shape=shape, dtype=dtype, by_column=False)])
        weakref.finalize(self, _remove, path)


def _hide(path: Path) -> Path:
    """Remove the name of a file where it can still be opened by the number of its handle."""
    if not _HANDLES.is_dir():
        return path
    handle = os.open(path, os.O_RDONLY)
    path.unlink()
    return _HANDLES / str(handle)


def _remove(path: Path) -> None:
    if path.parent == _HANDLES:
        os.close(int(path.name))
    else:
        path.unlink(missing_ok=True)
