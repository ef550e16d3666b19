"""A map with unequal dimensions and means, and rows for it: raw ones, a zero row and copies scaled up and down."""

import numpy as np
import pytest

from mv2v_jax import Centering, LinearMap
from mv2v_jax.portable import from_map


@pytest.fixture
def linear_map():
    rng = np.random.default_rng(1)
    source, target = (
        Centering(mean=rng.normal(size=d).astype(np.float32), scale=np.float32(scale))
        for d, scale in ((9, 2.5), (6, 0.4))
    )
    return LinearMap(W=rng.normal(size=(9, 6)).astype(np.float32), source=source, target=target)


@pytest.fixture
def portable_map(linear_map):
    return from_map(linear_map)


@pytest.fixture
def rows():
    rows = np.random.default_rng(2).normal(size=(40, 9)).astype(np.float32)
    rows[3] = 0
    rows[4:6] = rows[6:8] * np.float32([[1e4], [1e-4]])
    return rows
