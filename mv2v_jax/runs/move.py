"""Move a collection of vectors through a map into a new collection, beside the old one, which stays as it is.

Rows are read in an order that does not change, mapped, and written in batches. After every batch the number of rows
written is put into a small file, so that a killed move goes on where it was; rows written twice are as rows written
once. At the end both collections are compared.
"""

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.data.atomic_files import check_writable
from mv2v_jax.errors import InputError
from mv2v_jax.paths import exists
from mv2v_jax.portable.numpy_map import PortableMap
from mv2v_jax.progress import OnStep
from mv2v_jax.runs.map_batches import BatchMapper
from mv2v_jax.stores.protocol import Batch, Description, ReadStore, Store

BATCH_ROWS = 4096
# Rows whose vectors and payloads are compared at the end, and those that are searched for.
_SAMPLE, _QUERIES, _NEIGHBORS = 200, 50, 10
# Vectors whose directions differ more than by rounding to float16 are wrong.
_MIN_COSINE = 0.999


class Checked(NamedTuple):
    """What was found when both collections were compared.

    Attributes:
        rows: number of rows, the same in both.
        sampled: number of rows whose vectors and payloads were compared.
        recall: share of the ten nearest rows that a search in the new collection finds; ``None`` without ids.
    """

    rows: int
    sampled: int
    recall: float | None


class Moved(NamedTuple):
    """What `move` did.

    Attributes:
        num_moved: rows written by this call.
        num_kept: rows that an earlier call had written.
        seconds: time taken to move, without the comparison.
        checked: the comparison.
        undo: how to remove the new collection.
    """

    num_moved: int
    num_kept: int
    seconds: float
    checked: Checked
    undo: str


@dataclasses.dataclass
class _State:
    """What is known of a move, in a file that is replaced as a whole."""

    path: Path
    made_by: dict[str, Any]
    unit: bool = False
    written: int = 0

    def save(self) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({"made_by": self.made_by, "unit": self.unit, "written": self.written}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def refuse_other_files(self) -> None:
        """Raise `InputError` if another kind of file has the name: it would be overwritten."""
        if not exists(self.path):
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not {"made_by", "written"} <= found.keys():
            raise InputError(f"{self.path} must be new or of an earlier move, found another file; name another one")

    def load(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            made_by, self.unit, self.written = found["made_by"], bool(found["unit"]), int(found["written"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} must describe an unfinished move, found none; leave --resume out") from error
        if made_by != self.made_by:
            other = ", ".join(name for name, value in self.made_by.items() if made_by.get(name) != value)
            raise InputError(f"{self.path} describes a move with another {other}; name another file by --state")


def fingerprint(linear_map: PortableMap) -> str:
    """SHA-256 of the arrays of a map."""
    found = hashlib.sha256()
    for name in ("W", "mean_x", "mean_y", "scale_x", "scale_y"):
        found.update(np.ascontiguousarray(getattr(linear_map, name)).tobytes())
    return found.hexdigest()


def check_move(source: ReadStore, linear_map: PortableMap, target: Store) -> Description:
    """What the source is, if it fits the map and differs from the target.

    Raises:
        InputError: no rows, rows of another dimension, or source and target are one.
    """
    described = source.describe()
    d_x = linear_map.W.shape[0]
    if not described.count:
        raise InputError(f"{source.name} must hold at least one row with a vector, found none")
    if described.dims != d_x:
        raise InputError(
            f"{source.name} must have {d_x} dimensions for this map, found {described.dims}; use a map that was fitted "
            "on rows of the same encoder"
        )
    return described


def move(
    source: ReadStore, linear_map: PortableMap, target: Store, state_file: Path, *, resume: bool, on_step: OnStep
) -> Moved:
    """Move all rows of ``source`` into the new collection ``target``.

    Args:
        source: rows of the source space, with ids and payloads.
        linear_map: the map; rows are written in the frame of the target, comparable by cosine with raw vectors of the
            target encoder, and with length 1 if those of the source have length 1.
        target: a collection that does not exist, or the one that an earlier call began.
        state_file: file that holds the progress; removed at the end.
        resume: continue an earlier call.
        on_step: called with "rows moved", the number of rows written and the number of rows to write.

    Raises:
        InputError: the target exists, a row cannot be mapped, a store cannot be used, or the comparison fails.
    """
    described = check_move(source, linear_map, target)
    d_y = linear_map.W.shape[1]
    state = _State(state_file, {"source": source.name, "target": target.name, "map": fingerprint(linear_map)})
    kept = _begin(state, target, described, d_y, resume=resume, source=source)
    started, total = time.perf_counter(), described.count
    mapper = _Mapper(linear_map, source.name, kept, unit=state.unit)
    for batch in source.read(BATCH_ROWS, kept):
        target.write(mapper(batch))
        state.written += len(batch.ids)
        state.save()
        on_step("rows moved", state.written, total)
    target.finish(described)
    seconds = time.perf_counter() - started
    checked = compare(source, described, target, mapper, on_step)
    state.path.unlink()
    return Moved(
        num_moved=state.written - kept, num_kept=kept, seconds=seconds, checked=checked, undo=target.undo(described)
    )


def _begin(state: _State, target: Store, described: Description, d_y: int, *, resume: bool, source: ReadStore) -> int:
    """Make the target, or take it up; the number of rows that it holds for certain."""
    check_writable(state.path)
    if resume:
        state.load()
        if target.exists():
            state.written = target.resume(described, state.written, d_y)
            return state.written
    else:
        state.refuse_other_files()
        if target.exists():
            raise InputError(
                f"{target.name} must be new, found one of that name; name another, or continue a killed move with "
                "--resume"
            )
        first = next(source.read(BATCH_ROWS))
        target.check(first)
        state.unit = bool(np.allclose(np.linalg.norm(first.vectors.astype(np.float64), axis=1), 1, atol=1e-3))
    state.written = 0
    state.save()
    target.create(described, d_y)
    return 0


class _Mapper:
    """Maps the vectors of batches, and keeps what belongs to them."""

    def __init__(self, linear_map: PortableMap, name: str, first_row: int, *, unit: bool) -> None:
        self._mapper = BatchMapper(linear_map, "target", name, first_row)
        self._unit = unit

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        mapped = self._mapper(rows)
        return mapped / np.linalg.norm(mapped, axis=1, keepdims=True) if self._unit else mapped

    def __call__(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, vectors=self.vectors(batch.vectors))


# ----------------------------------------------------------------------------------------------------------- comparison


def compare(source: ReadStore, described: Description, target: Store, mapper: _Mapper, on_step: OnStep) -> Checked:
    """Compare a moved collection with its source: number of rows, ids, vectors and payloads of a sample, and searches.

    Raises:
        InputError: they differ.
    """
    count = target.count()
    if count != described.count:
        raise InputError(
            f"{target.name} must hold the {described.count:,} rows of {source.name}, found {count:,}; do ids occur "
            "twice, or was the source changed meanwhile"
        )
    ids, sample = _read_ids(source)
    if ids != _read_ids(target)[0] and described.id_name is not None:
        raise InputError(f"{target.name} must hold the ids of {source.name}, found others; was the source changed")
    taken = source.take(sample)
    wanted, found = mapper(taken), target.take(sample)
    cosines = np.einsum("ij,ij->i", _unit(wanted.vectors), _unit(found.vectors))
    if cosines.min() < _MIN_COSINE:
        worst = sample[int(cosines.argmin())]
        raise InputError(f"{target.name} must hold the mapped vector at id {worst!r}, found another")
    _compare_payloads(taken, found, target.name)
    if described.id_name is None:
        return Checked(rows=count, sampled=len(sample), recall=None)
    recall = _measure_recall(target, wanted.vectors[:_QUERIES], described, on_step)
    return Checked(rows=count, sampled=len(sample), recall=recall)


def _read_ids(store: ReadStore) -> tuple[tuple[int, int], list[Any]]:
    """A sum of hashes of all ids that does not depend on their order, their number, and ids drawn from all."""
    total, count, sample = 0, 0, []
    for ids in store.read_ids():
        for key in ids:
            hashed = int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "big")
            total = (total + hashed) % 2**64
            sample.append((hashed, key))
        count += len(ids)
        # The smallest hashes are a random sample that both collections agree on.
        sample = sorted(sample, key=lambda pair: pair[0])[:_SAMPLE]
    return (total, count), [key for _, key in sample]


def _compare_payloads(taken: Batch, found: Batch, name: str) -> None:
    for key, old, new in zip(taken.ids, taken.dicts(), found.dicts(), strict=True):
        new = new.get("payload", new) if "payload" not in old else new
        lost = [field for field, value in old.items() if not _same(value, new.get(field))]
        if lost:
            raise InputError(f"{name} must hold the payload of id {key!r}, found another {lost[0]}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other or str(one) == str(other)


def _measure_recall(target: Store, queries: np.ndarray, described: Description, on_step: OnStep) -> float:
    """Share of the nearest rows, found by comparing with all, that a search finds."""
    k = min(_NEIGHBORS, described.count)
    best_scores = np.full((len(queries), 0), 0.0)
    best_ids: list[list[str]] = [[] for _ in queries]
    seen = 0
    for batch in target.read(BATCH_ROWS):
        scores = _closeness(queries, batch.vectors, described.metric)
        names = [str(key) for key in batch.ids]
        joined = np.concatenate([best_scores, scores], axis=1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :k]
        best_ids = [[(old + names)[place] for place in row] for old, row in zip(best_ids, order.tolist(), strict=True)]
        best_scores = np.take_along_axis(joined, order, axis=1)
        seen += len(names)
        on_step("rows checked", seen, described.count)
    found = target.search(queries, k)
    hits = sum(len(set(map(str, one)) & set(other)) for one, other in zip(found, best_ids, strict=True))
    return hits / (k * len(queries))


def _closeness(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    queries, rows = queries.astype(np.float32), rows.astype(np.float32)
    if metric == "cosine":
        return _unit(queries) @ _unit(rows).T
    products = queries @ rows.T
    return products if metric == "ip" else 2 * products - np.square(rows).sum(axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def default_state(source: str, target: str) -> Path:
    """The file that keeps the progress of a move, in the current folder."""
    name = hashlib.sha256(f"{source}\n{target}".encode()).hexdigest()[:12]
    return Path(f".mv2v-move-{name}.json")


def preview(source: ReadStore, linear_map: PortableMap, target: Store) -> tuple[Description, Batch]:
    """What a move would do, without writing anything: the source, and the first rows as they would be written."""
    described = check_move(source, linear_map, target)
    if target.exists():
        raise InputError(f"{target.name} must be new, found one of that name; name another")
    first = next(source.read(BATCH_ROWS))
    target.check(first)
    return described, _Mapper(linear_map, source.name, 0, unit=False)(first)
