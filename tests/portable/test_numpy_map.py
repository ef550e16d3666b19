"""The map on NumPy is that of JAX, and needs no JAX."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from mv2v_jax import InputError, apply, invert, load_map, save_map
from mv2v_jax.portable import from_map, load, numpy_map


@pytest.mark.parametrize("frame", ["centred", "target"])
@pytest.mark.parametrize("inverse", [False, True])
def test_equals_apply(tmp_path, monkeypatch, linear_map, rows, frame, inverse):
    monkeypatch.setattr(numpy_map, "_BLOCK_NUMBERS", 9 * 7)
    save_map(tmp_path / "map.safetensors", linear_map, {"verdict": "aligned"})
    portable_map = load(tmp_path / "map.safetensors")
    assert portable_map.metadata["verdict"] == "aligned"
    rows, expected_by = (rows[:, :6], invert(linear_map)) if inverse else (rows, linear_map)
    mapped = portable_map.apply(rows, frame=frame, inverse=inverse)
    np.testing.assert_allclose(mapped, apply(expected_by, rows, frame=frame), rtol=0, atol=1e-6)
    assert mapped.dtype == rows.dtype


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_keeps_the_dtype_of_rows(linear_map, portable_map, rows, dtype):
    rows = rows[6:].astype(dtype)
    mapped = portable_map.apply(rows)
    assert mapped.dtype == dtype
    expected = apply(linear_map, rows.astype(np.float32))
    np.testing.assert_allclose(mapped.astype(np.float32), expected, atol=float(ml_dtypes.finfo(dtype).eps) + 1e-6)


def test_takes_a_single_row_lists_and_no_rows(portable_map, rows):
    np.testing.assert_array_equal(portable_map.apply(rows[7]), portable_map.apply(rows[7:8])[0])
    np.testing.assert_allclose(portable_map.apply(rows[:8].tolist()), portable_map.apply(rows[:8]), atol=1e-6)
    assert portable_map.apply(rows[:0]).shape == (0, 6)


def test_saves_what_jax_loads(tmp_path, linear_map, portable_map, rows):
    portable_map.invert().save(tmp_path / "back.safetensors")
    back, _ = load_map(tmp_path / "back.safetensors")
    np.testing.assert_array_equal(apply(back, rows[:, :6]), apply(invert(linear_map), rows[:, :6]))


def test_runs_without_jax(tmp_path, linear_map, rows):
    save_map(tmp_path / "map.safetensors", linear_map)
    np.save(tmp_path / "x.npy", rows)
    program = (
        "import sys; sys.modules.update(jax=None, jaxlib=None, optax=None, chex=None, ml_dtypes=None)\n"
        "import numpy as np; from mv2v_jax import portable; linear_map = portable.load('map.safetensors')\n"
        "np.save('mapped.npy', linear_map.apply(np.load('x.npy'))); linear_map.save('copy.safetensors')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "mapped.npy"), apply(linear_map, rows), atol=1e-6)
    np.testing.assert_array_equal(load(tmp_path / "copy.safetensors").W, linear_map.W)


def test_refuses_what_does_not_fit(tmp_path, portable_map, rows):
    with pytest.raises(InputError, match=r"rows must be \[n, 9\] for this map, found shape \[40, 8\]"):
        portable_map.apply(rows[:, :8])
    with pytest.raises(InputError, match=r"rows must be \[n, 6\]"):
        portable_map.apply(rows, inverse=True)
    with pytest.raises(InputError, match="found dtype int64"):
        portable_map.apply(np.ones((2, 9), np.int64))
    with pytest.raises(InputError, match="found 'raw'"):
        portable_map.apply(rows, frame="raw")
    with pytest.raises(InputError, match="no file of that name"):
        load(tmp_path / "none.safetensors")


def test_prints_its_dimensions(linear_map):
    assert repr(from_map(linear_map)) == "PortableMap(9 to 6 dimensions, float32)"
