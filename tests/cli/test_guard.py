"""``mv2v apply`` and ``mv2v move`` recognise rows that the map was not fitted on: a warning, or a refusal."""

import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mv2v_jax import InputError, portable
from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import Centering, LinearMap


@pytest.fixture
def mapped(data, tmp_path, monkeypatch, capfd):
    """A function that maps a file in this process: its exit code, standard error, and whether the output is there."""
    monkeypatch.chdir(tmp_path)
    x, y = np.load(data / "x.npy"), np.load(data / "y.npy")
    source, target = (Centering(mean=jnp.asarray(rows.mean(axis=0)), scale=jnp.ones(())) for rows in (x, y))
    linear_map = LinearMap(W=jnp.eye(16, 12), source=source, target=target)
    save_map("map.safetensors", linear_map, rows=(x, y))
    save_map("bare.safetensors", linear_map)
    np.save("x.npy", np.load(data / "x_eval.npy"))
    np.save("y.npy", np.load(data / "y_eval.npy"))
    np.save("scaled.npy", np.load(data / "x_eval.npy") * 7)
    np.save(
        "turned.npy", np.load(data / "y_eval.npy") @ np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    )

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mv2v", "apply", *arguments, "-o", "out.npy"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capfd.readouterr().err, (tmp_path / "out.npy").exists()

    return run


def test_rows_of_the_map_pass(mapped):
    assert mapped("map.safetensors", "x.npy", "--strict") == (0, "", True)
    assert mapped("map.safetensors", "y.npy", "--inverse", "--strict") == (0, "", True)


def test_other_rows_are_mapped_with_a_warning(mapped):
    code, error, written = mapped("map.safetensors", "scaled.npy")
    assert (code, written) == (0, True)
    assert error.startswith("Warning: scaled.npy does not look like the source of map.safetensors: found lengths from ")
    assert mapped("bare.safetensors", "scaled.npy")[1] == ""


def test_strict_refuses_them(mapped):
    code, error, written = mapped("map.safetensors", "turned.npy", "--inverse", "--strict")
    assert (code, written) == (2, False)
    assert error.startswith("Error: turned.npy must hold rows like the target of map.safetensors, found rows of ")
    code, error, written = mapped("bare.safetensors", "x.npy", "--strict")
    assert (code, written) == (2, False)
    assert "--strict needs a map that remembers its source, found none in bare.safetensors" in error


def test_tables_are_looked_at_as_well(mapped):
    pytest.importorskip("pyarrow")
    with open("scaled.jsonl", "w") as file:
        file.writelines(json.dumps({"v": row}) + "\n" for row in np.load("scaled.npy").tolist())
    assert "found lengths from" in mapped("map.safetensors", "scaled.jsonl")[1]


def test_portable_maps_remember(mapped, tmp_path):
    linear_map = portable.load("map.safetensors")
    scaled = np.load("scaled.npy")
    assert "give the rows in the scale of the fitting rows" in linear_map.find_mismatch(scaled)
    assert linear_map.find_mismatch(np.load("y.npy"), inverse=True) is None
    assert linear_map.find_mismatch(scaled[0] / 7) is None
    linear_map.invert().save("back.safetensors")
    assert portable.load("back.safetensors").find_mismatch(np.load("y.npy")) is None
    with pytest.raises(InputError, match="must remember its spaces, found no profile"):
        portable.load("bare.safetensors").find_mismatch(scaled)


def test_lengths_for_a_metric(mapped, tmp_path):
    code, error, written = mapped("map.safetensors", "x.npy", "--metric", "dot")
    assert (code, written) == (0, True)
    assert error.startswith("Warning: dot compares lengths, and a map keeps none: the lengths of x.npy (")
    assert len(error.splitlines()) == 1
    expected = portable.load("map.safetensors").apply(np.load("x.npy"), frame="target", metric="dot")
    np.testing.assert_allclose(np.load("out.npy"), expected, atol=1e-4)
    code, error, _ = mapped("map.safetensors", "x.npy", "--dims", "5")
    assert (code, error, np.load("out.npy").shape[1]) == (0, "", 5)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("map.safetensors", "x.npy", "--metric", "l2", "--frame", "centred"), "needs rows in the target frame, found"),
        (("bare.safetensors", "x.npy", "--metric", "l2"), "found none in bare.safetensors; fit it again"),
        (("map.safetensors", "x.npy", "--dims", "12"), "dims must be from 1 to 11, fewer than the 12 numbers"),
        (("map.safetensors", "x.npy", "--dims", "0"), "0 is not in the range"),
        (("map.safetensors", "x.npy", "--metric", "euclid"), "'euclid' is not one of"),
    ],
)
def test_metrics_and_prefixes_that_cannot_be(mapped, monkeypatch, arguments, found):
    monkeypatch.setattr("mv2v_jax.runs.apply_shards._map_block", None)
    code, error, written = mapped(*arguments)
    assert (code, written, len(error.splitlines())) == (2, False, 1)
    assert found in error


def test_info_names_the_metrics(mapped, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["mv2v", "info", "map.safetensors"])
    with pytest.raises(SystemExit):
        main()
    found = capfd.readouterr().out.splitlines()[1]
    assert found.startswith("The target frame suits cosine; its rows have lengths from ")
    assert "of which --metric dot and l2 predict" in found


@pytest.fixture
def moved(mapped, monkeypatch, capfd):
    """A function that moves an index of x: its exit code, standard error, and the vectors of the new index, if any."""
    faiss = pytest.importorskip("faiss")
    rows = np.load("x.npy")
    for name, vectors in {"docs": rows, "scaled": rows * 7}.items():
        index = faiss.IndexFlatIP(16)
        index.add(vectors)
        faiss.write_index(index, f"{name}.faiss")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", ["mv2v", "move", f"faiss:{name}.faiss", "map.safetensors", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        new = faiss.read_index("new.faiss").reconstruct_n() if os.path.exists("new.faiss") else None
        return ended.value.code, capfd.readouterr().err, new

    return run


def test_moves_are_guarded(moved):
    code, error, new = moved("scaled", "faiss:new.faiss", "--strict")
    assert (code, new, len(error.splitlines())) == (2, None, 1)
    assert "must hold rows like the source of map.safetensors, found lengths from" in error
    code, error, new = moved("scaled", "faiss:new.faiss", "--dry-run")
    assert (code, new) == (0, None)
    assert "does not look like the source of map.safetensors: found lengths from" in error


def test_moves_for_a_metric(moved):
    code, error, new = moved("docs", "faiss:new.faiss", "--dry-run")
    assert (code, new) == (0, None)
    assert error.startswith("Warning: faiss:docs.faiss compares by dot, and a map keeps no lengths; --metric dot ")
    assert len(error.splitlines()) == 1
    code, error, new = moved("docs", "faiss:new.faiss", "--metric", "dot", "--dims", "5")
    assert (code, len(error.splitlines())) == (0, 1)
    assert error.startswith("Warning: dot compares lengths, and a map keeps none: the lengths of faiss:docs.faiss (")
    expected = portable.load("map.safetensors").apply(np.load("x.npy"), frame="target", metric="dot", dims=5)
    np.testing.assert_allclose(new, expected, atol=1e-4)
    for arguments, found in ((("--dims", "12"), "dims must be from 1 to 11"), (("--metric", "e"), "'e' is not one of")):
        code, error, _ = moved("docs", "faiss:other.faiss", *arguments)
        assert (code, len(error.splitlines()), os.path.exists("other.faiss")) == (2, 1, False)
        assert found in error
