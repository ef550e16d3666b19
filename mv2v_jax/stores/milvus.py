"""Milvus collections: ``milvus:FILE.db/COLLECTION`` for Milvus Lite, or ``milvus:http://HOST:PORT/COLLECTION``."""

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order, require

_METRICS = {"COSINE": "cosine", "L2": "l2", "IP": "ip"}
# Otherwise a server may leave out what was written a moment ago.
_ALL_ROWS = {"consistency_level": "Strong"}


@functools.lru_cache
def _client(place: str, name: str) -> Any:
    client = require("pymilvus", "milvus", name).MilvusClient
    # It warns at every reading of Milvus Lite, and of servers that do not report the time of a snapshot.
    logging.getLogger("pymilvus.client.iterator").setLevel(logging.ERROR)
    if "://" in place:
        return client(place, token=os.environ.get("MILVUS_TOKEN", ""))
    require("milvus_lite", "milvus", name)
    # What it logs with a traceback, it raises as well.
    logging.getLogger("milvus_lite.server_manager").setLevel(logging.CRITICAL)
    return client(place)


class MilvusStore:
    """One collection of Milvus."""

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        self._int64 = require("pymilvus", "milvus", self.name).DataType.INT64
        self._address = address

    @property
    def _database(self) -> Any:
        return _client(self._address.database, "milvus")

    @property
    def _on_server(self) -> bool:
        return "://" in self._address.database

    def exists(self) -> bool:
        if not self._on_server and not Path(self._address.database).exists():
            return False
        return self._database.has_collection(self._address.collection)

    def _fields(self) -> dict[str, Any]:
        """The fields by name, those of vectors and ids under ``vector`` and ``id``."""
        if not self.exists():
            raise InputError(f"{self.name} must be a collection of Milvus, found none of that name")
        found = self._database.describe_collection(self._address.collection)
        vectors = [field for field in found["fields"] if "dim" in field["params"]]
        wanted = self._address.options.get("vector")
        chosen = [field for field in vectors if wanted in (None, field["name"])]
        if len(chosen) != 1:
            names = ", ".join(field["name"] for field in vectors)
            raise InputError(f"{self.name} must have one field of vectors, or one named by ?vector=NAME; found {names}")
        primary = next(field for field in found["fields"] if field.get("is_primary"))
        return {"vector": chosen[0], "id": primary, "all": found}

    def describe(self) -> Description:
        fields = self._fields()
        self._database.load_collection(self._address.collection)
        index = self._database.describe_index(self._address.collection, fields["vector"]["name"]) or {}
        return Description(
            kind="milvus",
            count=self.count(),
            dims=int(fields["vector"]["params"]["dim"]),
            metric=_METRICS.get(str(index.get("metric_type")), "l2"),
            id_name=fields["id"]["name"],
            integer_ids=fields["id"]["type"] == self._int64,
            settings={"fields": fields, "index": index},
        )

    def count(self) -> int:
        found = self._database.query(self._address.collection, filter="", output_fields=["count(*)"], **_ALL_ROWS)
        return int(found[0]["count(*)"])

    def _iterate(self, batch_rows: int, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        iterator = self._database.query_iterator(
            self._address.collection, batch_size=batch_rows, output_fields=fields, **_ALL_ROWS
        )
        try:
            while rows := iterator.next():
                yield list(rows)
        finally:
            iterator.close()

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        # Rows come in the order of their ids.
        fields = self._fields()
        for rows in self._iterate(batch_rows, ["*"]):
            wanted = rows[skip:]
            skip = max(0, skip - len(rows))
            if wanted:
                yield self._batch(wanted, fields)

    def _batch(self, rows: list[dict[str, Any]], fields: dict[str, Any]) -> Batch:
        key, vector = fields["id"]["name"], fields["vector"]["name"]
        return Batch(
            ids=[row[key] for row in rows],
            vectors=np.asarray([row[vector] for row in rows], np.float32),
            payloads=[{name: value for name, value in row.items() if name not in (key, vector)} for row in rows],
        )

    def read_ids(self) -> Iterator[Sequence[Any]]:
        key = self._fields()["id"]["name"]
        for rows in self._iterate(10_000, [key]):
            yield [row[key] for row in rows]

    def take(self, ids: Sequence[Any]) -> Batch:
        fields = self._fields()
        key = fields["id"]["name"]
        rows = self._database.get(self._address.collection, ids=list(ids), output_fields=["*"], **_ALL_ROWS)
        order = in_order(ids, [row[key] for row in rows], self.name)
        return self._batch([dict(rows[place]) for place in order], fields)

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        fields = self._fields()
        key = fields["id"]["name"]
        found = self._database.search(
            self._address.collection, data=vectors.tolist(), limit=k, anns_field=fields["vector"]["name"], **_ALL_ROWS
        )
        return [[hit.get(key, hit.get("id")) for hit in hits] for hits in found]

    def check(self, batch: Batch) -> None:
        """Every id and payload can be kept."""

    def create(self, source: Description, dims: int) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        metric = next(name for name, found in _METRICS.items() if found == source.metric)
        index, vector = {"index_type": "AUTOINDEX"}, self._address.options.get("vector", "vector")
        if source.kind == "milvus":
            fields = source.settings["fields"]
            index = source.settings["index"] or index
            vector = self._address.options.get("vector", fields["vector"]["name"])
            for field in fields["all"]["fields"]:
                is_vector = field["name"] == fields["vector"]["name"]
                if "dim" in field["params"] and not is_vector:
                    continue
                schema.add_field(
                    vector if is_vector else field["name"],
                    field["type"],
                    is_primary=bool(field.get("is_primary")),
                    nullable=bool(field.get("nullable")),
                    **{**field["params"], **({"dim": dims} if is_vector else {})},
                )
        else:
            kind = {} if source.integer_ids else {"max_length": 512}
            schema.add_field("id", DataType.INT64 if source.integer_ids else DataType.VARCHAR, is_primary=True, **kind)
            schema.add_field(vector, DataType.FLOAT_VECTOR, dim=dims)
        params = MilvusClient.prepare_index_params()
        params.add_index(vector, index_type=str(index["index_type"]), metric_type=metric)
        self._database.create_collection(self._address.collection, schema=schema, index_params=params)

    def write(self, batch: Batch) -> None:
        fields = self._fields()
        key, vector = fields["id"]["name"], fields["vector"]["name"]
        payloads = batch.dicts()
        self._database.upsert(
            self._address.collection,
            [
                {**payload, key: found, vector: row.tolist()}
                for found, row, payload in zip(batch.ids, batch.vectors, payloads, strict=True)
            ],
        )
        # A server has written its log; to flush every batch would leave a small segment of each.
        if not self._on_server:
            self._database.flush(self._address.collection)

    def resume(self, source: Description, saved: int, dims: int) -> int:
        return saved

    def finish(self, source: Description) -> None:
        self._database.flush(self._address.collection)
        self._database.load_collection(self._address.collection)

    def undo(self, source: Description) -> str:
        return f"MilvusClient({self._address.database!r}).drop_collection({self._address.collection!r})"
