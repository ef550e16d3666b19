"""Qdrant collections: ``qdrant:PATH/COLLECTION`` or ``qdrant:http://HOST:PORT/COLLECTION``, with ``?vector=NAME``."""

import atexit
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order, require
from mv2v_jax.stores.qdrant_folder import open_folder

_METRICS = {"Cosine": "cosine", "Euclid": "l2", "Dot": "ip"}
_IDS_AT_ONCE = 10_000


@functools.lru_cache
def _client(place: str, name: str) -> Any:
    """One client per place: a folder can be opened once only."""
    if "://" in place:
        qdrant = require("qdrant_client", "qdrant", name)
        return qdrant.QdrantClient(url=place, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
    client = open_folder(place)
    # Closed while Python is being taken down, it would print an error.
    atexit.register(client.close)
    return client


class QdrantStore:
    """One collection of Qdrant, in a folder or on a server."""

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        require("qdrant_client", "qdrant", self.name)
        self._address = address

    @property
    def _database(self) -> Any:
        return _client(self._address.database, "qdrant")

    def exists(self) -> bool:
        place = self._address.database
        if "://" not in place and not Path(place).is_dir():
            return False
        return self._database.collection_exists(self._address.collection)

    def _info(self) -> Any:
        if not self.exists():
            raise InputError(f"{self.name} must be a collection of Qdrant, found none of that name")
        return self._database.get_collection(self._address.collection)

    def _vector_name(self, info: Any) -> str | None:
        """The name of the vectors; ``None`` for those without a name."""
        vectors, wanted = info.config.params.vectors, self._address.options.get("vector")
        if not isinstance(vectors, dict):
            return None
        if wanted is None and len(vectors) == 1:
            return next(iter(vectors))
        if wanted not in vectors:
            raise InputError(f"{self.name} has named vectors, name one by ?vector=NAME; found {', '.join(vectors)}")
        return wanted

    def describe(self) -> Description:
        info = self._info()
        name = self._vector_name(info)
        vectors = info.config.params.vectors
        params = vectors if name is None else vectors[name]
        left_out = [] if name is None else [other for other in vectors if other != name]
        left_out += list(info.config.params.sparse_vectors or {})
        return Description(
            kind="qdrant",
            count=self.count(),
            dims=params.size,
            metric=_METRICS.get(str(params.distance.value), "l2"),
            notes=(f"the vectors {', '.join(left_out)} are not carried over",) if left_out else (),
            settings={"params": params, "name": name, "info": info},
        )

    def count(self) -> int:
        return self._database.count(self._address.collection, exact=True).count

    def _scroll(self, limit: int, **what: Any) -> Iterator[list[Any]]:
        offset = None
        while True:
            points, offset = self._database.scroll(self._address.collection, limit=limit, offset=offset, **what)
            if points:
                yield points
            if offset is None:
                return

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        # Rows come in the order of their ids.
        info = self._info()
        wanted = {"with_vectors": True, "with_payload": True}
        offset = self._id_at(skip) if skip else None
        if skip and offset is None:
            return
        while True:
            points, offset = self._database.scroll(self._address.collection, limit=batch_rows, offset=offset, **wanted)
            if points:
                yield self._batch(points, info)
            if offset is None:
                return

    def _id_at(self, place: int) -> Any:
        seen = 0
        for points in self._scroll(_IDS_AT_ONCE, with_vectors=False, with_payload=False):
            if place < seen + len(points):
                return points[place - seen].id
            seen += len(points)
        return None

    def _batch(self, points: list[Any], info: Any) -> Batch:
        name = self._vector_name(info)
        vectors = [point.vector if name is None else (point.vector or {}).get(name) for point in points]
        missing = next((point.id for point, vector in zip(points, vectors, strict=True) if vector is None), None)
        if missing is not None:
            raise InputError(f"{self.name} must have a vector in every row, found none at id {missing}")
        return Batch(
            ids=[point.id for point in points],
            vectors=np.asarray(vectors, np.float32),
            payloads=[point.payload or {} for point in points],
        )

    def read_ids(self) -> Iterator[Sequence[Any]]:
        for points in self._scroll(_IDS_AT_ONCE, with_vectors=False, with_payload=False):
            yield [point.id for point in points]

    def take(self, ids: Sequence[Any]) -> Batch:
        found = self._database.retrieve(
            self._address.collection, [_as_id(key, self.name) for key in ids], with_payload=True, with_vectors=True
        )
        order = in_order([_as_id(key, self.name) for key in ids], [point.id for point in found], self.name)
        return self._batch([found[place] for place in order], self._info())

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        name = self._vector_name(self._info())
        results = []
        for vector in vectors:
            found = self._database.query_points(
                self._address.collection, query=vector.tolist(), using=name, limit=k, with_payload=False
            )
            results.append([point.id for point in found.points])
        return results

    def check(self, batch: Batch) -> None:
        for key in batch.ids:
            _as_id(key, self.name)

    def create(self, source: Description, dims: int) -> None:
        from qdrant_client import models

        name = self._address.options.get("vector", source.settings.get("name"))
        if source.kind != "qdrant":
            distances = {metric: distance for distance, metric in _METRICS.items()}
            params = models.VectorParams(size=dims, distance=models.Distance(distances[source.metric]))
            self._database.create_collection(
                self._address.collection, vectors_config=params if name is None else {name: params}
            )
            return
        params = source.settings["params"].model_copy(update={"size": dims})
        config = source.settings["info"].config
        self._database.create_collection(
            self._address.collection,
            vectors_config=params if name is None else {name: params},
            hnsw_config=_as_change(config.hnsw_config, models.HnswConfigDiff),
            quantization_config=config.quantization_config,
            on_disk_payload=config.params.on_disk_payload,
            shard_number=config.params.shard_number,
            replication_factor=config.params.replication_factor,
        )

    def write(self, batch: Batch) -> None:
        from qdrant_client import models

        name = self._vector_name(self._info())
        vectors = batch.vectors.tolist()
        points = models.Batch(
            ids=[_as_id(key, self.name) for key in batch.ids],
            vectors=vectors if name is None else {name: vectors},
            payloads=[dict(payload) for payload in batch.dicts()],
        )
        self._database.upsert(self._address.collection, points, wait=True)

    def resume(self, source: Description, saved: int, dims: int) -> int:
        return saved

    def finish(self, source: Description) -> None:
        info = source.settings.get("info")
        for field, found in (info.payload_schema if info else {}).items():
            self._database.create_payload_index(
                self._address.collection, field, field_schema=found.params or found.data_type
            )

    def undo(self, source: Description) -> str:
        return f"QdrantClient({self._address.database!r}).delete_collection({self._address.collection!r})"


def _as_change(config: Any, kind: Any) -> Any:
    """A config as it is reported in the form in which it is set."""
    return None if config is None else kind(**{key: getattr(config, key, None) for key in kind.model_fields})


def _as_id(key: Any, name: str) -> Any:
    import uuid

    if isinstance(key, int) and key >= 0:
        return key
    try:
        return str(uuid.UUID(str(key)))
    except ValueError:
        raise InputError(f"{name} must have whole numbers or UUIDs as ids, found {key!r}") from None
