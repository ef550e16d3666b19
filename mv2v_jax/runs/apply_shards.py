"""A map applied to any number of rows in bounded memory: read ahead, mapped, and written block by block."""

import functools
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.data.npy_rows import RowFiles
from mv2v_jax.data.resumable_npy import Job, SourceFile, resumable_npy
from mv2v_jax.data.scan import read_blocks, row_place
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import Frame, LinearMap, apply
from mv2v_jax.runs.compiled import OnStep
from mv2v_jax.version import __version__

# Numbers in a block of rows, of the wider space.
_BLOCK_NUMBERS = 2**22


class Applied(NamedTuple):
    """What was done.

    Attributes:
        num_mapped: rows mapped now; without those that were there already.
        seconds: how long it took, reading, writing and compiling included.
    """

    num_mapped: int
    seconds: float


def source_files(path: Path, rows: np.ndarray | RowFiles) -> list[SourceFile]:
    """The files that ``rows``, opened from ``path``, come from."""
    if isinstance(rows, RowFiles):
        files = [(shard.path, shard.shape[0]) for shard in rows.shards]
    else:
        files = [(path, rows.shape[0])]
    stats = [(file.name, num_rows, file.stat()) for file, num_rows in files]
    return [SourceFile(name, num_rows, stat.st_size, stat.st_mtime_ns) for name, num_rows, stat in stats]


def _fingerprint(linear_map: LinearMap) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(linear_map):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


@functools.partial(jax.jit, static_argnames="frame")
def _map_block(linear_map: LinearMap, block: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array]:
    """The rows mapped, and whether they were finite."""
    return apply(linear_map, block, frame=frame), jnp.isfinite(block).all()


def apply_to_file(
    linear_map: LinearMap,
    rows: np.ndarray | RowFiles,
    source: list[SourceFile],
    output: Path,
    name: str,
    *,
    frame: Frame,
    resume: bool,
    on_step: OnStep,
) -> Applied:
    """Map ``rows [n, d_x]`` and write them as ``.npy [n, d_y]`` in the dtype they came in; bfloat16 as float32.

    Args:
        linear_map: the map.
        rows: raw rows of the source.
        source: the files they come from, by which a resumed call knows them.
        output: file to write; it appears when it is whole.
        name: what to call the rows in an error message.
        frame: as for `apply`.
        resume: go on where an earlier call with the same map, frame and files ended; the result is the same.
        on_step: called with "rows mapped", the rows done and the rows to do.

    Raises:
        InputError: NaN or infinity, a file that cannot be read any more, or what `resumable.resumable_npy` says.
    """
    started = time.perf_counter()
    n = rows.shape[0]
    d_x, d_y = linear_map.W.shape
    # .npy has no bfloat16; float32 holds every bfloat16.
    dtype = rows.dtype if np.issubdtype(rows.dtype, np.floating) else np.dtype(np.float32)
    made_by = {
        "map": _fingerprint(linear_map),
        "frame": frame,
        "shape": [n, d_y],
        "dtype": str(rows.dtype),
        "mv2v_jax_version": __version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    block_rows = max(1, _BLOCK_NUMBERS // max(d_x, d_y))
    job = Job(made_by=made_by, source=source)
    with resumable_npy(output, (n, d_y), dtype, job, block_rows=block_rows, resume=resume) as out:
        first = out.rows_done

        def write(start: int, block: np.ndarray, mapped: jax.Array, finite: jax.Array) -> None:
            if not finite:
                with np.errstate(over="ignore"):
                    bad = ~np.isfinite(block.astype(np.float32)).all(axis=1)
                place = row_place(rows, start + int(bad.argmax()))
                too_large = " (as float32)" if np.isfinite(block).all() else ""
                kept = "; rows before it are kept: repair it and go on with --resume" if out.rows_done else ""
                raise InputError(f"{name} must be finite, found NaN or infinity, first in {place}{too_large}{kept}")
            out.write(np.asarray(mapped))
            on_step("rows mapped", out.rows_done, n)

        # The device works on a block while the one before is written and the next one read.
        waiting = None
        for start, block in read_blocks(rows, block_rows, first):
            mapped, finite = _map_block(linear_map, jnp.asarray(block), frame)
            if waiting is not None:
                write(*waiting)
            waiting = start, block, mapped, finite
        if waiting is not None:
            write(*waiting)
    return Applied(num_mapped=n - first, seconds=time.perf_counter() - started)
