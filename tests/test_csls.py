"""CSLS against the whole n x m matrix."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unit

from mv2v_jax.csls import NUM_LOCAL, match_csls, mean_csls


def clouds(seed, n, m, d=4):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(n, d))), unit(rng.normal(size=(m, d)))


def whole_csls(x, y, num_local):
    similarity = x @ y.T
    density_x = np.sort(similarity, axis=1)[:, -num_local:].mean(1)
    density_y = np.sort(similarity, axis=0)[-num_local:].mean(0)
    return 2 * similarity - density_x[:, None] - density_y[None]


def match(x, y, k):
    return match_csls(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), num_neighbors=k)


# At most ten rows a side: the candidates are all rows, so nothing can be missed.
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


def test_mean_is_over_both_directions():
    x, y = clouds(2, 9, 7)
    csls = whole_csls(x, y, NUM_LOCAL)
    expected = (csls.max(1).mean() + csls.max(0).mean()) / 2
    found = mean_csls(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)
