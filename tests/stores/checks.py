"""What must hold after a move between two stores."""

import numpy as np
from helpers import make_map, semi_orthogonal, unit
from stores.makers import ROWS, all_rows, beside

from mv2v_jax.portable.numpy_map import from_map
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.open import open_store

RNG = np.random.default_rng(2)
MAP = from_map(make_map(semi_orthogonal(RNG, 8, 5), RNG.normal(size=8), RNG.normal(size=5), 2.0, 3.0))


def quiet(*_):
    """A progress that is not shown."""


def open_both(address, other=None):
    """A store and the one that it is moved to."""
    return open_store(parse_address(address)), open_store(parse_address(other or beside(address)))


def check_moved(address, other=None):
    """Every row, its id, its payload and its mapped vector are there, and once only."""
    source, target = (all_rows(store) for store in open_both(address, other))
    assert len(source.ids) == len(ROWS)
    assert target.ids == source.ids
    assert target.dicts() == source.dicts()
    # Qdrant keeps unit rows where it compares by cosine.
    np.testing.assert_allclose(unit(target.vectors), unit(MAP.apply(source.vectors, frame="target")), atol=1e-3)
