"""Unit length, centring and means where some rows are zero or far too long."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shortened, unit

from mv2v_jax.ops.masked import (
    center_unit,
    mean_present,
    median_length,
    present_rows,
    row_lengths,
    shorten_rows,
    unit_rows,
    working_dtype,
)


def test_new_rows_use_the_remembered_mean(rng):
    x = rng.normal(size=(5, 3)).astype(np.float16)
    mean = jnp.array([0.5, -1.0, 2.0])
    found = center_unit(jnp.asarray(x), mean)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, unit(x.astype(np.float64) - np.asarray(mean)), atol=1e-6)


def test_zero_rows_have_a_finite_gradient():
    gradient = jax.grad(lambda x: unit_rows(x).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[0, 0], [(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5]], atol=1e-6)


def test_means_leave_absent_rows_out():
    values, present = jnp.array([[1.0, 2.0], [100.0, 100.0], [3.0, 6.0]]), jnp.array([True, False, True])
    assert mean_present(values, present) == 3
    assert mean_present(values[:, 0], present) == 2
    assert mean_present(values, jnp.zeros(3, bool)) == 0


def test_zero_rows_stay_zero_and_are_not_present():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, -2.0]])
    np.testing.assert_allclose(unit_rows(x), [[0, 0], [0.6, 0.8], [0, -1]], atol=1e-6)
    np.testing.assert_array_equal(present_rows(x), [False, True, True])
    # A row equal to the mean has no direction.
    np.testing.assert_array_equal(center_unit(x, jnp.array([3.0, 4.0]))[:2], 0)


def test_only_half_precision_is_computed_in_another_dtype():
    expected = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
    assert {name: jnp.dtype(working_dtype(jnp.dtype(name))).name for name in expected} == expected


@pytest.mark.parametrize("num_zero", [0, 3, 20])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8])
def test_the_median_length_leaves_zero_rows_out(rng, num_rows, num_zero):
    x = np.insert(rng.normal(size=(num_rows, 3)), rng.integers(num_rows + 1, size=num_zero), 0, axis=0)
    expected = np.sort(np.linalg.norm(x, axis=1))[num_zero:][(num_rows - 1) // 2]
    np.testing.assert_allclose(jax.jit(median_length)(row_lengths(jnp.float32(x))), expected, rtol=1e-6)


def test_only_rows_that_are_far_too_long_are_shortened(rng):
    x = unit(rng.normal(size=(20, 3))) * np.linspace(0.5, 1.5, 20)[:, None]
    x[[2, 9]] = 0
    x[4] *= 4
    plain = jnp.float32(x)
    np.testing.assert_array_equal(shorten_rows(plain, median_length(row_lengths(plain))), plain)
    x[[0, 7, 19]] *= np.array([6, 50, 1e15])[:, None] / np.linalg.norm(x[[0, 7, 19]], axis=1, keepdims=True)
    long = jnp.float32(x)
    found = shorten_rows(long, median_length(row_lengths(long)))
    np.testing.assert_allclose(found, shortened(x), rtol=1e-5)
    np.testing.assert_array_equal(np.delete(found, [0, 7, 19], axis=0), np.delete(long, [0, 7, 19], axis=0))


def test_zero_rows_have_no_median_and_are_not_shortened():
    zeros = jnp.zeros((4, 3))
    assert median_length(row_lengths(zeros)) == jnp.inf
    np.testing.assert_array_equal(shorten_rows(zeros, median_length(row_lengths(zeros))), zeros)
