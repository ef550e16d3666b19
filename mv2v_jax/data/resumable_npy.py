"""A ``.npy`` file that is written row by row under a hidden name, and that can be resumed after a kill.

``.NAME.part`` holds the rows. ``.NAME.part.json`` is its manifest: what the rows are made of and from, and how many of
them are certain to be on disk. ``NAME`` itself appears when the file is complete.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mv2v_jax.data.atomic_files import check_writable, lock_alone
from mv2v_jax.errors import InputError
from mv2v_jax.paths import exists

# A link of that name could lead to a file of the user, which would be overwritten.
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
_NAME_BYTES = 200
# Bytes between two updates of the manifest: the most that is written again after a kill.
_SAVE_BYTES = 2**27


class SourceFile(NamedTuple):
    """A file that rows are made from. If its size or time has changed on resuming, its rows are made again."""

    name: str
    rows: int
    size: int
    mtime_ns: int


class PartFile:
    """The unfinished file; new rows are appended to those in it.

    Attributes:
        rows_done: number of rows written so far.
    """

    def __init__(
        self, file: BinaryIO, manifest: Path, facts: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.rows_done = self._rows_saved = 0
        self._file, self._manifest, self._facts = file, manifest, facts
        self._row_bytes = shape[1] * dtype.itemsize
        self._shape, self._dtype = shape, dtype

    def begin(self, rows_done: int) -> None:
        """Write the header, reserve disk space for all rows, and move behind the first ``rows_done`` rows."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        start = self._file.tell()
        self._file.flush()
        if rows_done and size < start + rows_done * self._row_bytes:
            raise InputError(f"{self._manifest} lists {rows_done} written rows, found fewer; start without --resume")
        # If the disk is too small, this fails now rather than after hours.
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
        """Flush the rows to disk, then update the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        new = self._manifest.with_name(f"{self._manifest.name}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({**self._facts, "rows_done": self.rows_done}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._manifest)
        self._rows_saved = self.rows_done


def _rows_to_keep(manifest: Path, made_by: dict[str, Any], source: list[SourceFile], final: Path) -> int:
    """Number of rows on disk that need not be made again: those before the first source file that has changed."""
    advice = f"start {final.name} over without --resume"
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        before = [SourceFile(*file) for file in found["source"]]
        made_before, rows_done = found["made_by"], int(found["rows_done"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest} must list what was written so far, found it damaged; {advice}") from error
    wanted = json.loads(json.dumps(made_by))
    other = sorted(name for name in wanted if made_before.get(name) != wanted[name])
    if [(file.name, file.rows) for file in before] != [(file.name, file.rows) for file in source]:
        other.append("input")
    if other:
        raise InputError(f"{final}: rows written so far were made from another {', '.join(other)}; {advice}")
    unchanged = 0
    for old, new in zip(before, source, strict=True):
        if old != new:
            break
        unchanged += new.rows
    return min(rows_done, unchanged)


def _short(name: str) -> str:
    """The name, or a shorter one of its own if the hidden names made from it would be too long for a file system."""
    encoded = os.fsencode(name)
    if len(encoded) <= _NAME_BYTES:
        return name
    return f"{os.fsdecode(encoded[:100])}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _lock(file: BinaryIO, part: Path, final: Path) -> None:
    """Lock the file, so that no two processes write it."""
    if not lock_alone(file, part):
        raise InputError(f"{final} is being written by another process; wait for it or write to another file")


@contextlib.contextmanager
def resumable_npy(
    final: Path,
    shape: tuple[int, int],
    dtype: np.dtype,
    made_by: dict[str, Any],
    source: list[SourceFile],
    *,
    block_rows: int,
    resume: bool,
) -> Iterator[PartFile]:
    """Yield a `PartFile` for ``final``, which appears when the block ends with all rows written.

    If the block fails or the process is killed, the rows written so far stay beside ``final`` for ``resume``. If no row
    was written, nothing stays.

    Args:
        final: the ``.npy`` file to write.
        shape: ``(n, d)`` of the file.
        dtype: dtype of the file.
        made_by: everything that the rows depend on besides the source files; anything JSON can hold. Rows can be
            resumed only with equal values.
        source: the files that the rows are made from, in order. Rows of changed files are made again.
        block_rows: rows written at a time. Resuming starts at a whole block, so that each row is computed in the same
            block as without the interruption, and has the same bits.
        resume: continue from the rows found, if any; otherwise start over.

    Raises:
        InputError: the file cannot be written, the disk is full, another process writes the file, or the rows found
            were made from other files or with another ``made_by``.
    """
    check_writable(final)
    part = final.with_name(f".{_short(final.name)}.part")
    manifest = part.with_name(f"{part.name}.json")
    try:
        if resume and exists(manifest) and not exists(part) and exists(final):
            # Killed between its last two steps: the file has its final name, and the manifest still exists.
            final.replace(part)
        with open(os.open(part, _OPEN, 0o666), "r+b") as file:
            _lock(file, part, final)
            keep = _rows_to_keep(manifest, made_by, source, final) if resume and exists(manifest) else 0
            out = PartFile(file, manifest, {"made_by": made_by, "source": source}, shape, dtype)
            try:
                if not keep:
                    manifest.unlink(missing_ok=True)
                    file.truncate(0)
                out.begin(keep - keep % block_rows)
                yield out
                out.save()
                part.replace(final)
            except BaseException:
                # A full disk may prevent this. Closing the file then tries once more to write its buffer.
                with contextlib.suppress(OSError):
                    if out.rows_done:
                        out.save()
                raise
            finally:
                if exists(part) and not exists(manifest):
                    part.unlink()
            manifest.unlink()
    except OSError as error:
        kept = "; rows so far are kept: continue with --resume" if exists(manifest) else ""
        raise InputError(f"{final} cannot be written: {error.strerror or error}{kept}") from error
