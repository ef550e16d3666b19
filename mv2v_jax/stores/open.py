"""Open a store by its address."""

import importlib
from typing import cast

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Guarded, Store

_CLASSES = {
    "lancedb": "LanceStore",
    "chroma": "ChromaStore",
    "qdrant": "QdrantStore",
    "faiss": "FaissStore",
    "postgres": "PostgresStore",
    "milvus": "MilvusStore",
}


def open_store(address: Address) -> Store:
    """The store of an address; its client is imported here and not before.

    Raises:
        InputError: the address is a file's, or the client is not installed.
    """
    if not address.store:
        raise InputError(
            f"{address} must be a store such as {', '.join(f'{kind}:PLACE/NAME' for kind in _CLASSES)}, found a file"
        )
    module = importlib.import_module(f"mv2v_jax.stores.{address.store}")
    return cast(Store, Guarded(getattr(module, _CLASSES[address.store])(address)))
