"""Searching in principal directions: against NumPy, and a planted map found in fewer directions than there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, planted_clouds, semi_orthogonal, small_config, unit

from mv2v_jax import align
from mv2v_jax.alignment.fit import SETTLING, lift_search, prepare_search, refine, search_map, split_keys
from mv2v_jax.alignment.space import HoldOut, Space, fit_space, hold_out
from mv2v_jax.alignment.subspace import lift, lower, principal_directions, project
from mv2v_jax.evaluation.metrics import evaluate

pytestmark = pytest.mark.usefixtures("quick_compile")


def cloud(rng, n=40, d=7):
    """Rows that spread unevenly, in directions of their own."""
    rows = rng.normal(size=(n, d)) * 0.7 ** np.arange(d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rows - rows.mean(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_dims", [1, 3, 6])
def test_principal_directions_span_those_of_the_svd(rng, num_dims, dtype):
    rows = cloud(rng)
    with jax.enable_x64(dtype == np.float64):
        found = np.asarray(jax.jit(principal_directions, static_argnums=1)(jnp.asarray(rows, dtype), num_dims))
    assert (found.shape, found.dtype) == ((7, num_dims), dtype)
    expected = np.linalg.svd(rows)[2][:num_dims].T
    atol = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found.T @ found, np.eye(num_dims), atol=atol)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=atol)
    # The others would be told from them.
    others = np.linalg.svd(rows)[2][-num_dims:].T
    assert np.abs(found @ found.T - others @ others.T).max() > 0.1


def test_fewer_rows_than_directions_are_spanned(rng):
    with jax.enable_x64(True):
        rows = rng.normal(size=(2, 7))
        found = np.asarray(principal_directions(jnp.asarray(rows), 4))
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(rows @ found @ found.T, rows, atol=1e-12)


@pytest.mark.parametrize("num_dims", [0, 7, 8, 128])
def test_all_directions_are_none(rng, num_dims):
    assert principal_directions(jnp.asarray(cloud(rng)), num_dims) is None


def test_zero_rows_have_no_say_in_the_directions(rng):
    with jax.enable_x64(True):
        rows = cloud(rng)
        plain, padded = (
            np.asarray(principal_directions(jnp.asarray(few), 3)) for few in (rows, np.pad(rows, ((0, 9), (0, 0))))
        )
    np.testing.assert_allclose(padded @ padded.T, plain @ plain.T, atol=1e-12)


def test_projected_rows_are_unit_rows_against_numpy(rng):
    directions = semi_orthogonal(rng, 7, 3)
    fitted, held_out = unit(cloud(rng)), unit(cloud(rng, n=5))
    fitted[[2, 39]] = held_out[1] = 0
    with jax.enable_x64(True):
        part = HoldOut(fitted=jnp.asarray(fitted), held_out=jnp.asarray(held_out))
        found = project(part, jnp.asarray(directions))
        assert project(part, None).fitted is part.fitted
    for rows, projected in ((fitted, found.fitted), (held_out, found.held_out)):
        present = rows.any(axis=1)
        np.testing.assert_allclose(np.asarray(projected)[present], unit(rows[present] @ directions), atol=1e-12)
        assert not np.asarray(projected)[~present].any()
        assert projected.shape == (len(rows), 3)


@pytest.mark.parametrize("of_y", [False, True])
@pytest.mark.parametrize("of_x", [False, True])
def test_a_lifted_matrix_against_numpy(rng, of_x, of_y):
    axes_x = semi_orthogonal(rng, 7, 3) if of_x else np.eye(7)
    axes_y = semi_orthogonal(rng, 6, 4) if of_y else np.eye(6)
    matrix = rng.normal(size=(axes_x.shape[1], axes_y.shape[1]))
    rows, others = rng.normal(size=(5, 7)), rng.normal(size=(4, 6))
    with jax.enable_x64(True):
        directions = [jnp.asarray(axes) if some else None for axes, some in ((axes_x, of_x), (axes_y, of_y))]
        found = np.asarray(lift(jnp.asarray(matrix), *directions))
        whole = rng.normal(size=(7, 6))
        lowered = np.asarray(lower(jnp.asarray(whole), *directions))
        np.testing.assert_allclose(lower(jnp.asarray(found), *directions), matrix, atol=1e-12)
    np.testing.assert_allclose(lowered, axes_x.T @ whole @ axes_y, atol=1e-12)
    assert found.shape == (7, 6)
    np.testing.assert_allclose(found, axes_x @ matrix @ axes_y.T, atol=1e-12)
    # Rows of whole spaces compare by it as their coordinates do by the matrix.
    np.testing.assert_allclose(rows @ found @ others.T, rows @ axes_x @ matrix @ (others @ axes_y).T, atol=1e-12)


def a_space(rng, n, d):
    rows = jnp.asarray(unit(cloud(rng, n, d)))
    return Space(rows=rows, mean=jnp.zeros(d), scale=jnp.ones(()), zero_rows=jnp.zeros((), jnp.int32))


@pytest.mark.parametrize(("search_dims", "dims_x", "dims_y"), [(0, 7, 6), (4, 4, 4), (6, 6, 6), (9, 7, 6)])
def test_a_search_sees_fitted_and_held_out_rows_in_the_directions_of_the_fitted(rng, search_dims, dims_x, dims_y):
    config = small_config(search_dims=search_dims)
    with jax.enable_x64(True):
        spaces = a_space(rng, 60, 7), a_space(rng, 50, 6)
        rows = prepare_search(*spaces, config=config)
        parts = [hold_out(space, config.held_out_rows) for space in spaces]
        # The held-out rows have no say in the directions.
        others = [
            space.replace(
                rows=jnp.where((space.rows[:, None] == part.held_out[None]).all(2).any(1)[:, None], 1, space.rows)
            )
            for space, part in zip(spaces, parts, strict=True)
        ]
        again = prepare_search(*others, config=config)
    assert (rows.x.fitted.shape, rows.x.held_out.shape) == ((55, dims_x), (5, dims_x))
    assert (rows.y.fitted.shape, rows.y.held_out.shape) == ((45, dims_y), (5, dims_y))
    found = ((rows.x, rows.directions_x, dims_x, 7), (rows.y, rows.directions_y, dims_y, 6))
    for part, (seen, directions, dims, all_dims) in zip(parts, found, strict=True):
        assert (directions is None) == (dims == all_dims)
        axes = np.eye(all_dims) if directions is None else np.asarray(directions)
        np.testing.assert_allclose(seen.fitted, unit(np.asarray(part.fitted) @ axes), atol=1e-12)
        np.testing.assert_allclose(seen.held_out, unit(np.asarray(part.held_out) @ axes), atol=1e-12)
        longest = np.linalg.svd(np.asarray(part.fitted))[2][:dims].T
        np.testing.assert_allclose(axes @ axes.T, longest @ longest.T, atol=1e-9)
    np.testing.assert_array_equal(again.x.fitted, rows.x.fitted)
    np.testing.assert_array_equal(again.y.fitted, rows.y.fitted)
    assert np.abs(again.x.held_out - rows.x.held_out).max() > 0.1


# As in test_pipeline: enough to solve a small problem.
SOLVING = small_config(
    search_dims=5,  # And twice as many where it is annealed again.
    num_anchor_sets=12,
    num_clusters=10,
    anchor_rows=400,
    lloyd_steps=8,
    num_starts=6,
    search_steps=40,
    kept_sets=6,
    matching_rows=0,
    num_neighbors=10,
    match_steps=0,
    held_out_rows=50,
    anneal_steps=30,
    anneal_rows=256,
    csls_steps=5,
    csls_rows=300,
    whole_steps=1,
    whole_rows=1000,
    cluster_steps=0,
)


@pytest.mark.parametrize(("d_x", "d_y"), [pytest.param(12, 12, marks=pytest.mark.slow), (12, 8)])
def test_a_planted_map_is_recovered_from_a_search_in_fewer_directions(d_x, d_y):
    planted = planted_clouds(d_x, d_y, num_x=600, num_y=560, groups=10, seed=0)
    results = [align(jax.random.key(seed), planted.x, planted.y, SOLVING) for seed in range(4)]
    result = max(results, key=lambda result: float(result.evidence.score))
    scores = evaluate(result.map, jnp.asarray(planted.x_eval), jnp.asarray(planted.y_eval))
    assert float(scores.top1) > 0.9
    assert float(scores.foscttm) < 0.01
    assert float(scores.cosine) > 0.95
    W = np.asarray(result.map.W)
    used = np.linalg.svd(planted.W)[0][:, : min(d_x, d_y)]
    assert np.linalg.norm(used.T @ (W - planted.W)) / np.linalg.norm(planted.W) < 0.3
    assert float(result.info.orthogonality) < 1e-4
    # What the search did not see is found by settling: the directions of least variance that hold data.
    axes = np.linalg.svd(fit_space(jnp.asarray(planted.x)).rows)[2][SOLVING.search_dims : min(d_x, d_y)]
    assert np.vdot(axes @ W, axes @ planted.W) / np.linalg.norm(axes @ planted.W) ** 2 > 0.7


@pytest.mark.slow
def test_a_search_in_fewer_directions_is_settled_in_all():
    planted, key = planted_clouds(7, 6, num_x=96, num_y=88, groups=6, seed=2), jax.random.key(3)
    # A power, so that directions that were not searched do not count; sizes that are not padded.
    config = small_config(search_dims=6, match_steps=0, cluster_steps=0, reliability_power=0.5)
    with jax.enable_x64(True):
        clouds = [np.float64(rows) for rows in (planted.x, planted.y)]
        found = align(key, *clouds, config)
        spaces = [fit_space(jnp.asarray(rows)) for rows in clouds]
        rows = prepare_search(*spaces, config=config)
        searched = jax.jit(lambda key, rows: search_map(key, rows, config=config))(key, rows)
        assert searched.matrix.shape == (6, 6)
        matrix = np.asarray(rows.directions_x) @ np.asarray(searched.matrix)
        np.testing.assert_allclose(lift_search(searched.matrix, rows), matrix, atol=1e-12)
        settle = jax.jit(lambda x, y, matrix: refine(split_keys(key), SETTLING, x, y, matrix, config=config))
        _, trajectory = settle(spaces[0].rows, spaces[1].rows, jnp.asarray(matrix))
    assert_trees_close(found.evidence, searched.evidence, atol=1e-8)
    assert set(trajectory) == {"refine_annealed_again", "refine_csls", "refine_whole"}
    for name, objective in trajectory.items():
        np.testing.assert_allclose(found.trajectory[name], objective, atol=1e-8)
    assert found.map.W.shape == (7, 6)


@pytest.mark.slow
def test_as_many_directions_as_there_are_change_nothing():
    planted = planted_clouds(8, 6, num_x=61, num_y=53, groups=6, seed=10)
    whole, same = (align(jax.random.key(0), planted.x, planted.y, small_config(search_dims=dims)) for dims in (0, 8))
    assert_trees_close(same, whole, atol=0, rtol=0)
