"""Tables: every kind of list, dtype and layout, columns that are named wrongly, and rows that are quantised."""

import json

import numpy as np
import pytest

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.sources import load_embeddings, open_source
from mv2v_jax.tables import spill
from mv2v_jax.tables.columns import check_column, open_vectors
from mv2v_jax.tables.quantised import dequantise

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
LISTS = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "list_view": pa.list_view,
    "large_list_view": pa.large_list_view,
    "fixed_size_list": lambda kind: pa.list_(kind, 6),
}


def make_table(rows=ROWS, kind=LISTS["list"], dtype=None, **columns):
    dtype = dtype or pa.from_numpy_dtype(rows.dtype)
    vectors = pa.array(list(rows), kind(dtype))
    return pa.table({"id": pa.array(range(len(rows))), "embedding": vectors, **columns})


def write_arrow(table, path, *, stream=False):
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path, table.schema) as file:
        file.write_table(table, max_chunksize=9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_kind(tmp_path, kind, dtype):
    rows = ROWS.astype(dtype)
    table = make_table(rows, LISTS[kind])
    write_arrow(table, tmp_path / "x.arrow")
    write_arrow(table, tmp_path / "y.arrow", stream=True)
    names = ["x.arrow", "y.arrow"]
    if "view" not in kind:  # Parquet has no views.
        parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
        names.append("x.parquet")
    for name in names:
        loaded = load_embeddings(tmp_path / name)
        assert loaded.dtype == dtype
        np.testing.assert_array_equal(loaded, rows)


def test_sliced_and_tensor_columns(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(ROWS)
    write_arrow(pa.table({"e": tensors}).slice(3, 20), tmp_path / "x.arrow")
    np.testing.assert_array_equal(load_embeddings(tmp_path / "x.arrow"), ROWS[3:23])
    write_arrow(make_table(kind=pa.list_view).slice(5), tmp_path / "y.arrow")
    np.testing.assert_array_equal(load_embeddings(tmp_path / "y.arrow"), ROWS[5:])


def test_folders_are_read_in_numeric_order(tmp_path):
    for part in range(12):
        parquet.write_table(make_table(ROWS + part), tmp_path / f"part-{part}.parquet")
    (tmp_path / "_SUCCESS").touch()
    loaded = load_embeddings(tmp_path)
    np.testing.assert_array_equal(loaded, np.concatenate([ROWS + part for part in range(12)]))
    parquet.write_table(make_table(ROWS[:, :3]), tmp_path / "part-12.parquet")
    with pytest.raises(InputError, match="one length, found 3 to 6"):
        load_embeddings(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"found notes\.txt; move it elsewhere"):
        load_embeddings(tmp_path)


def test_text_files(tmp_path):
    lines = "".join(json.dumps({"id": i, "text": f"a\n{i}", "e": row.tolist()}) + "\n" for i, row in enumerate(ROWS))
    (tmp_path / "x.jsonl").write_text(lines)
    # As pandas writes them.
    (tmp_path / "x.csv").write_text("id,e\n" + "".join(f'{i},"{row.tolist()}"\n' for i, row in enumerate(ROWS)))
    columns = ",".join(f"dim_{i}" for i in range(6))
    wide = "\n".join(",".join(map(str, [i, *row])) for i, row in enumerate(ROWS.tolist()))
    (tmp_path / "y.csv").write_text(f"id,{columns}\n{wide}\n")
    for source, column in (("x.jsonl", None), ("x.csv", None), ("x.csv:e", None), ("y.csv", "dim_*")):
        loaded = load_embeddings(tmp_path / source, column)
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, ROWS)
    with pytest.raises(InputError, match=r"such as --column 'dim_\*'"):
        load_embeddings(tmp_path / "y.csv")
    (tmp_path / "z.jsonl").write_text(lines + '{"id": 3}\n')
    with pytest.raises(InputError, match="found 1 nulls"):
        load_embeddings(tmp_path / "z.jsonl")


def test_columns_that_are_numbered_are_read_in_numeric_order(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(2, 12)
    parquet.write_table(pa.table({f"d{i}": rows[:, i] for i in range(12)}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(load_embeddings(tmp_path / "x.parquet", "d*"), rows)


def test_datasets_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    data = datasets.Dataset.from_dict({"text": [str(i) for i in range(50)], "embedding": ROWS})
    data.cast_column("embedding", datasets.Sequence(datasets.Value("float32"))).save_to_disk(
        tmp_path / "one", num_shards=11
    )
    np.testing.assert_array_equal(load_embeddings(tmp_path / "one"), ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match="SPLIT; found train, test"):
        load_embeddings(tmp_path / "two")
    np.testing.assert_allclose(load_embeddings(tmp_path / "two" / "train"), ROWS)


def test_a_dataset_does_not_lead_out_of_its_folder(tmp_path):
    write_arrow(make_table(), tmp_path / "secret.arrow")
    (tmp_path / "data").mkdir()
    state = {"_data_files": [{"filename": "../secret.arrow"}]}
    (tmp_path / "data" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"data/secret\.arrow cannot be read"):
        load_embeddings(tmp_path / "data")


def test_wrong_columns(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(make_table(other=pa.array(list(ROWS))), path)
    with pytest.raises(InputError, match=r"several columns of vectors, .*found embedding, other"):
        load_embeddings(path)
    np.testing.assert_array_equal(load_embeddings(f"{path}:other"), ROWS)
    np.testing.assert_array_equal(load_embeddings(f"{path}?vector=other"), ROWS)
    with pytest.raises(InputError, match="must have a column none, found"):
        load_embeddings(path, "none")
    with pytest.raises(InputError, match="must have the column doc that --id-column names"):
        open_source(parse_address(path, vector="other", id="doc"))
    parquet.write_table(make_table(text=pa.array(["a"] * 50)), path)
    with pytest.raises(InputError, match="lists of one length"):
        load_embeddings(path, "text")
    with pytest.raises(InputError, match="options among vector, id"):
        load_embeddings(f"{path}?vectr=other")
    for rows, found in (([[1.0, 2.0], None], "1 nulls"), ([[1.0, None]], "1 nulls"), ([[1.0], [1.0, 2.0]], "1 to 2")):
        parquet.write_table(pa.table({"e": rows}), path)
        with pytest.raises(InputError, match=found):
            load_embeddings(path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_damaged_tables(tmp_path, suffix, share):
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        parquet.write_table(make_table(), path)
    elif suffix == "arrow":
        write_arrow(make_table(), path)
    else:
        path.write_text("".join(json.dumps({"e": row.tolist()}) + "\n" for row in ROWS))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"x\.\w+"):
        load_embeddings(path)


@pytest.mark.parametrize("name", ["two.csv", "two.parquet"])
def test_columns_of_one_name_cannot_be_named_and_do_not_hinder_others(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text('same,same,v\n1,2,"[1.0, 2.0]"\n3,4,"[2.0, 1.0]"\n')
    else:
        columns = [pa.array([1, 3]), pa.array([2, 4]), pa.array([[1.0, 2.0], [2.0, 1.0]])]
        parquet.write_table(pa.Table.from_arrays(columns, ["same", "same", "v"]), path)
    found = open_vectors(path, None)
    assert found.columns == ["v"]
    with pytest.raises(InputError, match="must have one column same for --id-column, found several"):
        check_column(found, "same", "--id-column")
    with pytest.raises(InputError, match="must have one column same, found several"):
        open_vectors(path, "same")


def test_carried_columns(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(make_table(text=pa.array([f"t{i}" for i in range(50)])), path)
    for options, names in (({}, ["id", "text"]), ({"text": "text"}, ["text"])):
        ((vectors, others),) = open_source(parse_address(path, **options)).batches()
        np.testing.assert_array_equal(vectors, ROWS)
        assert others.schema.names == names


def test_quantised_as_sentence_transformers_does(tmp_path):
    # The formulas of sentence_transformers.quantization.quantize_embeddings.
    low, high = ROWS.min(axis=0), ROWS.max(axis=0)
    steps = (high - low) / 255
    codes = {"uint8": ((ROWS - low) / steps).astype(np.uint8), "int8": ((ROWS - low) / steps - 128).astype(np.int8)}
    np.save(tmp_path / "ranges.npy", np.stack([low, high]))
    for kind, stored in codes.items():
        np.save(tmp_path / "x.npy", stored)
        loaded = np.asarray(load_embeddings(f"{tmp_path}/x.npy?quantised={kind}&ranges={tmp_path}/ranges.npy"))
        # Truncated to whole steps.
        assert (np.abs(loaded - ROWS) <= steps * 1.01).all()
        np.testing.assert_array_equal(load_embeddings(f"{tmp_path}/x.npy?quantised={kind}"), stored)
        with pytest.raises(InputError, match=f"quantised={kind} for a code per number"):
            load_embeddings(tmp_path / "x.npy")
    rows = np.random.default_rng(1).normal(size=(5, 16))
    packed = np.packbits(rows > 0).reshape(5, -1)
    for kind, stored in (("ubinary", packed), ("binary", (packed - 128).astype(np.int8))):
        parquet.write_table(pa.table({"e": pa.array(list(stored))}), tmp_path / "x.parquet")
        loaded = load_embeddings(f"{tmp_path}/x.parquet?quantised={kind}")
        np.testing.assert_array_equal(loaded, np.where(rows > 0, 1, -1))
    with pytest.raises(InputError, match="ranges"):
        dequantise(packed, "ubinary", rows)
    with pytest.raises(InputError, match=r"\[2, 2\]"):
        dequantise(packed, "uint8", rows)
    with pytest.raises(InputError, match="found int3"):
        load_embeddings(f"{tmp_path}/x.npy?quantised=int3")


@pytest.mark.parametrize("order", ["C", "F"])
def test_foreign_byte_order_and_fortran_order(tmp_path, order):
    np.save(tmp_path / "x.npy", np.asarray(ROWS.astype(">f4"), order=order))
    loaded = load_embeddings(tmp_path / "x.npy")
    assert loaded.dtype == np.float32
    assert loaded.dtype.isnative
    np.testing.assert_array_equal(loaded, ROWS)


@pytest.mark.parametrize("has_handles", [True, False])
def test_the_temporary_file_goes_with_the_rows(tmp_path, monkeypatch, has_handles):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not has_handles:
        monkeypatch.setattr(spill, "_HANDLES", tmp_path / "none")
    parquet.write_table(make_table(), tmp_path / "x.parquet")
    rows = load_embeddings(tmp_path / "x.parquet")
    files = len(list(tmp_path.iterdir()))
    assert files == (1 if has_handles and spill._HANDLES.is_dir() else 2)
    np.testing.assert_array_equal(rows[40:], ROWS[40:])
    del rows
    assert len(list(tmp_path.iterdir())) == 1
