"""The assignment search against every permutation, and against SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import quadratic_assignment

from mv2v_jax.ops.qap import assignment_objective, centered_kernel, search_assignment, swap_gains


def symmetric(rng, size):
    matrix = rng.standard_normal((size, size))
    return (matrix + matrix.T).astype(np.float32)


def objective(kx, ky, permutation):
    permutation = np.asarray(permutation)
    return float((np.float64(kx) * np.float64(ky)[permutation][:, permutation]).sum())


@pytest.fixture(scope="module")
def search():
    return jax.jit(lambda key, kx, ky: search_assignment(key, kx, ky, num_starts=8, num_steps=40))


@pytest.mark.parametrize("size", [2, 6])
def test_finds_the_best_of_all_permutations(search, size):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        kx, ky = symmetric(rng, size), symmetric(rng, size)
        best = max(objective(kx, ky, p) for p in itertools.permutations(range(size)))
        found = search(jax.random.key(seed), kx, ky)
        assert sorted(np.asarray(found.permutation)) == list(range(size))
        np.testing.assert_allclose(objective(kx, ky, found.permutation), best, rtol=1e-4)
        np.testing.assert_allclose(found.objective, best, rtol=1e-4)


def test_at_least_as_good_as_scipy_2opt(search):
    gaps = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        kx, ky = symmetric(rng, 14), symmetric(rng, 14)
        scipy_best = max(
            quadratic_assignment(
                kx, ky, method="2opt", options={"maximize": True, "rng": np.random.default_rng(start)}
            ).fun
            for start in range(8)
        )
        ours = objective(kx, ky, search(jax.random.key(seed), kx, ky).permutation)
        gaps.append(ours / scipy_best)
    assert min(gaps) >= 1 - 1e-5, gaps


def test_recovers_a_hidden_permutation(search):
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((14, 5)).astype(np.float32)
    hidden = rng.permutation(14)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0].astype(np.float32)
    kx = centered_kernel(jnp.asarray(centers))
    ky = centered_kernel(jnp.asarray((centers @ turn + 2.0)[hidden]))
    found = search(jax.random.key(0), kx, ky)
    np.testing.assert_array_equal(hidden[np.asarray(found.permutation)], np.arange(14))


def test_every_gain_is_the_difference_a_swap_makes():
    rng = np.random.default_rng(0)
    size = 7
    kx, ky = symmetric(rng, size), symmetric(rng, size)
    present = rng.permutation(size)
    expected = np.zeros((size, size))
    for r, q in itertools.product(range(size), repeat=2):
        swapped = present.copy()
        swapped[[r, q]] = present[[q, r]]
        expected[r, q] = objective(kx, ky, swapped) - objective(kx, ky, present)
    found = swap_gains(jnp.asarray(kx), jnp.asarray(ky[present][:, present]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_objective_and_kernel_against_numpy():
    rng = np.random.default_rng(1)
    centers = (rng.standard_normal((6, 3)) + 100).astype(np.float32)
    center = np.eye(6) - 1 / 6
    expected = center @ np.float64(centers) @ np.float64(centers).T @ center
    kernel = np.asarray(centered_kernel(jnp.asarray(centers)))
    np.testing.assert_allclose(kernel, expected, atol=1e-4)
    permutation = rng.permutation(6)
    found = assignment_objective(jnp.asarray(kernel), jnp.asarray(kernel), jnp.asarray(permutation))
    np.testing.assert_allclose(found, objective(kernel, kernel, permutation), rtol=1e-5)
