"""One pass over all rows, against NumPy with all rows in memory and against exact sums."""

import hashlib
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shortened, unit

from mv2v_jax.data import scan
from mv2v_jax.data.checks import check_rows, describe_rows
from mv2v_jax.data.row_files import open_rows
from mv2v_jax.data.scan import (
    CheckedRows,
    Difference,
    Digest,
    Duplicates,
    Moments,
    digest,
    join_digest,
    read_blocks,
    sampled_median_length,
    scan_rows,
)
from mv2v_jax.errors import InputError


@pytest.fixture
def few_a_block(monkeypatch):
    monkeypatch.setattr(scan, "_BLOCK_BYTES", 64)


def write_shards(folder, rows, num_shards):
    folder.mkdir()
    for part, shard in enumerate(np.array_split(rows, num_shards)):
        np.save(folder / f"{part:02d}.npy", shard)
    return open_rows(folder)


def mean_of(rows):
    moments = Moments()
    scan_rows(rows, moments)
    return moments.mean


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_statistics_of_a_few_rows(rng, few_a_block, tmp_path, dtype):
    rows = (3 + rng.normal(size=(50, 5))).astype(np.dtype(dtype))
    rows[[3, 7, 8]] = 0
    rows[20] = rows[11]
    seen = []
    found = describe_rows(rows, "x", lambda *step: seen.append(step))
    present = np.delete(rows.astype(np.float64), [3, 7, 8], axis=0)
    np.testing.assert_allclose(found.mean, present.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.mean_norm, np.linalg.norm(present, axis=1).mean(), rtol=1e-14)
    assert (found.num_zero, found.num_duplicates) == (3, 3)
    blocks = [hashlib.sha256(rows[start : start + 1024].tobytes()).digest() for start in range(0, len(rows), 1024)]
    expected = hashlib.sha256(f"{rows.dtype} {rows.shape}".encode() + b"".join(blocks)).hexdigest()
    assert found.digest == expected == digest(rows)
    assert seen[-1] == (50, 50)
    assert len(seen) > 7
    if dtype is not jnp.bfloat16:
        again = describe_rows(write_shards(tmp_path / "x", rows, 6), "x")
        np.testing.assert_allclose(again.mean, found.mean, rtol=1e-14)
        assert again[2:] == found[2:]


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_few_long_rows_do_not_move_the_statistics(rng, few_a_block, tmp_path, dtype):
    rows = (0.1 * (1 + rng.normal(size=(60, 5)))).astype(np.dtype(dtype))
    rows[[3, 4]] = 0
    long = unit(rows[[0, 31]].astype(np.float64))
    rows[[0, 31]] = ((6e4 if dtype is np.float16 else 1e18) * long).astype(rows.dtype)
    before = rows.copy()
    expected = np.delete(shortened(rows), [3, 4], axis=0)
    for stored in [rows] if dtype is jnp.bfloat16 else [rows, write_shards(tmp_path / "x", rows, 6)]:
        found = describe_rows(stored, "x")
        np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.mean_norm, np.linalg.norm(expected, axis=1).mean(), rtol=1e-14)
        np.testing.assert_array_equal(check_rows(stored, "x").mean, found.mean)
    np.testing.assert_array_equal(rows, before)


def test_one_long_row_does_not_hide_that_the_others_are_too_short(rng):
    rows = 1e-25 * rng.normal(size=(40, 3)).astype(np.float32)
    rows[0] = 1
    with pytest.raises(InputError, match=r"found a mean length of \d\.\de-25"):
        check_rows(rows, "x")


@pytest.mark.parametrize("num_rows", [1_024, 5_000])
def test_the_median_length_is_that_of_a_sample(rng, tmp_path, num_rows):
    rows = rng.lognormal(size=(num_rows, 1)) * np.ones(4)
    rows[::7] = 0
    rows[5, 2] = np.nan
    lengths = np.sort(np.linalg.norm(rows[(rows != 0).any(1) & np.isfinite(rows).all(1)], axis=1))
    found = sampled_median_length(rows)
    exact = lengths[(len(lengths) - 1) // 2]
    assert found == pytest.approx(exact, rel=1e-12 if num_rows == 1_024 else 0.15)
    assert sampled_median_length(write_shards(tmp_path / "x", rows, 3)) == found
    assert sampled_median_length(jnp.asarray(rows)) == pytest.approx(found, rel=1e-6)
    assert sampled_median_length(np.zeros((5, 2))) == math.inf


# 2 * 10^6 rows take a second; 10^7 rows take ten.
@pytest.mark.parametrize("num_rows", [2 * 10**6, pytest.param(10**7, marks=pytest.mark.slow)])
def test_the_mean_of_many_half_precision_rows(tmp_path, rng, num_rows):
    """All values are positive: a float32 sum of them is off by more than 1e-6."""
    rows = (1 + rng.random((num_rows, 4), np.float32)).astype(np.float16)
    truth = np.array([math.fsum(column.tolist()) for column in rows.T[:1]]) / num_rows
    naive = np.cumsum(rows[:, 0], dtype=np.float32)[-1] / num_rows
    assert abs(naive - truth[0]) > 1e-6
    found = mean_of(write_shards(tmp_path / "x", rows, 5))
    assert abs(found[0] - truth[0]) < 1e-12
    np.testing.assert_allclose(found, rows.mean(0, dtype=np.longdouble), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [1.0, -1e4, 1e6])
def test_the_mean_of_a_million_rows_far_from_zero(rng, dtype, offset):
    rows = (offset + rng.normal(size=(10**6, 3))).astype(dtype)
    truth = np.array([math.fsum(column.tolist()) for column in rows.T]) / len(rows)
    np.testing.assert_allclose(mean_of(rows), truth, rtol=1e-12, atol=0)


def test_the_mean_of_a_million_equal_rows():
    """The worst case: every addition may round in the same direction."""
    rows = np.full((10**6, 3), 1e4 + 0.1)
    np.testing.assert_allclose(mean_of(rows), rows[0], rtol=1e-11, atol=0)


def test_shares_are_scanned_apart(rng, few_a_block):
    """As several processes do, each with its own share of the rows."""
    rows = (5 + rng.normal(size=(3_000, 2))).astype(np.float32)
    rows[[3, 2_500]] = 0
    rows[2_700, 1] = np.nan
    rows[2_900] = rows[2_800]
    bounds, digests, counts, seen = (0, 1_024, 2_048, 3_000), b"", [], []
    for first, last in itertools.pairwise(bounds):
        moments, difference, part, duplicates = Moments(), Difference(), Digest(), Duplicates(rows)
        accumulators = (moments, difference, part, duplicates)
        scan_rows(rows, *accumulators, first=first, last=last, on_rows=lambda *step: seen.append(step))
        share = rows[first:last]
        assert seen[-1] == (len(share), len(share))
        assert (moments.num_rows, moments.num_zero) == (len(share), int((share == 0).all(axis=1).sum()))
        assert moments.first_not_finite == (2_700 if last == 3_000 else None)
        np.testing.assert_array_equal(difference.reference, share[0])
        digests += part.finish()
        counts.append(duplicates.count())
    assert counts == [0, 0, 1]
    assert join_digest(rows, digests) == digest(rows)


def test_squares_that_overflow_or_vanish():
    rows = np.array([[1e200, 1.0], [1e-200, 0.0], [0.0, 0.0]])
    moments = Moments()
    scan_rows(rows, moments)
    assert (moments.num_zero, moments.num_not_finite, moments.first_not_finite) == (1, 0, None)
    np.testing.assert_allclose(moments.mean, [5e199, 0.5])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_row_is_named_by_its_shard(tmp_path, rng, few_a_block, value):
    rows = rng.normal(size=(120, 4)).astype(np.float16)
    rows[[75, 76, 110], 2] = value
    stored = write_shards(tmp_path / "x", rows, 12)
    place = r"found NaN or infinity in 3 rows, first in shard .*x/07\.npy row 5$"
    for check in (check_rows, describe_rows):
        with pytest.raises(InputError, match=f"^x must be finite, {place}"):
            check(stored, "x")
        with pytest.raises(InputError, match=r"in 3 rows, first in row 75$"):
            check(rows, "x")


def test_equal_rows_are_refused(few_a_block, tmp_path):
    rows = np.ones((60, 4), np.float32)
    rows[::7] = 0
    with pytest.raises(InputError, match=r"^x must hold different rows, found 60 equal ones \(zero rows aside\)$"):
        describe_rows(write_shards(tmp_path / "x", rows, 5), "x")
    rows[59, 3] = 2
    difference = Difference()
    scan_rows(rows, difference)
    assert difference.found


@pytest.mark.parametrize(
    ("d", "dtype"), [(1, np.float16), (3, np.float16), (1, np.float32), (4, np.float16), (5, np.float64)]
)
def test_duplicates_are_those_of_unique(rng, few_a_block, d, dtype):
    rows = rng.integers(-2, 3, size=(400, d)).astype(dtype)
    duplicates = Duplicates(rows)
    scan_rows(rows, duplicates)
    # The bytes of -0.0 and 0.0 differ; these rows come from integers, which have no -0.
    assert duplicates.count() == 400 - len(np.unique(rows, axis=0))


def test_rows_that_differ_in_signs_alone_are_no_duplicates(rng):
    row = rng.normal(size=16).astype(np.float16)
    signs = (-1.0) ** ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    rows = row * signs.astype(np.float16)
    duplicates = Duplicates(rows)
    scan_rows(rows, duplicates)
    assert duplicates.count() == 0
    powers = np.ldexp(np.float16(1), rng.integers(-14, 15, size=(2**16, 16))).astype(np.float16)
    duplicates = Duplicates(powers)
    scan_rows(powers, duplicates)
    assert duplicates.count() == 2**16 - len(np.unique(powers, axis=0))


def test_blocks_come_in_order_and_one_is_read_ahead(rng):
    rows = rng.normal(size=(23, 2))
    read = []

    class Watched:
        shape = rows.shape

        def __getitem__(self, index):
            read.append(index.start)
            return rows[index]

    assert [len(block) for _, block in read_blocks(rows, 5, 3, 14)] == [5, 5, 1]
    blocks = read_blocks(Watched(), 5, 3)
    start, block = next(blocks)
    assert start == 3
    np.testing.assert_array_equal(block, rows[3:8])
    found = [(start, block), *blocks]
    assert [start for start, _ in found] == [3, 8, 13, 18] == read
    np.testing.assert_array_equal(np.concatenate([block for _, block in found]), rows[3:])
    assert not list(read_blocks(rows, 5, 23))


def test_an_error_while_reading_ahead_is_told(tmp_path, rng, few_a_block):
    stored = write_shards(tmp_path / "x", rng.normal(size=(120, 4)), 12)
    path = tmp_path / "x" / "07.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"07\.npy was cut short while it was read"):
        describe_rows(stored, "x")


def test_checked_rows_are_used_as_rows(rng):
    rows = rng.normal(size=(9, 3)).astype(np.float16)
    checked = check_rows(rows, "x")
    assert isinstance(checked, CheckedRows)
    assert (checked.shape, checked.dtype, checked.ndim, len(checked)) == ((9, 3), np.float16, 2, 9)
    np.testing.assert_array_equal(checked[[2, 4]], rows[[2, 4]])
    np.testing.assert_array_equal(np.asarray(checked), rows)
    assert digest(checked) == digest(rows)
