"""Tables on the command line: columns by name, ids carried and matched, and what is refused in one sentence."""

import sys

import numpy as np
import pytest
from helpers import make_map, semi_orthogonal

from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import apply

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5_000, 6)).astype(np.float32)
MAP = make_map(semi_orthogonal(RNG, 6, 4), RNG.normal(size=6), RNG.normal(size=4), 2.0, 3.0)
MAPPED = np.asarray(apply(MAP, ROWS, frame="target"))
IDS = [f"doc-{i}" for i in range(len(ROWS))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_map(tmp_path / "map.safetensors", MAP, {"verdict": "aligned"})
    columns = {
        "id": pa.array(IDS),
        "n": pa.array(range(len(ROWS)), pa.int16()),
        "text": pa.array(IDS).dictionary_encode(),
    }
    parquet.write_table(pa.table({**columns, "e": pa.array(list(ROWS)), "f": pa.array(list(ROWS))}), "x.parquet")
    shuffled = RNG.permutation(len(ROWS))[:4_000]
    other = pa.table({"id": [IDS[i] for i in shuffled], "f": pa.array(list(MAPPED[shuffled]))})
    parquet.write_table(other, "y.parquet")
    return tmp_path


def run(monkeypatch, capfd, *arguments):
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["mv2v", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code, *capfd.readouterr())


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_apply_carries_columns(folder, suffix, monkeypatch, capfd):
    out = f"out.{suffix}"
    code, said, _ = run(monkeypatch, capfd, "apply", "map.safetensors", "x.parquet:e", "-o", out, "--frame", "target")
    assert code == 0
    assert "5,000 rows, 6 to 4 dimensions, target" in said
    table = parquet.read_table(out) if suffix == "parquet" else pa.ipc.open_file(out).read_all()
    assert table.column_names == ["id", "n", "text", "e"]
    assert table["id"].to_pylist() == table["text"].to_pylist() == IDS
    assert table["n"].type == pa.int16()
    np.testing.assert_allclose(np.stack(table["e"].to_numpy(zero_copy_only=False)), MAPPED, atol=1e-5)


def test_apply_carries_named_columns_only(folder, monkeypatch, capfd):
    flags = ("--column", "e", "--id-column", "id", "--frame", "target")
    assert run(monkeypatch, capfd, "apply", "map.safetensors", "x.parquet", "-o", "out.parquet", *flags)[0] == 0
    assert parquet.read_table("out.parquet").column_names == ["id", "e"]
    assert run(monkeypatch, capfd, "apply", "map.safetensors", "x.parquet", "-o", "out.npy", *flags)[0] == 0
    np.testing.assert_allclose(np.load("out.npy"), MAPPED, atol=1e-5)


def test_evaluate_matches_ids(folder, monkeypatch, capfd):
    flags = ("--id-column", "id", "--column", "f", "--json")
    code, said, error = run(monkeypatch, capfd, "evaluate", "map.safetensors", "x.parquet", "y.parquet", *flags)
    assert (code, error) == (0, "")
    assert '"top1": 1.0' in said
    assert '"n": 4000' in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("apply", "map.safetensors", "x.parquet", "-o", "o.parquet"),
            "several columns of vectors, name one by --column",
        ),
        (("apply", "map.safetensors", "y.parquet", "-o", "o.parquet"), "rows of 6 floating-point numbers for this map"),
        (("apply", "map.safetensors", "x.parquet:e", "-o", "o.parquet", "--resume"), "continues a .npy file only"),
        (("apply", "map.safetensors", "x.parquet:e", "-o", "x.parquet"), "must not be an input"),
        (("apply", "map.safetensors", "x.parquet:e", "-o", "o.parquet", "--id-column", "no"), "that --id-column names"),
        (("apply", "map.safetensors", "nan.parquet", "-o", "o.parquet"), "first in row 4321"),
        (("apply", "map.safetensors", "text.parquet", "-o", "o.parquet"), "must have a column of lists"),
        (("move", "map.safetensors?id=n", "map.safetensors", "faiss:new.faiss"), "must be a table, one of .parquet"),
        (("move", "x.parquet:e?id=n", "map.safetensors", "out.parquet"), "must be a store such as"),
        (("evaluate", "map.safetensors", "x.parquet:e", "y.parquet", "--id-column", "n"), "the column n that --id"),
        (("evaluate", "map.safetensors", "x.parquet:e", "twice.parquet", "--id-column", "id"), "every id once"),
        (("evaluate", "map.safetensors", "x.parquet:e", "other.parquet", "--id-column", "id"), "found str and int"),
    ],
)
def test_one_sentence_and_no_file(folder, arguments, message, monkeypatch, capfd):
    spoilt = ROWS.copy()
    spoilt[4_321, 2] = np.nan
    parquet.write_table(pa.table({"e": pa.array(list(spoilt))}), "nan.parquet")
    parquet.write_table(pa.table({"e": ["a"]}), "text.parquet")
    parquet.write_table(pa.table({"id": ["a", "a"], "f": pa.array(list(MAPPED[:2]))}), "twice.parquet")
    parquet.write_table(pa.table({"id": [1, 2], "f": pa.array(list(MAPPED[:2]))}), "other.parquet")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, said, error = run(monkeypatch, capfd, *arguments)
    assert (code, said) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
