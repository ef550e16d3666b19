"""The whole method: planted maps are recovered without a known pair, and every kind of valid input is accepted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, make_estimate, make_spaces, planted_clouds, small_config, unit, with_settings

from mv2v_jax import Verdict, align, apply
from mv2v_jax.alignment.fit import prepare, search_once
from mv2v_jax.alignment.refine_annealed import again_steps, guided_steps, refine_annealed_again, refine_guided
from mv2v_jax.alignment.run import Inline
from mv2v_jax.alignment.score import gather_evidence, judge
from mv2v_jax.alignment.space import TwoSpaces, fit_space, hold_out, join_spaces
from mv2v_jax.alignment.stages import SETTLING_STAGES, refine, split_keys
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross, whiten_map
from mv2v_jax.data.padding import PaddedRows, pad_rows
from mv2v_jax.evaluation.metrics import evaluate
from mv2v_jax.ops.linalg import polar

SMALL = small_config()
# Enough to solve a small problem; refine-1 and refine-2 have tests of their own.
SOLVING = small_config(
    anchors_num_sets=12,
    anchors_num_clusters=10,
    anchors_rows=400,
    anchors_lloyd_steps=8,
    anchors_num_starts=6,
    anchors_search_steps=40,
    anchors_kept_sets=6,
    relative_rows=0,
    relative_num_neighbors=10,
    published_match_steps=0,
    held_out_rows=50,
    annealing_steps=30,
    annealing_rows=256,
    settling_steps=5,
    settling_rows=300,
    settling_whole_steps=1,
    settling_whole_rows=1000,
    published_cluster_steps=0,
)


def fits(x, y, config=SOLVING):
    return [align(jax.random.key(seed), x, y, config) for seed in range(4)]


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
    # The target frame retrieves raw rows of the target as well.
    raw = np.asarray(apply(result.map, jnp.asarray(planted.x_eval), frame="target"))
    lengths = np.linalg.norm(raw, axis=1)[:, None] * np.linalg.norm(planted.y_eval, axis=1)[None]
    nearest = (raw @ planted.y_eval.T / lengths).argmax(1)
    assert (nearest == np.arange(len(raw))).mean() > 0.6


@pytest.mark.parametrize(("num_long", "times"), [(1, 1e5), (6, 100)])
def test_few_long_rows_do_not_change_how_good_a_map_is(num_long, times):
    planted, expected = solved(12, 8)
    x, y = planted.x.copy(), planted.y.copy()
    x[10 : 10 + num_long] *= np.float32(times)
    y[-num_long:] *= np.float32(times)
    result = best_of(fits(x, y))
    found, usual = (
        evaluate(fitted.map, jnp.asarray(planted.x_eval), jnp.asarray(planted.y_eval)) for fitted in (result, expected)
    )
    # One of 200 rows is 0.005.
    assert float(found.top1) > float(usual.top1) - 0.011
    np.testing.assert_allclose(result.map.target.scale, expected.map.target.scale, rtol=0.01)


def test_rows_without_partners_are_not_aligned():
    """The assertions above do not hold for a map of other data."""
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
    for again_centering, centering in ((again.map.source, result.map.source), (again.map.target, result.map.target)):
        assert_trees_close(again_centering, centering, rtol=1e-4, atol=1e-5)


@functools.cache
def small_clouds(d_x=6, d_y=5):
    return planted_clouds(d_x, d_y, num_x=61, num_y=53, groups=6, seed=10)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["x", "y"])
def test_rotating_a_space_rotates_the_map(rng, space):
    planted = small_clouds()
    config = small_config(whitening_reliability_power=0.5, whitening_power=0.2)
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


@pytest.mark.slow
def test_half_precision_is_computed_in_float32():
    planted = small_clouds()
    x, y = jnp.asarray(planted.x, jnp.float16), jnp.asarray(planted.y, jnp.bfloat16)
    result = align(jax.random.key(0), x, y, SMALL)
    assert_usable(result, 6, 5)
    assert apply(result.map, x).dtype == jnp.float16
    # bfloat16 keeps eight bits: the mean is that of the rounded rows.
    np.testing.assert_allclose(result.map.target.mean, np.float32(y).mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.map.source.mean, planted.x.mean(0), rtol=1e-2, atol=1e-2)


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
    np.testing.assert_allclose(result.map.source.mean, x[x.any(1)].mean(0), rtol=1e-4, atol=1e-5)


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
        "polish": 3,
    }
    assert {name: values.shape for name, values in result.trajectory.items()} == {n: (s,) for n, s in steps.items()}
    info, anchors = result.info, result.info.anchors
    assert anchors.objective.shape == anchors.agreement.shape == anchors.kept.shape == (4,)
    assert int(anchors.kept.sum()) == SMALL.anchors.kept_sets
    assert (np.asarray(anchors.objective) <= 1 + 1e-5).all()
    assert (int(info.zero_rows_x), int(info.zero_rows_y)) == (0, 0)
    judgement = judge(result.evidence)
    for name in ("verdict", "reason", "confidence", "estimated_top1"):
        np.testing.assert_allclose(getattr(result, name), getattr(judgement, name), rtol=1e-5)


def padded_space(rows):
    """The `Space` that `align` makes of rows, padding included."""
    return fit_space(*pad_rows(rows, SMALL.max_rows))


def test_the_evidence_is_that_of_the_searched_map_on_rows_it_has_not_seen():
    planted = small_clouds()
    # Neither settled nor polished, so that the returned map is the searched one.
    settings = {"annealing_steps": 0, "settling_steps": 0, "settling_whole_steps": 0, "polishing_steps": 0}
    key, config = jax.random.key(0), small_config(**settings)
    result = align(key, planted.x, planted.y, config)
    (fitted_x, held_x), (fitted_y, held_y) = (hold_out(padded_space(c).rows, 5) for c in (planted.x, planted.y))
    fitted, held_out = TwoSpaces(x=fitted_x, y=fitted_y), TwoSpaces(x=held_x, y=held_y)
    expected = jax.jit(gather_evidence)(split_keys(key)["evidence"], fitted, held_out, result.map.W)
    assert_trees_close(result.evidence, expected, atol=1e-4, rtol=1e-3)
    assert set(result.trajectory) == {"refine_matching", "refine_clusters"}


def test_every_key_is_scored_on_the_same_rows():
    _, results = all_solved(12, 8)
    # A rotation keeps the cosines within a space, so with the same rows this differs by rounding only.
    np.testing.assert_allclose([result.evidence.within for result in results], results[0].evidence.within, rtol=5e-4)
    assert len({float(result.evidence.cross) for result in results}) > 1


@pytest.mark.parametrize(
    ("num_rows", "held_out", "steps", "expected"),
    [(100, 5, 8, 4), (101, 5, 8, 0), (40, 5, 8, 16), (100, 0, 8, 0), (9, 5, 8, 0), (100, 5, 0, 0)],
)
def test_annealing_goes_on_where_many_rows_were_held_out(num_rows, held_out, steps, expected):
    config = small_config(held_out_rows=held_out, annealing_steps=steps, annealing_rows=40)
    assert again_steps(num_rows, config) == expected


def test_annealing_again_sees_twice_the_directions_of_the_search():
    planted, key, config = small_clouds(), jax.random.key(2), small_config(search_dims=2, annealing_power=0.5)
    with jax.enable_x64(True):
        x, y = (unit(np.float64(rows - rows.mean(0))) for rows in (planted.x, planted.y))
        # Of different lengths: directions of equal length are not determined.
        start = planted.W * np.linspace(1, 0.5, 5)
        found = refine_annealed_again(key, make_spaces(x, y), make_estimate(start), config=config)
        axes_x, axes_y = (np.linalg.svd(rows)[2][:4].T for rows in (x, y))
        restricted = make_estimate(axes_x.T @ start @ axes_y)
        seen = make_spaces(unit(x @ axes_x), unit(y @ axes_y))
        expected = refine_guided(key, seen, restricted, config=more_rows(config))
    assert not found.estimate.is_map
    np.testing.assert_allclose(
        found.estimate.matrix, axes_x @ np.asarray(expected.estimate.matrix) @ axes_y.T, atol=1e-8
    )
    np.testing.assert_allclose(found.objective, expected.objective, atol=1e-8)


def more_rows(config):
    """The config whose annealed refinement draws as many rows as annealing again, in as many steps."""
    # More rows per step are a larger share of these few, for which more steps are taken.
    changed = config.replace(annealing={"rows": 2 * config.annealing.rows, "steps": config.annealing.steps // 2})
    assert guided_steps(53, changed) == guided_steps(53, config) == 4
    return changed


def test_annealing_again_trusts_weak_directions_and_draws_more_rows():
    planted, key = small_clouds(), jax.random.key(2)
    rows = make_spaces(*(fit_space(jnp.asarray(cloud)).rows for cloud in (planted.x, planted.y)))
    start = make_estimate(planted.W, dtype=jnp.float32)
    found = refine_annealed_again(key, rows, start, config=SMALL)
    expected = refine_guided(key, rows, start, config=more_rows(SMALL))
    assert_trees_close(found, expected)
    first = refine_annealed_again(key, rows, start, config=SMALL, steps=jnp.array([0, 1]))
    second = refine_annealed_again(key, rows, first.estimate, config=SMALL, steps=jnp.array([2, 3]))
    np.testing.assert_allclose(second.estimate.matrix, expected.estimate.matrix, atol=1e-5)


def unweighted(whitening_power, **changes):
    """The result of a fit with this whitening power, and the rows of both spaces."""
    planted, key = small_clouds(), jax.random.key(0)
    config = small_config(whitening_power=whitening_power, polishing_steps=0, **changes)
    return align(key, planted.x, planted.y, config), [padded_space(c).rows for c in (planted.x, planted.y)]


def test_a_published_map_is_whitened_last():
    published = {"annealing_steps": 0, "settling_steps": 0, "settling_whole_steps": 0}
    plain, rows = unweighted(0.0, **published)
    whitened, _ = unweighted(0.2, **published)
    both = [fit_whitening(cloud, 0.2) for cloud in rows]
    np.testing.assert_allclose(whitened.map.W, whiten_map(plain.map.W, *both), atol=1e-4)
    assert np.abs(whitened.map.W - plain.map.W).max() > 0.01
    # Evidence and orthogonality are those of the rotation, before whitening.
    assert_trees_close(whitened.evidence, plain.evidence)
    assert float(whitened.info.orthogonality) < 1e-4


@pytest.mark.slow
def test_the_last_cross_covariance_is_weighted_and_whitened():
    settled, rows = unweighted(0.2, whitening_reliability_power=0.7)
    planted, key = small_clouds(), jax.random.key(0)
    config = small_config(whitening_power=0.2, whitening_reliability_power=0.7, polishing_steps=0)
    padded = [pad_rows(cloud, config.max_rows) for cloud in (planted.x, planted.y)]
    rows_of = prepare(*padded, config)
    searched = search_once(Inline(), key, rows_of, config)
    all_rows = join_spaces(rows_of.source, rows_of.target)
    estimate, _ = refine(Inline(), split_keys(key), SETTLING_STAGES, all_rows, searched.estimate, config)
    matrix = estimate.matrix
    expected = map_from_cross(matrix, *(fit_whitening(cloud, 0.2) for cloud in rows), 0.7)
    np.testing.assert_allclose(settled.map.W, expected, atol=1e-3)
    assert np.abs(settled.map.W - polar(matrix)).max() > 0.01
    assert float(settled.info.orthogonality) < 1e-4


def test_the_map_remembers_both_spaces():
    planted = small_clouds()
    fitted = align(jax.random.key(0), planted.x, 5 * planted.y, SMALL).map
    for rows, mean, scale in (
        (planted.x, fitted.source.mean, fitted.source.scale),
        (5 * planted.y, fitted.target.mean, fitted.target.scale),
    ):
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scale, np.linalg.norm(rows - rows.mean(0), axis=1).mean(), rtol=1e-4)


def test_fewer_rows_than_every_sample_and_an_average_of_maps():
    few = planted_clouds(3, 4, num_x=7, num_y=6, groups=3, seed=4)
    config = small_config(annealing_steps=0, settling_steps=0, settling_whole_steps=0, published_project=False)
    result = align(jax.random.key(0), few.x, few.y, config)
    assert_usable(result, 3, 4)
    assert set(result.trajectory) == {"refine_matching", "refine_clusters"}
    gram = np.asarray(result.map.W @ result.map.W.T)
    np.testing.assert_allclose(result.info.orthogonality, np.linalg.norm(gram - np.eye(3)), rtol=1e-3, atol=1e-5)
    # Too few rows to hold any out, so there is no evidence.
    assert int(result.verdict) == Verdict.uncertain


@pytest.mark.slow
def test_nothing_held_out_is_legal():
    planted = small_clouds()
    result = align(
        jax.random.key(0),
        planted.x,
        planted.y,
        small_config(held_out_rows=0, published_match_steps=0, published_cluster_steps=0),
    )
    assert_usable(result, 6, 5)
    assert set(result.trajectory) == {"refine_annealed", "refine_csls", "refine_whole", "polish"}
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


# --------------------------------------------------------------------------------------- searching in fewer directions


@pytest.mark.parametrize(("search_dims", "dims_x", "dims_y"), [(0, 7, 6), (4, 4, 4), (6, 6, 6), (9, 7, 6)])
def test_a_search_sees_fitted_and_held_out_rows_in_the_directions_of_the_fitted(rng, search_dims, dims_x, dims_y):
    config = small_config(search_dims=search_dims)

    def prepared(clouds):
        # Means of zero are given, so that they do not depend on the held-out rows.
        return prepare(*(PaddedRows(rows=c, num_rows=len(c), mean=jnp.zeros(c.shape[1])) for c in clouds), config)

    with jax.enable_x64(True):
        clouds = [jnp.asarray(unit(rng.normal(size=(n, d)) * 0.7 ** np.arange(d))) for n, d in ((60, 7), (50, 6))]
        rows = prepared(clouds)
        parts = [hold_out(cloud, config.held_out_rows) for cloud in clouds]
        # The directions do not depend on the held-out rows.
        again = prepared(
            [
                jnp.where((cloud[:, None] == held_out[None]).all(2).any(1)[:, None], 1, cloud)
                for cloud, (_, held_out) in zip(clouds, parts, strict=True)
            ]
        )
    assert (rows.fitted.x.shape, rows.held_out.x.shape) == ((55, dims_x), (5, dims_x))
    assert (rows.fitted.y.shape, rows.held_out.y.shape) == ((45, dims_y), (5, dims_y))
    found = (
        (rows.fitted.x, rows.held_out.x, rows.subspace.x, dims_x, 7),
        (rows.fitted.y, rows.held_out.y, rows.subspace.y, dims_y, 6),
    )
    for (fitted, held_out), (seen, seen_held_out, directions, dims, all_dims) in zip(parts, found, strict=True):
        assert (directions is None) == (dims == all_dims)
        axes = np.eye(all_dims) if directions is None else np.asarray(directions)
        np.testing.assert_allclose(seen, unit(np.asarray(fitted) @ axes), atol=1e-12)
        np.testing.assert_allclose(seen_held_out, unit(np.asarray(held_out) @ axes), atol=1e-12)
        longest = np.linalg.svd(np.asarray(fitted))[2][:dims].T
        np.testing.assert_allclose(axes @ axes.T, longest @ longest.T, atol=1e-9)
    np.testing.assert_array_equal(again.fitted.x, rows.fitted.x)
    np.testing.assert_array_equal(again.fitted.y, rows.fitted.y)
    assert np.abs(np.asarray(again.held_out.x) - np.asarray(rows.held_out.x)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("d_x", "d_y"), [(12, 12), (12, 8)])
def test_a_planted_map_is_recovered_from_a_search_in_fewer_directions(d_x, d_y):
    planted = planted_clouds(d_x, d_y, num_x=600, num_y=560, groups=10, seed=0)
    # The second annealed refinement sees twice as many directions.
    config = with_settings(SOLVING, search_dims=5)
    result = best_of(fits(planted.x, planted.y, config))
    scores = evaluate(result.map, jnp.asarray(planted.x_eval), jnp.asarray(planted.y_eval))
    assert float(scores.top1) > 0.9
    assert float(scores.foscttm) < 0.01
    assert float(scores.cosine) > 0.95
    W = np.asarray(result.map.W)
    used = np.linalg.svd(planted.W)[0][:, : min(d_x, d_y)]
    assert np.linalg.norm(used.T @ (W - planted.W)) / np.linalg.norm(planted.W) < 0.3
    assert float(result.info.orthogonality) < 1e-4
    # Settling finds what the search did not see: the directions of least variance that hold data.
    axes = np.linalg.svd(fit_space(jnp.asarray(planted.x)).rows)[2][config.search_dims : min(d_x, d_y)]
    assert np.vdot(axes @ W, axes @ planted.W) / np.linalg.norm(axes @ planted.W) ** 2 > 0.7


@pytest.mark.slow
def test_a_search_in_fewer_directions_is_settled_in_all():
    planted, key = planted_clouds(7, 6, num_x=96, num_y=88, groups=6, seed=2), jax.random.key(3)
    # A power, so that directions that were not searched do not count; sizes that are not padded.
    config = small_config(
        search_dims=6, published_match_steps=0, published_cluster_steps=0, whitening_reliability_power=0.5
    )
    with jax.enable_x64(True):
        clouds = [np.float64(rows) for rows in (planted.x, planted.y)]
        found = align(key, *clouds, config)
        rows = prepare(*(pad_rows(cloud, config.max_rows) for cloud in clouds), config)
        searched = jax.jit(lambda key, rows: search_once(Inline(), key, rows, config))(key, rows)
        matrix = searched.estimate.matrix
        assert matrix.shape == (6, 6)
        expected = np.asarray(rows.subspace.x) @ np.asarray(matrix)
        extended = rows.subspace.extend(matrix)
        np.testing.assert_allclose(extended, expected, atol=1e-12)
        both = join_spaces(rows.source, rows.target)
        keys = split_keys(key)
        settle = jax.jit(lambda rows, estimate: refine(Inline(), keys, SETTLING_STAGES, rows, estimate, config))
        _, trajectory = settle(both, make_estimate(extended))
    assert_trees_close(found.evidence, searched.evidence, atol=1e-8)
    assert set(trajectory) == {"refine_annealed_again", "refine_csls", "refine_whole"}
    for name, objective in trajectory.items():
        np.testing.assert_allclose(found.trajectory[name], objective, atol=1e-8)
    assert found.map.W.shape == (7, 6)


@pytest.mark.slow
def test_as_many_directions_as_there_are_change_nothing():
    planted = planted_clouds(8, 6, num_x=61, num_y=53, groups=6, seed=10)
    whole, same = (align(jax.random.key(0), planted.x, planted.y, small_config(search_dims=dims)) for dims in (0, 8))
    assert_trees_close(same, whole, atol=0, rtol=0)
