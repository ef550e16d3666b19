"""Seeds: the linear term against brute force and SciPy, the blend, and fits in which only known pairs can help."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, semi_orthogonal, small_config, unit, with_settings
from scipy.optimize import linear_sum_assignment

from mv2v_jax import align, align_restarts
from mv2v_jax.alignment.seeds import Seeds, blend_seeds, pair_seeds, seed_terms
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import evaluate
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.qap import assignment_objective, centered_kernel, search_assignment
from mv2v_jax.runs.compiled import align_with_progress

KEY = jax.random.key(0)
# One refinement of each kind is enough.
CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, settling_whole_steps=0)
WEIGHT = CONFIG.pair_weight


def search(kx, ky, linear):
    return search_assignment(KEY, kx, ky, linear=linear, num_starts=8, num_steps=40)


def kernels(rng, size):
    kx, ky, linear = rng.normal(size=(3, size, size)).astype(np.float32)
    return kx + kx.T, ky + ky.T, 3 * linear


def test_a_linear_term_is_searched_with_the_quadratic_one():
    for seed in range(3):
        kx, ky, linear = kernels(np.random.default_rng(seed), 6)

        def objective(p, kx=kx, ky=ky, linear=linear):
            return (kx * ky[list(p)][:, list(p)]).sum() + linear[np.arange(6), list(p)].sum()

        best = max(objective(p) for p in itertools.permutations(range(6)))
        found = search(kx, ky, linear)
        np.testing.assert_allclose(found.objective, best, rtol=1e-4)
        np.testing.assert_allclose(objective(found.permutation), best, rtol=1e-4)


def test_a_linear_term_alone_is_a_linear_assignment(rng):
    _, _, linear = kernels(rng, 9)
    nothing = jnp.zeros((9, 9))
    _, expected = linear_sum_assignment(linear, maximize=True)
    np.testing.assert_array_equal(search(nothing, nothing, linear).permutation, expected)


def test_pairs_are_centres_that_are_matched_already(rng):
    """The objective equals that of the kernels of centres and pairs together, with the pairs fixed."""
    centers_x, centers_y = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    pairs = Seeds(x=jnp.asarray(rng.normal(size=(2, 5))), y=jnp.asarray(rng.normal(size=(2, 3))))
    linear = seed_terms(jnp.asarray(centers_x), jnp.asarray(centers_y), pairs)
    quadratic = [centered_kernel(jnp.asarray(centers)) for centers in (centers_x, centers_y)]
    centered = [centers - centers.mean(axis=0) for centers in (centers_x, centers_y)]
    joined = [np.vstack([centers, rows]) for centers, rows in zip(centered, (pairs.x, pairs.y), strict=True)]
    whole_x, whole_y = (rows @ rows.T for rows in joined)
    constant = (whole_x[4:, 4:] * whole_y[4:, 4:]).sum()
    for permutation in itertools.permutations(range(4)):
        p = np.array([*permutation, 4, 5])
        expected = (whole_x * whole_y[p][:, p]).sum() - constant
        found = assignment_objective(*quadratic, p[:4]) + linear[np.arange(4), p[:4]].sum()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_pair_without_one_of_its_rows_is_none(rng):
    x, y = rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    x[0], y[2] = 0, 0
    pairs = pair_seeds(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_array_equal(np.any(pairs.x != 0, axis=1), [False, True, False])
    np.testing.assert_array_equal(np.any(pairs.y != 0, axis=1), [False, True, False])
    assert pair_seeds(None, None) is None


def test_known_pairs_count_by_how_well_the_pseudo_pairs_retrieve_them(rng):
    """Against NumPy: a rotation counts as many pairs as Procrustes needs for one of its FOSCTTM."""
    x, y = unit(rng.normal(size=(30, 4))), unit(rng.normal(size=(30, 3)))
    cross = rng.normal(size=(4, 3))
    u, _, vt = np.linalg.svd(cross, full_matrices=False)
    similarity = x @ u @ vt @ y.T
    own = np.diagonal(similarity)
    closer = (similarity > own[:, None]).sum() + (similarity > own[None]).sum()
    foscttm = (closer + 0.5) / (2 * 30 * 29 + 1)
    expected = cross + 7 * foscttm / 4 * (x.T @ y)
    # Two rows of padding.
    padded = [jnp.asarray(np.pad(rows, ((0, 2), (0, 0)))) for rows in (x, y)]
    np.testing.assert_allclose(blend_seeds(jnp.asarray(cross), 7, pair_seeds(*padded), WEIGHT), expected, rtol=1e-4)
    assert blend_seeds(cross, 7, None, WEIGHT) is cross


def test_pairs_that_a_rotation_finds_hardly_count_and_others_decide(rng):
    W = semi_orthogonal(rng, 6, 6)
    x = unit(rng.normal(size=(40, 6)))
    seeds = pair_seeds(jnp.asarray(x), jnp.asarray(x @ W))
    right = jnp.asarray(W / 6 + 0.01 * rng.normal(size=(6, 6)))
    np.testing.assert_allclose(blend_seeds(right, 1, seeds, WEIGHT), right, atol=0.01)
    wrong = jnp.asarray(semi_orthogonal(rng, 6, 6) / 6)
    before, after = (np.linalg.norm(polar(matrix) - W) for matrix in (wrong, blend_seeds(wrong, 1, seeds, WEIGHT)))
    assert after < 0.2 * before


@functools.cache
def shapeless():
    """Round clouds without any geometry, and a planted map: rows, pairs, and rows to evaluate."""
    rng = np.random.default_rng(1)
    W = semi_orthogonal(rng, 6, 6)
    x, z, px, x_eval = (rng.normal(size=(n, 6)).astype(np.float32) for n in (150, 140, 40, 60))
    noise = 0.02 * rng.normal(size=(40, 6))
    return x, (z @ W).astype(np.float32), (px, (px @ W + noise).astype(np.float32)), x_eval, x_eval @ W


def scored(linear_map):
    *_, x_eval, y_eval = shapeless()
    return float(evaluate(linear_map, jnp.asarray(x_eval, jnp.float32), jnp.asarray(y_eval, jnp.float32)).top1)


@functools.cache
def fitted(config=CONFIG):
    x, y, pairs, *_ = shapeless()
    return align(KEY, x, y, config, pairs=pairs)


PUBLISHED = {"annealing_steps": 0, "published_match_steps": 4, "published_cluster_steps": 2, "settling_steps": 0}


@pytest.mark.parametrize("changes", [{}, pytest.param(PUBLISHED, marks=pytest.mark.slow)], ids=["default", "published"])
def test_pairs_find_a_map_that_geometry_cannot(changes):
    config = with_settings(CONFIG, **changes)
    assert scored(fitted(config).map) > 0.8
    # Only the pairs help: with wrong partners the map is wrong.
    x, y, (px, py), *_ = shapeless()
    assert scored(align(KEY, x, y, config, pairs=(px, py[::-1])).map) < 0.3


@pytest.mark.slow
def test_without_pairs_the_map_is_wrong():
    x, y, *_ = shapeless()
    assert scored(align(KEY, x, y, CONFIG).map) < 0.3


def test_no_pairs_are_none():
    x, _, (px, _), *_ = shapeless()
    assert pad_rows(x, 1_000, seeds=px[:0]).seeds is None


@pytest.mark.slow
def test_every_way_to_fit_takes_pairs():
    x, y, pairs, *_ = shapeless()
    several = align_restarts(KEY, x, y, 2, CONFIG, pairs=pairs)
    in_pieces = align_with_progress(KEY, x, y, CONFIG, lambda *_: None, 2, pairs=pairs).result
    np.testing.assert_allclose(in_pieces.best.map.W, several.best.map.W, atol=1e-3)
    assert scored(several.best.map) > 0.8
    one = jax.jit(lambda key, px, py: align(key, x, y, CONFIG, pairs=(px, py)).map.W)
    np.testing.assert_allclose(one(KEY, *pairs), fitted().map.W, atol=1e-3)


def test_padding_changes_nothing():
    x, y, (px, py), *_ = shapeless()
    assert pad_rows(x, 1_000, seeds=px[:17]).seeds.shape == (18, 6)
    padded = [fit_space(*pad_rows(rows, 1_000, seeds=side[:17])) for rows, side in ((x, px), (y, py))]
    plain = [fit_space(jnp.asarray(rows), seeds=jnp.asarray(side[:17])) for rows, side in ((x, px), (y, py))]
    cross = jnp.eye(6)
    blends = [blend_seeds(cross, 1, pair_seeds(*(space.seeds for space in both)), WEIGHT) for both in (padded, plain)]
    assert_trees_close(*blends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda px, py: px, "pairs must be two matrices"),
        (lambda px, py: (px, py, py), "pairs must be two matrices"),
        (lambda px, py: (px, py[:-1]), r"pairs\[1\] must have a row for each of the 40 of pairs\[0\], found 39"),
        (lambda px, py: (px[:, :-1], py), r"pairs\[0\] must have 6 columns, as the rows to align, found 5"),
        (lambda px, py: (px, py * np.nan), r"pairs\[1\] .*row 0"),
        (lambda px, py: (px.astype(int), py), r"pairs\[0\] must hold floating-point embeddings, found dtype int64"),
        (lambda px, py: (px[0], py), r"pairs\[0\] must be two-dimensional"),
    ],
)
def test_wrong_pairs_are_named(change, message):
    x, y, pairs, *_ = shapeless()
    with pytest.raises(InputError, match=message):
        align(KEY, x, y, CONFIG, pairs=change(*pairs))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_dtype_is_kept(dtype):
    x, y, pairs, *_ = shapeless()
    config = small_config()
    with jax.enable_x64(dtype == jnp.float64):
        x, y, px, py = (jnp.asarray(rows, dtype) for rows in (x, y, *pairs))
        found = jax.eval_shape(lambda key, x, y, pairs: align(key, x, y, config, pairs=pairs), KEY, x, y, (px, py))
    assert found.map.W.dtype == dtype
