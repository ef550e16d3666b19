"""Comparisons of maps against SciPy and against direct counting."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.csgraph
from helpers import make_map, planted_clouds, small_config, unit

from mv2v_jax import InputError, align_restarts, measure_stability
from mv2v_jax.evaluation.stability import compare_maps, find_basins

NUM_MAPS = 7


@pytest.fixture(scope="module")
def maps():
    """Three maps near one rotation, two near another, two alone; and the rows that they move."""
    rng = np.random.default_rng(0)

    def rotation():
        return np.linalg.qr(rng.normal(size=(40, 30)))[0]

    one, other = rotation(), rotation()
    W = [one + 0.02 * rng.normal(size=one.shape) for _ in range(3)]
    W += [other + 0.02 * rng.normal(size=one.shape) for _ in range(2)]
    W = np.stack([*W, rotation(), rotation()])[[3, 0, 5, 1, 4, 2, 6]]
    x = rng.normal(size=(90, 40)) * np.linspace(2, 0.5, 40)
    y = rng.normal(size=(70, 30))
    return W, unit(x - x.mean(0)), unit(y - y.mean(0))


@pytest.fixture(scope="module")
def found(maps):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compare_maps(*map(jnp.asarray, maps)))


def test_pairs_against_numpy_and_scipy(maps, found):
    W, x, y = maps
    moved = [x @ one for one in W]
    leading = np.linalg.svd(x)[2][:16].T
    nearest = [(unit(rows) @ y.T).argmax(axis=1) for rows in moved]
    for i in range(NUM_MAPS):
        for j in range(NUM_MAPS):
            cosine = np.vdot(moved[i], moved[j]) / np.linalg.norm(moved[i]) / np.linalg.norm(moved[j])
            distance = np.linalg.norm(W[i] - W[j]) / np.sqrt(np.linalg.norm(W[i]) * np.linalg.norm(W[j]))
            angle = scipy.linalg.subspace_angles(W[i].T @ leading, W[j].T @ leading).max()
            np.testing.assert_allclose(found.agreement[i, j], cosine, atol=1e-9)
            np.testing.assert_allclose(found.distance[i, j], distance, atol=1e-7)
            np.testing.assert_allclose(found.angle[i, j], angle, atol=1e-6)
            assert found.neighbors[i, j] == pytest.approx((nearest[i] == nearest[j]).mean(), abs=1e-12)


def test_basins_are_numbered_by_size(found):
    np.testing.assert_array_equal(found.basin, [1, 0, 2, 0, 1, 0, 3])
    np.testing.assert_array_equal(found.basin_size, [3, 2, 1, 1, 0, 0, 0])


def test_rows_are_stable_if_all_maps_agree_on_their_partner(maps, found):
    W, x, y = maps
    nearest = np.array([(unit(x @ one) @ y.T).argmax(axis=1) for one in W])
    counts = [Counter(votes.tolist()) for votes in nearest.T]
    expected = [count.most_common(1)[0][1] / NUM_MAPS for count in counts]
    np.testing.assert_allclose(found.row_stability, expected, atol=1e-12)
    # No basin of few maps makes a row stable: these maps fall into four.
    assert 1 / NUM_MAPS < min(expected) < max(expected) < 1
    for partner, count in zip(found.row_partner.tolist(), counts, strict=True):
        assert count[partner] == max(count.values())


def test_zero_rows_do_not_count(maps, found):
    W, x, y = maps
    padded = np.insert(x, [0, 50], 0, axis=0)
    with jax.enable_x64(True):
        more = compare_maps(*map(jnp.asarray, (W, padded, y)))
    np.testing.assert_allclose(more.neighbors, found.neighbors, atol=1e-12)
    np.testing.assert_allclose(more.row_stability, np.insert(found.row_stability, [0, 50], 0), atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_basins_are_connected_components(seed):
    rng = np.random.default_rng(seed)
    agreement = rng.uniform(-1, 1, size=(12, 12)) ** 3
    agreement = np.tril(agreement, -1) + np.tril(agreement, -1).T + np.eye(12)
    basin, size = (np.asarray(part) for part in find_basins(jnp.asarray(agreement), 0.4))
    count, labels = scipy.sparse.csgraph.connected_components(agreement >= 0.4)
    assert 1 < count < 12
    # The same sets, numbered by size.
    assert len(set(zip(basin, labels, strict=True))) == count
    np.testing.assert_array_equal(size[:count], np.bincount(basin))
    assert (np.diff(size) <= 0).all()


def test_a_map_that_is_not_finite_is_alone():
    agreement = np.where(np.eye(3, dtype=bool), 1.0, 0.9)
    agreement[1] = agreement[:, 1] = np.nan
    np.testing.assert_array_equal(find_basins(jnp.asarray(agreement))[0], [0, 1, 0])


CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, search_dims=4)


@pytest.fixture(scope="module")
def restarts():
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6)
    return planted, align_restarts(jax.random.key(0), planted.x, planted.y, 3, CONFIG, keep="all")


@pytest.mark.slow
def test_restarts_that_are_kept_can_be_compared(restarts):
    planted, kept = restarts
    assert kept.maps.W.shape == (3, 6, 5)
    assert all(values.shape[0] == 3 for values in kept.trajectory.values())
    found = measure_stability(kept.maps, planted.x, planted.y)
    assert found.row_stability.shape == (61,)
    # The same agreement, up to the held-out rows, which it does not see.
    np.testing.assert_allclose(found.agreement, kept.agreement, atol=0.1)


def test_what_is_not_kept_is_not_returned():
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6)
    for keep in ("best", "summary"):
        fit = functools.partial(align_restarts, num_restarts=3, config=CONFIG, keep=keep)
        found = jax.eval_shape(fit, jax.random.key(0), planted.x, planted.y)
        assert found.maps is None
        assert (found.trajectory is None) == (keep == "best")
    with pytest.raises(InputError, match="keep must be one of best, summary, all, found 'none'"):
        align_restarts(jax.random.key(0), planted.x, planted.y, 3, CONFIG, keep="none")


def test_shapes_that_do_not_fit_are_named():
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), make_map(np.zeros((4, 3))))
    x, y = np.ones((5, 4), np.float32), np.ones((6, 3), np.float32)
    with pytest.raises(InputError, match="y must have 3 columns for these maps, found 4"):
        measure_stability(several, x, x)
    with pytest.raises(InputError, match="x must have 4 columns for these maps, found 3"):
        measure_stability(several, y, y)
    with pytest.raises(InputError, match=r"x must have 4 columns for these maps, found 3; were x and y swapped\?"):
        jax.jit(measure_stability)(several, y, x)
    with pytest.raises(InputError, match="maps must be a LinearMap, found ArrayImpl"):
        measure_stability(several.W, x, y)
    one = jax.tree.map(lambda leaf: leaf[0], several)
    with pytest.raises(InputError, match="several maps, found shape"):
        measure_stability(one, x, y)
