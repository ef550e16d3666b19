"""Rows that stay on disk: one ``.npy`` file, or a folder of shards, read where they are asked for.

Nothing is mapped into memory. Mapped pages count as resident memory, and reading a mapped file that someone has cut
short ends the process by a signal; a positioned read ends in an error that can be told.
"""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.errors import InputError, first_line

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Shard(NamedTuple):
    """One ``.npy`` file of rows.

    Attributes:
        path: the file.
        offset: bytes before its first number.
        shape: of its array, rows first.
        dtype: of its numbers.
        by_column: whether its numbers lie column by column, in Fortran's order.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    by_column: bool


def _open_shard(path: Path) -> Shard:
    """Read the header of a ``.npy`` file, and see that the file is as long as it says."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"its format is version {version}")
            shape, by_column, dtype = _HEADERS[version](file)
            offset, size = file.tell(), path.stat().st_size
            if min(shape, default=0) < 0:
                raise ValueError(f"its shape is {list(shape)}")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read, it is damaged or cut short: {first_line(error)}") from error
    if dtype.hasobject:
        raise InputError(f"{path} must hold numbers, found an object array, which is not unpickled")
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise InputError(
            f"{path} cannot be read, it is damaged or cut short: shape {list(shape)} of {dtype} takes {needed:,} "
            f"bytes, found {size:,}; write it again"
        )
    return Shard(path=path, offset=offset, shape=shape, dtype=dtype, by_column=by_column)


def _fill(file: io.FileIO, start: int, out: np.ndarray, path: Path) -> None:
    """Read bytes of a file from ``start`` on into a contiguous array, all of them."""
    view = out.reshape(-1).view(np.uint8).data
    file.seek(start)
    # One read may return less than was asked for.
    while view:
        count = file.readinto(view)
        if not count:
            raise InputError(f"{path} was cut short while it was read: {len(view):,} bytes are missing; write it again")
        view = view[count:]


def _runs(index: np.ndarray) -> list[tuple[int, int]]:
    """Where neighbouring rows follow each other in a file: places in ``index``, from and to."""
    breaks = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(index)], strict=True))


def _read_rows(shard: Shard, index: np.ndarray) -> np.ndarray:
    """Rows of one shard by their numbers in it, in ascending order."""
    out = np.empty((len(index), shard.shape[1]), shard.dtype)
    try:
        with shard.path.open("rb", buffering=0) as file:
            if shard.by_column:
                _fill_by_column(file, shard, index, out)
            else:
                row_bytes = out.strides[0]
                for first, last in _runs(index):
                    _fill(file, shard.offset + int(index[first]) * row_bytes, out[first:last], shard.path)
    except OSError as error:
        raise InputError(f"{shard.path} cannot be read: {first_line(error)}") from error
    return out


def _fill_by_column(file: io.FileIO, shard: Shard, index: np.ndarray, out: np.ndarray) -> None:
    """The same where a row's numbers lie far apart: the rows between the first and the last, one column at a time."""
    first, last = int(index[0]), int(index[-1]) + 1
    column = np.empty(last - first, shard.dtype)
    num_rows, num_columns = shard.shape
    for place in range(num_columns):
        _fill(file, shard.offset + (place * num_rows + first) * shard.dtype.itemsize, column, shard.path)
        out[:, place] = column[index - first]


class RowFiles:
    """Rows of one ``.npy`` file or of several, one after the other, as if they were one array that is never loaded.

    ``rows[start:stop]`` and ``rows[index]`` read these rows alone and return a NumPy array; ``np.asarray(rows)`` reads
    all. `open_rows` makes one.

    Attributes:
        shards: the files, in their order.
        shape: ``(n, d)``.
        dtype: of the numbers, the same in every file.
        ndim: 2.
        nbytes: of all rows.
    """

    ndim = 2

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.dtype = shards[0].dtype
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        self.shape = (int(self._starts[-1]), shards[0].shape[1])
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"RowFiles({self.shards[0].path}, {len(self.shards)} files, shape {list(self.shape)}, {self.dtype})"

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by a number, a slice or an array of whole numbers in any order, as NumPy would give them.

        Raises:
            IndexError: a row that is not there, or an index of another kind.
            InputError: a file cannot be read any more.
        """
        n = self.shape[0]
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(n)))
        index = np.asarray(index)
        if index.ndim > 1 or not (np.issubdtype(index.dtype, np.integer) or index.size == 0):
            raise IndexError(f"rows are chosen by a slice or by whole numbers, found {index.dtype} {list(index.shape)}")
        if index.size and not (-n <= index.min() and index.max() < n):
            raise IndexError(f"there are {n} rows, found an index from {index.min()} to {index.max()}")
        rows = self._read(np.atleast_1d(index).astype(np.int64) % max(n, 1))
        return rows if index.ndim else rows[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows on disk cannot become an array without being copied")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, index: np.ndarray) -> np.ndarray:
        ascending = bool((np.diff(index) >= 0).all())
        order = None if ascending else np.argsort(index, kind="stable")
        wanted = index if order is None else index[order]
        bounds = np.searchsorted(wanted, self._starts)
        parts = [
            _read_rows(shard, wanted[first:last] - start)
            for shard, start, first, last in zip(self.shards, self._starts, bounds, bounds[1:], strict=False)
            if first < last
        ]
        if not parts:
            return np.empty((0, self.shape[1]), self.dtype)
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if order is None:
            return rows
        shuffled = np.empty_like(rows)
        shuffled[order] = rows
        return shuffled

    def place(self, row: int) -> str:
        """What to call a row in an error message: its number, and its shard where there are several."""
        if len(self.shards) == 1:
            return f"row {row}"
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"shard {self.shards[shard].path} row {row - int(self._starts[shard])}"


@dataclasses.dataclass(frozen=True)
class RowShare:
    """Rows ``first`` to ``last`` of others, as a process of several looks at them.

    Attributes:
        rows: an array, a memory map or `RowFiles`.
        first, last: which of them; ``last`` is not among them.
    """

    rows: Any
    first: int
    last: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.last - self.first, self.rows.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return self.rows.dtype

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(self.last - self.first)
        return self.rows[self.first + start : self.first + stop]


@dataclasses.dataclass(frozen=True)
class RowChoice:
    """Some rows of others, none of which is read before it is asked for.

    Attributes:
        rows: an array, a memory map or `RowFiles`.
        index: ``[m]`` whole numbers, rows of ``rows``.
    """

    rows: Any
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.rows.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return self.rows.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.rows[self.index[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def open_rows(path: str | Path) -> RowFiles:
    """Open a ``.npy`` file, or a folder of ``.npy`` shards in the order of their names, without reading any row.

    Args:
        path: the file or the folder. Files of a folder that start with a dot are passed over; number shards with
            leading zeros, because ``part-10`` comes before ``part-2``.

    Returns:
        `RowFiles` of shape ``(n, d)``.

    Raises:
        InputError: nothing of that name; a file that is damaged, cut short, or would have to be unpickled; a folder
            that holds no shard or something else besides; shards of another dimension or dtype than the first.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for part in range(2):
        ...     np.save(folder / f"part-{part}.npy", np.full((3, 2), part, np.float16))
        >>> rows = open_rows(folder)
        >>> rows.shape, rows[2:4].tolist()
        ((6, 2), [[0.0, 0.0], [1.0, 1.0]])
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} must be a .npy file or a folder of them, found nothing of that name")
    shards = [_open_shard(file) for file in (_list_shards(path) if path.is_dir() else [path])]
    first = shards[0]
    for shard in shards:
        if len(shard.shape) != 2:
            found = list(shard.shape)
            raise InputError(f"{shard.path} must be two-dimensional, one embedding a row, found shape {found}")
        if shard.shape[1] != first.shape[1]:
            raise InputError(
                f"{shard.path} must have {first.shape[1]} columns as {first.path.name} has, found {shard.shape[1]}; "
                "keep rows of other encoders in another folder"
            )
        if shard.dtype != first.dtype:
            raise InputError(
                f"{shard.path} must hold {first.dtype} as {first.path.name} does, found {shard.dtype}; convert it"
            )
    return RowFiles(shards)


def _list_shards(folder: Path) -> list[Path]:
    try:
        names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {first_line(error)}") from error
    if not names:
        raise InputError(f"{folder} must hold .npy shards, found an empty folder")
    for path in names:
        if path.suffix.lower() != ".npy" or not path.is_file():
            raise InputError(f"{folder} must hold .npy shards alone, found {path.name}; move it elsewhere")
    return names
