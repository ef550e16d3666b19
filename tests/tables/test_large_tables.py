"""Parquet files of more numbers than 32 bits count, and row groups larger than memory should be."""

import subprocess
import sys

import numpy as np
import pytest
from cli.commands import RUN_AND_WRITE_PEAK
from helpers import make_map, semi_orthogonal, unit

from mv2v_jax.data.map_file import save_map
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.sources import open_source

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

MAX_BYTES = 2 * 2**30


def as_table(rows, repeats=1):
    """The rows as lists with offsets of 32 bits, several times over, without a copy."""
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    batch = pa.record_batch([pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))], names=["embedding"])
    return pa.Table.from_batches([batch] * repeats)


def test_a_row_group_is_not_read_at_once(tmp_path):
    rows = np.random.default_rng(0).random((131_072, 64), np.float32)
    parquet.write_table(as_table(rows), tmp_path / "x.parquet", row_group_size=2**40, use_dictionary=False)
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups == 1
    before, most = pa.total_allocated_bytes(), 0
    for vectors, _ in open_source(parse_address(tmp_path / "x.parquet")).batches():
        most = max(most, pa.total_allocated_bytes() - before - vectors.nbytes)
    assert most < rows.nbytes / 2


@pytest.mark.slow
def test_more_than_two_to_the_31_numbers(tmp_path):
    """In one row group of one column; the file is small because rows repeat and each holds one number only."""
    dims, distinct = 4096, 4096
    repeats = 2**31 // (dims * distinct) + 1
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=distinct).astype(np.float32)
    rows = np.repeat(numbers[:, None], dims, axis=1)
    parquet.write_table(as_table(rows, repeats), tmp_path / "x.parquet", row_group_size=2**40)
    column = parquet.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(0)
    assert column.num_values == rows.size * repeats > 2**31
    linear_map = make_map(semi_orthogonal(rng, dims, 4), rng.normal(size=dims), rng.normal(size=4))
    save_map(tmp_path / "map.safetensors", linear_map, {"verdict": "aligned"})
    command = [sys.executable, "-c", RUN_AND_WRITE_PEAK, "apply", "map.safetensors", "x.parquet", "-o", "y.parquet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if (tmp_path / "peak").exists():
        assert int((tmp_path / "peak").read_text()) * 1024 < MAX_BYTES
    mapped = parquet.read_table(tmp_path / "y.parquet").column("embedding").combine_chunks()
    found = mapped.flatten().to_numpy().reshape(repeats, distinct, 4)
    assert (found == found[0]).all()
    # What the map does, in float64.
    centred = rows.astype(np.float64) - np.asarray(linear_map.source.mean, np.float64)
    np.testing.assert_allclose(found[0], unit(centred @ np.asarray(linear_map.W, np.float64)), atol=1e-4)
