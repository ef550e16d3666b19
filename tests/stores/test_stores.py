"""Stores as inputs: read in batches with ids and texts, refused in one sentence, credentials never shown."""

import contextlib
import os
import pickle
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.commands import run as run_command
from helpers import make_map, semi_orthogonal, unit
from stores.makers import MAKERS, NUMBERS, ROWS, all_rows, beside

from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import save_map
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import apply
from mv2v_jax.stores.address import STORES, parse_address
from mv2v_jax.stores.open import open_store
from mv2v_jax.stores.protocol import client_errors
from mv2v_jax.stores.sources import load_embeddings, load_texts_beside

MAP = make_map(semi_orthogonal(np.random.default_rng(2), 8, 5))


@pytest.fixture(params=MAKERS)
def address(request, tmp_path, start_server):
    return MAKERS[request.param](tmp_path, start_server, ROWS, NUMBERS)


def run(monkeypatch, capfd, *arguments):
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["mv2v", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code, *capfd.readouterr())


def test_rows_are_read(address):
    store = open_store(parse_address(address))
    rows = all_rows(store)
    assert len(set(map(str, rows.ids))) == 300
    loaded = np.asarray(load_embeddings(address))
    assert loaded.shape == (300, 8)
    # In any order, and some stores normalise.
    wanted = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    found = loaded / np.linalg.norm(loaded, axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(wanted, axis=0), atol=1e-5)
    skipped = [key for batch in store.read(64, 130) for key in batch.ids]
    assert skipped == [key for batch in store.read(64) for key in batch.ids][130:]
    taken = store.take(rows.ids[5:9])
    np.testing.assert_array_equal(taken.vectors, rows.vectors[5:9])
    assert list(taken.dicts()) == list(rows.dicts()[5:9])


@pytest.mark.parametrize(("kind", "column"), [("lancedb", "body"), ("chroma", "document"), ("milvus", "body")])
def test_texts_belong_to_their_rows(kind, column, tmp_path, start_server):
    pytest.importorskip("pyarrow")
    address = MAKERS[kind](tmp_path, start_server, ROWS, NUMBERS)
    texts, rows = load_texts_beside(address, None, column), np.asarray(load_embeddings(address))
    nearest = np.argmax(unit(rows) @ unit(ROWS).T, axis=1)
    assert texts == [f"text {NUMBERS[place]}" for place in nearest.tolist()]
    assert load_texts_beside(address, None, None) is None
    with pytest.raises(InputError, match="must have texts in none, found none"):
        load_texts_beside(address, None, "none")


def test_apply_writes_a_table_with_ids(address, tmp_path, monkeypatch, capfd):
    parquet = pytest.importorskip("pyarrow.parquet")
    save_map(tmp_path / "map.safetensors", MAP, {"verdict": "aligned"})
    monkeypatch.chdir(tmp_path)
    code, _, error = run(monkeypatch, capfd, "apply", "map.safetensors", address, "-o", "o.parquet")
    assert code == 0, error
    table = parquet.read_table(tmp_path / "o.parquet")
    assert len(table) == 300
    mapped = np.stack(table.column(table.column_names[-1]).to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(mapped, apply(MAP, np.asarray(load_embeddings(address))), atol=1e-5)


def test_move_on_the_command_line(address, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    target = beside(address)
    save_map("map.safetensors", MAP, {"verdict": "uncertain"})
    code, said, error = run(monkeypatch, capfd, "move", address, "map.safetensors", target, "--dry-run")
    assert (code, error.count("\n")) == (0, 1), error
    assert "Nothing was written" in said
    assert not open_store(parse_address(target)).exists()
    code, said, error = run(monkeypatch, capfd, "move", address, "map.safetensors", target, "--accept")
    assert (code, error) == (0, "")
    assert "300 rows moved, 8 to 5 dimensions" in said
    assert "The way back" in said
    code, said, error = run(monkeypatch, capfd, "move", address, "map.safetensors", target, "--accept")
    assert (code, said) == (2, "")
    assert "must be new" in error
    code, said, error = run(monkeypatch, capfd, "move", address, "map.safetensors", address, "--accept")
    assert (code, said) == (2, "")
    assert "never moved in place" in error
    code, said, error = run(monkeypatch, capfd, "move", target, "map.safetensors", f"{target}2", "--accept")
    assert (code, said) == (2, "")
    assert "must have 8 dimensions for this map, found 5" in error


def test_milvus_lite_prints_nothing_of_its_own(tmp_path):
    """In a process of its own, because its messages go to the standard error that the first client found."""
    pytest.importorskip("pyarrow")
    address = MAKERS["milvus"](tmp_path, None, ROWS, NUMBERS)
    from milvus_lite.server_manager import server_manager_instance

    # One process at a time opens the file.
    server_manager_instance.release_all()
    save_map(tmp_path / "map.safetensors", MAP, {"verdict": "aligned"})
    done = run_command("apply", "map.safetensors", address, "-o", "o.parquet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "faiss"])
def test_passwords_are_refused_and_not_shown(kind):
    for place in (
        "postgresql://me:hunter2@host/db/docs",
        "host=x password=hunter2/docs",
        "http://h/docs?api_key=hunter2",
    ):
        with pytest.raises(InputError, match="no password or key, found one") as raised:
            parse_address(f"{kind}:{place}")
        assert "hunter2" not in str(raised.value)


def test_secrets_of_clients_are_not_shown(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    with pytest.raises(InputError) as raised, client_errors("qdrant:http://host/docs"):
        raise ConnectionError("401 for key hunter2 at https://me:hunter3@host")
    assert str(raised.value) == "qdrant:http://host/docs cannot be used: 401 for key *** at https://***@host"
    with pytest.raises(TypeError), client_errors("x"):
        raise TypeError("a defect of this package")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("lancedb:docs", "must be lancedb:PLACE/COLLECTION"),
        ("faiss:", "must be faiss:FILE, found no name of a file"),
        ("chroma:/nowhere/", "found no collection after a slash"),
        ("lancedb:{0}/none/docs", "must be a table of LanceDB, found none"),
        ("chroma:{0}/none/docs", "must be a collection of Chroma, found none"),
        ("qdrant:{0}/none/docs", "must be a collection of Qdrant, found none"),
        ("milvus:{0}/none.db/docs", "must be a collection of Milvus, found none"),
        ("faiss:{0}/none.faiss", "must be a file, found nothing"),
        ("qdrant:http://localhost:1/docs", "cannot be used: "),
        ("postgres:postgresql://nobody@localhost:1/none/docs", "cannot be used: "),
        ("lancedb:{0}/none/docs?colour=red", "must have options among vector, id"),
    ],
)
def test_one_sentence(address, message, tmp_path):
    with pytest.raises(InputError) as raised:
        load_embeddings(address.format(tmp_path))
    if "needs the package" in str(raised.value):
        pytest.skip(str(raised.value))
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_index(tmp_path):
    pytest.importorskip("faiss", reason="the package faiss-cpu is not installed")
    (tmp_path / "x.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"x\.faiss cannot be used"):
        load_embeddings(f"faiss:{tmp_path}/x.faiss")


class Program:
    """What runs a command where it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_rows_of_a_qdrant_folder_run_no_program(tmp_path, start_server):
    """Its client unpickles every row when it opens a folder."""
    pytest.importorskip("qdrant_client", reason="the package qdrant-client is not installed")
    from mv2v_jax.stores.qdrant import _client

    address = MAKERS["qdrant"](tmp_path, start_server, ROWS[:9], NUMBERS[:9])
    place = parse_address(address).database
    _client(place, "qdrant").close()
    _client.cache_clear()
    (file,) = Path(place).rglob("storage.sqlite")
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE points SET point = ?", (pickle.dumps(Program(f"touch {tmp_path}/ran")),))
    with pytest.raises(InputError, match=r"must hold rows of numbers and texts, found posix\.system in one"):
        load_embeddings(address)
    assert not (tmp_path / "ran").exists()


def test_named_columns(tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="the package lancedb is not installed")
    pa = pytest.importorskip("pyarrow")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 8)
    lancedb.connect(tmp_path).create_table("two", pa.table({"a": vectors, "b": vectors}))
    with pytest.raises(InputError, match=r"name one by \?vector=COLUMN, found a, b"):
        load_embeddings(f"lancedb:{tmp_path}/two")
    np.testing.assert_array_equal(load_embeddings(f"lancedb:{tmp_path}/two?vector=b"), ROWS)
    np.testing.assert_array_equal(load_embeddings(f"lancedb:{tmp_path}/two", "b"), ROWS)
    with pytest.raises(InputError, match="must have a column of ids c"):
        open_store(parse_address(f"lancedb:{tmp_path}/two?vector=b&id=c")).describe()
