"""The annealed refinement: one step against NumPy, and a map from a start that plain refinement cannot leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import planted_clouds, small_config, unit

from mv2v_jax.anneal import _direction_weights, refine_annealed, refine_csls, settle_neighbors
from mv2v_jax.preprocess import draw_rows
from mv2v_jax.procrustes import polar

pytestmark = pytest.mark.usefixtures("quick_compile")

FUNCTIONS = {"refine_annealed": refine_annealed, "refine_csls": refine_csls}


@pytest.fixture(scope="module")
def clouds():
    """Centred unit rows of two planted spaces and the planted map."""
    planted = planted_clouds(8, 6, num_x=400, num_y=380, groups=10, seed=3)
    x, y = (jnp.asarray(unit(rows - rows.mean(0)), jnp.float32) for rows in (planted.x, planted.y))
    return x, y, planted.W


@pytest.fixture(scope="module")
def run():
    return {
        name: jax.jit(lambda key, x, y, W, config, steps=None, fun=fun: fun(key, x, y, W, config=config, steps=steps))
        for name, fun in FUNCTIONS.items()
    }


def closeness(matrix, planted):
    """Cosine of a map with the planted one, over their directions: 1 where they are equal."""
    return np.vdot(polar(jnp.asarray(matrix, jnp.float32)), planted) / min(planted.shape)


def test_leaves_a_poor_start(clouds, run):
    x, y, planted = clouds
    rng = np.random.default_rng(0)
    start = planted / np.linalg.norm(planted) + 1.2 * unit(rng.normal(size=planted.size)).reshape(planted.shape)
    config = small_config(anneal_steps=40, anneal_rows=200, csls_steps=5, csls_rows=200)
    annealed = run["refine_annealed"](jax.random.key(0), x, y, jnp.asarray(start, jnp.float32), config)
    settled = run["refine_csls"](jax.random.key(1), x, y, annealed.matrix, config)
    assert closeness(start, planted) < 0.75
    assert closeness(annealed.matrix, planted) > 0.95
    assert closeness(settled.matrix, planted) > 0.95
    assert (annealed.objective.shape, settled.objective.shape) == ((40,), (5,))


def test_a_wrong_start_is_not_called_right(clouds, run):
    """The opposite of the right map is as far off as can be: what is asserted above does not hold for any start."""
    x, y, planted = clouds
    config = small_config(anneal_steps=40, anneal_rows=200, csls_steps=5, csls_rows=200)
    found = run["refine_annealed"](jax.random.key(0), x, y, jnp.asarray(-planted, jnp.float32), config)
    assert closeness(found.matrix, planted) < 0.9


def steps_in_numpy(key, x, y, cross, *, num_steps, num_rows, num_neighbors, power=None):
    """The stages in float64 with the whole similarity matrix; only the draws are ours.

    With a power it is `refine_annealed`: at most half of the rows, weights and a memory. Without, `refine_csls`.
    """
    x64, y64 = np.float64(x), np.float64(y)
    covariance_x, covariance_y = x64.T @ x64 / len(x), y64.T @ y64 / len(y)
    objective = []
    for step in range(num_steps):
        keys = jax.random.split(jax.random.fold_in(key, step))
        sizes = [num_rows if power is None else min(num_rows, (len(rows) + 1) // 2) for rows in (x, y)]
        drawn = [np.float64(draw_rows(k, r, size)) for k, r, size in zip(keys, (x, y), sizes, strict=True)]
        progress = step / num_steps
        u, singular, vt = np.linalg.svd(cross, full_matrices=False)
        weights = 1.0
        if power is not None:
            deviations = [np.sqrt(np.diag(d.T @ c @ d)) for d, c in ((u, covariance_x), (vt.T, covariance_y))]
            correlation = singular / np.prod(deviations, axis=0)
            weights = (correlation / correlation.max()) ** (power * (1 - progress) / 2)
        similarity = unit(drawn[0] @ u * weights) @ unit(drawn[1] @ vt.T * weights).T
        density_x, density_y = (np.sort(s, axis=1)[:, -10:].mean(1) for s in (similarity, similarity.T))
        csls = 2 * similarity - density_x[:, None] - density_y
        new, best = 0, []
        for own, other, cosines, scores in ((*drawn, similarity, csls), (*drawn[::-1], similarity.T, csls.T)):
            among = np.where(cosines >= np.sort(cosines, axis=1)[:, [-10]], scores, -np.inf)
            nearest = np.argsort(-among, axis=1)[:, :num_neighbors]
            pairs = own.T @ other[nearest].mean(1) / len(own)
            new = new + (pairs if own is drawn[0] else pairs.T)
            best.append(np.take_along_axis(among, nearest, 1).mean())
        momentum = 0.0 if power is None else 0.5 + 0.4 * progress
        cross = momentum * cross + (1 - momentum) * new * np.sqrt(min(cross.shape)) / np.linalg.norm(new)
        objective.append(np.mean(best))
    return cross, objective


@pytest.mark.parametrize("rows", [25, 1000])  # A sample, and more rows than there are.
@pytest.mark.parametrize("name", FUNCTIONS)
def test_steps_against_numpy(clouds, name, rows):
    x, y = clouds[0][:61], clouds[1][:50]
    start = clouds[2] + 0.3 * np.random.default_rng(5).normal(size=(8, 6))
    annealed = name == "refine_annealed"
    own, other = ("anneal", "csls") if annealed else ("csls", "anneal")
    config = small_config(
        **{f"{own}_steps": 4, f"{own}_rows": rows, f"{own}_neighbors": 2},
        **{f"{other}_steps": 9, f"{other}_rows": 13, f"{other}_neighbors": 5},
        reliability_power=1.5,
    )
    key = jax.random.key(3)
    expected, objective = steps_in_numpy(
        key, x, y, start, num_steps=4, num_rows=rows, num_neighbors=2, power=1.5 if annealed else None
    )
    found = FUNCTIONS[name](key, x, y, jnp.asarray(start, jnp.float32), config=config)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-4)
    np.testing.assert_allclose(found.objective, objective, atol=1e-4)


def test_few_rows_are_settled_with_more_neighbors_against_numpy(clouds):
    x, y = clouds[0][:170], clouds[1][:160]
    start = clouds[2] + 0.3 * np.random.default_rng(6).normal(size=(8, 6))
    config = small_config(csls_steps=2, csls_rows=1000, csls_neighbors=1, csls_pairs=10_000)
    key = jax.random.key(4)
    expected, objective = steps_in_numpy(key, x, y, start, num_steps=2, num_rows=1000, num_neighbors=3)
    found = refine_csls(key, x, y, jnp.asarray(start, jnp.float32), config=config)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-4)
    np.testing.assert_allclose(found.objective, objective, atol=1e-4)


@pytest.mark.parametrize(
    ("num_rows", "least", "pairs", "expected"),
    [
        (10**6, 3, 100_000, 3),  # Plenty of rows.
        (1000, 3, 5000, 5),  # Just enough pairs.
        (1000, 3, 5001, 6),
        (1000, 3, 100_000, 20),  # At most one row in fifty.
        (50, 3, 100_000, 3),  # But never fewer than the least.
        (1000, 3, 0, 3),
    ],
)
def test_neighbors_make_enough_pairs(num_rows, least, pairs, expected):
    assert settle_neighbors(num_rows, small_config(csls_neighbors=least, csls_pairs=pairs)) == expected


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_a_short_direction_that_is_matched_as_well_counts_as_much(clouds, power):
    """Where every row has its own partner, all correlations are one, however uneven the singular values are."""
    x = np.asarray(clouds[1])
    covariance = jnp.asarray(x.T @ x / len(x))
    u, v, weights = _direction_weights(covariance, covariance, covariance, power)
    assert np.linalg.cond(covariance) > 5
    np.testing.assert_allclose(weights, 1, rtol=1e-2)
    np.testing.assert_allclose(u.T @ covariance @ v, u.T @ covariance @ u, atol=1e-5)


def test_a_worse_matched_direction_counts_less():
    """Half of the correlation in one direction is half of the weight, to the power, wherever the lengths are."""
    cross = jnp.diag(jnp.array([0.5, 3.0]))
    covariances = jnp.diag(jnp.array([1.0, 9.0])), jnp.diag(jnp.array([1.0, 1.0]))
    u, v, weights = _direction_weights(cross, *covariances, 2.0)
    np.testing.assert_allclose(np.abs(u), [[0, 1], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(np.abs(v), [[0, 1], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(weights, [1, 0.25], rtol=1e-5)


def test_a_direction_without_data_says_nothing(clouds):
    x, y = clouds[0][:61, :5], clouds[1][:50, :5]
    start = jnp.asarray(np.eye(5) + 0.3 * np.random.default_rng(5).normal(size=(5, 5)), jnp.float32)
    config = small_config(anneal_steps=1, reliability_power=2.0)
    plain = refine_annealed(jax.random.key(0), x, y, start, config=config)

    def pad(a, *widths):
        return jnp.pad(a, widths)

    wider = refine_annealed(
        jax.random.key(0),
        pad(x, (0, 0), (0, 1)),
        pad(y, (0, 0), (0, 1)),
        pad(start, (0, 1), (0, 1)).at[5, 5].set(3.0),
        config=config,
    )
    np.testing.assert_allclose(wider.objective, plain.objective, atol=1e-5)
    new = [np.asarray(found.matrix)[:5, :5] - 0.5 * np.asarray(start) for found in (wider, plain)]
    np.testing.assert_allclose(new[0] / np.sqrt(6), new[1] / np.sqrt(5), atol=1e-5)


# Two rows a side: each step sees one of each, which are each other's partners whatever the weights.
def test_two_rows_against_numpy():
    x, y = jnp.array([[0.6, 0.8], [0.6, 0.8]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    start = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    config = small_config(anneal_steps=1, anneal_rows=2, anneal_neighbors=1, reliability_power=2.0)
    found = refine_annealed(jax.random.key(0), x, y, start, config=config)
    outer = np.outer(x[0], y[0])
    # The new cross-covariance has the length of a semi-orthogonal map; the first step counts half.
    expected = 0.5 * np.asarray(start) + 0.5 * np.sqrt(2) * outer / np.linalg.norm(outer)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-6)
    # With one row a side both densities are the similarity itself.
    np.testing.assert_allclose(found.objective, [0], atol=1e-6)


def test_the_power_decides_which_directions_speak(clouds, run):
    x, y, planted = clouds
    start = jnp.asarray(planted * np.linspace(1, 0.2, 6), jnp.float32)
    found = [
        run["refine_annealed"](jax.random.key(0), x, y, start, small_config(reliability_power=power)).objective[0]
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
        fit = jax.jit(lambda x, y, W: FUNCTIONS[name](jax.random.key(0), x, y, W, config=small_config()).matrix)
        plain = fit(x, y, start)
        np.testing.assert_allclose(fit(x @ turn_x, y, turn_x.T @ start), turn_x.T @ plain, atol=1e-8)
        np.testing.assert_allclose(fit(x, y @ turn_y, start @ turn_y), plain @ turn_y, atol=1e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_steps_in_chunks_equal_all_at_once(clouds, run, name):
    x, y, planted = clouds
    start, config = jnp.asarray(planted, jnp.float32), small_config(anneal_steps=4, csls_steps=4)
    whole = run[name](jax.random.key(1), x, y, start, config)
    half = run[name](jax.random.key(1), x, y, start, config, jnp.arange(2))
    rest = run[name](jax.random.key(1), x, y, half.matrix, config, jnp.arange(2, 4))
    np.testing.assert_allclose(rest.matrix, whole.matrix, atol=1e-4)
    np.testing.assert_allclose(jnp.concatenate([half.objective, rest.objective]), whole.objective, atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_to_match_is_finite(name):
    config = small_config()
    found = FUNCTIONS[name](jax.random.key(0), jnp.zeros((4, 3)), jnp.zeros((5, 2)), jnp.zeros((3, 2)), config=config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
