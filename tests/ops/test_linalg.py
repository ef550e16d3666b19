"""Orthogonal Procrustes against SciPy, and its optimality where SciPy has no counterpart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import semi_orthogonal
from scipy.linalg import orthogonal_procrustes

from mv2v_jax.ops.linalg import polar, polar_step, procrustes

# Compiling takes nearly all of the time.


def test_square_equals_scipy():
    rng = np.random.default_rng(0)
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
    # Procrustes maximises this trace. With orthonormal rows, the maximum has the minimum distance as well.
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
    else:  # Other directions of x enter the covariance, so the map is near the planted one, not equal to it.
        assert np.linalg.norm(found - planted) / np.linalg.norm(planted) < 0.3


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_rank_deficient_is_finite(rank):
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((5, rank)) @ rng.standard_normal((rank, 5))
    found = np.asarray(polar(jnp.asarray(matrix, jnp.float32)))
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- derivative

# Wide matrices are transposed first, which the tests of values cover.
SHAPES = [(5, 5), (6, 4)]


def with_singular_values(rng, shape, singular):
    """A matrix with given singular values, and its singular vectors as columns."""
    u, v = (np.linalg.qr(rng.standard_normal((d, d)))[0][:, : min(shape)] for d in shape)
    return (u * np.asarray(singular)) @ v.T, u, v


def central_difference(fun, matrix, change, step=1e-6):
    return (np.asarray(fun(matrix + step * change)) - np.asarray(fun(matrix - step * change))) / (2 * step)


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_equal_finite_differences(shape):
    rng = np.random.default_rng(4)
    matrix, change, weights = rng.standard_normal((3, *shape))
    with jax.enable_x64(True):
        expected = central_difference(polar, matrix, change)
        value, found = jax.jvp(polar, (matrix,), (change,))
        np.testing.assert_allclose(found, expected, atol=1e-8)
        np.testing.assert_allclose(value, polar(matrix), atol=1e-12)

        gradient = jax.jit(jax.grad(lambda a: jnp.sum(polar(a) * weights)))
        np.testing.assert_allclose(np.sum(gradient(matrix) * change), np.sum(expected * weights), atol=1e-8)
        second = jax.jvp(gradient, (matrix,), (change,))[1]
        np.testing.assert_allclose(second, central_difference(gradient, matrix, change), atol=1e-7)

        stacked = np.stack([matrix, change])
        each = [gradient(a) for a in stacked]
        np.testing.assert_allclose(jax.vmap(gradient)(stacked), each, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_singular_values_do_no_harm_where_those_of_an_svd_do(shape):
    rng = np.random.default_rng(5)
    matrix, *_ = with_singular_values(rng, shape, np.r_[2.0, 2.0, np.ones(min(shape) - 2)])
    change, weights = rng.standard_normal((2, *shape))

    def by_svd(a):
        u, _, vt = jnp.linalg.svd(a, full_matrices=False)
        return u @ vt

    with jax.enable_x64(True):
        np.testing.assert_allclose(
            jax.jvp(polar, (matrix,), (change,))[1], central_difference(polar, matrix, change), atol=1e-8
        )
        exact = jnp.eye(*shape)
        found = jax.grad(lambda a: jnp.sum(polar(a) * weights))(exact)
        np.testing.assert_allclose(
            np.sum(found * change), np.sum(central_difference(polar, exact, change) * weights), atol=1e-8
        )
        assert np.isnan(jax.grad(lambda a: jnp.sum(by_svd(a) * weights))(exact)).any()


@pytest.mark.parametrize("num_zero", [1, 2])
def test_zero_singular_values_give_the_derivative_of_what_is_determined(num_zero):
    rng = np.random.default_rng(6)
    rank = 5 - num_zero
    matrix, *_ = with_singular_values(rng, (5, 5), np.r_[3.0, 2.0, 1.5, 1.2, 1.0][:rank].tolist() + [0.0] * num_zero)
    with jax.enable_x64(True):
        vt = np.linalg.svd(matrix)[2]
        factor = np.asarray(polar(matrix))
        # The null space as the polar factor completes it, and a change that keeps its sign and rotates it.
        null_v = vt[rank:].T
        null_u = factor @ null_v
        change = rng.standard_normal((5, 5))
        change += null_u @ (np.eye(num_zero) - null_u.T @ change @ null_v) @ null_v.T
        found = np.asarray(jax.jvp(polar, (matrix,), (change,))[1])
        step = 1e-6
        expected = (np.asarray(polar(matrix + step * change)) - factor) / step
        # The derivative of rotations within the null space is zero by convention.
        np.testing.assert_allclose(null_u.T @ found @ null_v, 0, atol=1e-12)
        expected -= null_u @ null_u.T @ expected @ null_v @ null_v.T
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_derivative_of_a_matrix_of_zeros_is_zero_and_of_low_rank_finite(shape):
    rng = np.random.default_rng(7)
    gradient = jax.grad(lambda a: jnp.sum(polar(a) * jnp.arange(a.size, dtype=a.dtype).reshape(a.shape)))
    np.testing.assert_array_equal(gradient(jnp.zeros(shape)), 0)
    low = jnp.asarray(np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1])), jnp.float32)
    assert np.isfinite(gradient(low)).all()
    assert np.abs(gradient(low)).max() < 100


def test_derivative_takes_one_decomposition_and_scans():
    matrix = jnp.eye(4) + 0.1
    assert str(jax.make_jaxpr(jax.grad(lambda a: polar(a).sum()))(matrix)).count(" svd[") == 1

    def repeated(a):
        return jax.lax.scan(lambda carry, _: (carry + polar(carry), None), a, length=3)[0].sum()

    change = np.random.default_rng(8).standard_normal((4, 4))
    with jax.enable_x64(True):
        matrix = jnp.eye(4) + 0.1 * jnp.arange(16.0).reshape(4, 4)
        found = np.sum(jax.grad(repeated)(matrix) * change)
        np.testing.assert_allclose(found, central_difference(repeated, matrix, change), rtol=1e-6)


def test_half_precision_is_kept():
    matrix = jnp.eye(4, dtype=jnp.bfloat16)
    assert polar(matrix).dtype == jnp.bfloat16
    assert jax.grad(lambda a: polar(a).astype(jnp.float32).sum())(matrix).dtype == jnp.bfloat16


# ---------------------------------------------------------------------------------------------------------- warm start


@pytest.mark.parametrize("shape", [(12, 12), (12, 7), (7, 12)])
def test_steps_from_a_near_map_end_at_the_polar_factor(shape):
    rng = np.random.default_rng(9)
    matrix, *_ = with_singular_values(rng, shape, 0.7 ** np.arange(min(shape)))
    expected = polar(jnp.asarray(matrix, jnp.float32))
    start = polar(expected + 0.1 * rng.standard_normal(shape))
    W, distances = start, []
    step = jax.jit(polar_step)
    for _ in range(60):
        W = step(W, jnp.asarray(matrix, jnp.float32))
        distances.append(float(jnp.linalg.norm(W - expected)))
        gram = W @ W.T if shape[0] < shape[1] else W.T @ W
        np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-4)
    # Directions with large singular values converge in one step, others later.
    assert distances[0] < 0.5 * float(jnp.linalg.norm(start - expected))
    assert distances[-1] < 1e-3


def test_a_matrix_of_zeros_moves_nothing():
    start = jnp.asarray(semi_orthogonal(np.random.default_rng(10), 8, 5), jnp.float32)
    np.testing.assert_allclose(polar_step(start, jnp.zeros((8, 5))), start, atol=1e-5)
