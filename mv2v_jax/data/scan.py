"""What one pass over all rows of a space tells, block by block, whatever they are kept in.

The next block is read while this one is looked at, so that a pass takes the longer of the two, not their sum. Each
question is a class of its own that sees the blocks in their order; a pass asks as many as it is given.
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

from mv2v_jax.data.npy_rows import RowFiles, RowShare
from mv2v_jax.errors import InputError
from mv2v_jax.ops.masked import working_dtype

# Of the rows as they are stored; small enough for the caches, large enough that threads hardly wait for each other.
_BLOCK_BYTES = 2**22


DIGEST_ROWS = 1024


OnRows = Callable[[int, int], None]


def _range(dtype: Any) -> tuple[float, float]:
    """From where to where lengths of rows can be squared in the dtype that JAX computes such rows in."""
    numbers = jnp.finfo(working_dtype(jax.dtypes.canonicalize_dtype(dtype)))
    # The difference of two rows may be twice as long; and 2,000 times shorter than they are, as precise numbers.
    return 2_000 * float(numbers.tiny) ** 0.5 / float(numbers.eps) ** 0.5, float(numbers.max) ** 0.5 / 4


class Accumulator(Protocol):
    """Something to ask all rows, one block after the other."""

    def add(self, start: int, block: np.ndarray) -> None:
        """Look at rows ``[b, d]``, the first of which is number ``start``."""


class RowStatistics(NamedTuple):
    """What all rows of a space ``[n, d]`` have in common.

    Attributes:
        mean: ``[d]`` float64, mean of the rows that have a length.
        mean_norm: mean length of these rows.
        num_zero: rows without length.
        num_duplicates: rows that equal an earlier row, by a 64-bit fingerprint of each.
        digest: SHA-256 of dtype, shape and the SHA-256 of every 1,024 rows, in hexadecimal.
    """

    mean: np.ndarray
    mean_norm: float
    num_zero: int
    num_duplicates: int
    digest: str


@dataclasses.dataclass(frozen=True)
class CheckedRows:
    """Rows that were found finite and different: they need not be read for that again. They are used as the rows are.

    Attributes:
        rows: ``[n, d]``, an array, a memory map or `RowFiles`.
        mean: ``[d]`` float64, mean of the rows that have a length.
        digest: SHA-256 of them, see `RowStatistics`; ``None`` where nobody asked.
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


class Moments:
    """Sums in float64, with what adding blocks would round off kept apart; zero rows and rows that are not finite or
    too long.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_zero = self.num_not_finite = 0
        self.first_not_finite: int | None = None
        self.first_too_long: int | None = None
        self._sum: Any = 0.0
        self._lost: Any = 0.0
        self._norms: list[float] = []

    def add(self, start: int, block: np.ndarray) -> None:
        values = block.astype(np.float64)
        with np.errstate(all="ignore"):
            squared = np.einsum("ij,ij->i", values, values)
            self._add_sum(values.sum(axis=0))
            self._norms.append(float(np.sqrt(squared).sum()))
        self.num_rows += len(block)
        # A sum of squares can be 0 or infinite where no number is; these few rows are looked at once more.
        tiny = np.flatnonzero(squared == 0)
        self.num_zero += int((~(values[tiny] != 0).any(axis=1)).sum())
        suspect = np.flatnonzero(~np.isfinite(squared))
        bad = suspect[~np.isfinite(values[suspect]).all(axis=1)]
        if bad.size and self.first_not_finite is None:
            self.first_not_finite = start + int(bad[0])
        self.num_not_finite += bad.size
        # Not so where the sum is no number; that row is named above.
        too_long = np.flatnonzero(squared > _range(block.dtype)[1] ** 2)
        if too_long.size and self.first_too_long is None:
            self.first_too_long = start + int(too_long[0])

    def _add_sum(self, addend: np.ndarray) -> None:
        """Neumaier's compensated sum, elementwise."""
        total = self._sum + addend
        larger = np.abs(self._sum) >= np.abs(addend)
        self._lost = self._lost + np.where(larger, (self._sum - total) + addend, (addend - total) + self._sum)
        self._sum = total

    @property
    def mean(self) -> np.ndarray:
        return (self._sum + self._lost) / max(self.num_rows - self.num_zero, 1)

    @property
    def mean_norm(self) -> float:
        return math.fsum(self._norms) / max(self.num_rows - self.num_zero, 1)


class Difference:
    """Whether two rows that have a length differ; asks no further once they do."""

    def __init__(self) -> None:
        self.found = False
        self._reference: np.ndarray | None = None

    def add(self, start: int, block: np.ndarray) -> None:
        if self.found:
            return
        present = (block != 0).any(axis=1)
        if self._reference is None and present.any():
            self._reference = block[int(present.argmax())].copy()
        if self._reference is not None:
            self.found = bool(((block != self._reference).any(axis=1) & present).any())


class Digest:
    """SHA-256 of dtype, shape and the SHA-256 of every `DIGEST_ROWS` rows, whatever file they came from.

    So it can be put together from shares of the rows that begin at a multiple of them.
    """

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
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
        self.blocks.append(self._block.digest())
        self._block, self._num_rows = hashlib.sha256(), 0

    def finish(self) -> bytes:
        """Digests of all blocks, one after the other."""
        if self._num_rows:
            self._end_block()
        return b"".join(self.blocks)


def join_digest(rows: Any, blocks: bytes) -> str:
    """The digest of ``rows`` in hexadecimal, from those of their blocks."""
    return hashlib.sha256(f"{rows.dtype} {tuple(rows.shape)}".encode() + blocks).hexdigest()


class Duplicates:
    """Rows that equal an earlier row, by 64 bits of each: 10^7 different rows share one with a chance of 10^-5.

    A fingerprint a row is kept, eight bytes, and they are sorted at the end: whole rows are not.
    """

    def __init__(self, rows: Any) -> None:
        num_rows, d = rows.shape
        self._fingerprints = np.empty(num_rows, np.uint64)
        # Any row's bytes make a whole number of these words.
        self._word = np.dtype(f"u{math.gcd(8, d * rows.dtype.itemsize)}")
        num_words = d * rows.dtype.itemsize // self._word.itemsize
        # Odd factors lose no bit. They are the same for every file and run.
        self._factors = np.random.default_rng(0).integers(2**63, size=(2, num_words), dtype=np.uint64) | np.uint64(1)

    def add(self, start: int, block: np.ndarray) -> None:
        words = block.view(self._word).astype(np.uint64)
        # A product carries upwards only, so high bits are mixed in below before each: a sum of words that only differ
        # in the signs of some numbers would cancel otherwise.
        for factors, shift in zip(self._factors, (32, 29), strict=True):
            words ^= words >> np.uint64(shift)
            words *= factors
        self._fingerprints[start : start + len(block)] = words.sum(axis=1, dtype=np.uint64)

    def count(self) -> int:
        self._fingerprints.sort()
        return int((self._fingerprints[1:] == self._fingerprints[:-1]).sum())


def read_blocks(rows: Any, block_rows: int, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of ``rows [n, d]`` from row ``first`` on, each with the number of its first row, read one ahead.

    Args:
        rows: an array, a memory map or `RowFiles`.
        block_rows: rows of a block; the last may have fewer.
        first: where to begin.

    Raises:
        InputError: a file cannot be read any more.
    """

    def read(start: int) -> np.ndarray:
        return np.ascontiguousarray(rows[start : start + block_rows])

    starts = range(first, rows.shape[0], block_rows)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, first) if starts else None
        for start in starts:
            assert ahead is not None
            block = ahead.result()
            if start + block_rows < rows.shape[0]:
                ahead = reader.submit(read, start + block_rows)
            yield start, block


def scan_rows(rows: Any, *questions: Accumulator, on_rows: OnRows | None = None) -> None:
    """Show all ``rows [n, d]`` to every question in one pass, each in a thread of its own.

    Args:
        rows: a NumPy or JAX array, a memory map or `RowFiles`.
        questions: what to ask.
        on_rows: called with the rows seen and the rows there are, after every block.
    """
    rows = rows.rows if isinstance(rows, CheckedRows) else rows
    # An array of JAX: on CPU this copies nothing, and one copy from a device is faster than one for every block.
    rows = rows if isinstance(rows, (np.ndarray, RowFiles, RowShare)) else np.asarray(rows)
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    block_rows = max(1, _BLOCK_BYTES // max(row_bytes, 1))
    with concurrent.futures.ThreadPoolExecutor(len(questions)) as threads:
        for start, block in read_blocks(rows, block_rows):
            for answered in [threads.submit(question.add, start, block) for question in questions]:
                answered.result()
            if on_rows is not None:
                on_rows(start + len(block), rows.shape[0])


def row_place(rows: Any, row: int) -> str:
    """What to call a row in an error message, with its shard where it has one."""
    if isinstance(rows, RowShare):
        return row_place(rows.rows, rows.first + row)
    return rows.place(row) if isinstance(rows, RowFiles) else f"row {row}"


def refuse_not_finite(rows: Any, name: str, moments: Moments) -> None:
    """Raise `InputError` where rows hold NaN or infinity, with the first such row and how many there are."""
    if moments.first_not_finite is not None:
        raise InputError(
            f"{name} must be finite, found NaN or infinity in {moments.num_not_finite} rows, first in "
            f"{row_place(rows, moments.first_not_finite)}"
        )


def refuse_too_long(rows: Any, name: str, moments: Moments) -> None:
    """Raise `InputError` where a row is so long that its square is infinite; the first one is named."""
    if moments.first_too_long is not None:
        raise InputError(_out_of_range(rows, name, f"a longer one, first in {row_place(rows, moments.first_too_long)}"))


def refuse_too_short(rows: Any, name: str, moments: Moments | RowStatistics) -> None:
    """Raise `InputError` where rows are so short, on average, that their squares are taken for zero."""
    if moments.num_zero < rows.shape[0] and moments.mean_norm < _range(rows.dtype)[0]:
        raise InputError(_out_of_range(rows, name, f"a mean length of {moments.mean_norm:.1e}"))


def refuse_values(rows: Any, name: str, moments: Moments) -> None:
    """Raise `InputError` where rows are not finite, too long or too short: of all of them, not of a share."""
    refuse_not_finite(rows, name, moments)
    refuse_too_long(rows, name, moments)
    refuse_too_short(rows, name, moments)


def _out_of_range(rows: Any, name: str, found: str) -> str:
    shortest, longest = _range(rows.dtype)
    return (
        f"{name} must hold rows of lengths from {shortest:.0e} to {longest:.0e}, which can be squared, found {found}; "
        "multiply all rows by one number, which changes no rotation"
    )


def refuse_equal(rows: Any, name: str, difference: Difference) -> None:
    """Raise `InputError` where all rows with a length are equal: there is no geometry to align."""
    if not difference.found:
        raise InputError(f"{name} must hold different rows, found {rows.shape[0]} equal ones (zero rows aside)")


def check_rows(rows: Any, name: str) -> CheckedRows:
    """See in one pass that ``rows [n, d]`` are finite, in range and not all equal, and what their mean is.

    Raises:
        InputError: they are not; the first bad row is named, with its shard.
    """
    moments, difference = Moments(), Difference()
    scan_rows(rows, moments, difference)
    refuse_values(rows, name, moments)
    refuse_equal(rows, name, difference)
    return CheckedRows(rows=rows, mean=moments.mean)


class Measured(NamedTuple):
    """The answers of one pass, before anything is made of them."""

    moments: Moments
    difference: Difference
    digest: Digest
    duplicates: Duplicates


def scan_everything(rows: Any, on_rows: OnRows | None = None) -> Measured:
    """Ask ``rows [n, d]``, or a `RowShare` of them, everything that `describe_rows` tells."""
    measured = Measured(Moments(), Difference(), Digest(), Duplicates(rows))
    scan_rows(rows, *measured, on_rows=on_rows)
    return measured


def describe_rows(rows: Any, name: str, on_rows: OnRows | None = None) -> RowStatistics:
    """Check ``rows [n, d]`` as `check_rows` does and describe them, in one pass that keeps eight bytes a row.

    Args:
        rows: float16, bfloat16, float32 or float64; an array, a memory map or `RowFiles`.
        name: what to call them in an error message.
        on_rows: called with the rows seen and the rows there are, after every block.

    Raises:
        InputError: NaN, infinity, rows too long or too short to square, all rows equal, or a file that cannot be read
            any more.
    """
    moments, difference, digest, duplicates = scan_everything(rows, on_rows)
    refuse_values(rows, name, moments)
    refuse_equal(rows, name, difference)
    return RowStatistics(
        mean=moments.mean,
        mean_norm=moments.mean_norm,
        num_zero=moments.num_zero,
        num_duplicates=duplicates.count(),
        digest=join_digest(rows, digest.finish()),
    )


def digest(rows: Any) -> str:
    """`RowStatistics.digest` of ``rows [n, d]``."""
    if isinstance(rows, CheckedRows) and rows.digest is not None:
        return rows.digest
    found = Digest()
    scan_rows(rows, found)
    return join_digest(rows, found.finish())
