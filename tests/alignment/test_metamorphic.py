"""Whole fits of changed data: the map changes as the change of the data demands. No truth is needed for this."""

import jax
import numpy as np
import pytest

from mv2v_jax import Config, align_restarts, apply, invert

pytestmark = pytest.mark.slow

CONFIG = Config.fast().replace(
    anchors={"num_sets": 12, "num_clusters": 12, "rows": 300, "num_starts": 4, "search_steps": 20, "kept_sets": 6},
    relative={"rows": 200, "num_neighbors": 5},
    components={"num_runs": 0},
    annealing={"steps": 10, "rows": 150},
    settling={"steps": 2, "rows": 200},
)


def make_clouds():
    """Two rotated, noisy views of one clustered cloud, of disjoint rows."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 10)) * np.linspace(3, 0.5, 10)
    # Skewed within the clusters, because round clusters leave it open which of their rows belong together.
    latent = centres[rng.integers(0, 12, 1_200)] + 0.4 * rng.exponential(size=(1_200, 10)) ** 1.5
    x, y = (
        latent @ np.linalg.qr(rng.normal(size=(d, 10)))[0].T + 0.01 * rng.normal(size=(1_200, d)) + 0.5
        for d in (16, 12)
    )
    return x[:600].astype(np.float32), y[600:].astype(np.float32)


X, Y = make_clouds()
TURN_X, TURN_Y = (np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0].astype(np.float32) for d in (16, 12))


def fit(x, y):
    return align_restarts(jax.random.key(1), x, y, 2, CONFIG).best.map


@pytest.fixture(scope="module")
def mapped():
    """The rows of X under the map of the data as they are."""
    return np.asarray(apply(fit(X, Y), X), np.float64)


def pad(rows):
    return np.pad(rows, ((0, 0), (0, 5)))


ORDER = np.random.default_rng(3).permutation(600)
# Per change: both spaces changed, and what turns rows mapped between them into rows mapped between the first ones.
CHANGES = {
    "X rotated": (X @ TURN_X, Y, lambda rows: rows),
    "Y rotated": (X, Y @ TURN_Y, lambda rows: rows @ TURN_Y.T),
    "both rotated": (X @ TURN_X, Y @ TURN_Y, lambda rows: rows @ TURN_Y.T),
    "columns of X in another order": (X[:, ::-1], Y, lambda rows: rows),
    "columns of Y in another order": (X, Y[:, ::-1], lambda rows: rows[:, ::-1]),
    "X scaled": (X * np.float32(1_000), Y, lambda rows: rows),
    "Y scaled": (X, Y * np.float32(0.001), lambda rows: rows),
    "X shifted": (X + np.float32(5), Y, lambda rows: rows),
    "Y shifted": (X, Y - np.float32(5), lambda rows: rows),
    "X mirrored": (-X, Y, lambda rows: rows),
    "X with dimensions of zeros": (pad(X), Y, lambda rows: rows),
    "Y with dimensions of zeros": (X, pad(Y), lambda rows: rows[:, :12]),
    "X in another order": (X[ORDER], Y, lambda rows: rows[np.argsort(ORDER)]),
    "Y in another order": (X, Y[ORDER], lambda rows: rows),
    "X twice": (np.concatenate([X, X]), Y, lambda rows: rows[:600]),
    "Y twice": (X, np.concatenate([Y, Y]), lambda rows: rows),
    "float64": (X.astype(np.float64), Y.astype(np.float64), lambda rows: rows),
    "float16": (X.astype(np.float16), Y.astype(np.float16), lambda rows: rows),
    "zero rows in X": (np.concatenate([X, np.zeros_like(X[:30])]), Y, lambda rows: rows[:600]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_map_changes_as_the_data(mapped, name):
    x, y, undo = CHANGES[name]
    found = undo(np.asarray(apply(fit(x, y), x), np.float64))
    assert np.mean(np.sum(found * mapped, axis=1)) > 0.97


def test_swapped_sides_give_the_inverse(mapped):
    found = np.asarray(apply(invert(fit(Y, X)), X), np.float64)
    assert np.mean(np.sum(found * mapped, axis=1)) > 0.97


@pytest.mark.parametrize("name", ["X scaled", "Y scaled"])
def test_powers_of_two_change_no_bit_of_the_mapped_rows(name):
    """A power of two rounds nothing."""
    x, y = (X * 1024, Y) if name == "X scaled" else (X, Y * 1024)
    np.testing.assert_array_equal(apply(fit(x, y), x), apply(fit(X, Y), X))


def test_shards_give_the_bits_of_one_file(tmp_path):
    from mv2v_jax import open_rows

    for part, rows in enumerate(np.array_split(X, 12)):
        np.save(tmp_path / f"{part}.npy", rows)
    np.testing.assert_array_equal(fit(open_rows(tmp_path), Y).W, fit(X, Y).W)
