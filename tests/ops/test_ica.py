"""Independent axes: planted sources, scikit-learn's FastICA, and columns that take no part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA

from mv2v_jax.ops.ica import find_axes, live_columns, orthonormal_rows

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
SAMPLERS = {
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "Laplace": lambda rng, shape: rng.laplace(size=shape) / 2**0.5,
    "normal": lambda rng, shape: rng.normal(size=shape),
}


def mixture(kind, num_rows=4_000, num_sources=6, seed=0):
    """Sources ``[n, k]``, and their whitened mixture ``[n, k]``."""
    rng = np.random.default_rng(seed)
    sources = SAMPLERS[kind](rng, (num_rows, num_sources))
    mixed = sources @ rng.normal(size=(num_sources, num_sources))
    mixed -= mixed.mean(axis=0)
    u, _, vt = np.linalg.svd(mixed, full_matrices=False)
    return sources, u @ vt * num_rows**0.5


def recovery(sources, coordinates):
    """Correlation of each source with the coordinate that is its own, whatever the sign."""
    k = sources.shape[1]
    correlation = np.abs(np.corrcoef(sources.T, np.asarray(coordinates).T)[:k, k:])
    return correlation[linear_sum_assignment(-correlation)]


@pytest.fixture(scope="module")
def find():
    return jax.jit(find_axes, static_argnames="num_steps")


@pytest.mark.parametrize(("kind", "use_square"), [("exponential", True), ("exponential", False), ("Laplace", False)])
def test_planted_sources_are_recovered_as_by_scikit_learn(find, kind, use_square):
    sources, rows = mixture(kind)
    axes = find(jax.random.key(0), jnp.asarray(rows, jnp.float32), jnp.int32(6), jnp.asarray(use_square), num_steps=50)
    ours = recovery(sources, rows @ np.asarray(axes).T)
    theirs = recovery(sources, FastICA(whiten="unit-variance", random_state=0).fit_transform(rows))
    assert ours.min() > 0.95
    assert ours.mean() > theirs.mean() - 0.02


def test_normal_sources_have_no_axes(find):
    """The assertion above does not hold where nothing can be found."""
    sources, rows = mixture("normal")
    axes = find(jax.random.key(0), jnp.asarray(rows, jnp.float32), jnp.int32(6), jnp.asarray(False), num_steps=50)
    assert recovery(sources, rows @ np.asarray(axes).T).min() < 0.9


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("use_square", [False, True])
def test_axes_are_orthonormal_and_dead_ones_zero(find, dtype, use_square):
    sources, rows = mixture("exponential", num_sources=4, num_rows=2_000)
    padded = np.concatenate([rows, np.zeros((len(rows), 2))], axis=1)
    with jax.enable_x64(True):
        axes = find(jax.random.key(1), jnp.asarray(padded, dtype), jnp.int32(4), jnp.asarray(use_square), num_steps=40)
    assert axes.dtype == dtype
    axes = np.asarray(axes)
    assert not axes[4:].any()
    assert not axes[:, 4:].any()
    np.testing.assert_allclose(axes @ axes.T, np.diag([1.0, 1, 1, 1, 0, 0]), atol=TOLERANCES[dtype])
    assert recovery(sources, rows @ axes[:4, :4].T).min() > 0.95


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_orthonormal_rows_are_the_polar_factor(dtype):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 7)) + 2 * np.eye(7)
    matrix[[2, 5]], matrix[:, [2, 5]] = 0, 0
    # Rows are brought to one length first, which changes the nearest matrix.
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    u, singular, vt = np.linalg.svd(matrix / np.where(lengths > 0, lengths, 1))
    expected = u @ np.diag(np.where(singular > 1e-9, 1.0, 0)) @ vt
    with jax.enable_x64(True):
        found = jax.jit(orthonormal_rows)(jnp.asarray(matrix, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("scale", [0, 1e-40, 1e-12, 1e12])
def test_orthonormal_rows_of_any_size_are_finite(size, scale):
    matrix = jnp.asarray(scale * np.eye(size), jnp.float32)
    found = np.asarray(jax.jit(orthonormal_rows)(matrix))
    np.testing.assert_allclose(found, np.eye(size) if scale > 1e-30 else np.zeros((size, size)), atol=1e-6)


@pytest.mark.parametrize("rows", [np.zeros((20, 3)), np.ones((20, 3)), np.sign(np.arange(20.0) - 9.5)[:, None]])
def test_rows_without_any_structure_give_finite_axes(find, rows):
    num_axes = rows.shape[1]
    for use_square in (False, True):
        axes = find(
            jax.random.key(0),
            jnp.asarray(rows, jnp.float32),
            jnp.int32(num_axes),
            jnp.asarray(use_square),
            num_steps=20,
        )
        assert np.isfinite(axes).all()


def test_live_columns():
    assert live_columns(4, jnp.int32(3), jnp.float32).tolist() == [1, 1, 1, 0]
    with jax.enable_x64(True):
        assert live_columns(3, jnp.int32(1), jnp.float64).dtype == jnp.float64
