"""Open a folder of Qdrant without running what is in it: its client unpickles every row."""

import importlib
import pickle
import types
from io import BytesIO
from typing import Any

from mv2v_jax.errors import InputError
from mv2v_jax.stores.protocol import require

# What a row consists of beside numbers, texts, lists and dicts.
_OF_ROWS = {
    ("qdrant_client.http.models.models", "PointStruct"),
    ("qdrant_client.http.models.models", "SparseVector"),
    *(("datetime", name) for name in ("datetime", "date", "time", "timedelta", "timezone")),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
}


def open_folder(place: str) -> Any:
    """The client of a folder.

    Raises:
        InputError: a row holds something else than rows of Qdrant hold; it was not run.
    """

    class Rows(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in _OF_ROWS:
                raise InputError(
                    f"qdrant:{place} must hold rows of numbers and texts, found {module}.{name} in one, which could "
                    "run a program; write its rows again without"
                )
            return super().find_class(module, name)

    qdrant = require("qdrant_client", "qdrant", f"qdrant:{place}")
    persistence: Any = importlib.import_module("qdrant_client.local.persistence")
    persistence.pickle = types.SimpleNamespace(**{**vars(pickle), "loads": lambda data: Rows(BytesIO(data)).load()})
    try:
        # All rows are read here and never again.
        return qdrant.QdrantClient(path=place)
    finally:
        persistence.pickle = pickle
