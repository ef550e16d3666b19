"""Addresses of rows: a file or a folder, or ``STORE:PLACE/COLLECTION``, both with options after a question mark."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from mv2v_jax.errors import InputError

STORES = ("lancedb", "chroma", "qdrant", "faiss", "postgres", "milvus")
OPTIONS = ("vector", "id", "text", "quantised", "ranges")
_PASSWORD = re.compile(r"//[^/@\s]*:[^/@\s]*@|password\s*=|api[_-]?key|token", re.IGNORECASE)


class Address(NamedTuple):
    """Where rows are.

    Attributes:
        store: one of `STORES`; empty for a file or a folder.
        place: the file or folder, or the place of the store with the collection after the last slash.
        options: values of `OPTIONS`; for a file ``vector`` names a column or an array.
    """

    store: str
    place: str
    options: dict[str, str]

    @property
    def collection(self) -> str:
        """Collection or table, what follows the last slash."""
        return self.place.rpartition("/")[2]

    @property
    def database(self) -> str:
        """Folder, file, or address of a server, what comes before the last slash."""
        return self.place.rpartition("/")[0]

    def __str__(self) -> str:
        """The address as it is typed, without the options; it holds no credentials, because those are refused."""
        return f"{self.store}:{self.place}" if self.store else self.place


def parse_address(source: str | Path, **options: str | None) -> Address:
    """Take an address apart.

    Args:
        source: for example ``x.npy``, ``x.parquet?vector=embedding&id=doc``, ``x.npy?quantised=int8&ranges=r.npy`` or
            ``lancedb:PATH/TABLE?vector=embedding&id=doc``.
        options: further options; those in the address come first.

    Raises:
        InputError: an option that does not exist, or a password in the address.

    Example:
        >>> address = parse_address("qdrant:http://localhost:6333/docs?text=body")
        >>> address.store, address.database, address.collection, address.options
        ('qdrant', 'http://localhost:6333', 'docs', {'text': 'body'})
    """
    text = str(source)
    given = {name: value for name, value in options.items() if value is not None}
    if _exists(text):
        return Address("", text, given)
    store, colon, rest = text.partition(":")
    is_store = bool(colon) and store in STORES
    place, _, query = (rest if is_store else text).partition("?")
    if is_store and _PASSWORD.search(rest):
        # The address itself is left out of the message.
        raise InputError(
            f"the address of a {store} store must hold no password or key, found one; put it where the client of the "
            f"store looks for it: {WHERE[store]}"
        )
    found = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [name for name in found if name not in OPTIONS]
    if unknown:
        raise InputError(f"{place} must have options among {', '.join(OPTIONS)}, found {unknown[0]}")
    if is_store and store == "faiss" and not Path(place).name:
        raise InputError(f"faiss:{place} must be faiss:FILE, found no name of a file")
    if is_store and store != "faiss" and ("/" not in place or not place.rpartition("/")[2]):
        raise InputError(f"{store}:{place} must be {store}:PLACE/COLLECTION, found no collection after a slash")
    return Address(store if is_store else "", place, given | found)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # A name that no file can have.
        return False


WHERE = {
    "lancedb": "LANCEDB_API_KEY",
    "chroma": "CHROMA_API_KEY",
    "qdrant": "QDRANT_API_KEY",
    "faiss": "no client",
    "postgres": "PGPASSWORD or ~/.pgpass",
    "milvus": "MILVUS_TOKEN",
}
