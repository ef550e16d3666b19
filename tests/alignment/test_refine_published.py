"""Refine-1 and refine-2: one step against NumPy, SciPy and scikit-learn, and better maps from worse ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_estimate, make_spaces, planted_clouds, small_config, unit
from scipy.linalg import orthogonal_procrustes
from sklearn.cluster import KMeans

from mv2v_jax.alignment.refine_annealed import refine_annealed, refine_csls
from mv2v_jax.alignment.refine_published import refine_clusters, refine_matching
from mv2v_jax.ops.sampling import draw_rows, order_rows

# Samples larger than the data: every step sees all rows, so NumPy can repeat it.
CONFIG = small_config(
    published_match_steps=10,
    published_match_rows=1000,
    published_num_neighbors=5,
    published_cluster_steps=3,
    published_num_clusters=12,
    published_lloyd_steps=10,
)


@pytest.fixture(scope="module")
def clouds():
    """Centred unit rows of two planted spaces, the planted map, and an inaccurate map."""
    planted = planted_clouds(6, 6, num_x=300, num_y=280, groups=10, seed=2)
    x, y = (unit(rows - rows.mean(0)).astype(np.float32) for rows in (planted.x, planted.y))
    blur = np.random.default_rng(0).normal(size=(6, 6))
    left, _, right = np.linalg.svd(planted.W + 0.2 * blur)
    return x, y, planted.W, (left @ right).astype(np.float32)


def refine(fun, key, x, y, W, config, steps=None):
    """A stage on rows ``x`` and ``y`` from a map: the refined map, and the objective."""
    refined = fun(key, make_spaces(x, y), make_estimate(W, is_map=True), config=config, steps=steps)
    assert refined.estimate.is_map
    return refined.estimate.matrix, refined.objective


@pytest.fixture(scope="module")
def run():
    functions = {"refine_matching": refine_matching, "refine_clusters": refine_clusters}
    return {
        name: jax.jit(lambda *args, fun=fun, **steps: refine(fun, *args, **steps)) for name, fun in functions.items()
    }


def distance(W, planted):
    return np.linalg.norm(np.asarray(W) - planted) / np.linalg.norm(planted)


@pytest.mark.parametrize("rows", [40, 1000])  # A sample, another each step, and all rows.
def test_steps_of_refine_matching_against_numpy(clouds, run, rows):
    x, y, _, W = clouds
    key = jax.random.key(0)
    config = small_config(published_match_steps=2, published_match_rows=rows)
    found, found_objective = run["refine_matching"](key, x, y, W, config)
    orders = order_rows(key, jnp.asarray(x))
    expected, objective = np.float64(W), []
    for step in range(2):
        (drawn,) = np.asarray(draw_rows(jax.random.fold_in(key, step), (jnp.asarray(x),), (rows,), orders))
        similarity = unit(drawn @ expected) @ y.T
        nearest = np.argsort(-similarity, axis=1)[:, :4]
        objective.append(np.take_along_axis(similarity, nearest, 1).mean())
        expected = 0.5 * expected + 0.5 * orthogonal_procrustes(drawn, y[nearest].mean(1))[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(found_objective, objective, atol=1e-4)


def test_smoothing_is_the_share_of_the_new_map(clouds, run):
    x, y, _, W = clouds
    at = {
        share: run["refine_matching"](
            jax.random.key(0),
            x,
            y,
            W,
            small_config(published_match_steps=1, published_match_rows=1000, published_smoothing=share),
        )[0]
        for share in (0.0, 0.25, 1.0)
    }
    np.testing.assert_array_equal(at[0.0], W)
    np.testing.assert_allclose(at[0.25], 0.75 * W + 0.25 * np.asarray(at[1.0]), atol=1e-5)
    np.testing.assert_allclose(at[1.0] @ at[1.0].T, np.eye(6), atol=1e-5)


def test_refine_matching_improves_a_map(clouds, run):
    x, y, planted, W = clouds
    found, objective = run["refine_matching"](jax.random.key(0), x, y, W, CONFIG)
    assert distance(found, planted) < 0.5 * distance(W, planted)
    assert objective.shape == (10,)
    assert objective[-1] > objective[0]


def test_refine_clusters_against_scikit_learn(clouds, run):
    x, y, planted, _ = clouds
    W = planted.astype(np.float32)
    config = small_config(
        published_cluster_steps=1, published_num_clusters=12, published_lloyd_steps=10, published_smoothing=1.0
    )
    found, objective = run["refine_clusters"](jax.random.key(0), x, y, W, config)
    ours = np.vdot(found, planted) / planted.shape[0]
    theirs = []
    for seed in range(5):
        centers = KMeans(12, n_init=1, max_iter=10, random_state=seed).fit(x).cluster_centers_
        centers_y = KMeans(12, init=centers @ W, n_init=1, max_iter=10).fit(y).cluster_centers_
        theirs.append(np.vdot(orthogonal_procrustes(centers, centers_y)[0], planted) / planted.shape[0])
    assert ours > min(theirs) - 0.02, (ours, theirs)
    np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-5)
    assert 0.9 < float(objective[0]) <= 1


def test_refine_clusters_improves_a_map(clouds, run):
    x, y, planted, W = clouds
    found, _ = run["refine_clusters"](jax.random.key(0), x, y, W, CONFIG)
    assert distance(found, planted) < 0.8 * distance(W, planted)


def test_more_clusters_than_rows(clouds):
    x, y, planted, _ = clouds
    config = small_config(published_cluster_steps=1, published_num_clusters=50)
    found, _ = refine(refine_clusters, jax.random.key(0), x[:9], y[:12], np.float32(planted), config)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["refine_matching", "refine_clusters"])
def test_steps_in_chunks_equal_all_at_once(clouds, run, name):
    x, y, _, W = clouds
    # Samples smaller than the data: every step draws its own rows.
    key, config = jax.random.key(1), small_config(published_match_steps=4, published_cluster_steps=4)
    whole, objective = run[name](key, x, y, W, config)
    half, first_objective = run[name](key, x, y, W, config, steps=jnp.arange(2))
    rest, last_objective = run[name](key, x, y, half, config, steps=jnp.arange(2, 4))
    np.testing.assert_allclose(rest, whole, atol=1e-4)
    np.testing.assert_allclose(jnp.concatenate([first_objective, last_objective]), objective, atol=1e-4)


def sorted_shapes(program: str) -> list[list[int]]:
    """Dimensions larger than one of everything that a compiled program sorts."""
    results = [line.split(" sort(")[0] for line in program.splitlines() if " sort(" in line]
    shapes = [shape for result in results for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    return [[int(size) for size in shape.split(",") if size not in ("", "1")] for shape in shapes]


@pytest.mark.parametrize("fun", [refine_matching, refine_annealed, refine_csls, refine_clusters])
def test_no_row_of_similarities_is_sorted_whole(clouds, fun):
    x, y, _, W = clouds
    # One block of queries would lose its dimension; two or more keep it.
    start = make_estimate(W, is_map=fun in (refine_matching, refine_clusters))
    stage = jax.jit(lambda key, rows, start: fun(key, rows, start, config=small_config()))
    program = stage.lower(jax.random.key(0), make_spaces(x, y), start).compile()
    assert not [shape for shape in sorted_shapes(program.as_text()) if len(shape) > 1]


def test_a_whole_sort_would_be_found(clouds):
    x, y, _, _ = clouds
    program = jax.jit(lambda x, y: jnp.sort(x @ y.T, axis=1)[:, :3]).lower(x, y).compile()
    assert [300, 280] in sorted_shapes(program.as_text())
