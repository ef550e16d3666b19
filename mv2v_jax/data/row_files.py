"""Rows that stay on disk: one ``.npy`` file or a folder of shards, of which only the requested rows are read.

No file is mapped into memory. Mapped pages count as resident memory, and if a mapped file is cut short, reading it ends
the process by a signal. A positioned read fails with an error that can be reported.
"""

import io
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.errors import InputError, first_line
from mv2v_jax.paths import is_file, is_folder, list_folder

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Largest size of an array without numbers.
_MAX_EMPTY = 2**24


class Shard(NamedTuple):
    """One ``.npy`` file of rows.

    Attributes:
        path: the file.
        offset: number of bytes before the first number.
        shape: shape of the array, rows first.
        dtype: dtype of the numbers.
        by_column: whether the numbers are stored column by column, in Fortran order.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    by_column: bool


def _open_shard(path: Path) -> Shard:
    """Read the header of a ``.npy`` file and check the length of the file against it."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"its format is version {version}")
            shape, by_column, dtype = _HEADERS[version](file)
            offset, size = file.tell(), path.stat().st_size
            is_empty = not math.prod(shape) * dtype.itemsize
            # Where there are no numbers, or those of no bytes, the length of the file does not limit the sizes.
            if min(shape, default=0) < 0 or (is_empty and max(shape) > _MAX_EMPTY):
                raise ValueError(f"its shape is {list(shape)}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    except Exception as error:
        # NumPy evaluates the header, and damaged ones raise whatever that raises: SyntaxError, TypeError, tokenize's.
        raise InputError(f"{path} cannot be read, it is damaged or cut short: {first_line(error)}") from error
    if dtype.hasobject:
        raise InputError(f"{path} must hold numbers, found an object array, which is not unpickled")
    if dtype.subdtype is not None:
        raise InputError(f"{path} must hold numbers, found arrays of {dtype.subdtype[0]} in their place")
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise InputError(
            f"{path} cannot be read, it is damaged or cut short: shape {list(shape)} of {dtype} takes {needed:,} "
            f"bytes, found {size:,}; write it again"
        )
    return Shard(path=path, offset=offset, shape=shape, dtype=dtype, by_column=by_column)


def _fill(file: io.FileIO, start: int, out: np.ndarray, path: Path) -> None:
    """Fill a contiguous array with the bytes of a file from ``start`` on."""
    view = out.reshape(-1).view(np.uint8).data
    file.seek(start)
    # One read may return fewer bytes than requested.
    while view:
        count = file.readinto(view)
        if not count:
            raise InputError(f"{path} was cut short while it was read: {len(view):,} bytes are missing; write it again")
        view = view[count:]


def _runs(index: np.ndarray) -> list[tuple[int, int]]:
    """Runs of consecutive row numbers in ``index``: the first place of each run, and the place after its last."""
    breaks = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(index)], strict=True))


def _read_rows(shard: Shard, index: np.ndarray) -> np.ndarray:
    """Rows of one shard; ``index`` holds their numbers in the shard, in ascending order."""
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
    """Fill ``out`` from a file in Fortran order: read each column from the first to the last row, and pick the rows."""
    first, last = int(index[0]), int(index[-1]) + 1
    column = np.empty(last - first, shard.dtype)
    num_rows, num_columns = shard.shape
    for place in range(num_columns):
        _fill(file, shard.offset + (place * num_rows + first) * shard.dtype.itemsize, column, shard.path)
        out[:, place] = column[index - first]


class RowFiles:
    """Rows of one ``.npy`` file or of several, one after the other, as one array that stays on disk.

    ``rows[start:stop]`` and ``rows[index]`` read only these rows and return a NumPy array; ``np.asarray(rows)`` reads
    all rows. Made by `open_rows`.

    Attributes:
        shards: the files, in order.
        shape: ``(n, d)``.
        dtype: dtype of the numbers, the same in every file, in the byte order of this machine.
        ndim: 2.
        nbytes: number of bytes of all rows.
    """

    ndim = 2

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        # JAX has no foreign byte order: rows change it when they are read.
        self.dtype = shards[0].dtype.newbyteorder("=")
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        self.shape = (int(self._starts[-1]), shards[0].shape[1])
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"RowFiles({self.shards[0].path}, {len(self.shards)} files, shape {list(self.shape)}, {self.dtype})"

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read rows by a number, a slice, or an array of whole numbers in any order, as NumPy indexes them.

        Raises:
            IndexError: a row number out of range, or an index of another kind.
            InputError: a file can no longer be read.
        """
        n = self.shape[0]
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(n)))
        index = np.asarray(index)
        if index.ndim > 1 or not (np.issubdtype(index.dtype, np.integer) or index.size == 0):
            raise IndexError(f"index must be a slice or whole numbers, found {index.dtype} {list(index.shape)}")
        if index.size and not (-n <= index.min() and index.max() < n):
            raise IndexError(f"index must be within {n} rows, found {index.min()} to {index.max()}")
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
            _read_rows(shard, wanted[first:last] - start).astype(self.dtype, copy=False)
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
        """What an error message calls a row: its number, or its shard and its number there if there are several."""
        if len(self.shards) == 1:
            return f"row {row}"
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"shard {self.shards[shard].path} row {row - int(self._starts[shard])}"


def open_rows(path: str | Path) -> RowFiles:
    """Open a ``.npy`` file, or a folder of ``.npy`` shards in the order of their names, without reading any row.

    Args:
        path: the file or the folder. Files in a folder whose names start with a dot are ignored. Numbers in names are
            compared as numbers: ``part-2`` comes before ``part-10``, with or without leading zeros.

    Returns:
        `RowFiles` of shape ``(n, d)``, in the dtype of the files.

    Raises:
        InputError: there is nothing of that name; a file is damaged, cut short, or would have to be unpickled; a folder
            holds no shard, or something that is not a shard; a shard has another dimension or dtype than the first.

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
    if not is_folder(path) and not is_file(path):
        raise InputError(f"{path} must be a .npy file or a folder of them, found nothing of that name")
    shards = [_open_shard(file) for file in (_list_shards(path) if is_folder(path) else [path])]
    first = shards[0]
    for shard in shards:
        if len(shard.shape) != 2:
            found = list(shard.shape)
            raise InputError(f"{shard.path} must be two-dimensional, one embedding per row, found shape {found}")
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


def by_number(name: str) -> tuple[list[Any], str]:
    """A key that sorts names as people number them: ``part-2`` comes before ``part-10``."""
    # Text and digits alternate, starting with text, so that no text is compared with a number. Digits are compared by
    # their count first, because Python reads no number of thousands of digits.
    parts: list[Any] = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [(len(number), number) for number in digits]
    return parts, name


def _list_shards(folder: Path) -> list[Path]:
    names = sorted(
        (path for path in list_folder(folder) if not path.name.startswith(".")), key=lambda path: by_number(path.name)
    )
    if not names:
        raise InputError(f"{folder} must hold .npy shards, found an empty folder")
    for path in names:
        if path.suffix.lower() != ".npy" or not is_file(path):
            raise InputError(f"{folder} must hold only .npy shards, found {path.name}; move it elsewhere")
    return names
