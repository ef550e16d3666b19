"""Typical rows, and how near rows are to them."""

import numpy as np
from sklearn.cluster import KMeans

from mv2v_jax.profiles.centres import find_centres, nearness


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_centres_are_as_near_as_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(80, 20))[rng.integers(80, size=2000)] + 0.3 * rng.normal(size=(2000, 20)))
    centres = find_centres(rows)
    assert 50 < len(centres) <= 64
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    expected = unit(KMeans(64, n_init=1, random_state=0).fit(rows).cluster_centers_)
    assert nearness(centres, rows)[0] > 0.95 * nearness(expected, rows)[0]


def test_nearness_is_that_of_all_pairs_and_turns_round():
    rng = np.random.default_rng(1)
    centres, rows = unit(rng.normal(size=(5, 4))).astype(np.float16), unit(rng.normal(size=(9, 4)))
    cosines = [[float(row @ centre.astype(np.float32)) for centre in centres] for row in rows]
    near, opposite = nearness(centres, rows)
    np.testing.assert_allclose(near, np.mean([max(row) for row in cosines]), rtol=1e-5)
    np.testing.assert_allclose(nearness(centres, -rows), [opposite, near], rtol=1e-6)


def test_no_centre_is_a_row():
    # One row is far from all others: alone it is no centre.
    rng = np.random.default_rng(3)
    rows = unit(np.vstack([[-5, 0, 0, 0]] + [rng.normal(size=4) * 0.3 + [1, 0, 0, 0] for _ in range(399)]))
    centres = find_centres(rows)
    assert len(centres) <= 20
    assert (rows[0] @ centres.T).max() < 0.5


def test_few_rows_and_clusters_without_rows():
    rows = np.repeat(unit(np.random.default_rng(2).normal(size=(3, 4))), 30, axis=0)
    found = find_centres(rows)
    assert 1 <= len(found) <= 3
    assert (rows @ found.T).max() > 0.999
    assert find_centres(rows[:7]).shape == (1, 4)
