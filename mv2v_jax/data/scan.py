"""One pass over all rows of a space, block by block, however they are stored.

The next block is read while the current one is processed, so a pass takes the longer of the two times, not their sum.
An accumulator sees every block in order; each accumulator of a pass runs in its own thread.
"""

import concurrent.futures
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.data.row_files import RowFiles
from mv2v_jax.ops.masked import MAX_TIMES_MEDIAN, working_dtype

# Size of a block as stored: small enough for the caches, large enough that threads hardly wait for each other.
_BLOCK_BYTES = 2**22
# Rows per block of a digest.
DIGEST_ROWS = 1024
# Rows whose lengths stand for those of all: their median is right within a few percent.
_LENGTH_ROWS = 1024

# Called with the number of rows seen and the number of rows to see.
OnRows = Callable[[int, int], None]


class Accumulator(Protocol):
    """Collects something from all rows, one block after the other."""

    def add(self, start: int, block: np.ndarray) -> None:
        """Take in rows ``[b, d]``, the first of which is row ``start``."""


class RowStatistics(NamedTuple):
    """Facts about all rows of a space ``[n, d]``.

    Attributes:
        mean: ``[d]`` float64, mean of the nonzero rows, where rows that are far too long count with the median length.
        mean_norm: mean length of the nonzero rows, likewise.
        num_zero: number of zero rows.
        num_duplicates: number of rows that equal an earlier row, by a 64-bit fingerprint per row.
        digest: SHA-256 of dtype, shape and the SHA-256 of every 1,024 rows, in hexadecimal.
    """

    mean: np.ndarray
    mean_norm: float
    num_zero: int
    num_duplicates: int
    digest: str


@dataclasses.dataclass(frozen=True)
class CheckedRows:
    """Rows whose values have been checked, so that no later step scans them again. Use them like the rows themselves.

    Attributes:
        rows: ``[n, d]``, an array, a memory map or `RowFiles`.
        mean: `RowStatistics.mean` of the rows.
        digest: `RowStatistics.digest` of the rows; ``None`` where it has not been computed.
    """

    rows: Any
    mean: np.ndarray
    digest: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype:
        return self.rows.dtype

    @property
    def ndim(self) -> int:
        return self.rows.ndim

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.rows, dtype)


# ---------------------------------------------------------------------------------------------------------------- pass


def read_blocks(
    rows: Any, block_rows: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Read rows ``first`` to ``last`` of ``rows [n, d]`` in blocks, one block ahead.

    Args:
        rows: an array, a memory map or `RowFiles`.
        block_rows: rows per block; the last block may have fewer.
        first: number of the first row.
        last: number after the last row; all rows by default.

    Yields:
        The number of a block's first row, and the block, ``[b, d]`` and contiguous.

    Raises:
        InputError: a file can no longer be read.
    """
    last = rows.shape[0] if last is None else last

    def read(start: int) -> np.ndarray:
        return np.ascontiguousarray(rows[start : min(start + block_rows, last)])

    starts = range(first, last, block_rows)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, first) if starts else None
        for start in starts:
            assert ahead is not None
            block = ahead.result()
            if start + block_rows < last:
                ahead = reader.submit(read, start + block_rows)
            yield start, block


def _on_host(rows: Any) -> Any:
    rows = rows.rows if isinstance(rows, CheckedRows) else rows
    # For a JAX array this copies nothing on CPU, and one copy from a device is faster than one per block.
    return rows if isinstance(rows, (np.ndarray, RowFiles)) else np.asarray(rows)


def scan_rows(
    rows: Any, *accumulators: Accumulator, first: int = 0, last: int | None = None, on_rows: OnRows | None = None
) -> None:
    """Pass rows ``first`` to ``last`` of ``rows [n, d]`` to every accumulator, in one pass.

    Args:
        rows: a NumPy or JAX array, a memory map or `RowFiles`.
        accumulators: each runs in its own thread.
        first: number of the first row.
        last: number after the last row; all rows by default.
        on_rows: called after every block with the number of rows seen and the number of rows to see.
    """
    rows = _on_host(rows)
    last = rows.shape[0] if last is None else last
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    block_rows = max(1, _BLOCK_BYTES // max(row_bytes, 1))
    with concurrent.futures.ThreadPoolExecutor(len(accumulators)) as threads:
        for start, block in read_blocks(rows, block_rows, first, last):
            for added in [threads.submit(accumulator.add, start, block) for accumulator in accumulators]:
                added.result()
            if on_rows is not None:
                on_rows(start + len(block) - first, last - first)


# -------------------------------------------------------------------------------------------------------- accumulators


def length_range(dtype: Any) -> tuple[float, float]:
    """Smallest and largest row length whose square JAX can compute for rows of ``dtype``."""
    numbers = jnp.finfo(working_dtype(jax.dtypes.canonicalize_dtype(dtype)))
    # The difference of two rows may be twice as long as they are, or 2,000 times shorter, and must keep its precision.
    return 2_000 * float(numbers.tiny) ** 0.5 / float(numbers.eps) ** 0.5, float(numbers.max) ** 0.5 / 4


def sampled_median_length(rows: Any) -> float:
    """Median length of the nonzero ones among at most 1,024 rows of ``rows [n, d]``; infinity where all are zero.

    It is needed before the pass over all rows, and reads few of them; only files in Fortran order are read as a whole.
    The sample depends on ``n`` alone, so that every process has the same.
    """
    rows = _on_host(rows)
    num_rows = rows.shape[0]
    if num_rows > _LENGTH_ROWS:
        rows = rows[np.sort(np.random.default_rng(num_rows).choice(num_rows, _LENGTH_ROWS, replace=False))]
    else:
        rows = rows[:]
    values = np.asarray(rows).astype(np.float64)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
    # Rows that are not finite are refused later, by their number.
    lengths = np.sort(lengths[(lengths > 0) & np.isfinite(lengths)])
    return float(lengths[(len(lengths) - 1) // 2]) if len(lengths) else math.inf


class Moments:
    """Mean and mean length of the nonzero rows, in float64; number of zero rows; rows that are not finite or too long.

    Args:
        median: median length of the rows. Rows of more than `MAX_TIMES_MEDIAN` times this length are scaled down to it
            before they are averaged, as in `ops.masked.shorten_rows`. By default all rows keep their lengths.

    Attributes:
        num_rows: number of rows seen.
        num_zero: number of zero rows.
        num_not_finite: number of rows with NaN or infinity.
        first_not_finite: number of the first of them; ``None`` if there is none.
        first_too_long: number of the first row whose square overflows (`length_range`); ``None`` if there is none.
    """

    def __init__(self, median: float = math.inf) -> None:
        self.num_rows = self.num_zero = self.num_not_finite = 0
        self._median = median
        self.first_not_finite: int | None = None
        self.first_too_long: int | None = None
        self._sum: Any = 0.0
        self._norms: list[float] = []

    def add(self, start: int, block: np.ndarray) -> None:
        values = block.astype(np.float64)
        with np.errstate(all="ignore"):
            squared = np.einsum("ij,ij->i", values, values)
            lengths = np.sqrt(squared)
            long = np.flatnonzero(lengths > MAX_TIMES_MEDIAN * self._median)
            self._sum = self._sum + self._shortened(values, lengths, long).sum(axis=0)
            lengths[long] = self._median
            self._norms.append(float(lengths.sum()))
        self.num_rows += len(block)
        # The sum of squares of a nonzero row can be 0, and that of a finite row infinite: look at these few again.
        tiny = np.flatnonzero(squared == 0)
        self.num_zero += int((~(values[tiny] != 0).any(axis=1)).sum())
        suspect = np.flatnonzero(~np.isfinite(squared))
        bad = suspect[~np.isfinite(values[suspect]).all(axis=1)]
        if bad.size and self.first_not_finite is None:
            self.first_not_finite = start + int(bad[0])
        self.num_not_finite += bad.size
        # A row with NaN does not compare as longer; it is counted above.
        too_long = np.flatnonzero(squared > length_range(block.dtype)[1] ** 2)
        if too_long.size and self.first_too_long is None:
            self.first_too_long = start + int(too_long[0])

    def _shortened(self, values: np.ndarray, lengths: np.ndarray, long: np.ndarray) -> np.ndarray:
        if not long.size:
            return values
        shortened = values.copy()
        shortened[long] *= (self._median / lengths[long])[:, None]
        return shortened

    @property
    def num_present(self) -> int:
        """Number of nonzero rows."""
        return self.num_rows - self.num_zero

    @property
    def mean(self) -> np.ndarray:
        """Mean ``[d]`` of the nonzero rows."""
        return self._sum / max(self.num_present, 1)

    @property
    def mean_norm(self) -> float:
        """Mean length of the nonzero rows."""
        return math.fsum(self._norms) / max(self.num_present, 1)


class Difference:
    """Whether any two nonzero rows differ.

    Attributes:
        found: true once a nonzero row differs from the first nonzero row.
        reference: ``[d]``, the first nonzero row; ``None`` if there is none yet.
    """

    def __init__(self) -> None:
        self.found = False
        self.reference: np.ndarray | None = None

    def add(self, start: int, block: np.ndarray) -> None:
        if self.found:
            return
        present = (block != 0).any(axis=1)
        if self.reference is None and present.any():
            self.reference = block[int(present.argmax())].copy()
        if self.reference is not None:
            self.found = bool(((block != self.reference).any(axis=1) & present).any())


class Digest:
    """SHA-256 of every `DIGEST_ROWS` rows, independent of the files and blocks that the rows come in.

    Shares of the rows that begin at multiples of `DIGEST_ROWS` can be digested apart and joined by `join_digest`.
    """

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._block = hashlib.sha256()
        self._num_rows = 0

    def add(self, start: int, block: np.ndarray) -> None:
        while len(block):
            rows, block = np.split(block, [DIGEST_ROWS - self._num_rows])
            self._block.update(rows.view(np.uint8).data)
            self._num_rows += len(rows)
            if self._num_rows == DIGEST_ROWS:
                self._end_block()

    def _end_block(self) -> None:
        self._digests.append(self._block.digest())
        self._block, self._num_rows = hashlib.sha256(), 0

    def finish(self) -> bytes:
        """The digests of all blocks, one after the other."""
        if self._num_rows:
            self._end_block()
        return b"".join(self._digests)


def join_digest(rows: Any, digests: bytes) -> str:
    """`RowStatistics.digest` of ``rows``, from `Digest.finish` of all of them."""
    return hashlib.sha256(f"{rows.dtype} {tuple(rows.shape)}".encode() + digests).hexdigest()


def digest(rows: Any) -> str:
    """`RowStatistics.digest` of ``rows [n, d]``."""
    if isinstance(rows, CheckedRows) and rows.digest is not None:
        return rows.digest
    found = Digest()
    scan_rows(rows, found)
    return join_digest(rows, found.finish())


class Duplicates:
    """Number of rows that equal an earlier row, by a 64-bit fingerprint per row.

    Only the fingerprints are kept, eight bytes per row, and sorted at the end. Among 10^7 different rows, two share a
    fingerprint with a probability of 10^-5.

    Args:
        rows: the rows to scan, or rows of which a share is scanned.
    """

    def __init__(self, rows: Any) -> None:
        num_rows, d = rows.shape
        self._fingerprints = np.empty(num_rows, np.uint64)
        self._num_seen = 0
        # The widest word of which the bytes of a row are a multiple.
        self._word = np.dtype(f"u{math.gcd(8, d * rows.dtype.itemsize)}")
        num_words = d * rows.dtype.itemsize // self._word.itemsize
        # Odd factors lose no bit. They are the same for every file and run.
        self._factors = np.random.default_rng(0).integers(2**63, size=(2, num_words), dtype=np.uint64) | np.uint64(1)

    def add(self, start: int, block: np.ndarray) -> None:
        words = block.view(self._word).astype(np.uint64)
        # A product carries upwards only, so high bits are mixed into lower ones before each. Otherwise the sums of rows
        # that differ only in the signs of some numbers would be equal.
        for factors, shift in zip(self._factors, (32, 29), strict=True):
            words ^= words >> np.uint64(shift)
            words *= factors
        self._fingerprints[self._num_seen : self._num_seen + len(block)] = words.sum(axis=1, dtype=np.uint64)
        self._num_seen += len(block)

    def count(self) -> int:
        """Number of duplicates among the rows seen so far."""
        seen = self._fingerprints[: self._num_seen]
        seen.sort()
        return int((seen[1:] == seen[:-1]).sum())
