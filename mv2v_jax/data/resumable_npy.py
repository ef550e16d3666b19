"""A ``.npy`` file that is written row by row under a hidden name, and that a killed process can go on with.

Beside ``.NAME.part`` lies ``.NAME.part.json``: what is being made from what, and how many rows are on the disk for
certain. ``NAME`` itself appears when it is whole.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mv2v_jax.data.files import check_writable
from mv2v_jax.errors import InputError

try:
    import fcntl
except ImportError:  # Not on Windows, where two processes that write one file are on their own.
    fcntl = None  # type: ignore[assignment]


# What a killed process may have to do again.
_SAVE_BYTES = 2**27


class SourceFile(NamedTuple):
    """One of the files that rows come from, as it was; another size or time, and it is read again."""

    name: str
    rows: int
    size: int
    mtime_ns: int


class Job(NamedTuple):
    """What is being made.

    Attributes:
        made_by: whatever the rows depend on besides the files; anything JSON can hold.
        source: the files that the rows come from, in their order.
    """

    made_by: dict[str, Any]
    source: list[SourceFile]


class PartFile:
    """The file while it is written: rows are appended to those that are there.

    Attributes:
        rows_done: rows written so far; where to go on.
    """

    def __init__(self, file: BinaryIO, manifest: Path, job: Job, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.rows_done = self._rows_saved = 0
        self._file, self._manifest, self._job = file, manifest, job
        self._row_bytes = shape[1] * dtype.itemsize
        self._shape, self._dtype = shape, dtype

    def begin(self, rows_done: int) -> None:
        """Write the header, make room for all rows, and go on after those that are there."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        start = self._file.tell()
        self._file.flush()
        if rows_done and size < start + rows_done * self._row_bytes:
            raise InputError(
                f"{self._manifest} says that {rows_done} rows are there, found fewer; start without --resume"
            )
        # A disk that is too small is found out now, not after hours.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, start + self._shape[0] * self._row_bytes)
        self._file.seek(start + rows_done * self._row_bytes)
        self.rows_done = self._rows_saved = rows_done

    def write(self, rows: np.ndarray) -> None:
        """Append rows ``[b, d]``."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).view(np.uint8).data)
        self.rows_done += len(rows)
        if (self.rows_done - self._rows_saved) * self._row_bytes >= _SAVE_BYTES:
            self.save()

    def save(self) -> None:
        """Bring the rows to the disk, and then the word that they are there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        new = self._manifest.with_name(f"{self._manifest.name}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({**self._job._asdict(), "rows_done": self.rows_done}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._manifest)
        self._rows_saved = self.rows_done


def _rows_to_keep(manifest: Path, job: Job, final: Path) -> int:
    """Rows on the disk that ``job`` would make again: those before the first file that has changed since."""
    advice = f"start {final.name} over without --resume"
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        before = [SourceFile(*file) for file in found["source"]]
        made_by, rows_done = found["made_by"], int(found["rows_done"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest} must say what was written so far, found it damaged; {advice}") from error
    wanted = json.loads(json.dumps(job.made_by))
    other = sorted(name for name in wanted if made_by.get(name) != wanted[name])
    if [(file.name, file.rows) for file in before] != [(file.name, file.rows) for file in job.source]:
        other.append("input")
    if other:
        raise InputError(f"{final}: rows written so far are of another {', '.join(other)}; {advice}")
    unchanged = 0
    for old, new in zip(before, job.source, strict=True):
        if old != new:
            break
        unchanged += new.rows
    return min(rows_done, unchanged)


def _lock(file: BinaryIO, part: Path, final: Path) -> None:
    """Let no two processes write one file: neither would notice the other."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one that held the lock may have renamed it to its last name.
        alone = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
    except BlockingIOError:
        alone = False
    if not alone:
        raise InputError(f"{final} is being written by another process; wait for it or write to another file")


@contextlib.contextmanager
def resumable_npy(
    final: Path, shape: tuple[int, int], dtype: np.dtype, job: Job, *, block_rows: int, resume: bool
) -> Iterator[PartFile]:
    """A `PartFile` for ``final``, which appears when the block ends and all rows are written.

    Where the block fails, or the process is killed, the rows that were written stay beside it for ``resume``; where
    there are none yet, nothing stays.

    Args:
        final: the ``.npy`` file to make.
        shape: ``(n, d)`` of it.
        dtype: of it.
        job: what is made. What is found must be of the same job to go on with; files may have changed, and then their
            rows are made again.
        block_rows: rows written at a time: going on starts with a whole block, so that its rows are made with the same
            ones beside them, and come out the same.
        resume: go on with what is there, if anything is; otherwise start over.

    Raises:
        InputError: the file cannot be written, the disk is full, another process writes it, or what is there is of
            another job.
    """
    check_writable(final)
    part = final.with_name(f".{final.name}.part")
    manifest = part.with_name(f"{part.name}.json")
    try:
        if resume and manifest.exists() and not part.exists() and final.exists():
            # Killed between its last two steps: the rows have their last name, and the note is still there.
            final.replace(part)
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            _lock(file, part, final)
            keep = _rows_to_keep(manifest, job, final) if resume and manifest.exists() else 0
            out = PartFile(file, manifest, job, shape, dtype)
            try:
                if not keep:
                    manifest.unlink(missing_ok=True)
                    file.truncate(0)
                out.begin(keep - keep % block_rows)
                yield out
                out.save()
                part.replace(final)
            except BaseException:
                # As far as the disk lets it. Closing the file tries once more to write what is left in its buffer.
                with contextlib.suppress(OSError):
                    if out.rows_done:
                        out.save()
                raise
            finally:
                if part.exists() and not manifest.exists():
                    part.unlink()
            manifest.unlink()
    except OSError as error:
        kept = "; rows so far are kept: go on with --resume" if manifest.exists() else ""
        raise InputError(f"{final} cannot be written: {error.strerror or error}{kept}") from error
