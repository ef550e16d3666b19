"""Reading and writing files: every format, damaged files, atomic writes, and no unpickling."""

import os
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import assert_trees_close

from mv2v_jax import Centering, LinearMap, apply
from mv2v_jax.data.atomic_files import atomic_path, check_writable, save_npy
from mv2v_jax.data.map_file import load_map, map_tensors, save_map
from mv2v_jax.data.row_files import RowFiles
from mv2v_jax.data.scan import digest
from mv2v_jax.errors import InputError
from mv2v_jax.stores.sources import load_embeddings

ROWS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.fixture
def linear_map():
    key = jax.random.key(0)
    return LinearMap(
        W=jnp.linalg.qr(jax.random.normal(key, (4, 3)))[0],
        source=Centering(mean=jnp.arange(4.0), scale=jnp.float32(0.5)),
        target=Centering(mean=jnp.arange(3.0), scale=jnp.float32(2.0)),
    )


def test_npy_stays_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    loaded = load_embeddings(str(tmp_path / "x.npy"))
    assert isinstance(loaded, RowFiles)
    np.testing.assert_array_equal(loaded, ROWS)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_archives_take_a_key(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    save = np.savez if suffix == "npz" else lambda path, **arrays: safetensors.numpy.save_file(arrays, path)
    save(path, a=ROWS, b=ROWS + 1)
    np.testing.assert_array_equal(load_embeddings(f"{path}:b"), ROWS + 1)
    with pytest.raises(InputError, match=r"several arrays, name one .*found a, b"):
        load_embeddings(str(path))
    with pytest.raises(InputError, match="array named c, found a, b"):
        load_embeddings(f"{path}:c")
    save(path, only=ROWS)
    np.testing.assert_array_equal(load_embeddings(str(path)), ROWS)


def test_safetensors_bfloat16(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.asarray(jnp.asarray(ROWS, jnp.bfloat16))}, path)
    assert load_embeddings(str(path)).dtype == jnp.bfloat16


def test_parquet_list_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"id": list(range(30)), "embedding": ROWS.tolist()}), path)
    np.testing.assert_allclose(load_embeddings(str(path)), ROWS)
    parquet.write_table(pyarrow.table({"embedding": [[1.0, 2.0], [1.0]]}), path)
    with pytest.raises(InputError, match="one length, found 1 to 2"):
        load_embeddings(str(path))
    parquet.write_table(pyarrow.table({"embedding": [[1.0, 2.0], None]}), path)
    with pytest.raises(InputError, match="found 1 nulls"):
        load_embeddings(str(path))
    parquet.write_table(pyarrow.table({"id": [1, 2]}), path)
    with pytest.raises(InputError, match="column of lists"):
        load_embeddings(str(path))


def test_torch_weights_only(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(torch.tensor(ROWS), path)
    np.testing.assert_array_equal(load_embeddings(str(path)), ROWS)
    torch.save({"x": torch.tensor(ROWS, dtype=torch.bfloat16), "step": 3}, path)
    assert load_embeddings(f"{path}:x").dtype == np.float32
    mark = tmp_path / "mark"
    torch.save(Bomb(mark), path)
    with pytest.raises(InputError, match="cannot be read, it must hold tensors only"):
        load_embeddings(str(path))
    assert not mark.exists()


def test_object_array_is_not_unpickled(tmp_path):
    mark = tmp_path / "mark"
    np.save(tmp_path / "x.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="object array, which is not unpickled"):
        load_embeddings(str(tmp_path / "x.npy"))
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError):
        load_embeddings(str(tmp_path / "y.npy"))
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"x": ROWS.tolist()}), path)
    elif suffix == "safetensors":
        safetensors.numpy.save_file({"x": ROWS}, path)
    else:
        (np.save if suffix == "npy" else np.savez)(path, ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"x\.\w+ cannot be read"):
        load_embeddings(str(path))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(InputError, match="nothing of that name"):
        load_embeddings(str(tmp_path / "x.npy"))
    with pytest.raises(InputError, match=r"found suffix \.xyz"):
        load_embeddings(str(tmp_path / "x.xyz"))


def test_map_round_trip(tmp_path, linear_map):
    path = tmp_path / "map.safetensors"
    save_map(path, linear_map, {"seed": 3, "config": {"a": 1}})
    loaded, metadata = load_map(path)
    assert_trees_close(loaded, linear_map, rtol=0, atol=0)
    assert metadata["seed"] == "3"
    assert metadata["config"] == '{"a": 1}'
    np.testing.assert_array_equal(apply(loaded, ROWS), apply(linear_map, ROWS))
    tensors = safetensors.numpy.load_file(path)
    assert set(tensors) == {"W", "mean_x", "mean_y", "scale_x", "scale_y"}
    for space, centering in (("x", linear_map.source), ("y", linear_map.target)):
        np.testing.assert_array_equal(tensors[f"mean_{space}"], centering.mean)
        np.testing.assert_array_equal(tensors[f"scale_{space}"], centering.scale)


def test_load_map_refuses_other_files(tmp_path, linear_map):
    with pytest.raises(InputError, match="no file of that name"):
        load_map(tmp_path / "none.safetensors")
    safetensors.numpy.save_file({"W": ROWS}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no tensor mean_x, mean_y"):
        load_map(tmp_path / "other.safetensors")
    tensors = map_tensors(linear_map)
    safetensors.numpy.save_file({**tensors, "mean_x": np.zeros(9, np.float32)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="means"):
        load_map(tmp_path / "odd.safetensors")
    safetensors.numpy.save_file({**tensors, "W": tensors["W"] * np.nan}, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match="finite"):
        load_map(tmp_path / "nan.safetensors")


def test_a_failed_write_leaves_nothing(tmp_path):
    final = tmp_path / "out.npy"
    final.write_text("old")

    def fail():
        with atomic_path(final) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]
    save_npy(final, ROWS)
    np.testing.assert_array_equal(np.load(final), ROWS)


def test_check_writable(tmp_path):
    with pytest.raises(InputError, match="found a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        check_writable(tmp_path / "none" / "out.npy")
    check_writable(tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())


def test_digest():
    assert digest(ROWS) == digest(ROWS.copy(order="F"))
    assert digest(ROWS) != digest(ROWS.astype(np.float64))
    assert digest(ROWS) != digest(ROWS[::-1])


BAD_TENSORS = {
    "integers": ("W", np.eye(4, 3, dtype=np.int64), "W must hold floating-point numbers, found int64"),
    "booleans": ("W", np.eye(4, 3) > 0, "W must hold floating-point numbers, found bool"),
    "complex": ("W", np.eye(4, 3, dtype=np.complex64), "W must hold floating-point numbers, found complex64"),
    "integer mean": ("mean_x", np.zeros(4, np.int32), "mean_x must hold floating-point numbers, found int32"),
    "zeros": ("W", np.zeros((4, 3), np.float32), "W must have a norm from 1e-15 to 1e+15, found 0"),
    "too large to square": ("W", np.full((4, 3), 1e25, np.float32), "W must have a norm from 1e-15 to 1e"),
    "too small to square": ("W", np.full((4, 3), 1e-25, np.float32), "W must have a norm from 1e-15 to 1e"),
    "NaN": ("W", np.full((4, 3), np.nan, np.float32), "W must be finite"),
    "infinite mean": ("mean_y", np.full(3, np.inf, np.float32), "mean_y must be finite"),
    "a long mean": ("mean_y", np.full(3, 1e30, np.float32), "mean_y must have a norm"),
    "no scale": ("scale_y", np.float32(0), "scale_y must have a norm"),
    "a negative scale": ("scale_x", np.float32(-1), "scale_x must be positive, found -1"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_numbers_that_are_no_map(tmp_path, linear_map, name):
    """They are refused where they are read, and where they would be written."""
    part, tensor, message = BAD_TENSORS[name]
    tensors = {**map_tensors(linear_map), part: np.asarray(tensor)}
    path = tmp_path / "map.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match=re.escape(message)):
        load_map(path)
    path.unlink()
    source = Centering(mean=tensors["mean_x"], scale=tensors["scale_x"])
    target = Centering(mean=tensors["mean_y"], scale=tensors["scale_y"])
    with pytest.raises(InputError):
        save_map(path, LinearMap(W=tensors["W"], source=source, target=target))
    assert not path.exists()


def test_a_later_format_is_refused_and_a_file_without_one_is_not(tmp_path, linear_map):
    path = tmp_path / "map.safetensors"
    safetensors.numpy.save_file(map_tensors(linear_map), path, metadata={"format": "mv2v_jax linear map 2"})
    with pytest.raises(InputError, match="found 'mv2v_jax linear map 2'; use a later version"):
        load_map(path)
    safetensors.numpy.save_file(map_tensors(linear_map), path)
    assert_trees_close(load_map(path)[0], linear_map)


def test_the_same_map_has_the_same_bytes(tmp_path, linear_map):
    """Safetensors writes its metadata in the order of a hash with a random seed."""
    facts = {f"fact {number}": f'"\\\n\x1b\x7fä{number}' for number in range(20)}
    written = set()
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        save_map(path, linear_map, facts)
        written.add(path.read_bytes())
        assert facts.items() <= load_map(path)[1].items()
    assert len(written) == 1


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4", ">f2"])
def test_numbers_in_another_byte_order(tmp_path, suffix, dtype):
    path = tmp_path / f"x.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, ROWS.astype(dtype))
    loaded = load_embeddings(str(path))
    assert loaded.dtype.isnative
    assert np.asarray(loaded).dtype.isnative
    np.testing.assert_array_equal(loaded, ROWS.astype(dtype).astype(loaded.dtype))


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    """Only of the same file, and only what no process can still be writing."""
    old, new, other = (
        tmp_path / name for name in (".a.npy.abcdefgh.part", ".a.npy.abcdefg_.part", ".b.npy.abcdefgh.part")
    )
    rows = tmp_path / ".a.npy.part"
    for path in (old, new, other, rows):
        path.write_text("")
        if path != new:
            os.utime(path, (1e9, 1e9))
    save_npy(tmp_path / "a.npy", ROWS)
    assert sorted(tmp_path.iterdir()) == sorted([new, other, rows, tmp_path / "a.npy"])


def test_an_archive_that_unpacks_to_more_than_the_memory(tmp_path, monkeypatch):
    """Ten megabytes of zeros take ten kilobytes on the disk; the limit stands for the memory of a small machine."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros((10_000, 256), np.float32), b=ROWS)
    assert path.stat().st_size < 2**16
    monkeypatch.setattr("mv2v_jax.data.formats._memory_bytes", lambda: 2**20)
    with pytest.raises(InputError, match=r"must fit into the 1,048,576 bytes of memory, found 10,240,128 bytes in a"):
        load_embeddings(f"{path}:a")
    np.testing.assert_array_equal(load_embeddings(f"{path}:b"), ROWS)
