"""Apply a map to any number of rows in bounded memory: rows are read ahead, mapped and written block by block."""

import functools
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.data.checks import name_row
from mv2v_jax.data.map_file import map_tensors
from mv2v_jax.data.resumable_npy import SourceFile, resumable_npy
from mv2v_jax.data.row_files import RowFiles
from mv2v_jax.data.scan import digest, read_blocks
from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish
from mv2v_jax.frame import Frame
from mv2v_jax.linear_map import LinearMap, apply
from mv2v_jax.ops.given_arrays import to_device
from mv2v_jax.ops.masked import working_dtype
from mv2v_jax.progress import OnStep
from mv2v_jax.tables.spill import SpilledRows
from mv2v_jax.version import __version__

# Numbers per block of rows, in the space of more dimensions.
_BLOCK_NUMBERS = 2**22


class Applied(NamedTuple):
    """What `apply_to_file` did.

    Attributes:
        num_mapped: number of rows mapped by this call, without those of an earlier call.
        seconds: time taken, with reading, writing and compiling.
    """

    num_mapped: int
    seconds: float


def source_files(path: Path, rows: np.ndarray | RowFiles) -> list[SourceFile]:
    """The files of ``rows``, which were opened from ``path``, with their sizes and times."""
    if isinstance(rows, SpilledRows):
        # Their temporary file is another one in every run: the rows themselves are recognised.
        return [SourceFile(digest(rows), rows.shape[0], size=0, mtime_ns=0)]
    if isinstance(rows, RowFiles):
        files = [(shard.path, shard.shape[0]) for shard in rows.shards]
    else:
        files = [(path, rows.shape[0])]
    stats = [(file.name, num_rows, file.stat()) for file, num_rows in files]
    return [SourceFile(name, num_rows, stat.st_size, stat.st_mtime_ns) for name, num_rows, stat in stats]


def _fingerprint(linear_map: LinearMap) -> str:
    found = hashlib.sha256()
    for tensor in map_tensors(linear_map).values():
        found.update(tensor.tobytes())
    return found.hexdigest()


@functools.partial(jax.jit, static_argnames="frame")
def _map_block(linear_map: LinearMap, block: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mapped rows, and which rows the device sees as finite, and as long enough to keep their direction."""
    largest = jnp.max(jnp.abs(block.astype(working_dtype(block.dtype))), axis=1)
    numbers = jnp.finfo(largest.dtype)
    return apply(linear_map, block, frame=frame), jnp.isfinite(block).all(axis=1), largest >= numbers.tiny / numbers.eps


def apply_to_file(
    linear_map: LinearMap,
    rows: np.ndarray | RowFiles,
    source: list[SourceFile],
    output: Path,
    name: str,
    *,
    finish: Finish,
    resume: bool,
    on_step: OnStep,
) -> Applied:
    """Map ``rows [n, d_x]`` and write ``.npy [n, d_y]``, or a prefix of the columns, in the dtype of the rows.

    bfloat16 becomes float32.

    Args:
        linear_map: the map.
        rows: raw rows of the source space.
        source: the files of the rows (`source_files`), by which a resumed call recognises them.
        output: file to write; it appears when it is complete.
        name: what an error message calls the rows.
        finish: the frame, and what is done to mapped rows.
        resume: continue where an earlier call with the same map, `Finish` and files ended; the result is the same.
        on_step: called with "rows mapped", the number of rows done and the number of rows to do.

    Raises:
        InputError: a row holds NaN or infinity, or is too short for float32; a file can no longer be read, or
            `resumable_npy` cannot write or resume the output.
    """
    started = time.perf_counter()
    n = rows.shape[0]
    d_x, d_y = linear_map.W.shape
    columns = finish.dims or d_y
    # .npy has no bfloat16; float32 represents every bfloat16 value.
    dtype = rows.dtype if np.issubdtype(rows.dtype, np.floating) else np.dtype(np.float32)
    made_by = {
        "map": _fingerprint(linear_map),
        "frame": finish.frame,
        "metric": finish.metric,
        "shape": [n, columns],
        "dtype": str(rows.dtype),
        "mv2v_jax_version": __version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    block_rows = max(1, _BLOCK_NUMBERS // max(d_x, d_y))
    with resumable_npy(output, (n, columns), dtype, made_by, source, block_rows=block_rows, resume=resume) as out:
        first = out.rows_done

        def write(start: int, block: np.ndarray, mapped: jax.Array, finite: jax.Array, long: jax.Array) -> None:
            bad, expected = ~np.asarray(finite), "be finite, found NaN or infinity"
            if not bad.any():
                # The device computes in float32, and takes its smallest numbers for zero.
                bad, expected = ~np.asarray(long), "hold rows that float32 can represent, found a shorter one"
                bad[bad] = (block[bad] != 0).any(axis=1)
            if bad.any():
                row = name_row(rows, start + int(bad.argmax()))
                too_large = " (as float32)" if np.isfinite(block).all() and "finite" in expected else ""
                kept = "; rows before it are kept: repair it and continue with --resume" if out.rows_done else ""
                raise InputError(f"{name} must {expected}, first in {row}{too_large}{kept}")
            out.write(finish(np.asarray(mapped)))
            on_step("rows mapped", out.rows_done, n)

        # The device maps a block while the block before is written and the next one read.
        waiting = None
        for start, block in read_blocks(rows, block_rows, first):
            mapped = _map_block(linear_map, to_device(block), finish.frame)
            if waiting is not None:
                write(*waiting)
            waiting = start, block, *mapped
        if waiting is not None:
            write(*waiting)
    return Applied(num_mapped=n - first, seconds=time.perf_counter() - started)
