"""Typical rows of a space, and how near rows come to them; on NumPy alone."""

import numpy as np

_MAX_CENTRES, _NUM_STEPS = 64, 10
# Rows per centre: as many as it is the mean of at least, so that no row is stored, and as many as there are on average.
_MIN_ROWS, _MEAN_ROWS = 10, 20


def find_centres(units: np.ndarray) -> np.ndarray:
    """Means ``[k, d]`` of clusters of unit rows ``[n, d]`` (k-means on the sphere), scaled to length 1.

    There are at most 64, each the mean of at least 10 rows.
    """
    num_centres = max(1, min(_MAX_CENTRES, len(units) // _MEAN_ROWS))
    centres = units[np.linspace(0, len(units) - 1, num_centres).astype(np.int64)]
    for _ in range(_NUM_STEPS):
        nearest = np.argmax(units @ centres.T, axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, units)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        # A cluster that lost all rows keeps its centre.
        centres = np.where(norms > 0, sums / np.where(norms > 0, norms, 1), centres)
    sizes = np.bincount(nearest, minlength=num_centres)
    return centres[sizes >= min(_MIN_ROWS, sizes.max())]


def nearness(centres: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Mean cosine of unit rows ``[n, d]`` to the nearest centre, and to the nearest opposite of a centre: ``[2]``."""
    cosines = units @ centres.astype(np.float32).T
    return np.array([cosines.max(axis=1).mean(), -cosines.min(axis=1).mean()], np.float32)
