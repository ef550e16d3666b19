"""Vectors in the objects of other libraries, against the real ones: accepted, or a sentence that names the fix."""

import numpy as np
import pytest
from helpers import make_map, semi_orthogonal

import mv2v_jax
from mv2v_jax.errors import InputError
from mv2v_jax.host_arrays import as_host_array

ROWS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def check(value, rows=ROWS):
    found = as_host_array(value, "x")
    assert found.dtype == rows.dtype
    np.testing.assert_array_equal(found, rows)


def test_pandas():
    pd = pytest.importorskip("pandas", reason="the package pandas is not installed")
    check(pd.Series(list(ROWS)))
    check(pd.DataFrame({"text": "a", "e": list(ROWS)})["e"])
    check(pd.DataFrame(ROWS))
    lists = pd.Series(ROWS.tolist(), index=range(100, 130))
    check(lists, ROWS.astype(np.float64))
    with pytest.raises(InputError, match=r"pass frame\['COLUMN'\]"):
        as_host_array(pd.DataFrame({"text": "a", "e": list(ROWS)}), "x")
    for bad, message in (
        ([ROWS[0], None], "found None in row 1"),
        ([ROWS[0], ROWS[1][:2]], "one length, found 2 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            as_host_array(pd.Series(bad), "x")


def test_polars():
    pl = pytest.importorskip("polars", reason="the package polars is not installed")
    check(pl.Series(ROWS.tolist(), dtype=pl.List(pl.Float32)))
    check(pl.Series(ROWS.tolist(), dtype=pl.Array(pl.Float32, 4)))
    check(pl.DataFrame({"e": ROWS})["e"])
    check(pl.DataFrame(ROWS))
    with pytest.raises(InputError, match="found None in row 1"):
        as_host_array(pl.Series([[1.0], None]), "x")


def test_arrow():
    pa = pytest.importorskip("pyarrow")
    array = pa.array(list(ROWS))
    check(array)
    check(pa.chunked_array([array[:10], array[10:]]))
    check(pa.table({"e": array})["e"])
    with pytest.raises(InputError, match="x must hold a list of numbers in every row, found string"):
        as_host_array(pa.array(["a"]), "x")


def test_torch():
    torch = pytest.importorskip("torch", reason="the package torch is not installed")
    tensor = torch.tensor(ROWS)
    check(tensor)
    check(torch.tensor(ROWS, requires_grad=True))
    check(tensor.T.contiguous().T)
    check(tensor.bfloat16(), tensor.bfloat16().float().numpy())
    check(tensor.half(), ROWS.astype(np.float16))
    check(list(tensor))
    check([row.requires_grad_() for row in torch.tensor(ROWS)])
    check(torch.nn.Parameter(tensor))
    with pytest.raises(InputError, match="to_dense"):
        as_host_array(tensor.to_sparse(), "x")


def test_datasets():
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    data = datasets.Dataset.from_dict({"e": ROWS.tolist()})
    check(data["e"], ROWS.astype(np.float64))
    check(data.with_format("numpy")["e"])


def test_arrays_and_lists():
    objects = np.empty(30, object)
    objects[:] = list(ROWS)
    check(objects)
    check(list(ROWS))
    check(ROWS[::-1][::-1])
    check(np.asfortranarray(ROWS))
    check(ROWS.astype(">f4"))
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(InputError, match="toarray"):
        as_host_array(sparse.csr_matrix(ROWS), "x")


def test_a_single_vector_is_mapped():
    linear_map = make_map(semi_orthogonal(np.random.default_rng(1), 4, 3))
    wanted = mv2v_jax.apply(linear_map, ROWS)[0]
    for vector in (ROWS[0], ROWS[0].tolist()):
        found = mv2v_jax.apply(linear_map, vector)
        assert found.shape == (3,)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
