"""AnnData files, written by anndata itself: dense, sparse and damaged ones, and those that lead elsewhere."""

import numpy as np
import pytest

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.sources import load_embeddings, load_with_ids, open_source
from mv2v_jax.tables import h5ad

anndata = pytest.importorskip("anndata", reason="the package anndata is not installed")
h5py, pd, sparse = (pytest.importorskip(name) for name in ("h5py", "pandas", "scipy.sparse"))

NUM = 40
ROWS = np.random.default_rng(0).normal(size=(NUM, 6)).astype(np.float32)
OBS = pd.DataFrame(
    {
        "kind": pd.Categorical(["odd", "even"] * (NUM // 2)),
        "text": [f"text {row}" for row in range(NUM)],
        "checked": pd.array([True, None] * (NUM // 2), dtype="boolean"),
    },
    index=[f"cell-{row}" for row in range(NUM)],
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5ad"


def write(path, X=None, **obsm):
    anndata.AnnData(X=X, obs=OBS, obsm=obsm).write_h5ad(path, compression="gzip")
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_anndata_reads_is_read(path, dtype):
    write(path, ROWS.astype(dtype), X_pca=ROWS[:, :3], table=pd.DataFrame({"a": ROWS[:, 0]}, index=OBS.index))
    oracle = anndata.read_h5ad(path)
    for source, matrix in ((f"{path}:X", oracle.X), (f"{path}?vector=X_pca", oracle.obsm["X_pca"])):
        loaded, ids = load_with_ids(source, None, "obs_names")
        assert loaded.dtype == matrix.dtype
        np.testing.assert_array_equal(loaded, matrix)
        assert ids == list(oracle.obs_names)
    ((_, others),) = open_source(parse_address(path, vector="X")).batches()
    assert others.schema.names == ["obs_names", "kind", "text", "checked"]
    expected = oracle.obs.astype(object).where(oracle.obs.notna(), None).to_dict("list")
    assert others.drop_columns(["obs_names"]).to_pydict() == expected
    with pytest.raises(InputError, match=r"several columns of vectors, .* found X, X_pca"):
        load_embeddings(path)
    with pytest.raises(InputError, match="must have a column table, found obs_names, kind, text, checked, X, X_pca"):
        load_embeddings(path, "table")


def test_rows_are_read_in_batches(path, monkeypatch):
    monkeypatch.setattr(h5ad, "_BATCH_BYTES", 7 * ROWS.nbytes // NUM)
    few = np.where(ROWS > 0.5, ROWS, 0)
    for X in (ROWS, sparse.csr_matrix(few)):
        read = list(open_source(parse_address(write(path, X))).batches())
        assert [len(vectors) for vectors, _ in read] == [7, 7, 7, 7, 7, 5]
        np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in read]), few if X is not ROWS else ROWS)
        assert [row for _, others in read for row in others.column(0).to_pylist()] == list(OBS.index)
    write(path, sparse.csc_matrix(few))
    with pytest.raises(InputError, match=r"must hold X row by row, found .* \(csc\), .* save it with X\.tocsr\(\)"):
        load_embeddings(path)
    np.testing.assert_array_equal(load_embeddings(write(path, emb=ROWS)), ROWS)


def test_files_that_lead_elsewhere(path, tmp_path):
    """A file from a stranger must not bring rows of another file into a map or a table."""
    write(path, emb=ROWS)
    (tmp_path / "secret").write_bytes(ROWS.tobytes())
    with h5py.File(path, "r+") as file:
        file["X"] = h5py.ExternalLink(str(write(tmp_path / "other.h5ad", ROWS)), "X")
    with pytest.raises(InputError, match="X is a link, which is not followed"):
        load_embeddings(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file.create_dataset("X", ROWS.shape, ROWS.dtype, external=[(str(tmp_path / "secret"), 0, ROWS.nbytes)])
    with pytest.raises(InputError, match="X is stored in another file, which is not read"):
        load_embeddings(path)


def test_damaged_files(path):
    content = write(path, ROWS).read_bytes()
    for wrong in (b"", b"x" * 100, content[:3000], content[:-1000], content.replace(b"string-array", b"strings-here")):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"x\.h5ad cannot be read as AnnData"):
            load_embeddings(path, "X")
    write(path, ROWS)
    with h5py.File(path, "r+") as file:
        del file["obs"]
    with pytest.raises(InputError, match="it has no obs as anndata writes it"):
        load_embeddings(path)
