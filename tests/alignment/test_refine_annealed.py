"""The annealed refinement: one step against NumPy, and a map from a start that plain refinement cannot leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_estimate, make_spaces, planted_clouds, small_config, unit
from scipy.linalg import fractional_matrix_power

from mv2v_jax.alignment.refine_annealed import (
    annealing_length,
    refine_annealed,
    refine_csls,
    refine_whole,
    settle_neighbors,
    settle_power,
)
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.sampling import draw_rows, order_rows

FUNCTIONS = {"refine_annealed": refine_annealed, "refine_csls": refine_csls, "refine_whole": refine_whole}


def refine(fun, key, x, y, start, config, steps=None):
    """A stage on rows ``x`` and ``y`` from a cross-covariance: the refined one, and the objective."""
    x = jnp.asarray(x)
    start = make_estimate(start, dtype=x.dtype)
    refined = fun(key, make_spaces(x, y, x.dtype), start, config=config, steps=steps)
    assert not refined.estimate.is_map
    return refined.estimate.matrix, refined.objective


@pytest.fixture(scope="module")
def clouds():
    """Centred unit rows of two planted spaces and the planted map."""
    planted = planted_clouds(8, 6, num_x=400, num_y=380, groups=10, seed=3)
    x, y = (jnp.asarray(unit(rows - rows.mean(0)), jnp.float32) for rows in (planted.x, planted.y))
    return x, y, planted.W


@pytest.fixture(scope="module")
def run():
    return {
        name: jax.jit(lambda *args, fun=fun, **steps: refine(fun, *args, **steps)) for name, fun in FUNCTIONS.items()
    }


def closeness(matrix, planted):
    """Cosine of a map with the planted one, over their directions: 1 where they are equal."""
    return np.vdot(polar(jnp.asarray(matrix, jnp.float32)), planted) / min(planted.shape)


def test_leaves_a_poor_start(clouds, run):
    x, y, planted = clouds
    rng = np.random.default_rng(0)
    start = planted / np.linalg.norm(planted) + 1.2 * unit(rng.normal(size=planted.size)).reshape(planted.shape)
    config = small_config(annealing_steps=40, annealing_rows=200, settling_steps=5, settling_rows=200)
    annealed, annealed_objective = run["refine_annealed"](jax.random.key(0), x, y, start, config)
    settled, settled_objective = run["refine_csls"](jax.random.key(1), x, y, annealed, config)
    assert closeness(start, planted) < 0.75
    assert closeness(annealed, planted) > 0.95
    assert closeness(settled, planted) > 0.95
    assert (annealed_objective.shape, settled_objective.shape) == ((40,), (5,))


def test_a_wrong_start_is_not_called_right(clouds, run):
    """From the opposite of the right map, the worst possible start, the assertions above do not hold."""
    x, y, planted = clouds
    config = small_config(annealing_steps=40, annealing_rows=200, settling_steps=5, settling_rows=200)
    found, _ = run["refine_annealed"](jax.random.key(0), x, y, -planted, config)
    assert closeness(found, planted) < 0.9


def weights_in_numpy(cross, x, y, power, whitening):
    """Directions of both spaces as columns, weighted and whitened, by SciPy."""
    u, singular, vt = np.linalg.svd(cross, full_matrices=False)
    sides, deviations = [], []
    for rows, own in ((x, u), (y, vt.T)):
        covariance = rows.T @ rows / len(rows)
        deviations.append(np.sqrt(np.diag(own.T @ covariance @ own)))
        variance, axes = np.linalg.eigh(covariance)
        # Variances below a thousandth of the largest count as a thousandth.
        lifted = (axes * np.maximum(variance / variance[-1], 1e-3)) @ axes.T
        sides.append(fractional_matrix_power(lifted, -whitening) @ own)
    correlation = singular / np.prod(deviations, axis=0)
    return [side * (correlation / correlation.max()) ** (power / 2) for side in sides]


def steps_in_numpy(key, x, y, cross, *, rows, num_neighbors, powers, momenta, whitening):
    """The stages in float64 with the whole similarity matrix; only the draws come from the library.

    One power and one momentum per step; ``rows`` are the numbers of rows of X and of Y that each step draws.
    """
    x64, y64 = np.float64(x), np.float64(y)
    objective = []
    for step, (power, momentum) in enumerate(zip(powers, momenta, strict=True)):
        drawn = draw_rows(jax.random.fold_in(key, step), (x, y), rows, order_rows(key, x, y))
        drawn = [np.float64(side) for side in drawn]
        sides = weights_in_numpy(cross, x64, y64, power, whitening)
        similarity = unit(drawn[0] @ sides[0]) @ unit(drawn[1] @ sides[1]).T
        density_x, density_y = (np.sort(s, axis=1)[:, -10:].mean(1) for s in (similarity, similarity.T))
        csls = 2 * similarity - density_x[:, None] - density_y
        new, best = 0, []
        for own, other, cosines, scores in ((*drawn, similarity, csls), (*drawn[::-1], similarity.T, csls.T)):
            among = np.where(cosines >= np.sort(cosines, axis=1)[:, [-10]], scores, -np.inf)
            nearest = np.argsort(-among, axis=1)[:, :num_neighbors]
            pairs = own.T @ other[nearest].mean(1) / len(own)
            new = new + (pairs if own is drawn[0] else pairs.T)
            best.append(np.take_along_axis(among, nearest, 1).mean())
        cross = momentum * cross + (1 - momentum) * new * np.sqrt(min(cross.shape)) / np.linalg.norm(new)
        objective.append(np.mean(best))
    return cross, objective


@pytest.mark.parametrize("num_rows", [25, 40, 1000])  # Half, most of the rows, and more than there are.
@pytest.mark.parametrize("name", FUNCTIONS)
def test_steps_against_numpy(clouds, name, num_rows):
    x, y = clouds[0][:61], clouds[1][:50]
    start = clouds[2] + 0.3 * np.random.default_rng(5).normal(size=(8, 6))
    stages = {"refine_annealed": "annealing", "refine_csls": "settling", "refine_whole": "settling_whole"}
    own = stages[name]
    config = small_config(
        # The settings of the other stages differ.
        **{f"{stage}_steps": 4 if stage == own else 9 for stage in stages.values()},
        **{f"{stage}_rows": num_rows if stage == own else 13 for stage in stages.values()},
        annealing_num_neighbors=2 if own == "annealing" else 5,
        settling_min_neighbors=5 if own == "annealing" else 2,
        settling_ample_rows=0,
        annealing_power=1.5,
        whitening_reliability_power=0.5,
        whitening_power=0.2,
    )
    if own == "annealing":
        # At most half of the rows; samples smaller than the setting take up to four times the steps.
        num_steps = 16 if num_rows > 25 else 4
        progress = np.arange(num_steps) / num_steps
        how = {
            "rows": [min(num_rows, half) for half in (31, 25)],
            "powers": 1.5 * (1 - progress) + 0.5 * progress,
            "momenta": 0.5 + 0.4 * progress,
        }
    else:
        # The first step keeps nothing; later ones keep the share of the rows that is not in the sample, at most half.
        momentum = min(0.5, max(0, 1 - num_rows / 50))
        # So few rows are settled with three times the power.
        how = {"rows": [num_rows] * 2, "powers": [1.5] * 4, "momenta": [0, momentum, momentum, momentum]}
    key = jax.random.key(3)
    expected, objective = steps_in_numpy(key, x, y, start, num_neighbors=2, whitening=0.2, **how)
    found, found_objective = refine(FUNCTIONS[name], key, x, y, start, config)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found_objective, objective, atol=1e-4)


def test_few_rows_are_settled_with_more_neighbors_against_numpy(clouds):
    x, y = clouds[0][:170], clouds[1][:160]
    start = clouds[2] + 0.3 * np.random.default_rng(6).normal(size=(8, 6))
    config = small_config(settling_steps=2, settling_rows=1000, settling_min_neighbors=1, settling_ample_rows=1_000)
    key = jax.random.key(4)
    how = {"rows": [1000, 1000], "powers": [0, 0], "momenta": [0, 0], "whitening": 0}
    expected, objective = steps_in_numpy(key, x, y, start, num_neighbors=3, **how)
    found, found_objective = refine(refine_csls, key, x, y, start, config)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found_objective, objective, atol=1e-4)


@pytest.mark.parametrize("name", ["refine_csls", "refine_whole"])
def test_settling_keeps_nothing_of_what_it_starts_from(clouds, run, name):
    """The length of the start has no influence on the first step, while a later step averages with it."""
    x, y, planted = clouds
    config = small_config(settling_rows=100, settling_whole_rows=100)
    start = jnp.asarray(planted, jnp.float32)

    def settled(start, *steps):
        return run[name](jax.random.key(1), x, y, start, config, steps=jnp.array(steps))[0]

    np.testing.assert_allclose(settled(5 * start, 0), settled(start, 0), atol=1e-5)
    later, longer = settled(start, 1), settled(5 * start, 1)
    # A sample of less than half counts half.
    np.testing.assert_allclose(longer - later, 0.5 * 4 * start, atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounding_in_directions_that_were_not_searched_has_no_influence(clouds, run, name, power):
    """A search in fewer directions matches none of the others, so their singular vectors are rounding errors."""
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        x, y = (jnp.asarray(rows, jnp.float64) for rows in clouds[:2])
        axes = [np.linalg.svd(np.asarray(rows), full_matrices=False)[2][:4].T for rows in (x, y)]
        start = axes[0] @ axes[0].T @ clouds[2] @ axes[1] @ axes[1].T
        config = small_config(
            annealing_power=power, whitening_reliability_power=power, settling_rows=300, settling_whole_rows=300
        )
        first = jnp.arange(1)
        found = [
            run[name](jax.random.key(1), x, y, jnp.asarray(start + noise), config, steps=first)[0]
            for noise in (0, *(1e-16 * rng.normal(size=(3, 8, 6))))
        ]
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], atol=1e-9)


@pytest.mark.parametrize(
    ("num_rows", "max_rows", "expected"),
    [(100_000, 50, 8), (100, 50, 8), (94, 50, 8), (86, 50, 16), (76, 50, 24), (70, 50, 32), (30, 50, 32), (2, 50, 32)],
)
def test_small_samples_take_more_steps(num_rows, max_rows, expected):
    assert annealing_length(num_rows, small_config(annealing_steps=8, annealing_rows=max_rows)) == expected


@pytest.mark.parametrize(
    ("num_rows", "least", "ample", "expected"),
    [
        (10**6, 3, 40_000, 3),  # Plenty of rows.
        (10_000, 3, 40_000, 8),  # A quarter of what is ample: 4^1.5.
        (9_999, 3, 40_000, 9),
        (1_000, 3, 40_000, 20),  # At most one row in fifty.
        (50, 3, 40_000, 3),  # But never fewer than the least.
        (1_000, 3, 0, 3),
    ],
)
def test_few_rows_are_averaged_over_more_neighbors(num_rows, least, ample, expected):
    assert settle_neighbors(num_rows, small_config(settling_min_neighbors=least, settling_ample_rows=ample)) == expected


@pytest.mark.parametrize(
    ("num_x", "num_y", "expected"),
    [
        (26_000, 26_000, 0.4),
        (3_000, 3_000, 0.4),
        (1_500, 1_500, 0.4 * 2**1.5),
        (200, 200, 1.2),
        (1_500, 26_000, 0.4),  # Many rows on one side are enough.
        (1_000, 4_000, 0.4 * 1.5**1.5),
    ],
)
def test_few_rows_are_settled_with_a_larger_power(num_x, num_y, expected):
    assert float(settle_power(num_x, num_y, small_config(whitening_reliability_power=0.4))) == pytest.approx(expected)
    assert float(settle_power(num_x, num_y, small_config(whitening_reliability_power=0.0))) == 0


def test_a_direction_without_data_has_no_influence(clouds):
    x, y = clouds[0][:61, :5], clouds[1][:50, :5]
    start = jnp.asarray(np.eye(5) + 0.3 * np.random.default_rng(5).normal(size=(5, 5)), jnp.float32)
    config = small_config(annealing_steps=1, annealing_power=2.0)
    first = jnp.arange(1)
    plain, plain_objective = refine(refine_annealed, jax.random.key(0), x, y, start, config, first)
    wider_x, wider_y = (jnp.pad(rows, ((0, 0), (0, 1))) for rows in (x, y))
    wider_start = jnp.pad(start, ((0, 1), (0, 1))).at[5, 5].set(3.0)
    wider, wider_objective = refine(refine_annealed, jax.random.key(0), wider_x, wider_y, wider_start, config, first)
    np.testing.assert_allclose(wider_objective, plain_objective, atol=1e-5)
    new = [np.asarray(found)[:5, :5] - 0.5 * np.asarray(start) for found in (wider, plain)]
    np.testing.assert_allclose(new[0] / np.sqrt(6), new[1] / np.sqrt(5), atol=1e-5)


# Two rows per side: each step sees one row of each side, and these are partners whatever the weights.
def test_two_rows_against_numpy():
    x, y = jnp.array([[0.6, 0.8], [0.6, 0.8]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    start = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    config = small_config(annealing_steps=1, annealing_rows=2, annealing_num_neighbors=1, annealing_power=2.0)
    found, objective = refine(refine_annealed, jax.random.key(0), x, y, start, config, jnp.arange(1))
    outer = np.outer(x[0], y[0])
    # The new cross-covariance has the length of a semi-orthogonal map; the first step counts half.
    expected = 0.5 * np.asarray(start) + 0.5 * np.sqrt(2) * outer / np.linalg.norm(outer)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # With one row per side both densities are the similarity itself.
    np.testing.assert_allclose(objective, [0], atol=1e-6)


def test_the_power_decides_which_directions_count(clouds, run):
    x, y, planted = clouds
    start = jnp.asarray(planted * np.linspace(1, 0.2, 6), jnp.float32)
    found = [
        run["refine_annealed"](jax.random.key(0), x, y, start, small_config(annealing_power=power))[1][0]
        for power in (0.0, 1.0)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rotating_either_space_rotates_the_result(clouds, name):
    rng = np.random.default_rng(4)
    turn_x, turn_y = (np.linalg.qr(rng.normal(size=(d, d)))[0] for d in (8, 6))
    start = clouds[2] + 0.1 * rng.normal(size=(8, 6))
    with jax.enable_x64(True):
        x, y = (np.asarray(rows, np.float64) for rows in clouds[:2])
        fit = jax.jit(lambda x, y, W: refine(FUNCTIONS[name], jax.random.key(0), x, y, W, small_config())[0])
        plain = fit(x, y, start)
        np.testing.assert_allclose(fit(x @ turn_x, y, turn_x.T @ start), turn_x.T @ plain, atol=1e-8)
        np.testing.assert_allclose(fit(x, y @ turn_y, start @ turn_y), plain @ turn_y, atol=1e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_steps_in_chunks_equal_all_at_once(clouds, run, name):
    x, y, planted = clouds
    key, config = jax.random.key(1), small_config(annealing_steps=4, settling_steps=4, settling_whole_steps=4)
    whole, objective = run[name](key, x, y, planted, config)
    half, first_objective = run[name](key, x, y, planted, config, steps=jnp.arange(2))
    rest, last_objective = run[name](key, x, y, half, config, steps=jnp.arange(2, 4))
    np.testing.assert_allclose(rest, whole, atol=1e-4)
    np.testing.assert_allclose(jnp.concatenate([first_objective, last_objective]), objective, atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_to_match_is_finite(name):
    config = small_config()
    nothing = [jnp.zeros(shape) for shape in ((4, 3), (5, 2), (3, 2))]
    found = refine(FUNCTIONS[name], jax.random.key(0), *nothing, config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
