"""LanceDB tables: ``lancedb:PATH/TABLE?vector=COLUMN&id=COLUMN``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.objects.arrow import is_vector, vectors_of
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order, require

# LanceDB's names of indexes, and the classes of `lancedb.index` that make them.
_INDEXES = {
    "IVF_FLAT": "IvfFlat",
    "IVF_SQ": "IvfSq",
    "IVF_PQ": "IvfPq",
    "IVF_RQ": "IvfRq",
    "IVF_HNSW_PQ": "HnswPq",
    "IVF_HNSW_SQ": "HnswSq",
    "BTREE": "BTree",
    "BITMAP": "Bitmap",
    "LABEL_LIST": "LabelList",
    "FTS": "FTS",
    "INVERTED": "FTS",
}
_METRICS = {"cosine": "cosine", "l2": "l2", "dot": "ip"}
# Rows of one query: the client reads ahead of who asks, up to the end of its query.
_ROWS_AHEAD = 32_768


class LanceStore:
    """One table of a LanceDB database on disk or in the cloud."""

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        self._lancedb = require("lancedb", "lancedb", self.name)
        self._address = address
        self._opened: Any = None

    def _database(self, *, create: bool = False) -> Any:
        place = self._address.database
        if "://" not in place and not create and not Path(place).is_dir():
            raise InputError(f"{self.name} must be in a folder of LanceDB, found no folder {place}")
        return self._lancedb.connect(place)

    def _table(self) -> Any:
        if self._opened is None:
            if not self.exists():
                raise InputError(f"{self.name} must be a table of LanceDB, found none of that name")
            self._opened = self._database().open_table(self._address.collection)
        return self._opened

    def exists(self) -> bool:
        if "://" not in self._address.database and not Path(self._address.database).is_dir():
            return False
        try:
            self._database().open_table(self._address.collection)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            if "not found" in str(error).lower():
                return False
            raise
        return True

    # ---------------------------------------------------------------------------------------------------------- read

    def _vector_name(self, schema: Any) -> str:
        wanted = self._address.options.get("vector")
        found = [field.name for field in schema if is_vector(field.type)]
        if wanted is None and len(found) == 1:
            return found[0]
        if wanted not in found:
            expected = "name one by ?vector=COLUMN" if wanted is None else f"have a column of vectors {wanted}"
            raise InputError(f"{self.name} must {expected}, found {', '.join(found) or 'none'}")
        return str(wanted)

    def _id_name(self, schema: Any) -> str | None:
        wanted = self._address.options.get("id")
        if wanted is None:
            return "id" if "id" in schema.names else None
        if wanted not in schema.names:
            raise InputError(f"{self.name} must have a column of ids {wanted}, found {', '.join(schema.names)}")
        return wanted

    def describe(self) -> Description:
        table = self._table()
        schema, indexes, metric = table.schema, [], "l2"
        vector_name = self._vector_name(schema)
        for index in table.list_indices():
            stats = table.index_stats(index.name)
            indexes.append((index.columns[0], stats.index_type, stats.distance_type))
            if index.columns[0] == vector_name:
                metric = _METRICS.get(stats.distance_type, "l2")
        kind = schema.field(vector_name).type
        first = next(iter(self.read(1)), None)
        dims = getattr(kind, "list_size", None) or (first.vectors.shape[1] if first else 0)
        id_name = self._id_name(schema)
        return Description(
            kind="lancedb",
            count=table.count_rows(),
            dims=dims,
            metric=metric,
            id_name=id_name,
            integer_ids=id_name is None or str(schema.field(id_name).type).startswith(("int", "uint")),
            settings={"schema": schema, "vector": vector_name, "indexes": indexes},
        )

    def count(self) -> int:
        return self._table().count_rows()

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        table = self._table()
        total, position = table.count_rows(), skip
        for start in range(skip, total, _ROWS_AHEAD):
            # Without a limit only some rows come.
            query = table.search().offset(start).limit(min(_ROWS_AHEAD, total - start))
            for part in query.to_batches(batch_rows):
                if len(part):
                    yield self._batch(part, range(position, position + len(part)))
                    position += len(part)

    def _batch(self, part: Any, numbers: Sequence[int]) -> Batch:
        vector_name, id_name = self._vector_name(part.schema), self._id_name(part.schema)
        others = [name for name in part.schema.names if name != vector_name]
        ids = numbers if id_name is None else part.column(part.schema.get_field_index(id_name)).to_pylist()
        vectors = vectors_of(part.column(part.schema.get_field_index(vector_name)), f"{self.name} {vector_name}")
        return Batch(ids=ids, vectors=vectors, columns=part.select(others))

    def read_ids(self) -> Iterator[Sequence[Any]]:
        table = self._table()
        id_name = self._id_name(table.schema)
        if id_name is None:
            yield range(table.count_rows())
            return
        for part in table.search().select([id_name]).limit(table.count_rows()).to_batches(65_536):
            yield part.column(0).to_pylist()

    def take(self, ids: Sequence[Any]) -> Batch:
        table = self._table()
        id_name = self._id_name(table.schema)
        if id_name is None:
            part = table.take_offsets([int(row) for row in ids]).to_arrow()
            return self._batch(part.combine_chunks().to_batches()[0], list(ids))
        listed = ", ".join(_literal(key) for key in ids)
        query = table.search().where(f"`{id_name}` IN ({listed})").limit(len(ids))
        part = query.to_arrow().combine_chunks()
        order = in_order(ids, part.column(id_name).to_pylist(), self.name)
        return self._batch(part.take(order).combine_chunks().to_batches()[0], list(ids))

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        described = self.describe()
        metric = "dot" if described.metric == "ip" else described.metric
        if described.id_name is None:
            raise InputError(f"{self.name} must have ids to be searched; name them by ?id=COLUMN")
        results = []
        for vector in vectors:
            query = self._table().search(vector, vector_column_name=described.settings["vector"])
            found = query.distance_type(metric).select([described.id_name, "_distance"]).limit(k).to_arrow()
            results.append(found.column(described.id_name).to_pylist())
        return results

    # --------------------------------------------------------------------------------------------------------- write

    def check(self, batch: Batch) -> None:
        """Every id and payload can be kept."""

    def create(self, source: Description, dims: int) -> None:
        import pyarrow

        schema = source.settings.get("schema")
        if schema is None:
            # The first rows decide the columns.
            return
        place = schema.get_field_index(source.settings["vector"])
        old = schema.field(place)
        number = pyarrow.float16() if pyarrow.types.is_float16(old.type.value_type) else pyarrow.float32()
        name = self._address.options.get("vector", old.name)
        schema = schema.set(place, pyarrow.field(name, pyarrow.list_(number, dims), old.nullable, old.metadata))
        self._opened = self._database(create=True).create_table(self._address.collection, schema=schema)

    def write(self, batch: Batch) -> None:
        import pyarrow

        columns = batch.columns
        if columns is None:
            columns = pyarrow.RecordBatch.from_pylist([dict(row) for row in batch.dicts()])
        id_name = self._address.options.get("id", "id")
        if id_name not in columns.schema.names and not isinstance(batch.ids, range):
            columns = _append(columns, id_name, pyarrow.array(list(batch.ids)))
        numbers = pyarrow.array(np.ascontiguousarray(batch.vectors).reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(numbers, batch.vectors.shape[1])
        if self._opened is None and not self.exists():
            name = self._address.options.get("vector", "vector")
            rows = pyarrow.Table.from_batches([_append(columns, name, vectors)])
            self._opened = self._database(create=True).create_table(self._address.collection, rows)
            return
        table = self._table()
        rows = _append(columns, self._vector_name(table.schema), vectors)
        # One commit: either all of these rows are there after a kill, or none of them.
        table.add(pyarrow.Table.from_batches([rows]).select(table.schema.names).cast(table.schema))

    def resume(self, source: Description, saved: int, dims: int) -> int:
        # Rows are added in order, and every batch is one commit.
        return self._table().count_rows() if self.exists() else 0

    def finish(self, source: Description) -> None:
        from lancedb import index as kinds

        table = self._table()
        table.optimize()
        vector_name = self._vector_name(table.schema)
        there = {index.columns[0] for index in table.list_indices()}
        for column, kind, metric in source.settings.get("indexes", []):
            is_vector_index = column == source.settings["vector"]
            name = vector_name if is_vector_index else column
            if name in there or kind not in _INDEXES:
                continue
            options = {"distance_type": metric} if is_vector_index else {}
            table.create_index(name, config=getattr(kinds, _INDEXES[kind])(**options))

    def undo(self, source: Description) -> str:
        return f"lancedb.connect({self._address.database!r}).drop_table({self._address.collection!r})"


def _append(columns: Any, name: str, values: Any) -> Any:
    """A record batch with one more column; one without columns, as of rows without payloads, has no rows either."""
    import pyarrow

    return columns.append_column(name, values) if columns.num_columns else pyarrow.record_batch([values], names=[name])


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
