"""CSLS against the whole n x m matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import unit

from mv2v_jax.ops.csls import NUM_LOCAL, _candidate_density, dense_csls, match_csls, mean_csls
from mv2v_jax.ops.knn import Neighbors
from mv2v_jax.ops.mutual_knn import find_candidates


def clouds(seed, n, m, d=4):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(n, d))), unit(rng.normal(size=(m, d)))


def whole_csls(x, y, num_local):
    similarity = x @ y.T
    density_x = np.sort(similarity, axis=1)[:, -num_local:].mean(1)
    density_y = np.sort(similarity, axis=0)[-num_local:].mean(0)
    return 2 * similarity - density_x[:, None] - density_y[None]


def match(x, y, k, dtype=jnp.float32):
    return match_csls(jnp.asarray(x, dtype), jnp.asarray(y, dtype), num_neighbors=k)


# At most ten rows per side: all rows are candidates, so nothing can be missed.
@pytest.mark.parametrize(("n", "m", "k"), [(9, 7, 1), (9, 7, 3), (10, 10, 2), (6, 10, 10), (3, 1, 2)])
def test_equals_the_whole_matrix_where_candidates_are_all_rows(n, m, k):
    assert max(n, m) <= NUM_LOCAL
    x, y = clouds(0, n, m)
    csls = whole_csls(x, y, NUM_LOCAL)
    found = match(x, y, k)
    for side, expected in ((found.x_to_y, csls), (found.y_to_x, csls.T)):
        order = np.argsort(-expected, axis=1)[:, :k]
        np.testing.assert_array_equal(side.index, order)
        np.testing.assert_allclose(side.similarity, np.take_along_axis(expected, order, 1), atol=1e-5)


def test_candidates_are_the_nearest_by_cosine():
    x, y = clouds(1, 60, 50)
    csls = whole_csls(x, y, NUM_LOCAL)
    found = match(x, y, 2)
    for side, similarity, expected in ((found.x_to_y, x @ y.T, csls), (found.y_to_x, y @ x.T, csls.T)):
        candidates = np.argsort(-similarity, axis=1)[:, :NUM_LOCAL]
        among = np.take_along_axis(expected, candidates, 1)
        order = np.argsort(-among, axis=1)[:, :2]
        np.testing.assert_array_equal(side.index, np.take_along_axis(candidates, order, 1))
        np.testing.assert_allclose(side.similarity, np.take_along_axis(among, order, 1), atol=1e-5)


def test_a_hub_loses_its_followers():
    # Each row of x has its own partner; the hub is nearest by cosine to both, as it is to everything.
    angles_x = np.linspace(-0.9, 0.9, 10)
    x = np.stack([np.cos(angles_x), np.sin(angles_x), np.zeros(10)], 1)
    partners = unit(x + np.array([0, 0, 2.0]))
    y = np.concatenate([partners, [[1.0, 0.0, 0.0]]])
    hub = 10
    by_cosine = (x @ y.T).argmax(1)
    by_csls = np.asarray(match(x, y, 1).x_to_y.index)[:, 0]
    assert (by_cosine == hub).all()
    assert (by_csls == hub).sum() < (by_cosine == hub).sum()


@pytest.mark.parametrize("num_candidates", [1, 7, 10, 19])
def test_of_the_nearest_rows_the_first_are_local(rng, num_candidates):
    similarity = -np.sort(-rng.normal(size=(5, num_candidates)), axis=1).astype(np.float32)
    density = _candidate_density(Neighbors(similarity=jnp.asarray(similarity), index=None))
    np.testing.assert_allclose(density, similarity[:, :NUM_LOCAL].mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("num_candidates", [20, 25, 39, 257])
def test_of_many_groups_the_nearest_of_each_bundle_is_local(rng, num_candidates):
    similarity = rng.normal(size=(5, num_candidates)).astype(np.float32)
    density = _candidate_density(Neighbors(similarity=jnp.asarray(similarity), index=None))
    used = similarity[:, : num_candidates // NUM_LOCAL * NUM_LOCAL]
    bundles = [used[:, first::NUM_LOCAL].max(axis=1) for first in range(NUM_LOCAL)]
    np.testing.assert_allclose(density, np.mean(bundles, axis=0), rtol=1e-5)
    # At most the mean of the largest similarities.
    assert (density <= np.sort(similarity, axis=1)[:, -NUM_LOCAL:].mean(axis=1) + 1e-6).all()
    # With candidates in order, best first, their number makes no difference.
    best_first = -np.sort(-similarity, axis=1)
    density = _candidate_density(Neighbors(similarity=jnp.asarray(best_first), index=None))
    np.testing.assert_allclose(density, best_first[:, :NUM_LOCAL].mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 4, 5, 16])
def test_many_candidates_are_ordered_anew_against_numpy(k):
    """Only the candidates come from the library; they have tests of their own."""
    with jax.enable_x64(True):
        x, y = clouds(4, 700, 1_100, d=6)
        candidates = find_candidates(jnp.asarray(x), jnp.asarray(y), num_neighbors=k, min_candidates=NUM_LOCAL)
        found = match(x, y, k, jnp.float64)
        sides = (candidates.all_of_x(candidates.x_to_y), candidates.y_to_x)
        index = [np.asarray(side.index) for side in sides]
        assert min(side.shape[1] for side in index) >= 256
        cosines = [np.take_along_axis(s, i, 1) for s, i in zip((x @ y.T, y @ x.T), index, strict=True)]
        density = []
        for cosine in cosines:
            used = cosine[:, : cosine.shape[1] // NUM_LOCAL * NUM_LOCAL]
            density.append(np.mean([used[:, first::NUM_LOCAL].max(axis=1) for first in range(NUM_LOCAL)], axis=0))
        sides = ((found.x_to_y, *density), (found.y_to_x, *density[::-1]))
        for (side, own, other), cosine, among in zip(sides, cosines, index, strict=True):
            scores = 2 * cosine - own[:, None] - other[among]
            order = np.argsort(-scores, axis=1)[:, :k]
            np.testing.assert_array_equal(side.index, np.take_along_axis(among, order, 1))
            np.testing.assert_allclose(side.similarity, np.take_along_axis(scores, order, 1), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_many_rows_nearly_all_are_matched_as_by_the_whole_matrix(dtype):
    x, y = clouds(5, 900, 1_000, d=6)
    csls = whole_csls(x, y, NUM_LOCAL)
    with jax.enable_x64(dtype == np.float64):
        found = match(x, y, 1, dtype)
    for side, cosine, expected in ((found.x_to_y, x @ y.T, csls), (found.y_to_x, y @ x.T, csls.T)):
        index, best = np.asarray(side.index)[:, 0], expected.max(axis=1)
        lost, by_cosine = (best - expected[np.arange(len(best)), rows] for rows in (index, cosine.argmax(axis=1)))
        assert (lost == 0).mean() > 0.86
        assert (lost == 0).mean() > (by_cosine == 0).mean()
        assert lost.mean() < 0.002
        # Densities are the mean of about ten rows, a little less than those of the nearest ten.
        assert 0 < (np.asarray(side.similarity)[:, 0] - best).mean() < 0.07


def test_in_a_file_sorted_by_topic_as_many_rows_are_local(rng, monkeypatch):
    """Rows side by side are similar and must not end in one bundle."""
    monkeypatch.setattr("mv2v_jax.ops.knn.BLOCK_ROWS", 40)
    topics = np.repeat(rng.normal(size=(20, 32)), 32, axis=0)
    x, y = (unit(topics + 0.3 * rng.normal(size=topics.shape)) for _ in range(2))
    with jax.enable_x64(True):
        found = find_candidates(jnp.asarray(x), jnp.asarray(y), num_neighbors=2, min_candidates=NUM_LOCAL)
        for side, similarity in ((found.all_of_x(found.x_to_y), x @ y.T), (found.y_to_x, y @ x.T)):
            nearest = np.sort(similarity, axis=1)[:, -NUM_LOCAL:].mean(axis=1)
            assert side.index.shape[1] == 320
            np.testing.assert_allclose(_candidate_density(side), nearest, atol=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_partners_among_many_rows_find_each_other(rng, dtype):
    x, _ = clouds(6, 800, 1, d=16)
    order = rng.permutation(800)
    y = unit(x + 0.05 * rng.normal(size=x.shape))[order]
    with jax.enable_x64(dtype == np.float64):
        found = match(x, y, 1, dtype)
    np.testing.assert_array_equal(order[np.asarray(found.x_to_y.index)[:, 0]], np.arange(800))
    np.testing.assert_array_equal(np.asarray(found.y_to_x.index)[:, 0], order)


# Few enough rows to be searched exactly, and more; zero rows of the data, at the start too, and padding.
@pytest.mark.parametrize("first", [0, 200, 577])
@pytest.mark.parametrize("num_rows", [400, 577])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_rows_are_never_partners(rng, dtype, num_rows, first):
    """Not even of a row that is far from all others, whose CSLS with its nearest rows is low."""
    topics = rng.normal(size=(40, 64))
    x, y = (topics[rng.integers(40, size=num_rows)] + 0.05 * rng.normal(size=(num_rows, 64)) for _ in range(2))
    x[:28] = rng.normal(size=(28, 64))
    x, y = (np.insert(unit(rows - rows.mean(0)), [min(first, num_rows)] * 63, 0, axis=0) for rows in (x, y))
    with jax.enable_x64(dtype == np.float64):
        found = match(x, y, 2, dtype)
    for side, own, other in ((found.x_to_y, x, y), (found.y_to_x, y, x)):
        partners = np.asarray(side.index)[own.any(axis=1)]
        assert other[partners].any(axis=2).all()


@pytest.mark.parametrize(("n", "m"), [(30, 47), (7, 12), (1, 3)])
@pytest.mark.parametrize("exact", [True, False])
def test_dense_is_that_of_the_whole_matrix(n, m, exact):
    """Densities are of the ten nearest rows, or of ten bundles: every tenth column, or consecutive rows."""
    x, y = clouds(7, n, m)
    similarity = x @ y.T
    expected = whole_csls(x, y, NUM_LOCAL)
    if not exact:
        num_x, num_y = min(NUM_LOCAL, n), min(NUM_LOCAL, m)
        used = similarity[:, : m // num_y * num_y]
        density_x = np.mean([used[:, first::num_y].max(1) for first in range(num_y)], axis=0)
        density_y = np.mean([part.max(0) for part in np.split(similarity[: n // num_x * num_x], num_x)], axis=0)
        expected = 2 * similarity - density_x[:, None] - density_y[None]
    found = jax.jit(dense_csls, static_argnames="exact")(jnp.asarray(x), jnp.asarray(y), exact=exact)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_zero_rows_change_no_dense_score_and_get_the_minimum(exact):
    x, y = clouds(8, 20, 30)
    padded = [np.concatenate([rows, np.zeros((20, 4))]) for rows in (x, y)]
    found = dense_csls(*map(jnp.asarray, padded), exact=exact)
    expected = whole_csls(x, y, NUM_LOCAL)
    assert (found[20:] == -4).all()
    assert (found[:, 30:] == -4).all()
    # Half of the bundles of a column hold zero rows only.
    np.testing.assert_allclose(found[:20, :30], expected, atol=1e-5 if exact else 1)


def test_mean_is_over_both_directions():
    x, y = clouds(2, 9, 7)
    csls = whole_csls(x, y, NUM_LOCAL)
    expected = (csls.max(1).mean() + csls.max(0).mean()) / 2
    found = mean_csls(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)
