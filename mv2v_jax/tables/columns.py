"""Which columns of a table hold the vectors, the ids and the texts, and the vectors of one batch."""

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.data.row_files import by_number
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.objects.arrow import is_vector, vectors_of
from mv2v_jax.tables.readers import Table, open_table

# Rows per batch: of 4,096 float32 numbers each they take 64 MiB.
BATCH_ROWS = 4096


class VectorTable(NamedTuple):
    """A table of which one column, or several columns with a number each, hold the vectors.

    Attributes:
        table: the table.
        columns: the column of vectors, or the columns of their numbers.
        others: all other columns but those of further vectors.
    """

    table: Table
    columns: list[str]
    others: list[str]

    @property
    def name(self) -> str:
        """What an error message calls the column of vectors."""
        return f"{self.table.path}: column {self.columns[0]}"

    def batches(
        self, carried: list[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield vectors ``[b, d]`` and a record batch of the columns ``carried``, no column by default."""
        carried = carried or []
        wanted = list(dict.fromkeys([*self.columns, *carried]))
        width = None
        for batch in self.table.read(wanted, batch_rows):
            vectors = self._vectors(batch)
            if not len(vectors):
                continue
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                raise InputError(
                    f"lists of {self.name} must have one length, found {min(width, vectors.shape[1])} to "
                    f"{max(width, vectors.shape[1])}"
                )
            yield vectors, batch.select(carried)

    def _vectors(self, batch: Any) -> np.ndarray:
        from pyarrow import types

        kind = batch.schema.field(self.columns[0]).type
        if is_vector(kind):
            vectors = vectors_of(batch.column(self.columns[0]), self.name)
            return vectors.astype(np.float32) if _is_text(self.table) else vectors
        if types.is_string(kind) or types.is_large_string(kind):
            return _parse_vectors(batch.column(self.columns[0]), self.name)
        numbers = [self._numbers(batch, name) for name in self.columns]
        return np.stack(numbers, axis=1)

    def _numbers(self, batch: Any, name: str) -> np.ndarray:
        from pyarrow import types

        column = batch.column(name)
        if column.null_count:
            raise InputError(
                f"{self.table.path}: column {name} must hold a number in every row, found {column.null_count} nulls"
            )
        if not (types.is_floating(column.type) or types.is_integer(column.type)):
            raise InputError(f"{self.table.path}: column {name} must hold numbers, found {column.type}")
        values = column.to_numpy(zero_copy_only=False)
        return values.astype(np.float32) if _is_text(self.table) else values


def _is_text(table: Table) -> bool:
    """Whether numbers are written as text, which has no dtype of its own."""
    return table.path.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv")


def _parse_vectors(column: Any, name: str) -> np.ndarray:
    """Lists written as text, such as ``[0.1, 0.2]``."""
    try:
        lists = [json.loads(text) for text in column.to_pylist()]
        return np.asarray(lists, np.float32).reshape(len(lists), -1)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{name} must hold lists of one length, such as [0.1, 0.2], found otherwise: {first_line(error)}"
        ) from error


# ------------------------------------------------------------------------------------------------------------- choice


def open_vectors(path: Path, column: str | None = None) -> VectorTable:
    """Open a table and find its column of vectors.

    Args:
        path: as for `open_table`.
        column: name of the column; a pattern such as ``dim_*`` for columns with a number each, in the order of the
            numbers in their names. By default the only column of lists.

    Raises:
        InputError: there is no such column, or there are several and none is named.
    """
    table = open_table(path)
    names = list(table.schema.names)
    duplicates = {name for name in names if names.count(name) > 1}
    lists = [field.name for field in table.schema if is_vector(field.type)]
    chosen = _choose(table, names, lists, column)
    if duplicates & set(chosen):
        raise InputError(f"{path} must have one column {chosen[0]}, found several of that name")
    others = [name for name in names if name not in {*chosen, *lists, *duplicates}]
    return VectorTable(table=table, columns=chosen, others=others)


def _choose(table: Table, names: list[str], lists: list[str], column: str | None) -> list[str]:
    if column is None:
        # Columns of one name cannot be told apart.
        texts = [] if lists else [name for name in names if names.count(name) == 1 and _is_list_text(table, name)]
        found = lists or texts
        if len(found) == 1:
            return found
        if not found:
            raise InputError(
                f"{table.path} must have a column of lists of numbers, found {', '.join(names) or 'no column'}; name "
                "columns with a number each by a pattern, such as --column 'dim_*'"
            )
        raise InputError(
            f"{table.path} has several columns of vectors, name one by --column or as {table.path.name}:COLUMN; found "
            f"{', '.join(found)}"
        )
    if column in names:
        return [column]
    numbered = sorted(fnmatch.filter(names, column), key=by_number)
    if not numbered or not any(sign in column for sign in "*?["):
        raise InputError(f"{table.path} must have a column {column}, found {', '.join(names)}")
    return numbered


def _is_list_text(table: Table, name: str) -> bool:
    """Whether a column of a text file holds lists written as text, by its first row."""
    from pyarrow import types

    if not _is_text(table) or not types.is_string(table.schema.field(name).type):
        return False
    first = next(iter(table.read([name], 1)), None)
    text = first.column(0)[0].as_py() if first is not None and len(first) else None
    return isinstance(text, str) and text.strip().startswith("[") and text.strip().endswith("]")


def check_column(table: VectorTable, name: str, flag: str) -> str:
    """The column that ``flag`` names, which must be there, once."""
    names = table.table.schema.names
    if name not in names:
        raise InputError(f"{table.table.path} must have the column {name} that {flag} names, found {', '.join(names)}")
    if names.count(name) > 1:
        raise InputError(f"{table.table.path} must have one column {name} for {flag}, found several of that name")
    return name
