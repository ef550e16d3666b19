"""Maps as modules of PyTorch, FAISS and ONNX give what `PortableMap.apply` gives; a missing package is one sentence."""

import sys

import numpy as np
import pytest

from mv2v_jax import InputError
from mv2v_jax.portable import to_faiss, to_onnx, to_torch

DIRECTIONS = pytest.mark.parametrize(
    ("frame", "inverse"), [("centred", False), ("target", False), ("centred", True), ("target", True)]
)


@DIRECTIONS
def test_torch(portable_map, rows, frame, inverse):
    torch = pytest.importorskip("torch")
    rows = rows[:, :6] if inverse else rows
    module = to_torch(portable_map, frame=frame, inverse=inverse)
    expected = portable_map.apply(rows, frame=frame, inverse=inverse)
    given = torch.from_numpy(rows).requires_grad_()
    mapped = module(given)
    np.testing.assert_allclose(mapped.detach().numpy(), expected, atol=1e-5)
    mapped.sum().backward()
    assert bool(torch.isfinite(given.grad).all())
    assert not list(module.parameters())
    assert module(given.bfloat16()).dtype == torch.bfloat16
    copy = to_torch(portable_map.invert(), frame=frame, inverse=not inverse)
    copy.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(copy(given).detach(), mapped.detach())


@DIRECTIONS
def test_faiss_finds_what_the_untouched_index_finds(tmp_path, portable_map, frame, inverse):
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(3)
    d_from, d_to = (6, 9) if inverse else (9, 6)
    bank, queries = (rng.normal(size=(n, d)).astype(np.float32) for n, d in ((200, d_to), (30, d_from)))
    for index in (faiss.IndexFlatIP(d_to), faiss.IndexHNSWFlat(d_to, 16)):
        index.add(bank)
        expected = index.search(portable_map.apply(queries, frame=frame, inverse=inverse), 5)
        in_front = to_faiss(portable_map, index, frame=frame, inverse=inverse)
        faiss.write_index(in_front, str(tmp_path / "index"))
        for found in (in_front, faiss.read_index(str(tmp_path / "index"))):
            similarities, neighbours = found.search(queries, 5)
            np.testing.assert_array_equal(neighbours, expected[1])
            np.testing.assert_allclose(similarities, expected[0], atol=1e-4)
        assert index.ntotal == 200


def test_faiss_refuses_an_index_of_another_space(portable_map):
    faiss = pytest.importorskip("faiss")
    with pytest.raises(InputError, match="index must have 6 dimensions, as the rows of this map, found 9"):
        to_faiss(portable_map, faiss.IndexFlatIP(9))


@DIRECTIONS
def test_onnx(tmp_path, portable_map, rows, frame, inverse):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    rows = rows[:, :6] if inverse else rows
    path = tmp_path / "map.onnx"
    to_onnx(portable_map, path, frame=frame, inverse=inverse)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for given in (rows, rows[:1]):
        (mapped,) = session.run(None, {"rows": given})
        np.testing.assert_allclose(mapped, portable_map.apply(given, frame=frame, inverse=inverse), atol=1e-5)


@pytest.mark.parametrize(
    ("package", "convert"),
    [
        ("torch", to_torch),
        ("faiss", lambda linear_map: to_faiss(linear_map, None)),
        ("onnx", lambda linear_map: to_onnx(linear_map, "map.onnx")),
    ],
)
def test_a_missing_package_is_one_sentence(monkeypatch, portable_map, package, convert):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'needs {package}: pip install "mv2v_jax\[{package}\]"'):
        convert(portable_map)


@pytest.mark.parametrize("convert", [to_torch, to_faiss, to_onnx])
def test_unknown_frames_and_suffixes_are_refused(tmp_path, portable_map, convert):
    target = [] if convert is to_torch else [tmp_path / "map.onnx"]
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        to_onnx(portable_map, tmp_path / "map.pt")
    with pytest.raises(InputError, match="frame must be"):
        convert(portable_map, *target, frame="raw")
    assert not list(tmp_path.iterdir())
