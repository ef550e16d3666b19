"""k-means against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from mv2v_jax.ops.kmeans import kmeans, lloyd, seed_centers

NUM_CLUSTERS = 6


def make_blobs(seed):
    rng = np.random.default_rng(seed)
    centers = 4 * rng.standard_normal((NUM_CLUSTERS, 3))
    return (centers[rng.integers(NUM_CLUSTERS, size=240)] + rng.standard_normal((240, 3))).astype(np.float32)


def make_anisotropic(seed):
    rng = np.random.default_rng(seed)
    return (make_blobs(seed) @ rng.standard_normal((3, 3)) * [5.0, 1.0, 0.2]).astype(np.float32)


@pytest.fixture(scope="module")
def best_of_many():
    """The best of several seedings; k-means is only as good as its start, for scikit-learn too."""

    def fit(key, x):
        found = jax.vmap(lambda key: kmeans(key, x, num_clusters=NUM_CLUSTERS, num_steps=30))(jax.random.split(key, 8))
        return jax.tree.map(lambda leaf: leaf[jnp.argmin(found.inertia)], found)

    return jax.jit(fit)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [make_blobs, make_anisotropic])
def test_inertia_within_two_percent_of_scikit_learn(best_of_many, make, seed):
    x = make(seed)
    best = KMeans(NUM_CLUSTERS, n_init=10, random_state=0).fit(x)
    found = best_of_many(jax.random.key(seed), x)
    assert float(found.inertia) <= 1.02 * best.inertia_
    # The reported inertia and counts are those of the centres, by an oracle.
    distances = ((x[:, None] - np.asarray(found.centers)[None]) ** 2).sum(-1)
    np.testing.assert_allclose(found.inertia, distances.min(1).sum(), rtol=1e-4)
    np.testing.assert_array_equal(found.counts, np.bincount(distances.argmin(1), minlength=NUM_CLUSTERS))


def test_lloyd_equals_scikit_learn_from_the_same_start():
    x = make_anisotropic(7)
    start = x[:NUM_CLUSTERS]
    expected = KMeans(NUM_CLUSTERS, init=start, n_init=1, max_iter=5, tol=0, algorithm="lloyd").fit(x)
    found = lloyd(jnp.asarray(x), jnp.asarray(start), num_steps=5)
    np.testing.assert_allclose(found.centers, expected.cluster_centers_, atol=1e-3)


def lloyd_in_numpy(x, centers, num_steps):
    """Row by row; the first of equal centres has a row, and rows of zeros belong to none."""
    rows = x[x.any(axis=1)]
    for _ in range(num_steps):
        nearest = ((rows[:, None] - centers[None]) ** 2).sum(-1).argmin(1)
        own = [rows[nearest == center] for center in range(len(centers))]
        centers = np.stack([group.mean(0) if len(group) else old for group, old in zip(own, centers, strict=True)])
    distances = ((rows[:, None] - centers[None]) ** 2).sum(-1)
    return centers, np.bincount(distances.argmin(1), minlength=len(centers)), distances.min(1).sum()


@pytest.mark.parametrize("num_steps", [0, 1, 6])
def test_lloyd_against_numpy(num_steps):
    with jax.enable_x64(True):
        x = np.float64(make_blobs(3))
        x[[4, 17, 200]] = 0
        # A centre twice, and one where there is nothing.
        start = np.concatenate([x[:4], x[1:2], [[90.0, 0.0, 0.0]]])
        found = lloyd(jnp.asarray(x), jnp.asarray(start), num_steps=num_steps)
    centers, counts, inertia = lloyd_in_numpy(x, start, num_steps)
    assert 0 in counts
    assert counts.sum() == 237
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.centers, centers, atol=1e-10)
    np.testing.assert_allclose(found.inertia, inertia, rtol=1e-10)


def test_seeds_are_rows_and_spread():
    x = make_blobs(1)
    centers = np.asarray(seed_centers(jax.random.key(0), jnp.asarray(x), num_clusters=NUM_CLUSTERS))
    assert all((x == center).all(1).any() for center in centers)
    assert len(np.unique(centers, axis=0)) == NUM_CLUSTERS


def test_seeding_is_as_good_as_scikit_learns():
    """Greedy: of the rows drawn for a centre the best is taken. Seeds taken at random from them are far worse."""
    x = make_blobs(2)

    def inertia(centers):
        return ((x[:, None] - np.asarray(centers)[None]) ** 2).sum(-1).min(1).sum()

    seeds = jax.jit(jax.vmap(lambda key: seed_centers(key, jnp.asarray(x), num_clusters=NUM_CLUSTERS)))
    ours = [inertia(centers) for centers in seeds(jax.random.split(jax.random.key(0), 60))]
    theirs = [inertia(kmeans_plusplus(x, NUM_CLUSTERS, random_state=seed)[0]) for seed in range(60)]
    assert np.mean(ours) < 1.1 * np.mean(theirs)


def test_an_empty_cluster_stays_where_it_is():
    x = jnp.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    far = jnp.array([[0.0, 0.0], [50.0, 50.0]])
    found = lloyd(x, far, num_steps=3)
    np.testing.assert_array_equal(found.counts, [3, 0])
    np.testing.assert_array_equal(found.centers[1], far[1])
    np.testing.assert_allclose(found.centers[0], x.mean(0), rtol=1e-6)


def test_more_clusters_than_distinct_rows():
    x = jnp.repeat(jnp.array([[1.0, 2.0], [-3.0, 0.5]]), 4, axis=0)
    found = kmeans(jax.random.key(0), x, num_clusters=5, num_steps=4)
    assert np.isfinite(found.centers).all()
    assert {tuple(center) for center in np.asarray(found.centers)} == {(1.0, 2.0), (-3.0, 0.5)}
    assert float(found.inertia) == 0
    assert float(found.counts.sum()) == 8


def test_equal_rows():
    found = kmeans(jax.random.key(0), jnp.full((8, 2), 3.0), num_clusters=5, num_steps=4)
    np.testing.assert_array_equal(found.centers, np.full((5, 2), 3.0))
