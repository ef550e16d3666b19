"""What every store can do, whatever client it goes through."""

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mv2v_jax.errors import InputError, first_line
from mv2v_jax.similarity import Metric

_METRICS: dict[str, Metric] = {"cosine": "cosine", "ip": "dot", "l2": "l2"}


@dataclass(frozen=True)
class Batch:
    """Some rows of a store.

    Attributes:
        ids: one id per row; row numbers where the store has no ids.
        vectors: ``[b, d]``.
        payloads: everything else that belongs to each row, by name.
        columns: the same as an Arrow record batch, where the store keeps columns with types; ``None`` elsewhere.
    """

    ids: Sequence[Any]
    vectors: np.ndarray
    payloads: Sequence[dict[str, Any]] = ()
    columns: Any = None

    def dicts(self) -> Sequence[dict[str, Any]]:
        """The payload of each row as a dict."""
        if self.columns is not None:
            return self.columns.to_pylist()
        return self.payloads or [{} for _ in self.ids]


@dataclass(frozen=True)
class Description:
    """What a collection is.

    Attributes:
        kind: kind of store, such as ``lancedb``.
        count: number of rows.
        dims: number of dimensions.
        metric: ``cosine``, ``l2`` or ``ip``, by which the collection is searched.
        id_name: name of the ids; ``None`` where rows have none.
        integer_ids: whether all ids are whole numbers.
        notes: what a move does not carry over, in words.
        settings: whatever a new collection of the same kind takes over, such as index settings.
    """

    kind: str
    count: int
    dims: int
    metric: str
    id_name: str | None = "id"
    integer_ids: bool = False
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def compares_by(self) -> Metric:
        """The metric, as the rest of this package calls it."""
        return _METRICS.get(self.metric, "l2")


class ReadStore(Protocol):
    """One collection or table that can be read."""

    name: str

    def exists(self) -> bool:
        """Whether there is such a collection."""

    def describe(self) -> Description:
        """What the collection is."""

    def count(self) -> int:
        """Number of rows with a vector."""

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        """All rows in an order that does not change, without the first ``skip``."""

    def read_ids(self) -> Iterator[Sequence[Any]]:
        """All ids, in batches and in any order."""

    def take(self, ids: Sequence[Any]) -> Batch:
        """The rows of these ids, in their order."""


class Store(ReadStore, Protocol):
    """One collection or table of a vector store."""

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        """The ids of the ``k`` rows nearest to each vector, by the index of the store."""

    def check(self, batch: Batch) -> None:
        """Raise `InputError` if rows such as these cannot be kept here; nothing is written."""

    def create(self, source: Description, dims: int) -> None:
        """Make the collection with the settings of ``source``; it must not exist."""

    def write(self, batch: Batch) -> None:
        """Add rows. Rows that are there already are replaced, so that writing twice is as writing once."""

    def resume(self, source: Description, saved: int, dims: int) -> int:
        """Take up what a killed process began; the number of rows, from the first, that need not be written again.

        Args:
            source: what the rows come from.
            saved: number of rows that were reported written.
            dims: number of dimensions of the collection.
        """

    def finish(self, source: Description) -> None:
        """Make the indexes that the source has."""

    def undo(self, source: Description) -> str:
        """How to remove the collection made from ``source``, in words or as a command."""


# -------------------------------------------------------------------------------------------------------------- clients


def require(module: str, extra: str, name: str) -> Any:
    """Import the client of a store.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{name} needs the package {module}: pip install 'mv2v_jax[{extra}]'") from error


_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", re.IGNORECASE)


def hide_secrets(text: str) -> str:
    """Text without the values of environment variables that hold credentials."""
    for variable, value in os.environ.items():
        if len(value) > 3 and _SECRET.search(variable):
            text = text.replace(value, "***")
    return re.sub(r"//[^/@\s]*:[^/@\s]*@", "//***@", text)


@contextlib.contextmanager
def client_errors(name: str) -> Iterator[None]:
    """Turn the errors of a client into `InputError`; defects of this package stay what they are."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, AttributeError, NameError, AssertionError) as error:
        # A client that fails may fail once more while it is closed.
        if error.__context__ is None:
            raise
        raise _as_input_error(name, error.__context__) from error
    except Exception as error:
        raise _as_input_error(name, error) from error


def _as_input_error(name: str, error: BaseException) -> InputError:
    return InputError(f"{name} cannot be used: {hide_secrets(first_line(error))}")


class Guarded:
    """A store whose client's errors come as `InputError`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = store.name

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._store, method)
        iterates = method in ("read", "read_ids")

        def call(*args: Any, **kwargs: Any) -> Any:
            if iterates:
                return self._iterate(found(*args, **kwargs))
            with client_errors(self.name):
                return found(*args, **kwargs)

        return call

    def _iterate(self, items: Iterator[Any]) -> Iterator[Any]:
        while True:
            with client_errors(self.name):
                item = next(items, None)
            if item is None:
                return
            yield item


def in_order(ids: Sequence[Any], found: Sequence[Any], name: str) -> np.ndarray:
    """Places in ``found`` of ``ids``.

    Raises:
        InputError: an id was not found.
    """
    places = {key: place for place, key in enumerate(found)}
    missing = [key for key in ids if key not in places]
    if missing:
        raise InputError(f"{name} must hold the id {missing[0]!r}, found {len(missing)} of {len(ids)} ids missing")
    return np.array([places[key] for key in ids], np.int64)
