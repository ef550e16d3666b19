"""Map rows that come in batches of any size, and write them to a table."""

import time
from pathlib import Path

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish
from mv2v_jax.portable.numpy_map import PortableMap
from mv2v_jax.progress import OnStep
from mv2v_jax.runs.apply_shards import Applied
from mv2v_jax.stores.sources import Source
from mv2v_jax.tables.write import table_writer


class BatchMapper:
    """Maps batches ``[b, d_x]`` one after the other.

    Args:
        linear_map: the map.
        finish: the frame, and what is done to mapped rows.
        name: what an error message calls the rows.
        first_row: number of the first row.
    """

    def __init__(self, linear_map: PortableMap, finish: Finish, name: str, first_row: int = 0) -> None:
        self._map, self._finish, self._name = linear_map, finish, name
        self._num_rows = first_row

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The mapped rows, ``[b, d_y]`` or a prefix of the columns, in the dtype of the rows.

        Raises:
            InputError: rows of another dimension, or with NaN or infinity.
        """
        d_x = self._map.W.shape[0]
        if rows.ndim != 2 or rows.shape[1] != d_x or not np.issubdtype(rows.dtype, np.floating):
            found = f"{rows.dtype} {list(rows.shape)}"
            raise InputError(f"{self._name} must hold rows of {d_x} floating-point numbers for this map, found {found}")
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            row = self._num_rows + int(np.argmin(finite))
            raise InputError(f"{self._name} must be finite, found NaN or infinity, first in row {row}")
        self._num_rows += len(rows)
        return self._finish(self._map.apply(rows, frame=self._finish.frame))


def apply_to_table(
    linear_map: PortableMap, source: Source, output: Path, *, finish: Finish, on_step: OnStep
) -> Applied:
    """Map all rows of a source and write a table with them and with the source's other columns.

    Args:
        linear_map: the map.
        source: rows of the source space.
        output: Parquet or Arrow file to write; it appears when it is complete.
        finish: the frame, and what is done to mapped rows.
        on_step: called with "rows mapped", the number of rows done and, because a table does not tell its number of
            rows before it is read, the same number again.
    """
    started, done = time.perf_counter(), 0
    mapper = BatchMapper(linear_map, finish, source.name)
    with table_writer(output, source.vector_name) as write:
        for vectors, others in source.batches():
            write(mapper(vectors), others)
            done += len(vectors)
            on_step("rows mapped", done, done)
    if not done:
        raise InputError(f"{source.name} must hold at least one row, found none")
    return Applied(num_mapped=done, seconds=time.perf_counter() - started)
