"""Tables in files as the source of a move; they are read only."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.paths import exists
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order
from mv2v_jax.tables.columns import check_column, open_vectors
from mv2v_jax.tables.readers import SUFFIXES


def with_key(address: Address) -> Address:
    """``FILE:COLUMN`` of a table as an option."""
    path, colon, key = address.place.rpartition(":")
    if address.store or not colon or exists(Path(address.place)) or not path.lower().endswith(SUFFIXES):
        return address
    return address._replace(place=path, options={"vector": key, **address.options})


class TableStore:
    """A Parquet, Arrow, JSON lines or CSV table whose rows have ids."""

    def __init__(self, address: Address) -> None:
        address = with_key(address)
        self.name = str(address)
        if "id" not in address.options:
            raise InputError(f"{self.name} must have ids to be moved; name their column by ?id=COLUMN")
        self._table = open_vectors(Path(address.place), address.options.get("vector"))
        self._id = check_column(self._table, address.options["id"], "id")

    def exists(self) -> bool:
        return True

    def describe(self) -> Description:
        first = next(self.read(1), None)
        return Description(
            kind="table",
            count=self.count(),
            dims=0 if first is None else first.vectors.shape[1],
            metric="cosine",
            id_name=self._id,
            integer_ids=first is not None and isinstance(first.ids[0], int),
        )

    def count(self) -> int:
        return sum(len(ids) for ids in self.read_ids())

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        carried = [self._id, *(name for name in self._table.others if name != self._id)]
        for vectors, columns in self._table.batches(carried, batch_rows):
            begin, skip = min(skip, len(vectors)), max(0, skip - len(vectors))
            if begin < len(vectors):
                ids = columns.column(0).to_pylist()[begin:]
                yield Batch(ids=ids, vectors=vectors[begin:].astype(np.float32), columns=columns.slice(begin))

    def read_ids(self) -> Iterator[Sequence[Any]]:
        for part in self._table.table.read([self._id], 65_536):
            yield part.column(0).to_pylist()

    def take(self, ids: Sequence[Any]) -> Batch:
        wanted, found = set(ids), []
        for batch in self.read(4096):
            for place in [place for place, key in enumerate(batch.ids) if key in wanted]:
                found.append((batch.ids[place], batch.vectors[place], batch.columns.slice(place, 1).to_pylist()[0]))
        order = in_order(ids, [key for key, _, _ in found], self.name)
        chosen = [found[place] for place in order]
        return Batch(ids=ids, vectors=np.stack([row for _, row, _ in chosen]), payloads=[row for *_, row in chosen])
