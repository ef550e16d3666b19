"""Ids of rows: which rows of two tables belong together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError


def place_by_id(ids: Sequence[Any], name: str) -> dict[Any, int]:
    """The number of the row of each id.

    Raises:
        InputError: an id is missing or occurs twice.
    """
    places: dict[Any, int] = {}
    for row, key in enumerate(ids):
        if key is None:
            raise InputError(f"{name} must have an id in every row, found none in row {row}")
        if key in places:
            raise InputError(f"{name} must have every id once, found {key!r} in rows {places[key]} and {row}")
        places[key] = row
    return places


def match_ids(
    x_ids: Sequence[Any], y_ids: Sequence[Any], names: tuple[str, str] = ("x", "y")
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows of ``x`` and ``y`` that have an id in common, in the order of ``x``.

    Raises:
        InputError: an id is missing or occurs twice, or the two have no id in common.

    Example:
        >>> match_ids(["a", "b", "c"], ["c", "a"])
        (array([0, 2]), array([1, 0]))
    """
    x_places, y_places = place_by_id(x_ids, names[0]), place_by_id(y_ids, names[1])
    common = [key for key in x_places if key in y_places]
    if not common:
        raise InputError(
            f"{names[1]} must have ids of {names[0]}, found none of them; ids of one kind are needed, such as whole "
            f"numbers in both, found {_kind(x_places)} and {_kind(y_places)}"
        )
    return np.array([x_places[key] for key in common]), np.array([y_places[key] for key in common])


def _kind(places: dict[Any, int]) -> str:
    return type(next(iter(places))).__name__
