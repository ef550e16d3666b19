"""Tables that are written batch by batch, whole or not at all."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.data.atomic_files import atomic_path
from mv2v_jax.errors import InputError, first_line

SUFFIXES = (".parquet", ".arrow", ".feather")
# Bytes of vectors per row group: larger ones take memory, smaller ones are slow to read.
_GROUP_BYTES = 2**26

Write = Callable[[np.ndarray, Any], None]


@contextlib.contextmanager
def table_writer(final: Path, vector_name: str) -> Iterator[Write]:
    """Yield a function that appends vectors ``[b, d]`` and a record batch of their other columns, or ``None``.

    Args:
        final: file to write; its suffix is one of `SUFFIXES`.
        vector_name: name of the column of vectors, which comes after the other columns.

    Raises:
        InputError: pyarrow is missing, the file cannot be written, or columns change their type.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{final} needs pyarrow: pip install 'mv2v_jax[tables]'") from error
    waiting: list[Any] = []
    with atomic_path(final) as temporary, contextlib.ExitStack() as opened:
        writers: list[Any] = []

        def flush() -> None:
            table = pyarrow.Table.from_batches(waiting)
            if not writers:
                make = pyarrow.parquet.ParquetWriter if final.suffix.lower() == ".parquet" else pyarrow.ipc.new_file
                writers.append(opened.enter_context(make(str(temporary), table.schema)))
            writers[0].write_table(table)
            waiting.clear()

        def write(vectors: np.ndarray, others: Any) -> None:
            try:
                batch = _join(vectors, others, vector_name)
                if waiting or writers:
                    batch = batch.cast(waiting[0].schema if waiting else writers[0].schema)
                waiting.append(batch)
                if sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
                    flush()
            except (pyarrow.ArrowException, ValueError) as error:
                raise InputError(f"{final} cannot hold these columns: {first_line(error)}") from error

        yield write
        if waiting:
            flush()


def _join(vectors: np.ndarray, others: Any, vector_name: str) -> Any:
    import pyarrow

    numbers = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))
    column = pyarrow.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
    if others is None:
        return pyarrow.record_batch([column], names=[vector_name])
    if vector_name in others.schema.names:
        raise InputError(f"the column {vector_name} is written with the vectors, found another one of that name")
    return others.append_column(vector_name, column)
