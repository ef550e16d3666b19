"""Rows from wherever they are: arrays in files, columns of tables, vector stores."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mv2v_jax.data import formats
from mv2v_jax.data.row_files import RowFiles
from mv2v_jax.errors import InputError
from mv2v_jax.objects.arrow import is_vector
from mv2v_jax.stores.address import Address, parse_address
from mv2v_jax.stores.open import open_store
from mv2v_jax.stores.protocol import Batch, require
from mv2v_jax.stores.table import with_key
from mv2v_jax.tables.columns import BATCH_ROWS, check_column, open_vectors
from mv2v_jax.tables.quantised import Quantised, dequantise
from mv2v_jax.tables.readers import is_table
from mv2v_jax.tables.spill import spill


class Source(NamedTuple):
    """Rows that can be read in batches, with what belongs to them.

    Attributes:
        name: the address, without credentials.
        vector_name: name of the column of vectors.
        id_name: name of the column of ids; ``None`` if there is none.
        batches: yields vectors ``[b, d]`` and a record batch of the other columns, ``None`` for rows without any.
    """

    name: str
    vector_name: str
    id_name: str | None
    batches: Callable[[], Iterator[tuple[np.ndarray, Any]]]


def load_embeddings(source: str | Path, column: str | None = None) -> np.ndarray | RowFiles:
    """Read embeddings from a file, a folder, a table or a vector store, or open them if they can stay on disk.

    Args:
        source: a ``.npy`` file or a folder of them; a ``.npz``, ``.safetensors`` or ``.pt`` file, where ``FILE:KEY``
            names one of several arrays; a ``.parquet``, ``.arrow``, ``.feather``, ``.jsonl``, ``.csv``, ``.tsv`` or
            ``.h5ad`` table, a folder of such files, or a folder of ``datasets.Dataset.save_to_disk``, where
            ``FILE:COLUMN`` names one of several columns; or a vector store, such as
            ``lancedb:PATH/TABLE?vector=COLUMN``. Quantised rows are named so: ``FILE?quantised=int8&ranges=FILE``.
        column: name of the column of vectors, or of the array.

    Returns:
        For ``.npy`` files and folders, `RowFiles` ``(n, d)``, which reads no row yet. Tables and stores are copied to a
        temporary file in batches, and are `RowFiles` as well. For other files, the array with the shape and dtype it
        is stored in; bfloat16 in a ``.pt`` file becomes float32. Quantised rows and those in the byte order of another
        machine become floats of this machine. No value is checked.

    Raises:
        InputError: the file is missing, damaged, cut short, of an unknown format, or would have to be unpickled; it
            lacks the key, or holds several arrays and no key is given; a store cannot be reached.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "both.npz"
        >>> np.savez(path, minilm=np.ones((3, 2), np.float16), wordllama=np.zeros((4, 5), np.float32))
        >>> rows = load_embeddings(f"{path}:minilm")
        >>> rows.shape, rows.dtype
        ((3, 2), dtype('float16'))
    """
    address = with_key(parse_address(source, vector=column))
    if _is_array(address):
        return _plain(_load_array(address), address)
    opened = open_source(address)
    return spill((vectors for vectors, _ in opened.batches()), opened.name)


def load_with_ids(source: str | Path, column: str | None, id_column: str) -> tuple[RowFiles, list[Any]]:
    """Rows as from `load_embeddings`, and the id of each of them.

    Raises:
        InputError: as `load_embeddings`, or there is no such column of ids.
    """
    address = parse_address(source, vector=column, id=id_column)
    opened = open_source(address, [address.options["id"]])
    ids: list[Any] = []

    def vectors() -> Iterator[np.ndarray]:
        for rows, others in opened.batches():
            ids.extend(others.column(0).to_pylist())
            yield rows

    return spill(vectors(), opened.name), ids


def load_texts_beside(source: str | Path, column: str | None, text_column: str | None) -> list[str] | None:
    """The text of each row of a table or a store; ``None`` where neither the address nor ``text_column`` names them.

    Raises:
        InputError: as `load_embeddings`, or there are no such texts.
    """
    address = with_key(parse_address(source, vector=column, text=text_column))
    name = address.options.get("text")
    if name is None:
        return None
    # A store hands out texts with its payloads only.
    opened = open_source(address, None if address.store else [name])
    texts: list[Any] = []
    for _, others in opened.batches():
        if name in others.schema.names:
            texts.extend(others.column(name).to_pylist())
    if all(text is None for text in texts):
        raise InputError(f"{opened.name} must have texts in {name}, found none; name another by --text-column")
    return ["" if text is None else str(text) for text in texts]


def open_source(address: Address, carried: list[str] | None = None) -> Source:
    """Open rows to be read in batches together with their ids, texts and further columns.

    Args:
        address: from `parse_address`.
        carried: names of the columns of a table to be read beside the vectors; by default those of ``id`` and ``text``
            in the address, or all that hold no vectors if it names neither.
    """
    address = with_key(address)
    if address.store:
        return _open_store(address, carried)
    if not _is_array(address):
        return _open_table(address, carried)
    for name in ("id", "text"):
        if name in address.options:
            raise InputError(f"{address} must be a table or a store to have a column of {name}s, found an array")
    rows = _plain(_load_array(address), address)

    def batches() -> Iterator[tuple[np.ndarray, Any]]:
        for block in _blocks(rows):
            yield block, None

    return Source(str(address), "embedding", None, batches)


def _is_array(address: Address) -> bool:
    return not address.store and not is_table(Path(address.place))


def _load_array(address: Address) -> np.ndarray | RowFiles:
    key = address.options.get("vector")
    return formats.load_array(f"{address.place}:{key}" if key else address.place)


def _open_table(address: Address, carried: list[str] | None) -> Source:
    table = open_vectors(Path(address.place), address.options.get("vector"))
    flags = {"id": "--id-column", "text": "--text-column"}
    named = [
        check_column(table, address.options[name], flag) for name, flag in flags.items() if name in address.options
    ]
    convert = _converter(address)

    def batches() -> Iterator[tuple[np.ndarray, Any]]:
        for vectors, others in table.batches((named or table.others) if carried is None else carried):
            yield convert(vectors), others

    vector_name = table.columns[0] if len(table.columns) == 1 else "embedding"
    return Source(str(address), vector_name, address.options.get("id"), batches)


def _open_store(address: Address, carried: list[str] | None) -> Source:
    store = open_store(address)
    described = store.describe()
    id_name = described.id_name or "row"

    def batches() -> Iterator[tuple[np.ndarray, Any]]:
        for batch in store.read(BATCH_ROWS):
            ids = [key if described.integer_ids else str(key) for key in batch.ids]
            yield np.asarray(batch.vectors), _columns_of(batch, {id_name: ids}, address, carried)

    return Source(str(address), address.options.get("vector", "embedding"), id_name, batches)


def _columns_of(batch: Batch, ids: dict[str, list[Any]], address: Address, carried: list[str] | None) -> Any:
    """What belongs to the rows of a store, as columns: its own where it has some, otherwise ids, texts and payloads."""
    require("pyarrow", "tables", str(address))
    import pyarrow

    columns = {name: pyarrow.array(values) for name, values in ids.items()}
    if carried is not None:
        return pyarrow.record_batch(columns)
    if batch.columns is not None:
        lists = [field.name for field in batch.columns.schema if is_vector(field.type)]
        return batch.columns.drop_columns(lists) if lists else batch.columns
    text = address.options.get("text")
    payloads = [dict(payload) for payload in batch.dicts()]
    if text is not None:
        columns[text] = pyarrow.array([payload.pop(text, None) for payload in payloads], pyarrow.string())
    columns["payload"] = pyarrow.array([json.dumps(payload, default=str) for payload in payloads])
    return pyarrow.record_batch(columns)


def _blocks(rows: np.ndarray | RowFiles) -> Iterator[np.ndarray]:
    for start in range(0, rows.shape[0], BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def files_of(source: str | Path) -> list[Path]:
    """The files and folders that a source is read from, without options, keys and collections."""
    address = with_key(parse_address(source))
    ranges = [Path(address.options["ranges"])] if "ranges" in address.options else []
    if not address.store:
        return [formats.file_of(address.place), *ranges]
    # A FAISS index is a file; other stores on disk are folders, or files with collections in them.
    place = address.place if address.store == "faiss" else address.database
    return ranges if address.store == "postgres" or "://" in place else [Path(place), *ranges]


# ----------------------------------------------------------------------------------------------------- kinds of numbers


def _converter(address: Address) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a batch as it is stored into floats."""
    kind, ranges = address.options.get("quantised"), address.options.get("ranges")
    name = str(address)
    if kind is None:
        if ranges is not None:
            raise InputError(f"{name} must name how it is quantised beside its ranges; add quantised=int8 or uint8")
        return lambda vectors: _as_native(vectors, name)
    found = None if ranges is None else np.asarray(formats.load_array(ranges))
    return lambda vectors: dequantise(vectors, cast(Quantised, kind), found, name)


def _as_native(vectors: np.ndarray, name: str) -> np.ndarray:
    if vectors.dtype in (np.int8, np.uint8):
        signs = "binary" if vectors.dtype == np.int8 else "ubinary"
        raise InputError(
            f"{name} holds {vectors.dtype}, which quantised rows are stored in; name how they are quantised after a "
            f"question mark: ?quantised={vectors.dtype} for a code per number, with &ranges=FILE where there are "
            f"ranges, or ?quantised={signs} for a bit per number"
        )
    return vectors.astype(vectors.dtype.newbyteorder("="), copy=False)


def _plain(rows: np.ndarray | RowFiles, address: Address) -> np.ndarray | RowFiles:
    """Rows as they are if JAX can use them so; otherwise a copy in floats of this machine."""
    convert = _converter(address)
    is_codes = rows.dtype in (np.int8, np.uint8)
    if rows.ndim != 2 or (not is_codes and "quantised" not in address.options and rows.dtype.isnative):
        return rows
    return spill((convert(block) for block in _blocks(rows)), str(address))
