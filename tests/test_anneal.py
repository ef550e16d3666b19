"""The annealed refinement: one step against NumPy, and a map from a start that plain refinement cannot leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import planted_clouds, small_config, unit

from mv2v_jax.anneal import refine_annealed, refine_csls
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


def annealed_in_numpy(key, x, y, cross, *, num_steps, num_rows, num_neighbors, power):
    """The stage in float64 with the whole similarity matrix; only the draws are ours."""
    objective = []
    for step in range(num_steps):
        keys = jax.random.split(jax.random.fold_in(key, step))
        sizes = [min(num_rows, (len(rows) + 1) // 2) for rows in (x, y)]
        drawn = [np.float64(draw_rows(k, r, size)) for k, r, size in zip(keys, (x, y), sizes, strict=True)]
        progress = step / num_steps
        u, singular, vt = np.linalg.svd(cross, full_matrices=False)
        weights = (singular / singular[0]) ** (power * (1 - progress) / 2)
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
        momentum = 0.5 + 0.4 * progress
        cross = momentum * cross + (1 - momentum) * new * np.sqrt(min(cross.shape)) / np.linalg.norm(new)
        objective.append(np.mean(best))
    return cross, objective


@pytest.mark.parametrize("rows", [25, 1000])  # A sample, and more than half of the rows: half of them.
@pytest.mark.parametrize("name", FUNCTIONS)
def test_steps_against_numpy(clouds, name, rows):
    x, y = clouds[0][:61], clouds[1][:50]
    start = clouds[2] + 0.3 * np.random.default_rng(5).normal(size=(8, 6))
    annealed = name == "refine_annealed"
    own, other = ("anneal", "csls") if annealed else ("csls", "anneal")
    config = small_config(
        **{f"{own}_steps": 4, f"{own}_rows": rows, f"{other}_steps": 9, f"{other}_rows": 13},
        csls_neighbors=2,
        spectral_power=1.5,
    )
    key = jax.random.key(3)
    expected, objective = annealed_in_numpy(
        key, x, y, start, num_steps=4, num_rows=rows, num_neighbors=2, power=1.5 if annealed else 0.0
    )
    found = FUNCTIONS[name](key, x, y, jnp.asarray(start, jnp.float32), config=config)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-4)
    np.testing.assert_allclose(found.objective, objective, atol=1e-4)


# Two rows a side: each step sees one of each, which are each other's partners whatever the weights.
def test_two_rows_against_numpy():
    x, y = jnp.array([[0.6, 0.8], [0.6, 0.8]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    start = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    config = small_config(anneal_steps=1, anneal_rows=2, csls_neighbors=1, spectral_power=2.0)
    found = refine_annealed(jax.random.key(0), x, y, start, config=config)
    outer = np.outer(x[0], y[0])
    # The new cross-covariance has the length of a semi-orthogonal map; the first step counts half.
    expected = 0.5 * np.asarray(start) + 0.5 * np.sqrt(2) * outer / np.linalg.norm(outer)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-6)
    # The singular values are equal, so the weights are one and the similarity is that of a rotation.
    cosine = (np.asarray(x[0]) @ np.asarray(start)) @ np.asarray(y[0])
    np.testing.assert_allclose(found.objective, [2 * cosine - 2 * cosine], atol=1e-6)


def test_the_power_decides_which_directions_speak(clouds, run):
    x, y, planted = clouds
    start = jnp.asarray(planted * np.linspace(1, 0.2, 6), jnp.float32)
    found = [
        run["refine_annealed"](jax.random.key(0), x, y, start, small_config(spectral_power=power)).objective[0]
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
