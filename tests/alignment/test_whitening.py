"""Weights and partial whitening of directions against SciPy, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import semi_orthogonal
from scipy.linalg import fractional_matrix_power

from mv2v_jax.alignment.whitening import Whitening, fit_whitening, map_from_cross, weigh_directions
from mv2v_jax.alignment.whitening import whiten_map as whiten_by_spread
from mv2v_jax.ops.linalg import svd_from_gram


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def spaces(rng):
    """Rows of two spaces with spectra that differ, but by less than what counts as noise, and a map between them."""
    x = rng.normal(size=(80, 6)) * np.linspace(1, 0.2, 6) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    y = rng.normal(size=(70, 4)) * np.linspace(2, 0.5, 4) @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    return x, y, semi_orthogonal(rng, 6, 4)


def inverse_power(rows, power):
    return fit_whitening(jnp.asarray(rows), power).whitener


def whiten_map(W, x, y, power):
    return whiten_by_spread(W, *(fit_whitening(jnp.asarray(rows), power) for rows in (x, y)))


def power_in_scipy(rows, power):
    covariance = rows.T @ rows / len(rows)
    return fractional_matrix_power(covariance / np.linalg.eigvalsh(covariance)[-1], -power)


@pytest.mark.parametrize("power", [0.0, 0.1, 0.25, 0.5])
def test_powers_against_scipy(spaces, power):
    x, y, W = spaces
    np.testing.assert_allclose(inverse_power(x, power), power_in_scipy(x, power), atol=1e-9)
    expected = power_in_scipy(x, power) @ W @ power_in_scipy(y, power)
    expected *= np.linalg.norm(W) / np.linalg.norm(expected)
    np.testing.assert_allclose(whiten_map(W, x, y, power), expected, atol=1e-9)


def test_no_power_is_no_change(spaces):
    x, y, W = spaces
    np.testing.assert_allclose(whiten_map(W, x, y, 0.0), W, atol=1e-12)
    assert np.abs(whiten_map(W, x, y, 0.1) - W).max() > 0.01


def test_half_is_white(spaces):
    x, _, _ = spaces
    white = x @ np.asarray(inverse_power(x, 0.5))
    covariance = white.T @ white
    np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(6), atol=1e-9)


@pytest.mark.parametrize("power", [0.1, 0.5])
def test_the_length_of_the_map_is_kept(spaces, power):
    x, y, W = spaces
    np.testing.assert_allclose(np.linalg.norm(whiten_map(3 * W, 0.1 * x, 7 * y, power)), 3 * np.linalg.norm(W))


def test_rotating_either_space_rotates_the_map(spaces, rng):
    x, y, W = spaces
    turn_x, turn_y = (np.linalg.qr(rng.normal(size=(d, d)))[0] for d in (6, 4))
    found = whiten_map(turn_x.T @ W @ turn_y, x @ turn_x, y @ turn_y, 0.2)
    np.testing.assert_allclose(found, turn_x.T @ whiten_map(W, x, y, 0.2) @ turn_y, atol=1e-10)


def test_the_way_back_is_the_transpose(spaces):
    x, y, W = spaces
    np.testing.assert_allclose(whiten_map(W.T, y, x, 0.2), whiten_map(W, x, y, 0.2).T, atol=1e-10)


def test_noise_is_lifted_no_further_than_a_thousandth():
    rows = np.sqrt(3) * np.diag([1.0, 0.1, 1e-4])
    np.testing.assert_allclose(inverse_power(rows, 0.5), np.diag([1.0, 10.0, 1000**0.5]), rtol=1e-9)


def test_rows_without_length_are_finite():
    zeros = jnp.zeros((5, 3))
    np.testing.assert_array_equal(whiten_map(jnp.zeros((3, 3)), zeros, zeros, 0.5), 0)
    assert np.isfinite(whiten_map(jnp.eye(3), zeros, zeros, 0.5)).all()


def spreads(*covariances):
    return [Whitening(covariance=jnp.asarray(c), whitener=jnp.eye(len(c))) for c in covariances]


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_a_short_direction_that_is_matched_as_well_counts_as_much(spaces, power):
    """Where every row has its own partner, all correlations are one, however uneven the singular values are."""
    x = spaces[0]
    covariance = x.T @ x / len(x)
    assert np.linalg.cond(covariance) > 5
    found = weigh_directions(jnp.asarray(covariance), *spreads(covariance, covariance), power)
    np.testing.assert_allclose(found.x.T @ found.x, np.eye(6), atol=1e-9)
    np.testing.assert_allclose(found.x, found.y, atol=1e-9)
    W = map_from_cross(jnp.asarray(covariance), *spreads(covariance, covariance), power)
    np.testing.assert_allclose(W, np.eye(6), atol=1e-9)


def test_a_worse_matched_direction_counts_less():
    """Half of the correlation in one direction is half of the weight, to the power, wherever the lengths are."""
    cross = jnp.diag(jnp.array([0.5, 3.0]))
    both = spreads(np.diag([1.0, 9.0]), np.eye(2))
    found = weigh_directions(cross, *both, 2.0)
    np.testing.assert_allclose(np.abs(found.x), [[0, 0.5], [1, 0]], atol=1e-9)
    np.testing.assert_allclose(np.abs(found.y), [[0, 0.5], [1, 0]], atol=1e-9)
    # Of the length of a rotation: sqrt(2).
    np.testing.assert_allclose(map_from_cross(cross, *both, 2.0), np.diag([0.25, 1]) * (2 / 1.0625) ** 0.5, atol=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_a_weighted_map_against_scipy(spaces, power):
    x, y, W = spaces
    cross = x.T @ x @ W / len(x)
    u, singular, vt = np.linalg.svd(cross, full_matrices=False)
    spread = [np.einsum("ar,ab,br->r", own, rows.T @ rows / len(rows), own) for own, rows in ((u, x), (vt.T, y))]
    correlation = singular / np.sqrt(spread[0] * spread[1])
    expected = (u * (correlation / correlation.max()) ** power) @ vt
    expected = power_in_scipy(x, 0.2) @ expected @ power_in_scipy(y, 0.2)
    both = [fit_whitening(jnp.asarray(rows), 0.2) for rows in (x, y)]
    found = map_from_cross(jnp.asarray(cross), *both, power)
    np.testing.assert_allclose(found, expected * 2 / np.linalg.norm(expected), atol=1e-9)
    # The length of the cross-covariance has no influence.
    np.testing.assert_allclose(map_from_cross(7 * jnp.asarray(cross), *both, power), found, atol=1e-9)


def test_a_direction_that_holds_no_data_has_no_weight():
    x = np.diag([1.0, 1.0, 0.0])
    cross = jnp.diag(jnp.array([1.0, 0.5, 3.0]))
    found = weigh_directions(cross, *spreads(x, x), 1.0)
    np.testing.assert_allclose(np.abs(found.x).sum(axis=1), [1, 0.5**0.5, 0], atol=1e-9)
    assert np.isfinite(map_from_cross(jnp.zeros((3, 3)), *spreads(x, 0 * x), 0.5)).all()


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_svd_from_the_gram_matrix_is_the_svd(rng, shape):
    matrix = rng.standard_normal(shape)
    u, singular, vt = map(np.asarray, svd_from_gram(jnp.asarray(matrix)))
    np.testing.assert_allclose(singular, np.linalg.svd(matrix, compute_uv=False), rtol=1e-6)
    np.testing.assert_allclose((u * singular) @ vt, matrix, atol=1e-10)
    for vectors in (u.T @ u, vt @ vt.T):
        np.testing.assert_allclose(vectors, np.eye(min(shape)), atol=1e-6)


def test_svd_from_the_gram_matrix_survives_rank_and_nothing(rng):
    low = jnp.asarray(rng.standard_normal((6, 2)) @ rng.standard_normal((2, 5)), jnp.float32)
    for matrix in (low, jnp.zeros((6, 5))):
        u, singular, vt = svd_from_gram(jnp.float32(matrix))
        assert all(np.isfinite(part).all() for part in (u, singular, vt))
        np.testing.assert_allclose((u * singular[None]) @ vt, matrix, atol=1e-4)
