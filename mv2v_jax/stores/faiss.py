"""FAISS indexes in files: ``faiss:FILE``. They hold vectors and ids, and no payloads."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.data.atomic_files import atomic_path, check_writable
from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order, require

_IDS_AT_ONCE, _ROWS_AT_ONCE = 65_536, 8_192
# Rows to train an inverted file on, per list.
_TRAIN_PER_LIST = 64


class FaissStore:
    """One FAISS index in a file.

    A new one is collected in ``.NAME.part``, one record of an id and a vector per row, and built when all rows are
    there, because an index cannot be saved in parts.
    """

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        self._faiss = require("faiss", "faiss", self.name)
        self._path = Path(address.place)
        self._part = self._path.with_name(f".{self._path.name}.part")
        self._opened: Any = None
        self._dims = 0

    def exists(self) -> bool:
        return self._path.exists() or self._part.exists()

    # ---------------------------------------------------------------------------------------------------------- read

    def _index(self) -> Any:
        if self._opened is None:
            if not self._path.is_file():
                raise InputError(f"{self.name} must be a file, found nothing of that name")
            self._opened = self._faiss.read_index(str(self._path))
        return self._opened

    def _inner(self) -> tuple[Any, np.ndarray | None]:
        """The index without a map of ids, and the ids of that map."""
        index = self._faiss.downcast_index(self._index())
        if not hasattr(index, "id_map"):
            return index, None
        return self._faiss.downcast_index(index.index), self._faiss.vector_to_array(index.id_map)

    def _listed_ids(self, index: Any) -> np.ndarray | None:
        """Ids that an inverted file keeps in its lists, in ascending order; ``None`` if they are row numbers."""
        lists = getattr(index, "invlists", None)
        if lists is None:
            return None
        parts = [
            self._faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
            for number in range(index.nlist)
            if lists.list_size(number)
        ]
        ids = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        return None if np.array_equal(ids, np.arange(len(ids))) else ids

    def _ids(self) -> np.ndarray:
        index, mapped = self._inner()
        if mapped is not None:
            return mapped
        listed = self._listed_ids(index)
        return np.arange(index.ntotal) if listed is None else listed

    def _vectors(self, places: np.ndarray) -> np.ndarray:
        """Vectors of rows by their places in `_ids`."""
        index, mapped = self._inner()
        listed = None if mapped is not None else self._listed_ids(index)
        if hasattr(index, "set_direct_map_type"):
            kind = self._faiss.DirectMap
            index.set_direct_map_type(kind.Array if listed is None else kind.Hashtable)
        keys = places if listed is None else listed[places]
        return index.reconstruct_batch(np.ascontiguousarray(keys, np.int64))

    def describe(self) -> Description:
        index, mapped = self._inner()
        faiss = self._faiss
        metric = "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
        recipe, notes = _recipe(faiss, index)
        return Description(
            kind="faiss",
            count=index.ntotal,
            dims=index.d,
            metric=metric,
            integer_ids=True,
            notes=notes,
            settings={
                "recipe": recipe,
                "tuned": _tuned(index),
                "numbered": mapped is None and self._listed_ids(index) is None,
            },
        )

    def count(self) -> int:
        return self._index().ntotal

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        ids = self._ids()
        for start in range(skip, len(ids), batch_rows):
            places = np.arange(start, min(start + batch_rows, len(ids)))
            yield Batch(ids=ids[places].tolist(), vectors=self._vectors(places))

    def read_ids(self) -> Iterator[Sequence[Any]]:
        ids = self._ids()
        for start in range(0, len(ids), _IDS_AT_ONCE):
            yield ids[start : start + _IDS_AT_ONCE].tolist()

    def take(self, ids: Sequence[Any]) -> Batch:
        return Batch(ids=ids, vectors=self._vectors(in_order(ids, self._ids().tolist(), self.name)))

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        _, found = self._index().search(np.ascontiguousarray(vectors, np.float32), k)
        return found.tolist()

    # --------------------------------------------------------------------------------------------------------- write

    def _record(self) -> np.dtype:
        return np.dtype([("id", np.int64), ("vector", np.float32, (self._dims,))])

    def _records(self, start: int, count: int) -> np.ndarray:
        """Records of the unfinished file; not mapped into memory, because mapped pages count as the process's own."""
        return np.fromfile(self._part, self._record(), count, offset=start * self._record().itemsize)

    def check(self, batch: Batch) -> None:
        if any(batch.dicts()):
            raise InputError(f"{self.name} holds vectors and ids only, found payloads; move to another kind of store")
        if not all(isinstance(key, int) for key in batch.ids):
            raise InputError(f"{self.name} must have whole numbers as ids, found {batch.ids[0]!r}")

    def create(self, source: Description, dims: int) -> None:
        check_writable(self._path)
        self._dims = dims
        # Fails if another process has made it since it was looked for.
        self._part.touch(exist_ok=False)

    def write(self, batch: Batch) -> None:
        self.check(batch)
        self._dims = batch.vectors.shape[1]
        records = np.empty(len(batch.vectors), self._record())
        records["id"], records["vector"] = list(batch.ids), batch.vectors
        with self._part.open("ab") as file:
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def resume(self, source: Description, saved: int, dims: int) -> int:
        self._dims = dims
        if self._path.exists():
            return saved
        # What was written after the last report is written again.
        with self._part.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.truncate(min(size, saved * self._record().itemsize))
        return saved

    def finish(self, source: Description) -> None:
        if self._path.exists():
            # Killed after its last step.
            self._part.unlink(missing_ok=True)
            return
        faiss, count = self._faiss, self._part.stat().st_size // self._record().itemsize
        metric = faiss.METRIC_L2 if source.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(self._dims, source.settings.get("recipe", "Flat"), metric)
        if not index.is_trained:
            wanted = min(count, _TRAIN_PER_LIST * getattr(index, "nlist", 256))
            chosen = np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))
            index.train(np.concatenate([self._records(row, 1)["vector"] for row in chosen.tolist()]))
        for path, value in source.settings.get("tuned", {}).items():
            part, _, name = path.rpartition(".")
            setattr(getattr(index, part) if part else index, name, value)
        has_ids = not source.settings.get("numbered", False)
        if has_ids and not hasattr(index, "invlists"):
            index = faiss.IndexIDMap2(index)
        for start in range(0, count, _ROWS_AT_ONCE):
            part = self._records(start, _ROWS_AT_ONCE)
            vectors = np.ascontiguousarray(part["vector"])
            if has_ids:
                index.add_with_ids(vectors, np.ascontiguousarray(part["id"]))
            else:
                index.add(vectors)
        with atomic_path(self._path) as temporary:
            faiss.write_index(index, str(temporary))
        self._part.unlink()

    def undo(self, source: Description) -> str:
        return f"remove the file {self._path}"


def _tuned(index: Any) -> dict[str, int]:
    """Settings that are no part of a recipe."""
    found = {"nprobe": index.nprobe} if hasattr(index, "nprobe") else {}
    if hasattr(index, "hnsw"):
        found |= {"hnsw.efConstruction": index.hnsw.efConstruction, "hnsw.efSearch": index.hnsw.efSearch}
    return found


def _recipe(faiss: Any, index: Any) -> tuple[str, tuple[str, ...]]:
    """What `index_factory` makes an index of the same kind from, and what is lost."""
    if isinstance(index, faiss.IndexIVFFlat):
        return f"IVF{index.nlist},Flat", ()
    if isinstance(index, faiss.IndexIVFPQ):
        return f"IVF{index.nlist},PQ{index.pq.M}x{index.pq.nbits}", ("vectors are read from their codes",)
    if isinstance(index, faiss.IndexHNSWFlat):
        return f"HNSW{index.hnsw.nb_neighbors(1)},Flat", ()
    is_flat = isinstance(index, faiss.IndexFlat)
    return "Flat", () if is_flat else (f"a {type(index).__name__} becomes a flat index",)
