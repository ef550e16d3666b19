"""Centring and unit length against NumPy, for every dtype and for rows without length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unit
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mv2v_jax.alignment.space import fit_space
from mv2v_jax.ops.masked import center_unit, mean_present, present_rows, unit_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    shape=st.sampled_from([(2, 1), (5, 3), (9, 4)]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    seed=st.integers(0, 5),
)
def test_rows_are_centred_units_in_the_working_dtype(shape, dtype, seed):
    rows = np.random.default_rng(seed).normal(size=shape) + 3
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(rows, dtype)
        space = jax.jit(fit_space)(x)
    working = "float64" if dtype == "float64" else "float32"
    assert {leaf.dtype for leaf in (space.rows, space.mean, space.scale)} == {jnp.dtype(working)}
    given_rows = np.asarray(x).astype(np.float64)
    centered = given_rows - given_rows.mean(0)
    tolerance = 1e-10 if working == "float64" else 1e-3  # One column and two rows may leave little after centring.
    np.testing.assert_allclose(space.mean, given_rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(space.scale, np.linalg.norm(centered, axis=1).mean(), rtol=1e-4)
    np.testing.assert_allclose(space.rows, unit(centered), atol=tolerance)
    assert int(space.zero_rows) == 0


def test_zero_rows_stay_zero_and_take_no_part(rng):
    kept = rng.normal(size=(8, 3)).astype(np.float32) + 1
    with_zeros = np.insert(kept, [0, 4, 8], 0, axis=0)
    space, expected = fit_space(jnp.asarray(with_zeros)), fit_space(jnp.asarray(kept))
    np.testing.assert_allclose(space.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(space.scale, expected.scale, rtol=1e-6)
    np.testing.assert_allclose(np.delete(space.rows, [0, 5, 10], axis=0), expected.rows, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(space.rows)[[0, 5, 10]], 0)
    assert int(space.zero_rows) == 3


def test_a_row_at_the_mean_has_no_direction_and_is_counted():
    space = fit_space(jnp.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(space.rows[2:], 0)
    assert int(space.zero_rows) == 2


def test_only_zeros_are_finite():
    space = fit_space(jnp.zeros((4, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(space))
    assert int(space.zero_rows) == 4


def test_new_rows_use_the_remembered_mean(rng):
    x = rng.normal(size=(5, 3)).astype(np.float16)
    mean = jnp.array([0.5, -1.0, 2.0])
    found = center_unit(jnp.asarray(x), mean)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, unit(x.astype(np.float64) - np.asarray(mean)), atol=1e-6)


def test_zero_rows_have_a_finite_gradient():
    gradient = jax.grad(lambda x: unit_rows(x).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[0, 0], [(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5]], atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 4, 6, 7])
def test_draws_distinct_rows_or_all_in_order(num_rows):
    x = jnp.arange(12.0).reshape(6, 2) + 1
    drawn = np.asarray(draw_rows(jax.random.key(1), x, num_rows, *order_rows(jax.random.key(2), x)))
    assert len(drawn) == min(num_rows, 6)
    assert len(np.unique(drawn[:, 0])) == len(drawn)
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 0] + 1)
    if num_rows >= 6:
        np.testing.assert_array_equal(drawn, x)


@pytest.mark.parametrize("seed", range(5))
def test_zero_rows_are_drawn_last(rng, seed):
    x = jnp.asarray(rng.normal(size=(9, 2))).at[jnp.array([0, 4, 5])].set(0)
    drawn = draw_rows(jax.random.key(seed), x, 8, *order_rows(jax.random.key(2), x))
    np.testing.assert_array_equal(present_rows(drawn), [True] * 6 + [False] * 2)


def test_means_leave_absent_rows_out():
    values, present = jnp.array([[1.0, 2.0], [100.0, 100.0], [3.0, 6.0]]), jnp.array([True, False, True])
    assert mean_present(values, present) == 3
    assert mean_present(values[:, 0], present) == 2
    assert mean_present(values, jnp.zeros(3, bool)) == 0


def test_equivariance(rng):
    x = rng.normal(size=(7, 3)).astype(np.float32)
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32), rng.permutation(7)
    rows = np.asarray(fit_space(jnp.asarray(x)).rows)
    np.testing.assert_allclose(fit_space(jnp.asarray(x @ turn)).rows, rows @ turn, atol=1e-5)
    np.testing.assert_allclose(fit_space(jnp.asarray(x[order])).rows, rows[order], atol=1e-5)


def test_every_row_is_drawn_as_often_as_any_other(rng):
    x = jnp.asarray(rng.normal(size=(10, 1)))
    (order,) = order_rows(jax.random.key(3), x)
    drawn = jax.vmap(lambda key: draw_rows(key, x, 4, order))(jax.random.split(jax.random.key(4), 2_000))
    counts = (np.asarray(drawn)[..., None, 0] == np.asarray(x)[None, None, :, 0]).sum((0, 1))
    assert counts.sum() == 8_000
    assert stats.chisquare(counts).pvalue > 1e-3
