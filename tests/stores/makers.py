"""Collections of 300 rows in every store, made through its own client."""

import functools
import json
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest

from mv2v_jax.stores.protocol import Batch

ROWS = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
# In no order, so that ids and row numbers differ.
NUMBERS = [int(number) for number in np.random.default_rng(1).permutation(1_000)[:300]]
TEXTS = [f"text {number}" for number in NUMBERS]


def quick_folder(folder):
    """A folder in memory where there is one: Qdrant in a folder waits for the disk after every row."""
    return tempfile.mkdtemp(dir="/dev/shm") if Path("/dev/shm").is_dir() else folder


def unique():
    """A name for a collection on a server, which all tests share."""
    return f"docs_{uuid.uuid4().hex[:8]}"


def make_lancedb(folder, _, rows, numbers):
    lancedb = pytest.importorskip("lancedb", reason="the package lancedb is not installed")
    import pyarrow as pa

    table = pa.table(
        {
            "id": [f"doc-{number}" for number in numbers],
            "number": pa.array(numbers, pa.int16()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
            "body": pa.array([f"text {number}" for number in numbers]),
        }
    )
    made = lancedb.connect(folder / "lance").create_table("docs", table)
    from lancedb.index import BTree, IvfFlat

    made.create_index("vector", config=IvfFlat(distance_type="cosine", num_partitions=2))
    made.create_index("id", config=BTree())
    return f"lancedb:{folder}/lance/docs"


def make_chroma(folder, server, rows, numbers, on_server=False):
    pytest.importorskip("chromadb", reason="the package chromadb is not installed")
    from mv2v_jax.stores.chroma import _client

    place, name = (server("chroma"), unique()) if on_server else (f"{folder}/chroma", "docs")
    made = _client(place, "test").create_collection(
        name,
        metadata={"owner": "me"},
        configuration={"hnsw": {"space": "cosine", "max_neighbors": 20}},
        embedding_function=None,
    )
    made.add(
        ids=[f"doc-{number}" for number in numbers],
        embeddings=rows,
        metadatas=[{"number": number, "even": number % 2 == 0} for number in numbers],
        documents=[f"text {number}" for number in numbers],
    )
    return f"chroma:{place}/{name}"


def make_qdrant(folder, _, rows, numbers):
    pytest.importorskip("qdrant_client", reason="the package qdrant-client is not installed")
    from qdrant_client import models

    from mv2v_jax.stores.qdrant import _client

    folder = quick_folder(folder)
    client = _client(f"{folder}/qdrant", "qdrant")
    params = models.VectorParams(size=rows.shape[1], distance=models.Distance.COSINE, on_disk=True)
    client.create_collection("docs", vectors_config={"old": params}, hnsw_config=models.HnswConfigDiff(m=20))
    ids = [str(uuid.UUID(int=number)) if number % 2 else number for number in numbers]
    payloads = [{"number": number, "nested": {"a": [number, None]}} for number in numbers]
    client.upsert("docs", models.Batch(ids=ids, vectors={"old": rows.tolist()}, payloads=payloads))
    return f"qdrant:{folder}/qdrant/docs"


def make_faiss(folder, _, rows, numbers, recipe="Flat", ids=True):
    faiss = pytest.importorskip("faiss", reason="the package faiss-cpu is not installed")
    index = faiss.index_factory(rows.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    if hasattr(index, "nprobe"):
        index.nprobe = 3
    if ids and "IVF" not in recipe:
        index = faiss.IndexIDMap2(index)
    index.add_with_ids(rows, np.array(numbers, np.int64)) if ids else index.add(rows)
    faiss.write_index(index, str(folder / "docs.faiss"))
    return f"faiss:{folder}/docs.faiss"


def make_postgres(folder, server, rows, numbers):
    server("postgres")
    import psycopg

    name = unique()
    with psycopg.connect(autocommit=True) as connection:
        run = connection.execute
        run("CREATE EXTENSION IF NOT EXISTS vector")
        run(
            f"""CREATE TABLE {name} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL,
            made timestamptz DEFAULT now(), facts jsonb, tags text[], price numeric(8, 2), "Odd name" uuid,
            twice bigint GENERATED ALWAYS AS (number * 2) STORED, embedding vector({rows.shape[1]}) NOT NULL)"""
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                f'INSERT INTO {name} (number, body, facts, tags, price, "Odd name", embedding) '
                "OVERRIDING SYSTEM VALUE "
                "VALUES (%s, %s, %s, %s, %s, %s, %s::vector)",
                [
                    (n, f"text {n}", json.dumps({"n": n}), ["a", "b"], f"{n}.50", uuid.UUID(int=n), str(row.tolist()))
                    for n, row in zip(numbers, rows, strict=True)
                ],
            )
        run(f"CREATE INDEX ON {name} USING hnsw (embedding vector_cosine_ops) WITH (m = 12)")
        run(f"CREATE INDEX ON {name} (body) WHERE number > 10")
    return f"postgres:/{name}"


def make_milvus(folder, server, rows, numbers, on_server=False):
    if not on_server:
        pytest.importorskip("milvus_lite", reason="the packages pymilvus and milvus-lite are not installed")
    place, name = (server("milvus"), unique()) if on_server else (f"{folder}/milvus.db", "docs")
    from mv2v_jax.stores.milvus import _client

    client = _client(place, "milvus")
    client.create_collection(name, dimension=rows.shape[1], metric_type="COSINE")
    client.upsert(
        name,
        [
            {"id": number, "vector": row.tolist(), "body": f"text {number}", "facts": {"n": number}}
            for number, row in zip(numbers, rows, strict=True)
        ],
    )
    return f"milvus:{place}/{name}"


MAKERS = {
    "lancedb": make_lancedb,
    "chroma": make_chroma,
    "qdrant": make_qdrant,
    "faiss": make_faiss,
    "faiss_numbered": functools.partial(make_faiss, ids=False),
    "faiss_hnsw": functools.partial(make_faiss, recipe="HNSW16,Flat"),
    "faiss_ivf": functools.partial(make_faiss, recipe="IVF4,Flat"),
    "postgres": make_postgres,
    "milvus": make_milvus,
    "chroma_server": functools.partial(make_chroma, on_server=True),
}


def beside(address: str) -> str:
    """The address of a new collection beside another."""
    return address.replace("docs.faiss", "new.faiss") if address.startswith("faiss") else f"{address}_new"


def all_rows(store) -> Batch:
    """All rows of a store in the order of their ids as text."""
    batches = list(store.read(4096))
    ids = [key for batch in batches for key in batch.ids]
    payloads = [payload for batch in batches for payload in batch.dicts()]
    vectors = np.concatenate([batch.vectors for batch in batches])
    order = sorted(range(len(ids)), key=lambda place: str(ids[place]))
    return Batch(
        ids=[ids[place] for place in order],
        vectors=vectors[order],
        payloads=[payloads[place] for place in order],
    )
