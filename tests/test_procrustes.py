"""Orthogonal Procrustes against SciPy, and its optimality where SciPy has no counterpart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import semi_orthogonal
from scipy.linalg import orthogonal_procrustes

from mv2v_jax.procrustes import polar, procrustes


@pytest.mark.parametrize("seed", range(3))
def test_square_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 40, 7)).astype(np.float32)
    np.testing.assert_allclose(procrustes(jnp.asarray(x), jnp.asarray(y)), orthogonal_procrustes(x, y)[0], atol=1e-4)


def test_float64_equals_scipy_to_its_precision():
    x, y = np.random.default_rng(0).standard_normal((2, 40, 7))
    with jax.enable_x64(True):
        found = procrustes(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, orthogonal_procrustes(x, y)[0], atol=1e-12)


@pytest.mark.parametrize(("d_x", "d_y"), [(7, 4), (4, 7)])
def test_rectangular_is_semi_orthogonal_and_beats_random_maps(d_x, d_y):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, d_x)), rng.standard_normal((40, d_y))
    found = np.asarray(procrustes(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))
    gram = found @ found.T if d_x <= d_y else found.T @ found
    np.testing.assert_allclose(gram, np.eye(min(d_x, d_y)), atol=1e-5)
    ours = np.sum((x @ found) * y)
    near = [np.asarray(polar(jnp.asarray(found + 0.05 * rng.standard_normal(found.shape)))) for _ in range(50)]
    others = [semi_orthogonal(rng, d_x, d_y) for _ in range(200)] + near
    # What Procrustes maximises: for orthonormal rows this is the same as the smallest distance.
    assert ours > max(np.sum((x @ other) * y) for other in others)
    if d_x <= d_y:
        assert np.linalg.norm(x @ found - y) < min(np.linalg.norm(x @ other - y) for other in others)


@pytest.mark.parametrize(("d_x", "d_y"), [(6, 6), (6, 4), (4, 6)])
def test_recovers_a_planted_map(d_x, d_y):
    rng = np.random.default_rng(2)
    planted = semi_orthogonal(rng, d_x, d_y)
    x = rng.standard_normal((60, d_x))
    found = procrustes(jnp.asarray(x), jnp.asarray(x @ planted))
    if d_x <= d_y:
        np.testing.assert_allclose(found, planted, atol=1e-5)
    else:  # The other directions of x colour the covariance: the map is near the planted one, not equal to it.
        assert np.linalg.norm(found - planted) / np.linalg.norm(planted) < 0.3


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_rank_deficient_is_finite(rank):
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((5, rank)) @ rng.standard_normal((rank, 5))
    found = np.asarray(polar(jnp.asarray(matrix, jnp.float32)))
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)
