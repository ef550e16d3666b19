"""Rows padded to one of a few sizes, and sampled above a maximum, so that data of similar size compiles nothing new.

Padding appends zero rows, which every stage ignores. Padding and sampling happen before anything is traced or copied to
a device, so that only the sampled rows of a file are held in memory. Samples are centred by the mean of all rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.data.scan import CheckedRows, Moments, sampled_median_length, scan_rows
from mv2v_jax.errors import InputError
from mv2v_jax.ops.masked import median_length, present_rows, row_lengths, shorten_rows, working_dtype
from mv2v_jax.ops.sharding import BY_ROWS, EVERYWHERE, ROW, make_sharded, over_mesh

# Padding adds at most an eighth of the rows.
_SIZES_PER_DOUBLING = 8
# Rows per partial sum under a transformation, so that a long float32 sum loses little.
_SUM_ROWS = 1024


class PaddedRows(NamedTuple):
    """Rows of one space, padded.

    Attributes:
        rows: ``[padded_size(num_rows), d]`` JAX array, zero rows last.
        num_rows: int32 scalar, number of rows without the padding.
        mean: ``[d]``, mean of all nonzero rows of the data (`scan.Moments`), if ``rows`` are a sample of it; ``None``
            otherwise.
        seeds: ``[padded_size(p), d]``, this space's rows of the known pairs, zero rows last; ``None`` without pairs.
    """

    rows: jax.Array
    num_rows: jax.Array
    mean: jax.Array | None = None
    seeds: jax.Array | None = None


def padded_size(num_rows: int) -> int:
    """The smallest padded size of at least ``num_rows``: above 8, eight evenly spaced sizes per power of two.

    Example:
        >>> [padded_size(num_rows) for num_rows in (5, 16, 17, 3_000, 60_000)]
        [5, 16, 18, 3072, 61440]
    """
    step = 1 << max(0, (num_rows - 1).bit_length() - _SIZES_PER_DOUBLING.bit_length())
    return -(-num_rows // step) * step


def sampled_rows(num_rows: int, max_rows: int) -> np.ndarray | None:
    """The numbers of ``max_rows`` rows sampled from ``num_rows``, in ascending order; ``None`` if all rows are used."""
    if num_rows <= max_rows:
        return None
    # The sample depends on the number of rows alone, as in `space.hold_out`, so that restarts can share it.
    return np.sort(np.random.default_rng(num_rows).choice(num_rows, max_rows, replace=False))


def _mean_of_all(x: Any) -> Any:
    """Mean ``[d]`` of the nonzero rows of ``x [n, d]``, rows that are far too long shortened."""
    if isinstance(x, CheckedRows):
        return x.mean
    if not isinstance(x, jax.core.Tracer):
        moments = Moments(sampled_median_length(x))
        scan_rows(x, moments)
        return moments.mean
    values = shorten_rows(x.astype(working_dtype(x.dtype)), median_length(row_lengths(x)))
    blocks = jnp.pad(values, ((0, -len(values) % _SUM_ROWS), (0, 0))).reshape(-1, _SUM_ROWS, values.shape[1])
    num_present = jnp.maximum(present_rows(x).sum(), 1).astype(values.dtype)
    return blocks.sum(axis=1).sum(axis=0) / num_present


def row_specs(x: PaddedRows) -> PaddedRows:
    """The sharding of each array that `pad_rows` makes over a mesh."""
    return jax.tree.map(lambda _: EVERYWHERE, x)._replace(rows=BY_ROWS)


def spread(fun: Callable[..., Any], mesh: Mesh | None, args: tuple[Any, ...]) -> Callable[..., Any]:
    """``fun`` on every device of a mesh, for ``args`` of which padded rows are sharded, and all others are not."""
    return over_mesh(fun, mesh, *(row_specs(arg) if isinstance(arg, PaddedRows) else EVERYWHERE for arg in args))


def check_divisible(num_rows: int, max_rows: int, mesh: Mesh | None) -> None:
    """Raise `InputError` unless the devices of the row axis divide ``num_rows`` rows after sampling and padding."""
    padded = padded_size(min(num_rows, max_rows))
    if mesh is not None and padded % mesh.shape[ROW]:
        raise InputError(
            f"the devices along the row axis must divide the padded rows, {padded}, found {mesh.shape[ROW]}; use a "
            "smaller power of two"
        )


def _shard_rows(x: Any, index: np.ndarray | None, mean: Any, seeds: Any, mesh: Mesh) -> PaddedRows:
    """Rows ``index`` of ``x`` (all if ``None``), padded; each process reads those of its own devices."""
    num_rows = x.shape[0] if index is None else len(index)
    shape = (padded_size(num_rows), x.shape[1])
    check_divisible(num_rows, num_rows, mesh)

    # Devices that search with the same rows request them one after the other.
    @functools.lru_cache(maxsize=1)
    def read_part(first, last):
        rows = np.asarray(x[first : min(last, num_rows)] if index is None else x[index[first:last]])
        return np.pad(rows, ((0, last - first - len(rows)), (0, 0)))

    def read(slices):
        first, last, _ = slices[0].indices(shape[0])
        return read_part(first, last)

    def everywhere(values):
        return make_sharded(values.shape, mesh, EVERYWHERE, lambda _: values)

    dtype = working_dtype(x.dtype)
    return PaddedRows(
        rows=make_sharded(shape, mesh, BY_ROWS, read),
        num_rows=everywhere(np.asarray(num_rows, np.int32)),
        mean=None if mean is None else everywhere(np.asarray(mean, dtype)),
        seeds=None if seeds is None else everywhere(np.asarray(seeds)),
    )


def _pad(rows: Any) -> Any:
    padding = ((0, padded_size(rows.shape[0]) - rows.shape[0]), (0, 0))
    # NumPy pads without compiling anything.
    return jnp.pad(rows, padding) if isinstance(rows, jax.Array) else np.pad(rows, padding)


def padded_shapes(x: Any, max_rows: int) -> Any:
    """The shapes and dtypes of the arrays that `pad_rows` makes of ``x [n, d]`` without a mesh and without pairs."""
    num_rows, num_dims = x.shape
    rows: Any = jax.ShapeDtypeStruct(
        (padded_size(min(num_rows, max_rows)), num_dims), jax.dtypes.canonicalize_dtype(x.dtype)
    )
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    mean: Any = jax.ShapeDtypeStruct((num_dims,), working_dtype(rows.dtype)) if num_rows > max_rows else None
    return PaddedRows(rows=rows, num_rows=count, mean=mean)


def pad_rows(
    x: Any, max_rows: int, mesh: Mesh | None = None, seeds: Any = None, *, index: np.ndarray | None = None
) -> PaddedRows:
    """Pad rows ``x [n, d]`` to one of the sizes, after sampling ``max_rows`` of them if there are more.

    Args:
        x: a NumPy or JAX array, a memory map, `RowFiles`, or `CheckedRows` of any of them.
        max_rows: maximum number of rows. The mean of a sample is that of all rows of ``x``.
        mesh: mesh over which the rows are sharded, if any; each process reads the rows of its own devices.
        seeds: ``[p, d]``, this space's rows of the known pairs, if any.
        index: ``[m]`` numbers of the rows that make up the data, instead of all: at most ``max_rows``, with repeats
            allowed. No other row is read, and the mean is that of these rows.

    Raises:
        InputError: the devices of the mesh's row axis do not divide the padded rows.
    """
    mean = None
    if index is None:
        index = sampled_rows(x.shape[0], max_rows)
        mean = None if index is None else _mean_of_all(x)
    seeds = None if seeds is None or not seeds.shape[0] else _pad(seeds)
    if mesh is not None:
        return _shard_rows(x, index, mean, seeds, mesh)
    rows = x if index is None else x[index]
    padded = jnp.asarray(_pad(rows.rows if isinstance(rows, CheckedRows) else rows))
    return PaddedRows(
        rows=padded,
        num_rows=jnp.asarray(rows.shape[0], jnp.int32),
        mean=None if mean is None else jnp.asarray(mean, working_dtype(padded.dtype)),
        seeds=None if seeds is None else jnp.asarray(seeds),
    )
