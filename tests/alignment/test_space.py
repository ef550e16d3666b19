"""Spaces against NumPy: centred unit rows for every dtype, held-out rows, and coordinates in a subspace."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_spaces, semi_orthogonal, shortened, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from mv2v_jax.alignment.seeds import Seeds
from mv2v_jax.alignment.space import Subspace, fit_space, hold_out, num_held_out, principal_subspace


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    shape=st.sampled_from([(2, 1), (5, 3), (9, 4)]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    seed=st.integers(0, 5),
)
def test_rows_are_centred_units_in_the_working_dtype(shape, dtype, seed):
    # No row is far too long, so that the mean is the plain one.
    rows = np.random.default_rng(seed).normal(size=shape) / 2 + 3
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(rows, dtype)
        space = jax.jit(fit_space)(x)
    working = "float64" if dtype == "float64" else "float32"
    assert {leaf.dtype for leaf in (space.rows, *jax.tree.leaves(space.centering))} == {jnp.dtype(working)}
    given_rows = np.asarray(x).astype(np.float64)
    centered = given_rows - given_rows.mean(0)
    tolerance = 1e-10 if working == "float64" else 1e-3  # One column and two rows may leave little after centring.
    np.testing.assert_allclose(space.centering.mean, given_rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(space.centering.scale, np.linalg.norm(centered, axis=1).mean(), rtol=1e-4)
    np.testing.assert_allclose(space.rows, unit(centered), atol=tolerance)
    assert int(space.zero_rows) == 0


def test_zero_rows_stay_zero_and_take_no_part(rng):
    kept = rng.normal(size=(8, 3)).astype(np.float32) + 1
    with_zeros = np.insert(kept, [0, 4, 8], 0, axis=0)
    space, expected = fit_space(jnp.asarray(with_zeros)), fit_space(jnp.asarray(kept))
    np.testing.assert_allclose(space.centering.mean, expected.centering.mean, rtol=1e-6)
    np.testing.assert_allclose(space.centering.scale, expected.centering.scale, rtol=1e-6)
    np.testing.assert_allclose(np.delete(space.rows, [0, 5, 10], axis=0), expected.rows, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(space.rows)[[0, 5, 10]], 0)
    assert int(space.zero_rows) == 3


# The longest row is the longest that half precision can hold, or that can be squared in float32.
@pytest.mark.parametrize(
    ("dtype", "usual", "longest"),
    [("float16", 0.05, 6e4), ("bfloat16", 1, 1e18), ("float32", 1, 4e18), ("float32", 1e-8, 1e-3)],
)
def test_few_long_rows_do_not_move_a_space(rng, dtype, usual, longest):
    rows = usual * (rng.normal(size=(200, 6)) + 1)
    rows[[5, 6]] = 0
    rows[[0, 50, 199]] *= longest / np.abs(rows[[0, 50, 199]]).max(axis=1, keepdims=True)
    x = jnp.asarray(rows, dtype)
    space = jax.jit(fit_space)(jnp.pad(x, ((0, 56), (0, 0))), 200, seeds=x[:3])
    expected = shortened(x)
    present = expected.any(axis=1)
    mean = expected[present].mean(0)
    np.testing.assert_allclose(space.centering.mean, mean, rtol=1e-5)
    lengths = np.linalg.norm(expected[present] - mean, axis=1)
    np.testing.assert_allclose(space.centering.scale, lengths.mean(), rtol=1e-5)
    np.testing.assert_allclose(space.rows[:200], np.where(present[:, None], unit(expected - mean), 0), atol=1e-5)
    np.testing.assert_allclose(space.seeds, space.rows[:3], atol=1e-6)
    assert int(space.zero_rows) == 2
    # As good as without them.
    others = np.delete(np.asarray(x).astype(np.float64), [0, 5, 6, 50, 199], axis=0)
    assert np.linalg.norm(mean - others.mean(0)) < 0.02 * usual


def test_a_sample_with_a_long_row_keeps_the_mean_it_is_given(rng):
    rows = rng.normal(size=(50, 4)).astype(np.float32)
    given_mean = jnp.full(4, 0.5)
    plain = fit_space(jnp.asarray(rows), mean=given_mean)
    rows[7] *= 1e5
    space = fit_space(jnp.asarray(rows), mean=given_mean)
    np.testing.assert_array_equal(space.centering.mean, given_mean)
    np.testing.assert_allclose(space.centering.scale, plain.centering.scale, rtol=0.03)


def test_a_row_at_the_mean_has_no_direction_and_is_counted():
    space = fit_space(jnp.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(space.rows[2:], 0)
    assert int(space.zero_rows) == 2


def test_only_zeros_are_finite():
    space = fit_space(jnp.zeros((4, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(space))
    assert int(space.zero_rows) == 4


def test_equivariance(rng):
    x = rng.normal(size=(7, 3)).astype(np.float32)
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32), rng.permutation(7)
    rows = np.asarray(fit_space(jnp.asarray(x)).rows)
    np.testing.assert_allclose(fit_space(jnp.asarray(x @ turn)).rows, rows @ turn, atol=1e-5)
    np.testing.assert_allclose(fit_space(jnp.asarray(x[order])).rows, rows[order], atol=1e-5)


# ------------------------------------------------------------------------------------------------------- held-out rows


def numbered(num_rows, first=0):
    """Rows that are all different."""
    return jnp.arange(first, first + 2 * num_rows, dtype=jnp.float32).reshape(num_rows, 2)


@pytest.mark.parametrize(
    ("num_rows", "max_rows", "expected"), [(9, 5, 0), (10, 5, 1), (49, 5, 4), (50, 5, 5), (1000, 5, 5), (1000, 0, 0)]
)
def test_at_most_a_tenth_is_held_out(num_rows, max_rows, expected):
    assert num_held_out(num_rows, max_rows) == expected
    fitted, held_out = hold_out(numbered(num_rows), max_rows)
    assert (held_out.shape, fitted.shape) == ((expected, 2), (num_rows - expected, 2))


def test_both_parts_together_are_all_rows_once():
    rows = numbered(64)
    fitted, held_out = hold_out(rows, 6)
    both = np.concatenate([held_out, fitted])
    np.testing.assert_array_equal(both[np.argsort(both[:, 0])], rows)
    # Neither the first rows nor the last: files are often sorted.
    assert sorted(held_out[:, 0]) not in ([0, 2, 4, 6, 8, 10], [116, 118, 120, 122, 124, 126])


def test_the_split_depends_on_the_number_of_rows_alone():
    (fitted, held_out), (other_fitted, other_held_out) = (hold_out(numbered(64, first), 6) for first in (0, 1000))
    np.testing.assert_array_equal(held_out + 1000, other_held_out)
    np.testing.assert_array_equal(fitted + 1000, other_fitted)


# ------------------------------------------------------------------------------------------------------------ subspace


def cloud(rng, n=40, d=7):
    """Centred rows whose variances decay, along directions other than the axes."""
    rows = rng.normal(size=(n, d)) * 0.7 ** np.arange(d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rows - rows.mean(0)


def principal_directions(rows, num_dims):
    """Directions ``[d, num_dims]`` of one space, beside another space with other rows."""
    return principal_subspace(make_spaces(rows, rows[:3, :2] + 1), num_dims).x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_dims", [1, 3, 6])
def test_principal_directions_span_those_of_the_svd(rng, num_dims, dtype):
    rows = cloud(rng)
    with jax.enable_x64(dtype == np.float64):
        both = make_spaces(rows, rows[:, ::-1], dtype)
        found = jax.tree.map(np.asarray, jax.jit(principal_subspace, static_argnums=1)(both, num_dims))
    atol = 1e-4 if dtype == np.float32 else 1e-12
    expected, others = (np.linalg.svd(rows)[2][part].T for part in (slice(num_dims), slice(-num_dims, None)))
    for side, axes in ((found.x, expected), (found.y, expected[::-1])):
        assert (side.shape, side.dtype) == ((7, num_dims), dtype)
        np.testing.assert_allclose(side.T @ side, np.eye(num_dims), atol=atol)
        np.testing.assert_allclose(side @ side.T, axes @ axes.T, atol=atol)
    # Other directions would differ by far more.
    assert np.abs(found.x @ found.x.T - others @ others.T).max() > 0.1


def test_fewer_rows_than_directions_are_spanned(rng):
    with jax.enable_x64(True):
        rows = rng.normal(size=(2, 7))
        found = np.asarray(principal_directions(rows, 4))
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(rows @ found @ found.T, rows, atol=1e-12)


@pytest.mark.parametrize("num_dims", [0, 7, 8, 128])
def test_all_directions_are_none(rng, num_dims):
    subspace = principal_subspace(make_spaces(cloud(rng), cloud(rng)), num_dims)
    assert (subspace.x, subspace.y) == (None, None)


def test_each_space_has_directions_of_its_own_number(rng):
    subspace = principal_subspace(make_spaces(cloud(rng, d=7), cloud(rng, d=5)), 5)
    assert subspace.x.shape == (7, 5)
    assert subspace.y is None


def test_zero_rows_do_not_change_the_directions(rng):
    with jax.enable_x64(True):
        rows = cloud(rng)
        plain, padded = (np.asarray(principal_directions(few, 3)) for few in (rows, np.pad(rows, ((0, 9), (0, 0)))))
    np.testing.assert_allclose(padded @ padded.T, plain @ plain.T, atol=1e-12)


def test_projected_rows_are_unit_rows_against_numpy(rng):
    directions = semi_orthogonal(rng, 7, 3)
    rows, seeds = unit(cloud(rng)), unit(cloud(rng, n=5))
    rows[[2, 39]] = seeds[1] = 0
    with jax.enable_x64(True):
        both = dataclasses.replace(make_spaces(rows, rows), seeds=Seeds(x=jnp.asarray(seeds), y=jnp.asarray(seeds)))
        found = Subspace(x=jnp.asarray(directions), y=None).project(both)
        other = Subspace(x=None, y=jnp.asarray(directions)).project(both)
    assert found.y is both.y
    assert other.x is both.x
    assert (found.seeds.y is both.seeds.y, other.seeds.x is both.seeds.x) == (True, True)
    for given_rows, projected in ((rows, found.x), (seeds, found.seeds.x), (rows, other.y), (seeds, other.seeds.y)):
        present = given_rows.any(axis=1)
        np.testing.assert_allclose(np.asarray(projected)[present], unit(given_rows[present] @ directions), atol=1e-12)
        assert not np.asarray(projected)[~present].any()
        assert projected.shape == (len(given_rows), 3)


@pytest.mark.parametrize("of_y", [False, True])
@pytest.mark.parametrize("of_x", [False, True])
def test_an_extended_matrix_against_numpy(rng, of_x, of_y):
    axes_x = semi_orthogonal(rng, 7, 3) if of_x else np.eye(7)
    axes_y = semi_orthogonal(rng, 6, 4) if of_y else np.eye(6)
    matrix = rng.normal(size=(axes_x.shape[1], axes_y.shape[1]))
    rows, others, whole = rng.normal(size=(5, 7)), rng.normal(size=(4, 6)), rng.normal(size=(7, 6))
    with jax.enable_x64(True):
        subspace = Subspace(x=jnp.asarray(axes_x) if of_x else None, y=jnp.asarray(axes_y) if of_y else None)
        found = np.asarray(subspace.extend(jnp.asarray(matrix)))
        restricted = np.asarray(subspace.restrict(jnp.asarray(whole)))
        np.testing.assert_allclose(subspace.restrict(jnp.asarray(found)), matrix, atol=1e-12)
    np.testing.assert_allclose(restricted, axes_x.T @ whole @ axes_y, atol=1e-12)
    assert found.shape == (7, 6)
    np.testing.assert_allclose(found, axes_x @ matrix @ axes_y.T, atol=1e-12)
    # It compares rows of whole spaces as the matrix compares their coordinates.
    np.testing.assert_allclose(rows @ found @ others.T, rows @ axes_x @ matrix @ (others @ axes_y).T, atol=1e-12)
