"""Chroma collections: ``chroma:PATH/COLLECTION`` or ``chroma:http://HOST:PORT/COLLECTION``."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order, require

# The payload's name of what Chroma calls the document.
DOCUMENT = "document"
_IDS_AT_ONCE = 10_000


@functools.lru_cache
def _client(place: str, name: str) -> Any:
    chromadb = require("chromadb", "chroma", name)
    settings = chromadb.Settings(anonymized_telemetry=False)
    if "://" not in place:
        return chromadb.PersistentClient(place, settings=settings)
    url = urlsplit(place)
    return chromadb.HttpClient(url.hostname, url.port or 8000, ssl=url.scheme == "https", settings=settings)


class ChromaStore:
    """One collection of Chroma, on disk or on a server."""

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        require("chromadb", "chroma", self.name)
        self._address = address

    def _database(self) -> Any:
        return _client(self._address.database, self.name)

    def _collection(self) -> Any:
        if not self.exists():
            raise InputError(f"{self.name} must be a collection of Chroma, found none of that name")
        # Without this, Chroma would look for the model that embedded the documents.
        return self._database().get_collection(self._address.collection, embedding_function=None)

    def exists(self) -> bool:
        place = self._address.database
        # The client would make a new database.
        if "://" not in place and not (Path(place) / "chroma.sqlite3").is_file():
            return False
        return self._address.collection in [
            getattr(found, "name", found) for found in self._database().list_collections()
        ]

    def describe(self) -> Description:
        collection = self._collection()
        first = next(self.read(1), None)
        index = {key: value for key, value in (collection.configuration.get("hnsw") or {}).items() if value is not None}
        return Description(
            kind="chroma",
            count=collection.count(),
            dims=0 if first is None else first.vectors.shape[1],
            metric=index.get("space", "l2"),
            settings={"metadata": collection.metadata, "index": index},
        )

    def count(self) -> int:
        return self._collection().count()

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        # Rows come in the order in which they were added.
        collection = self._collection()
        include = ["embeddings", "metadatas", "documents"]
        while len((found := collection.get(limit=batch_rows, offset=skip, include=include))["ids"]):
            yield self._batch(found)
            skip += len(found["ids"])

    def _batch(self, found: Any) -> Batch:
        payloads = [dict(metadata or {}) for metadata in found["metadatas"]]
        for payload, document in zip(payloads, found["documents"], strict=True):
            if document is not None:
                payload[DOCUMENT] = document
        return Batch(ids=found["ids"], vectors=np.asarray(found["embeddings"], np.float32), payloads=payloads)

    def read_ids(self) -> Iterator[Sequence[Any]]:
        collection, skip = self._collection(), 0
        while found := collection.get(limit=_IDS_AT_ONCE, offset=skip, include=[])["ids"]:
            yield found
            skip += len(found)

    def take(self, ids: Sequence[Any]) -> Batch:
        wanted = [str(key) for key in ids]
        batch = self._batch(self._collection().get(ids=wanted, include=["embeddings", "metadatas", "documents"]))
        order = in_order(wanted, batch.ids, self.name)
        return Batch(ids=ids, vectors=batch.vectors[order], payloads=[batch.payloads[place] for place in order])

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        found = self._collection().query(query_embeddings=np.asarray(vectors, np.float32), n_results=k, include=[])
        return found["ids"]

    def check(self, batch: Batch) -> None:
        """Every id and payload can be kept."""

    def create(self, source: Description, dims: int) -> None:
        index = source.settings["index"] if source.kind == "chroma" else {"space": source.metric}
        self._database().create_collection(
            self._address.collection,
            metadata=source.settings.get("metadata"),
            configuration={"hnsw": index},
            embedding_function=None,
        )

    def write(self, batch: Batch) -> None:
        text = self._address.options.get("text", DOCUMENT)
        # Chroma has no empty values.
        payloads = [{name: value for name, value in row.items() if value is not None} for row in batch.dicts()]
        documents = [payload.pop(text, None) for payload in payloads]
        ids = [str(key) for key in batch.ids]
        vectors, collection = np.asarray(batch.vectors, np.float32), self._collection()
        at_once = self._database().get_max_batch_size()
        # Rows with and without a document, or a payload, cannot be written in one call.
        kinds = [(document is None, not payload) for document, payload in zip(documents, payloads, strict=True)]
        for kind in sorted(set(kinds)):
            rows = [row for row, found in enumerate(kinds) if found == kind]
            for part in (rows[start : start + at_once] for start in range(0, len(rows), at_once)):
                collection.upsert(
                    ids=[ids[row] for row in part],
                    embeddings=vectors[part],
                    documents=None if kind[0] else [documents[row] for row in part],
                    metadatas=None if kind[1] else [payloads[row] for row in part],
                )

    def resume(self, source: Description, saved: int, dims: int) -> int:
        return saved

    def finish(self, source: Description) -> None:
        """Chroma keeps its index up to date."""

    def undo(self, source: Description) -> str:
        return f"chromadb.PersistentClient({self._address.database!r}).delete_collection({self._address.collection!r})"
