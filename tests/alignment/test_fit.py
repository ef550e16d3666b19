"""The whole method: planted maps recovered without a pair, and every kind of legal input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, planted_clouds, small_config, unit

from mv2v_jax import Config, align, apply
from mv2v_jax.alignment.fit import SETTLING, again_steps, prepare_search, refine, search_map, split_keys
from mv2v_jax.alignment.refine_annealed import refine_annealed
from mv2v_jax.alignment.score import Verdict, gather_evidence, judge
from mv2v_jax.alignment.space import fit_space, hold_out
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross, whiten_map
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.evaluation.metrics import evaluate
from mv2v_jax.ops.linalg import polar

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = small_config()
# Enough to solve a small problem; refine-1 and refine-2 have tests of their own.
SOLVING = small_config(
    num_anchor_sets=12,
    num_clusters=10,
    anchor_rows=400,
    lloyd_steps=8,
    num_starts=6,
    search_steps=40,
    kept_sets=6,
    matching_rows=0,
    num_neighbors=10,
    match_steps=0,
    held_out_rows=50,
    anneal_steps=30,
    anneal_rows=256,
    csls_steps=5,
    csls_rows=300,
    whole_steps=1,
    whole_rows=1000,
    cluster_steps=0,
)


def fits(x, y, num_keys=4):
    return [align(jax.random.key(seed), x, y, SOLVING) for seed in range(num_keys)]


def best_of(results):
    """The result that scores best without a label."""
    return max(results, key=lambda result: float(result.evidence.score))


@functools.cache
def all_solved(d_x, d_y):
    planted = planted_clouds(d_x, d_y, num_x=600, num_y=560, groups=10, seed=0)
    return planted, fits(planted.x, planted.y)


def solved(d_x, d_y):
    planted, results = all_solved(d_x, d_y)
    return planted, best_of(results)


@pytest.mark.parametrize(
    ("d_x", "d_y"), [pytest.param(8, 8, marks=pytest.mark.slow), (12, 8), pytest.param(8, 12, marks=pytest.mark.slow)]
)
def test_a_planted_map_is_recovered_from_different_rows(d_x, d_y):
    planted, result = solved(d_x, d_y)
    scores = evaluate(result.map, jnp.asarray(planted.x_eval), jnp.asarray(planted.y_eval))
    assert float(scores.top1) > 0.9
    assert float(scores.foscttm) < 0.01
    assert float(scores.cosine) > 0.95
    # Only the directions that hold data are determined.
    used = np.linalg.svd(planted.W)[0][:, : min(d_x, d_y)]
    error = np.linalg.norm(used.T @ (np.asarray(result.map.W) - planted.W)) / np.linalg.norm(planted.W)
    assert error < 0.3
    assert float(result.info.orthogonality) < 1e-4
    assert int(result.verdict) == Verdict.uncertain  # One search alone can claim no more.
    # Raw rows of the target are found in the target frame, too.
    raw = np.asarray(apply(result.map, jnp.asarray(planted.x_eval), frame="target"))
    lengths = np.linalg.norm(raw, axis=1)[:, None] * np.linalg.norm(planted.y_eval, axis=1)[None]
    nearest = (raw @ planted.y_eval.T / lengths).argmax(1)
    assert (nearest == np.arange(len(raw))).mean() > 0.6


def test_rows_without_partners_are_not_aligned():
    """What is asserted above does not hold for a map of other data."""
    planted, result = solved(12, 8)
    other = planted_clouds(12, 8, num_x=600, num_y=560, groups=10, seed=1)
    scores = evaluate(result.map, jnp.asarray(other.x_eval), jnp.asarray(other.y_eval))
    assert float(scores.top1) < 0.5
    assert np.linalg.norm(np.asarray(result.map.W) - other.W) / np.linalg.norm(planted.W) > 0.5


def test_permuting_rows_changes_only_the_draw(rng):
    planted, result = solved(12, 8)
    again = best_of(fits(rng.permutation(planted.x), rng.permutation(planted.y)))
    distance = np.linalg.norm(again.map.W - result.map.W) / np.linalg.norm(result.map.W)
    assert 0 < distance < 0.2
    for name in ("mean_x", "mean_y", "scale_x", "scale_y"):
        np.testing.assert_allclose(getattr(again.map, name), getattr(result.map, name), rtol=1e-4, atol=1e-5)


@functools.cache
def small_clouds(d_x=6, d_y=5):
    return planted_clouds(d_x, d_y, num_x=61, num_y=53, groups=6, seed=10)


@pytest.mark.parametrize("space", ["x", pytest.param("y", marks=pytest.mark.slow)])
def test_rotating_a_space_rotates_the_map(rng, space):
    planted = small_clouds()
    config = small_config(reliability_power=0.5, whitening_power=0.2)
    with jax.enable_x64(True):  # The draws are the same, and in float64 no choice hangs on the rounding.
        x, y = planted.x.astype(np.float64), planted.y.astype(np.float64)
        result = align(jax.random.key(0), x, y, config)
        plain = np.asarray(result.map.W)
        size = {"x": 6, "y": 5}[space]
        turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
        turned = align(jax.random.key(0), *((x @ turn, y) if space == "x" else (x, y @ turn)), config)
        np.testing.assert_allclose(turned.map.W, turn.T @ plain if space == "x" else plain @ turn, atol=1e-7)
        assert_trees_close(turned.evidence, result.evidence, atol=1e-7)
        assert np.linalg.norm(plain) > 1


def assert_usable(result, d_x, d_y, dtype=jnp.float32):
    assert result.map.W.shape == (d_x, d_y)
    for leaf in jax.tree.leaves(result):
        assert np.isfinite(np.float64(leaf)).all()
        assert leaf.dtype == dtype or not jnp.issubdtype(leaf.dtype, jnp.floating)
    assert bool(result.info.all_finite)


def test_half_precision_is_computed_in_float32():
    planted = small_clouds()
    x, y = jnp.asarray(planted.x, jnp.float16), jnp.asarray(planted.y, jnp.bfloat16)
    result = align(jax.random.key(0), x, y, SMALL)
    assert_usable(result, 6, 5)
    assert apply(result.map, x).dtype == jnp.float16
    # bfloat16 keeps eight bits: the remembered mean is that of the rows as they came.
    np.testing.assert_allclose(result.map.mean_y, np.float32(y).mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.map.mean_x, planted.x.mean(0), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_float64_is_kept_where_jax_has_it():
    planted = small_clouds()
    x, y = planted.x.astype(np.float64), planted.y.astype(np.float64)
    with jax.enable_x64(True):
        assert_usable(align(jax.random.key(0), x, y, SMALL), 6, 5, jnp.float64)
    assert_usable(align(jax.random.key(0), x, y, SMALL), 6, 5, jnp.float32)


def test_zero_rows_and_duplicates_are_legal_and_counted():
    planted = small_clouds()
    x, y = planted.x.copy(), planted.y.copy()
    x[[0, 7, 60]] = 0
    x[20:40] = x[20]
    y[3] = 0
    y[10:30] = y[10]
    result = align(jax.random.key(0), x, y, SMALL)
    assert_usable(result, 6, 5)
    assert (int(result.info.zero_rows_x), int(result.info.zero_rows_y)) == (3, 1)
    np.testing.assert_allclose(result.map.mean_x, x[x.any(1)].mean(0), rtol=1e-4, atol=1e-5)


def test_the_result_says_what_happened():
    planted = small_clouds()
    result = align(jax.random.key(0), planted.x, planted.y, SMALL)
    steps = {
        "refine_matching": 4,
        "refine_clusters": 2,
        "refine_annealed": 8,
        "refine_annealed_again": 2,  # Of all rows, which are enough not to anneal for longer.
        "refine_csls": 2,
        "refine_whole": 1,
    }
    assert {name: values.shape for name, values in result.trajectory.items()} == {n: (s,) for n, s in steps.items()}
    info = result.info
    assert info.anchor_objective.shape == info.anchor_agreement.shape == info.anchor_kept.shape == (4,)
    assert int(info.anchor_kept.sum()) == SMALL.kept_sets
    assert (np.asarray(info.anchor_objective) <= 1 + 1e-5).all()
    assert (int(info.zero_rows_x), int(info.zero_rows_y)) == (0, 0)
    judgement = judge(result.evidence)
    for name in ("verdict", "confidence", "estimated_top1"):
        np.testing.assert_allclose(getattr(result, name), getattr(judgement, name), rtol=1e-5)


def prepared(rows):
    """A space as `align` prepares it: padded, too."""
    return fit_space(*pad_rows(rows, SMALL.max_rows))


def test_the_evidence_is_that_of_the_searched_map_on_rows_it_has_not_seen():
    planted = small_clouds()
    # Nothing to settle it with.
    key, config = jax.random.key(0), small_config(anneal_steps=0, csls_steps=0, whole_steps=0)
    result = align(key, planted.x, planted.y, config)
    parts = [hold_out(prepared(rows), 5) for rows in (planted.x, planted.y)]
    of_sets = result.info.anchor_agreement
    expected = jax.jit(gather_evidence)(split_keys(key).evidence, *parts, result.map.W, of_sets)
    assert_trees_close(result.evidence, expected, atol=1e-4, rtol=1e-3)
    assert set(result.trajectory) == {"refine_matching", "refine_clusters"}


def test_every_key_is_scored_on_the_same_rows():
    _, results = all_solved(12, 8)
    # A rotation keeps the cosines within a space, so this differs only where the rows do, and by their rounding.
    np.testing.assert_allclose([result.evidence.within for result in results], results[0].evidence.within, rtol=5e-4)
    assert len({float(result.evidence.cross) for result in results}) > 1


@pytest.mark.parametrize(
    ("num_rows", "held_out", "steps", "expected"),
    [(100, 5, 8, 4), (101, 5, 8, 0), (40, 5, 8, 16), (100, 0, 8, 0), (9, 5, 8, 0), (100, 5, 0, 0)],
)
def test_annealing_goes_on_where_many_rows_were_held_out(num_rows, held_out, steps, expected):
    config = small_config(held_out_rows=held_out, anneal_steps=steps, anneal_rows=40)
    assert again_steps(config, num_rows) == expected


def test_annealing_again_sees_twice_the_directions_of_the_search():
    planted, key, config = small_clouds(), jax.random.key(2), small_config(search_dims=2, anneal_power=0.5)
    again = {stage.name: stage.run for stage in SETTLING}["refine_annealed_again"]
    with jax.enable_x64(True):
        x, y = (unit(np.float64(rows - rows.mean(0))) for rows in (planted.x, planted.y))
        # Of different lengths: directions that are as long as each other could be any.
        start = planted.W * np.linspace(1, 0.5, 5)
        found = again(key, jnp.asarray(x), jnp.asarray(y), jnp.asarray(start), config=config)
        axes_x, axes_y = (np.linalg.svd(rows)[2][:4].T for rows in (x, y))
        lowered = axes_x.T @ start @ axes_y
        seen = (jnp.asarray(unit(rows @ axes)) for rows, axes in ((x, axes_x), (y, axes_y)))
        expected = refine_annealed(key, *seen, jnp.asarray(lowered), config=config, steps=jnp.array([4, 5, 6, 7]))
    np.testing.assert_allclose(found.matrix, axes_x @ np.asarray(expected.matrix) @ axes_y.T, atol=1e-8)
    np.testing.assert_allclose(found.objective, expected.objective, atol=1e-8)


def test_annealing_again_is_the_second_half():
    planted, key = small_clouds(), jax.random.key(2)
    x, y = (fit_space(jnp.asarray(rows)).rows for rows in (planted.x, planted.y))
    W = jnp.asarray(planted.W, jnp.float32)
    again = {stage.name: stage.run for stage in SETTLING}["refine_annealed_again"]
    found = again(key, x, y, W, config=SMALL)
    expected = refine_annealed(key, x, y, W, config=SMALL, steps=jnp.array([4, 5, 6, 7]))
    assert_trees_close(found, expected)
    first = again(key, x, y, W, config=SMALL, steps=jnp.array([0, 1]))
    second = again(key, x, y, first.matrix, config=SMALL, steps=jnp.array([2, 3]))
    np.testing.assert_allclose(second.matrix, expected.matrix, atol=1e-5)


def unweighted(whitening_power, **changes):
    """The map, weighted and whitened, of a fit in which nothing else is."""
    planted, key = small_clouds(), jax.random.key(0)
    config = small_config(whitening_power=whitening_power, **changes)
    return align(key, planted.x, planted.y, config), [prepared(c).rows for c in (planted.x, planted.y)]


def test_a_published_map_is_whitened_last():
    published = {"anneal_steps": 0, "csls_steps": 0, "whole_steps": 0}
    plain, rows = unweighted(0.0, **published)
    whitened, _ = unweighted(0.2, **published)
    spreads = [fit_whitening(cloud, 0.2) for cloud in rows]
    np.testing.assert_allclose(whitened.map.W, whiten_map(plain.map.W, *spreads), atol=1e-4)
    assert np.abs(whitened.map.W - plain.map.W).max() > 0.01
    # What is said about the map is said about the rotation in it.
    assert_trees_close(whitened.evidence, plain.evidence)
    assert float(whitened.info.orthogonality) < 1e-4


@pytest.mark.slow
def test_the_last_cross_covariance_is_weighted_and_whitened():
    settled, rows = unweighted(0.2, reliability_power=0.7)
    planted, key = small_clouds(), jax.random.key(0)
    config = small_config(whitening_power=0.2, reliability_power=0.7)
    spaces = [prepared(cloud) for cloud in (planted.x, planted.y)]
    searched = search_map(key, prepare_search(*spaces, config=config), config=config)
    matrix, _ = refine(split_keys(key), SETTLING, *rows, searched.matrix, config=config)
    expected = map_from_cross(matrix, *(fit_whitening(cloud, 0.2) for cloud in rows), 0.7)
    np.testing.assert_allclose(settled.map.W, expected, atol=1e-3)
    assert np.abs(settled.map.W - polar(matrix)).max() > 0.01
    assert float(settled.info.orthogonality) < 1e-4


def test_the_map_remembers_both_spaces():
    planted = small_clouds()
    fitted = align(jax.random.key(0), planted.x, 5 * planted.y, SMALL).map
    for rows, mean, scale in (
        (planted.x, fitted.mean_x, fitted.scale_x),
        (5 * planted.y, fitted.mean_y, fitted.scale_y),
    ):
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scale, np.linalg.norm(rows - rows.mean(0), axis=1).mean(), rtol=1e-4)


def test_fewer_rows_than_every_sample_and_an_average_of_maps():
    few = planted_clouds(3, 4, num_x=7, num_y=6, groups=3, seed=4)
    config: Config = small_config(anneal_steps=0, csls_steps=0, whole_steps=0, project=False)
    result = align(jax.random.key(0), few.x, few.y, config)
    assert_usable(result, 3, 4)
    assert set(result.trajectory) == {"refine_matching", "refine_clusters"}
    gram = np.asarray(result.map.W @ result.map.W.T)
    np.testing.assert_allclose(result.info.orthogonality, np.linalg.norm(gram - np.eye(3)), rtol=1e-3, atol=1e-5)
    # Too few to hold any out: nothing speaks for the map, nor against it.
    assert int(result.verdict) == Verdict.uncertain


@pytest.mark.slow
def test_nothing_held_out_is_legal():
    planted = small_clouds()
    result = align(
        jax.random.key(0), planted.x, planted.y, small_config(held_out_rows=0, match_steps=0, cluster_steps=0)
    )
    assert_usable(result, 6, 5)
    assert set(result.trajectory) == {"refine_annealed", "refine_csls", "refine_whole"}
    assert int(result.verdict) == Verdict.uncertain


@pytest.mark.slow
@pytest.mark.parametrize(("d_x", "d_y"), [pytest.param(5, 5, marks=pytest.mark.slow), (6, 5)])
def test_the_whole_pipeline_lowers_for_every_platform(d_x, d_y):
    planted = small_clouds(d_x, d_y)
    key, x, y = jax.random.key(0), jnp.asarray(planted.x), jnp.asarray(planted.y)
    platforms = ["cpu", "cuda", "tpu"]
    exported = jax.export.export(jax.jit(lambda key, x, y: align(key, x, y, SMALL)), platforms=platforms)(key, x, y)
    assert list(exported.platforms) == platforms
    if d_x != d_y:  # Compiling is what takes the time; one shape shows that the program is the same.
        assert_trees_close(exported.call(key, x, y), align(key, x, y, SMALL), atol=1e-4, rtol=1e-4)
