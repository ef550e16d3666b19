"""Tables in files, read batch by batch: Parquet, Arrow, JSON lines, CSV, AnnData, and folders of them."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mv2v_jax.data.row_files import by_number
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.paths import is_file, is_folder, list_folder
from mv2v_jax.tables import h5ad

# Bytes of text that are parsed at a time.
_TEXT_BYTES = 2**24
# Bytes of Parquet that are read at a time.
_READ_BYTES = 2**20


class Table(NamedTuple):
    """A table in one file or in several, one after the other.

    Attributes:
        path: the file or the folder.
        schema: Arrow schema of the columns.
        read: returns an iterator over record batches with the columns named, in that order.
    """

    path: Path
    schema: Any
    read: Callable[[list[str], int], Iterator[Any]]


class _Format(NamedTuple):
    """How one kind of file is read.

    Attributes:
        name: the kind, for an error message.
        schema: reads the schema.
        read: reads the columns in batches of about so many rows.
    """

    name: str
    schema: Callable[[Path], Any]
    read: Callable[[Path, list[str], int], Iterator[Any]]


# ------------------------------------------------------------------------------------------------------------- formats


def _read_parquet(path: Path, columns: list[str], batch_rows: int) -> Iterator[Any]:
    from pyarrow import parquet

    # Otherwise the bytes of a whole row group are read at once, which may be the whole file.
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES) as file:
        for batch in file.iter_batches(batch_rows, columns=columns):
            yield batch.select(columns)


def _parquet_schema(path: Path) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.schema_arrow


def _open_arrow(path: Path) -> Any:
    """An Arrow file in either of its two layouts; Feather files of version 2 are the first of them."""
    import pyarrow
    from pyarrow import ipc

    # Not mapped into memory: a mapped file that is cut short ends the process by a signal.
    source = pyarrow.OSFile(str(path))
    try:
        return ipc.open_file(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return ipc.open_stream(source)


def _cut(batches: Iterable[Any], columns: list[str], batch_rows: int) -> Iterator[Any]:
    """The named columns of record batches, cut into batches of at most ``batch_rows`` rows."""
    for batch in batches:
        for start in range(0, len(batch), batch_rows):
            yield batch.select(columns).slice(start, batch_rows)


def _read_arrow(path: Path, columns: list[str], batch_rows: int) -> Iterator[Any]:
    with _open_arrow(path) as reader:
        count = getattr(reader, "num_record_batches", None)
        batches = reader if count is None else map(reader.get_batch, range(count))
        yield from _cut(batches, columns, batch_rows)


def _arrow_schema(path: Path) -> Any:
    with _open_arrow(path) as reader:
        return reader.schema


def _text_blocks(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, some megabytes at a time."""
    with path.open("rb") as file:
        while block := file.read(_TEXT_BYTES):
            yield block + file.readline()


def _parse_lines(block: bytes) -> Any:
    from pyarrow import json as arrow_json

    # Where it begins with null, Arrow ends the process by a signal.
    if not block.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        raise ValueError("its first line is no JSON object")
    options = arrow_json.ReadOptions(block_size=max(2**16, 2 * len(block)))
    return arrow_json.read_json(io.BytesIO(block), read_options=options)


def _read_lines(path: Path, columns: list[str], batch_rows: int) -> Iterator[Any]:
    for block in _text_blocks(path):
        if block.strip():
            table = _parse_lines(block)
            missing = [name for name in columns if name not in table.column_names]
            if missing:
                raise InputError(f"{path} must have a field {missing[0]} in its lines, found lines without it")
            yield from table.select(columns).to_batches(batch_rows)


def _lines_schema(path: Path) -> Any:
    for block in _text_blocks(path):
        return _parse_lines(block).schema
    raise InputError(f"{path} must hold one JSON object a line, found an empty file")


def _open_csv(path: Path) -> Any:
    from pyarrow import csv

    # Lists in quotes may hold line breaks.
    parse = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True)
    return csv.open_csv(path, parse_options=parse, read_options=csv.ReadOptions(block_size=_TEXT_BYTES))


def _read_csv(path: Path, columns: list[str], batch_rows: int) -> Iterator[Any]:
    with _open_csv(path) as reader:
        yield from _cut(reader, columns, batch_rows)


def _csv_schema(path: Path) -> Any:
    with _open_csv(path) as reader:
        return reader.schema


_PARQUET = _Format("Parquet", _parquet_schema, _read_parquet)
_ARROW = _Format("Arrow", _arrow_schema, _read_arrow)
_LINES = _Format("JSON lines", _lines_schema, _read_lines)
_CSV = _Format("CSV", _csv_schema, _read_csv)
_H5AD = _Format("AnnData", h5ad.schema, h5ad.read)

_FORMATS: dict[str, _Format] = {
    ".parquet": _PARQUET,
    ".pq": _PARQUET,
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".ipc": _ARROW,
    ".jsonl": _LINES,
    ".ndjson": _LINES,
    ".csv": _CSV,
    ".tsv": _CSV,
    ".h5ad": _H5AD,
}
SUFFIXES = tuple(_FORMATS)

# -------------------------------------------------------------------------------------------------------------- files


def is_table(path: Path) -> bool:
    """Whether a path is a table by its suffix or, for a folder, by what is in it."""
    if not is_folder(path):
        return path.suffix.lower() in _FORMATS
    return _is_dataset(path) or any(file.suffix.lower() in _FORMATS for file in list_folder(path))


def _is_dataset(folder: Path) -> bool:
    return is_file(folder / "state.json") or is_file(folder / "dataset_dict.json")


def _dataset_files(folder: Path) -> list[Path]:
    """The files of a folder that ``datasets.Dataset.save_to_disk`` wrote."""
    if is_file(folder / "dataset_dict.json"):
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        found = ", ".join(splits)
        raise InputError(f"{folder} holds several splits, name one as {folder}/SPLIT; found {found}")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    # Only names inside the folder: a state that leads elsewhere is not followed.
    return [folder / Path(entry["filename"]).name for entry in state["_data_files"]]


def _files_of(path: Path) -> list[Path]:
    if not is_folder(path):
        if not is_file(path):
            raise InputError(f"{path} must be a file, found nothing of that name")
        return [path]
    try:
        if _is_dataset(path):
            return _dataset_files(path)
        files = [file for file in list_folder(path) if not file.name.startswith((".", "_"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    strange = [file for file in files if file.suffix.lower() not in _FORMATS or not is_file(file)]
    if strange:
        raise InputError(f"{path} must hold only files of one table, found {strange[0].name}; move it elsewhere")
    kinds = {_FORMATS[file.suffix.lower()].name for file in files}
    if len(kinds) > 1:
        raise InputError(f"{path} must hold files of one kind, found {' and '.join(sorted(kinds))}; keep one of them")
    return sorted(files, key=lambda file: by_number(file.name))


def open_table(path: Path) -> Table:
    """Open a table without reading a row.

    Args:
        path: a Parquet, Arrow, Feather, JSON lines, CSV, TSV or AnnData file; a folder of such files of one kind, in
            the order of the numbers in their names; or a folder of ``datasets.Dataset.save_to_disk``.

    Raises:
        InputError: pyarrow is missing, or the file is missing, damaged, or of another kind.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install 'mv2v_jax[tables]'") from error
    files = _files_of(path)
    form = _FORMATS.get(files[0].suffix.lower())
    if form is None:
        raise InputError(f"{path} must be a table, one of {', '.join(SUFFIXES)}, found another suffix")

    def guarded(file: Path, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except InputError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{file} cannot be read as {form.name}, it is damaged or of another kind: {first_line(error)}"
            ) from error

    def read(columns: list[str], batch_rows: int) -> Iterator[Any]:
        for file in files:
            batches = guarded(file, lambda file=file: form.read(file, columns, batch_rows))  # type: ignore[misc]
            while (batch := guarded(file, lambda batches=batches: next(batches, None))) is not None:  # type: ignore[misc]
                yield batch

    schema = guarded(files[0], lambda: form.schema(files[0]))
    # Names of columns are decoded only when they are asked for.
    guarded(files[0], lambda: schema.names)
    return Table(path=path, schema=schema, read=read)
