"""The score of a map on held-out rows: against NumPy, and on data for which the answer is known."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, make_spaces, planted_clouds, unit

from mv2v_jax.alignment.score import _NUM_NULLS, gather_evidence
from mv2v_jax.alignment.space import TwoSpaces, fit_space, hold_out

pytestmark = pytest.mark.usefixtures("quick_compile")

# All anchor sets agree, so the score is that of the rows.
gather = jax.jit(lambda key, parts, W: gather_evidence(key, *parts, W, jnp.ones(2, W.dtype)))


def evidence_in_numpy(key, fitted, held_out, W, set_agreement, bank_rows):
    """All similarities at once; only the signs of the reflections come from JAX."""
    W = np.asarray(W)
    fitted_x, fitted_y, held_x, held_y = map(np.asarray, (fitted.x, fitted.y, held_out.x, held_out.y))
    queries = unit(held_x @ W), held_y
    banks = unit(fitted_x[:bank_rows] @ W), fitted_y[:bank_rows]

    def nearness(queries, bank):
        # Rows left over after ten equal parts do not count.
        similarity = np.split((queries @ bank.T)[:, : len(bank) // 10 * 10], 10, axis=1)
        return np.mean([part.max(axis=1) for part in similarity])

    directions = np.linalg.svd(banks[1])[2][::-1].T  # Shortest first.
    nulls = []
    for null_key in jax.random.split(key, _NUM_NULLS):
        signs = np.asarray(jax.random.rademacher(null_key, (W.shape[1],), dtype=W.dtype))
        reflection = directions @ np.diag(signs) @ directions.T
        nulls.append((nearness(queries[0] @ reflection, banks[1]) + nearness(queries[1] @ reflection, banks[0])) / 2)
    cross = (nearness(queries[0], banks[1]) + nearness(queries[1], banks[0])) / 2
    within = (nearness(queries[0], banks[0]) + nearness(queries[1], banks[1])) / 2
    null = np.mean(nulls)
    closeness = (cross - null) / max(within - null, 5 * (np.std(nulls) + np.finfo(np.float64).eps))
    deviation, num_rows = np.std(nulls), min(len(rows) for rows in queries)
    return {
        "cross": cross,
        "within": within,
        "null": null,
        "null_deviation": deviation,
        "num_rows": num_rows,
        "closeness": closeness,
        "anchor_agreement": np.median(set_agreement),
        "score": closeness * max(np.median(set_agreement), 0),
    }


# Of both clouds the fitted rows, then the held-out rows.
PARTS = (slice(9, None), slice(11, None)), (slice(9), slice(11))


@pytest.mark.parametrize(("d_x", "d_y"), [(8, 6), (6, 8)])
@pytest.mark.parametrize("bank_rows", [40, 8192])  # Fewer than there are, and more.
def test_evidence_against_numpy(monkeypatch, bank_rows, d_x, d_y):
    monkeypatch.setattr("mv2v_jax.alignment.score._BANK_ROWS", bank_rows)
    planted = planted_clouds(d_x, d_y, num_x=140, num_y=130, groups=6, seed=1)
    with jax.enable_x64(True):
        rows = [jnp.asarray(unit(np.float64(cloud - cloud.mean(0)))) for cloud in (planted.x, planted.y)]
        (x, y), (held_x, held_y) = ([cloud[part] for cloud, part in zip(rows, parts, strict=True)] for parts in PARTS)
        # A target that fills its space: where it does not, its shortest directions are not determined.
        y = y + 0.1 * jax.random.normal(jax.random.key(5), y.shape)
        fitted, held_out = make_spaces(x, y), make_spaces(held_x, held_y)
        W = jnp.asarray(planted.W + 0.3 * np.random.default_rng(2).normal(size=(d_x, d_y)))
        set_agreement = np.array([0.9, 0.3, 0.5, -0.2])
        # A function of its own, because the number of rows is read while it is traced.
        fresh = jax.jit(lambda *args: gather_evidence(*args))
        found = fresh(jax.random.key(3), fitted, held_out, W, jnp.asarray(set_agreement))
        expected = evidence_in_numpy(jax.random.key(3), fitted, held_out, W, set_agreement, bank_rows)
    assert 0 < expected["score"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-8, err_msg=name)


def test_nearness_in_single_precision_is_nearly_the_same():
    parts, turn = two_halves()
    in_double = [TwoSpaces(x=np.float64(part.x), y=np.float64(part.y)) for part in parts]
    found = gather(jax.random.key(0), parts, turn)
    expected = evidence_in_numpy(jax.random.key(0), *in_double, turn, np.ones(2), 8192)
    for name in ("cross", "within", "null"):
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(found.score, expected["score"], atol=0.01)


@functools.cache
def two_halves(d=16):
    """Two halves of one cloud, the second one rotated: ``((fitted, held_out), rotation)``."""
    cloud = planted_clouds(d, d, num_x=900, num_y=16, seed=1).x
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0].astype(np.float32)
    spaces = [fit_space(jnp.asarray(rows)) for rows in (cloud[:450], cloud[450:] @ turn)]
    (x, held_x), (y, held_y) = (hold_out(space.rows, 45) for space in spaces)
    return (TwoSpaces(x=x, y=y), TwoSpaces(x=held_x, y=held_y)), turn


def test_the_right_map_scores_one():
    parts, turn = two_halves()
    for seed in range(3):
        found = gather(jax.random.key(seed), parts, turn)
        assert 0.8 < float(found.score) < 1.2
        assert float(found.cross) > float(found.null) + 5 * float(found.null_deviation)


def test_any_other_rotation_scores_about_nothing():
    parts, _ = two_halves()
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32) for _ in range(5)]
    assert np.abs([float(gather(jax.random.key(0), parts, turn).score) for turn in turns]).max() < 0.2


def test_keeping_the_variances_is_not_enough():
    """The right map except for the signs of the principal directions: the null consists of such maps."""
    parts, turn = two_halves()
    rng = np.random.default_rng(0)
    directions = np.linalg.svd(parts[0].x)[2].T
    flips = [directions @ np.diag(rng.choice([-1, 1], 16)) @ directions.T for _ in range(12)]
    scores = [float(gather(jax.random.key(0), parts, jnp.asarray(flip @ turn, jnp.float32)).score) for flip in flips]
    assert abs(np.mean(scores)) < 0.15
    assert np.max(scores) < 0.6


def test_the_null_keeps_every_variance(rng):
    """A cloud that is its own mirror image in every principal direction looks the same after every reflection."""
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    base = np.abs(rng.normal(size=(20, 4))) * [1.0, 0.7, 0.5, 0.3]
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    rows = unit((base[:, None] * signs[None]).reshape(-1, 4)) @ turn
    queries = unit(rng.normal(size=(16, 4)))
    # Each part of the bank is symmetric as well.
    with jax.enable_x64(True):
        parts = make_spaces(rows, rows), make_spaces(queries, queries)
        symmetric = gather(jax.random.key(0), parts, jnp.eye(4))
        np.testing.assert_allclose(symmetric.null, symmetric.cross, atol=1e-12)
        np.testing.assert_allclose(symmetric.null_deviation, 0, atol=1e-12)
        # One half of the cloud alone: a reflection takes its rows to where there are none.
        half = [some[some @ turn[0] > 0] for some in (rows, queries)]
        parts = [make_spaces(some, some) for some in half]
        lopsided = [gather(jax.random.key(seed), parts, jnp.eye(4)) for seed in range(4)]
    assert max(float(found.cross - found.null) for found in lopsided) > 0.02
    assert max(float(found.null_deviation) for found in lopsided) > 0.01


def test_rotating_either_space_changes_nothing(rng):
    parts, turn = two_halves()
    with jax.enable_x64(True):
        W = turn @ np.diag([1] * 15 + [-1])
        parts, W = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (parts, W))
        turn_x, turn_y = (jnp.asarray(np.linalg.qr(rng.normal(size=(16, 16)))[0]) for _ in range(2))
        found = gather(jax.random.key(0), parts, W)
        turned_parts = [TwoSpaces(x=part.x @ turn_x, y=part.y @ turn_y) for part in parts]
        turned = gather(jax.random.key(0), turned_parts, turn_x.T @ W @ turn_y)
        assert_trees_close(turned, found, atol=1e-9)


def test_zero_rows_are_finite():
    zeros = [make_spaces(rows, rows) for rows in (jnp.zeros((20, 3)), jnp.zeros((2, 3)))]
    found = gather(jax.random.key(0), zeros, jnp.eye(3))
    nothing = jnp.zeros(())
    others = dataclasses.replace(found, num_rows=nothing, anchor_agreement=nothing)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(others))
    assert int(found.num_rows) == 2


@pytest.mark.parametrize(("h_x", "h_y"), [(0, 0), (0, 2), (2, 0)])
def test_no_held_out_rows_are_no_evidence(h_x, h_y):
    fitted = make_spaces(jnp.ones((20, 3)), jnp.ones((20, 3)))
    found = gather(jax.random.key(0), (fitted, make_spaces(jnp.ones((h_x, 3)), jnp.ones((h_y, 3)))), jnp.eye(3))
    without_agreement = dataclasses.replace(found, anchor_agreement=jnp.zeros(()))
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(without_agreement))
