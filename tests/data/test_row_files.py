"""Rows on disk equal the rows NumPy reads, in one file or many; errors name the file."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from mv2v_jax.data import row_files
from mv2v_jax.data.row_files import RowFiles, open_rows
from mv2v_jax.errors import InputError
from mv2v_jax.stores.sources import load_embeddings

N = 41


@pytest.fixture
def whole(rng):
    return rng.normal(size=(N, 3)).astype(np.float16)


@pytest.fixture(params=["file", "shards", "columns"])
def stored(request, tmp_path, whole):
    """One file; seven shards, one of them empty; one file in Fortran order."""
    if request.param == "shards":
        for part, rows in enumerate(np.split(whole, [5, 5, 17, 18, 30, 36])):
            np.save(tmp_path / f"part-{part}.npy", rows)
        return open_rows(tmp_path)
    path = tmp_path / "x.npy"
    np.save(path, whole if request.param == "file" else np.asfortranarray(whole))
    return open_rows(path)


def test_shape_and_dtype(stored, whole):
    assert (stored.shape, stored.dtype, stored.ndim, len(stored)) == (whole.shape, whole.dtype, 2, N)
    assert stored.nbytes == whole.nbytes


INDICES = {
    "all": slice(None),
    "across shards": slice(4, 33),
    "from the end": slice(-7, None),
    "past the end": slice(38, 99),
    "none": slice(9, 9),
    "every third": slice(2, 40, 3),
    "backwards": slice(None, None, -1),
    "ascending": np.array([0, 4, 5, 16, 17, 29, 30, 40]),
    "in any order and twice": np.array([40, 3, 3, 17, 0, 4, 40]),
    "from the end, by number": np.array([-1, -41, 5]),
    "a list": [7, 8, 9, 2],
    "an empty list": [],
    "one row": 17,
    "the last row": -1,
}


@pytest.mark.parametrize("name", INDICES)
def test_indexing_is_that_of_numpy(stored, whole, name):
    index = INDICES[name]
    expected = whole[index] if len(np.shape(index)) < 1 or len(index) else whole[:0]
    found = stored[index]
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


def test_random_rows(stored, whole, rng):
    for size in (1, 10, 100):
        index = rng.integers(N, size=size)
        np.testing.assert_array_equal(stored[index], whole[index])


@pytest.mark.parametrize("index", [np.array([0, N]), np.array([-N - 1]), np.zeros(N, bool), np.zeros((2, 2), int), 1.0])
def test_other_indices_are_refused(stored, index):
    with pytest.raises(IndexError):
        stored[index]


def test_as_an_array(stored, whole):
    np.testing.assert_array_equal(np.asarray(stored), whole)
    assert np.asarray(stored, np.float64).dtype == np.float64
    np.testing.assert_array_equal(jnp.asarray(stored), whole)
    np.testing.assert_array_equal(list(stored), whole)
    with pytest.raises(ValueError, match="without being copied"):
        np.array(stored, copy=False)


def test_no_more_is_read_than_was_asked_for(tmp_path, whole, monkeypatch):
    np.save(tmp_path / "x.npy", whole)
    stored = open_rows(tmp_path / "x.npy")
    read = []
    fill = row_files._fill
    monkeypatch.setattr(
        "mv2v_jax.data.row_files._fill",
        lambda file, start, out, path: read.append(out.nbytes) or fill(file, start, out, path),
    )
    np.testing.assert_array_equal(stored[[3, 4, 5, 20]], whole[[3, 4, 5, 20]])
    assert read == [3 * 6, 6]


def test_rows_are_named_by_shard(tmp_path, whole):
    np.save(tmp_path / "x.npy", whole)
    assert open_rows(tmp_path / "x.npy").place(9) == "row 9"
    (tmp_path / "shards").mkdir()
    for part, rows in enumerate(np.split(whole, [5, 5, 17])):
        np.save(tmp_path / "shards" / f"{part}.npy", rows)
    stored = open_rows(tmp_path / "shards")
    named = [stored.place(row) for row in (0, 4, 5, 16, 17, N - 1)]
    expected = [("0", 0), ("0", 4), ("2", 0), ("2", 11), ("3", 0), ("3", N - 18)]
    assert named == [f"shard {tmp_path / 'shards' / f'{file}.npy'} row {row}" for file, row in expected]


def test_a_later_version_of_the_format(tmp_path, whole):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, whole, version=(2, 0))
    np.testing.assert_array_equal(open_rows(tmp_path / "x.npy"), whole)


def shards(folder, **others):
    """Twelve shards of three rows; some of them are replaced by ``others``."""
    folder.mkdir(exist_ok=True)
    for part in range(12):
        name = f"part-{part:02d}"
        rows = others.get(name.replace("-", "_"), np.ones((3, 4), np.float32))
        np.save(folder / f"{name}.npy", rows, allow_pickle=True)
    return folder


BAD_SHARDS = {
    "dimension": (np.ones((3, 5), np.float32), r"part-07\.npy must have 4 columns as part-00\.npy has, found 5"),
    "dtype": (np.ones((3, 4), np.float16), r"part-07\.npy must hold float32 as part-00\.npy does, found float16"),
    "not two-dimensional": (np.ones(4, np.float32), r"part-07\.npy must be two-dimensional.* found shape \[4\]"),
    "objects": (np.array([[{}]], dtype=object), r"part-07\.npy must hold numbers, found an object array"),
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards_are_named(tmp_path, name):
    rows, message = BAD_SHARDS[name]
    with pytest.raises(InputError, match=message):
        load_embeddings(str(shards(tmp_path / "x", part_07=rows)))


@pytest.mark.parametrize("left", [0, 5, 100, 150])
def test_a_truncated_shard_is_named_when_opened(tmp_path, left):
    path = shards(tmp_path / "x") / "part-07.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"part-07\.npy cannot be read, it is damaged or cut short"):
        open_rows(tmp_path / "x")


def test_a_shard_truncated_later_is_named_when_read(tmp_path):
    stored = open_rows(shards(tmp_path / "x"))
    path = tmp_path / "x" / "part-07.npy"
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(stored[:21], np.ones((21, 4)))
    with pytest.raises(InputError, match=r"part-07\.npy was cut short while it was read: 4 bytes are missing"):
        stored[:]
    path.unlink()
    with pytest.raises(InputError, match=r"part-07\.npy cannot be read: No such file"):
        stored[:]


def test_other_things_in_a_folder(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    with pytest.raises(InputError, match=r"must hold \.npy shards, found an empty folder"):
        open_rows(folder)
    shards(folder)
    (folder / ".DS_Store").write_text("")
    assert open_rows(folder).shape == (36, 4)
    (folder / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"must hold only \.npy shards, found notes\.txt; move it elsewhere"):
        open_rows(folder)
    (folder / "notes.txt").unlink()
    (folder / "more.npy").mkdir()
    with pytest.raises(InputError, match=r"shards, found more\.npy"):
        open_rows(folder)
    with pytest.raises(InputError, match="found nothing of that name"):
        open_rows(tmp_path / "none")


def test_shards_come_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        np.save(tmp_path / f"{name}.npy", np.full((1, 1), ord(name), np.float32))
    assert np.asarray(load_embeddings(str(tmp_path)))[:, 0].tolist() == [97, 98, 99]


@pytest.mark.parametrize("name", ["emb_{}", "{}", "part-{}-of-12", "2-{}", "x{}y{}", "{:02d}", "emb.{}"])
def test_numbers_in_names_are_compared_as_numbers(tmp_path, name):
    """Rows of ``emb_2`` come before those of ``emb_10``, as their ids do."""
    for part in range(12):
        np.save(tmp_path / f"{name.format(part, part)}.npy", np.full((1, 1), part, np.float32))
    assert np.asarray(load_embeddings(str(tmp_path)))[:, 0].tolist() == list(range(12))


def test_names_that_are_equal_as_numbers_have_an_order(tmp_path):
    for name in ("1", "01", "a", "1a", "_", "٣"):
        np.save(tmp_path / f"{name}.npy", np.ones((1, 1), np.float32))
    found = [shard.path.stem for shard in open_rows(tmp_path).shards]
    assert found == ["01", "1", "1a", "_", "a", "٣"]


def test_no_file_stays_open(tmp_path, whole, monkeypatch):
    np.save(tmp_path / "x.npy", whole)
    opened = []
    original = type(tmp_path).open
    monkeypatch.setattr(
        type(tmp_path), "open", lambda self, *args, **kw: opened.append(original(self, *args, **kw)) or opened[-1]
    )
    stored = open_rows(tmp_path / "x.npy")
    assert isinstance(stored, RowFiles)
    with contextlib.suppress(IndexError):
        stored[N]
    stored[3:9]
    assert len(opened) >= 2
    assert all(file.closed for file in opened)
