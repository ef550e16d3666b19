"""Move a collection of vectors through a map into a new collection, beside the old one, which stays as it is.

Rows are read in an order that does not change, mapped, and written in batches. After every batch the number of rows
written is put into a small file, so that a killed move goes on where it was; rows written twice are as rows written
once. At the end both collections are compared.
"""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mv2v_jax.data.atomic_files import check_writable
from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish
from mv2v_jax.portable.numpy_map import PortableMap
from mv2v_jax.progress import OnStep
from mv2v_jax.runs.map_batches import BatchMapper
from mv2v_jax.runs.moving.compare import Checked, compare
from mv2v_jax.runs.moving.state import State, fingerprint, hold
from mv2v_jax.stores.protocol import Batch, Description, ReadStore, Store

BATCH_ROWS = 4096
# Rows that can be compared by cosine with raw vectors of the target encoder.
FOR_COSINE = Finish(frame="target")


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


def check_move(source: ReadStore, linear_map: PortableMap) -> Description:
    """What the source is, if it fits the map.

    Raises:
        InputError: no rows, or rows of another dimension.
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
    source: ReadStore,
    linear_map: PortableMap,
    target: Store,
    state_file: Path,
    *,
    finish: Finish = FOR_COSINE,
    resume: bool,
    on_step: OnStep,
) -> Moved:
    """Move all rows of ``source`` into the new collection ``target``.

    Args:
        source: rows of the source space, with ids and payloads.
        linear_map: the map.
        target: a collection that does not exist, or the one that an earlier call began.
        state_file: file that holds the progress; removed at the end.
        finish: the frame, and what is done to mapped rows. Rows for cosine are written with length 1 if those of the
            source have length 1.
        resume: continue an earlier call.
        on_step: called with "rows moved", the number of rows written and the number of rows to write.

    Raises:
        InputError: the target exists, another process runs this move, a row cannot be mapped, a store cannot be used,
            or the comparison fails.
    """
    check_writable(state_file)
    with hold(state_file, target.name):
        return _move(source, linear_map, target, state_file, finish, resume=resume, on_step=on_step)


def _move(
    source: ReadStore,
    linear_map: PortableMap,
    target: Store,
    state_file: Path,
    finish: Finish,
    *,
    resume: bool,
    on_step: OnStep,
) -> Moved:
    described = check_move(source, linear_map)
    made_by = {"source": source.name, "target": target.name, "map": fingerprint(linear_map)}
    state = State(state_file, {**made_by, "metric": finish.metric, "dims": finish.dims or linear_map.W.shape[1]})
    kept = _begin(state, target, described, resume=resume, source=source)
    started, total = time.perf_counter(), described.count
    mapper = _Mapper(linear_map, finish, source.name, kept, unit=state.unit)
    for batch in source.read(BATCH_ROWS, kept):
        try:
            target.write(mapper(batch))
        except InputError:
            # Some stores are made by the first write: then there is nothing to go on with.
            if not state.written and not target.exists():
                state.path.unlink()
            raise
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


def _begin(state: State, target: Store, described: Description, *, resume: bool, source: ReadStore) -> int:
    """Make the target, or take it up; the number of rows that it holds for certain."""
    dims = state.made_by["dims"]
    if resume:
        state.load()
        if target.exists():
            state.written = target.resume(described, state.written, dims)
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
        lengths = np.linalg.norm(first.vectors.astype(np.float64), axis=1)
        state.unit = state.made_by["metric"] == "cosine" and bool(np.allclose(lengths, 1, atol=1e-3))
    state.written = 0
    state.save()
    try:
        target.create(described, dims)
    except InputError:
        # Otherwise --resume would take up whatever has the name.
        state.path.unlink()
        raise
    return 0


class _Mapper:
    """Maps the vectors of batches, and keeps what belongs to them."""

    def __init__(self, linear_map: PortableMap, finish: Finish, name: str, first_row: int, *, unit: bool) -> None:
        self._mapper = BatchMapper(linear_map, finish, name, first_row)
        self._unit = unit

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        mapped = self._mapper(rows)
        return mapped / np.linalg.norm(mapped, axis=1, keepdims=True) if self._unit else mapped

    def __call__(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, vectors=self.vectors(batch.vectors))


def preview(
    source: ReadStore, linear_map: PortableMap, target: Store, finish: Finish = FOR_COSINE
) -> tuple[Description, Batch]:
    """What a move would do, without writing anything: the source, and the first rows as they would be written."""
    described = check_move(source, linear_map)
    if target.exists():
        raise InputError(f"{target.name} must be new, found one of that name; name another")
    first = next(source.read(BATCH_ROWS))
    target.check(first)
    return described, _Mapper(linear_map, finish, source.name, 0, unit=False)(first)
