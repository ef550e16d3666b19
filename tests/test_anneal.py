"""The annealed refinement: one step against NumPy, and a map from a start that plain refinement cannot leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import planted_clouds, small_config, unit

from mv2v_jax.anneal import refine_annealed, refine_csls
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
