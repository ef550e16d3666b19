"""Unit length, centring and means where some rows are zero."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import unit

from mv2v_jax.ops.masked import center_unit, mean_present, present_rows, unit_rows, working_dtype


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
