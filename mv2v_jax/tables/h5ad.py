"""AnnData files as tables: ``X`` and the matrices of ``obsm`` are columns of vectors, ``obs`` has the others."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError, import_extra

IDS = "obs_names"
# Bytes of a dense batch: X may have tens of thousands of columns.
_BATCH_BYTES = 2**26


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import_extra("anndata", "h5ad", str(path))
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # Damaged bytes can raise any error of HDF5 and anndata.
        raise ValueError(error) from error


def _inside(group: Any, *names: str) -> Any:
    """The element of these names, ``None`` if there is none; links and raw data in other files are not followed."""
    import h5py

    for name in names:
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link, which is not followed")
        group = group[name]
    if isinstance(group, h5py.Dataset):
        if group.external or group.is_virtual:
            raise ValueError(f"{names[-1]} is stored in another file, which is not read")
    else:
        for name in group:
            _inside(group, name)
    return group


def _matrix(file: Any, name: str) -> Any:
    """``X`` or a matrix of ``obsm``, with its shape and dtype, to be sliced; ``None`` for anything else."""
    import h5py
    from anndata.io import sparse_dataset

    found = _inside(file, "X") if name == "X" else _inside(file, "obsm", name)
    kind = "" if found is None else found.attrs.get("encoding-type", "")
    if kind in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(found)
    return found if isinstance(found, h5py.Dataset) and found.ndim == 2 and found.shape[1] else None


def _matrices(file: Any) -> dict[str, Any]:
    names = ["X", *(_inside(file, "obsm") or ())]
    return {name: found for name in names if (found := _matrix(file, name)) is not None}


def _obs_columns(file: Any) -> dict[str, str]:
    """Names of the columns of ``obs``, and what they are stored as; the ids come first."""
    obs = _inside(file, "obs")
    if obs is None or "_index" not in obs.attrs:
        raise ValueError("it has no obs as anndata writes it")
    return {IDS: str(obs.attrs["_index"]), **{str(name): str(name) for name in obs.attrs["column-order"]}}


def schema(path: Path) -> Any:
    """The columns; the types of those of ``obs`` are known when they are read."""
    import pyarrow

    with _opened(path) as file:
        others = [(name, pyarrow.null()) for name in _obs_columns(file)]
        vectors = [(name, _list_type(matrix)) for name, matrix in _matrices(file).items()]
        return pyarrow.schema([*others, *vectors])


def _list_type(matrix: Any) -> Any:
    import pyarrow

    return pyarrow.list_(pyarrow.from_numpy_dtype(matrix.dtype.newbyteorder("=")), matrix.shape[1])


def read(path: Path, columns: list[str], batch_rows: int) -> Iterator[Any]:
    """Record batches of the columns named; sparse matrices become dense batch by batch."""
    import pyarrow
    from anndata.io import read_elem

    with _opened(path) as file:
        stored = _obs_columns(file)
        others = {
            name: pyarrow.array(read_elem(_inside(file, "obs", stored[name])), from_pandas=True)
            for name in columns
            if name in stored
        }
        matrices = {name: _matrix(file, name) for name in columns if name not in stored}
        for name, matrix in matrices.items():
            if getattr(matrix, "format", "csr") == "csc":
                raise InputError(
                    f"{path} must hold {name} row by row, found a sparse matrix in columns (csc), of which rows cannot "
                    f"be read; save it with {name}.tocsr()"
                )
            batch_rows = min(batch_rows, max(1, _BATCH_BYTES // (matrix.dtype.itemsize * matrix.shape[1])))
        count = max((len(column) for column in others.values()), default=0)
        count = max([count, *(matrix.shape[0] for matrix in matrices.values())])
        for start in range(0, count, batch_rows):
            rows = slice(start, min(start + batch_rows, count))
            parts = [
                others[name][rows] if name in others else _as_lists(matrices[name][rows], _list_type(matrices[name]))
                for name in columns
            ]
            yield pyarrow.record_batch(parts, names=columns)


def _as_lists(rows: Any, kind: Any) -> Any:
    import pyarrow

    dense = np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows)
    values = pyarrow.array(dense.astype(dense.dtype.newbyteorder("="), copy=False).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(values, type=kind)
