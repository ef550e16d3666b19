"""Rows held out of the fit, and the score of a map on them: against NumPy, and where the answer is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, planted_clouds, unit

from mv2v_jax.alignment.score import _NUM_NULLS, gather_evidence
from mv2v_jax.alignment.space import HoldOut, Space, fit_space, hold_out, num_held_out

pytestmark = pytest.mark.usefixtures("quick_compile")

# Anchor sets that all agree: the score is what the rows say.
gather = jax.jit(lambda key, x, y, W: gather_evidence(key, x, y, W, jnp.ones(2)))


def numbered(num_rows, first=0):
    """A space whose rows say which they are."""
    rows = jnp.arange(first, first + 2 * num_rows, dtype=jnp.float32).reshape(num_rows, 2)
    return Space(rows=rows, mean=jnp.zeros(2), scale=jnp.ones(()), zero_rows=jnp.zeros((), jnp.int32))


@pytest.mark.parametrize(
    ("num_rows", "most", "expected"), [(9, 5, 0), (10, 5, 1), (49, 5, 4), (50, 5, 5), (1000, 5, 5), (1000, 0, 0)]
)
def test_no_more_than_a_tenth_is_held_out(num_rows, most, expected):
    assert num_held_out(num_rows, most) == expected
    parts = hold_out(numbered(num_rows), most)
    assert (parts.held_out.shape, parts.fitted.shape) == ((expected, 2), (num_rows - expected, 2))


def test_both_parts_together_are_all_rows_once():
    space = numbered(64)
    parts = hold_out(space, 6)
    all_or_none = np.concatenate([parts.held_out, parts.fitted])
    np.testing.assert_array_equal(all_or_none[np.argsort(all_or_none[:, 0])], space.rows)
    # Not the first rows nor the last: files are sorted.
    assert sorted(parts.held_out[:, 0]) not in ([0, 2, 4, 6, 8, 10], [116, 118, 120, 122, 124, 126])


def test_which_rows_depends_on_their_number_alone():
    parts, others = hold_out(numbered(64), 6), hold_out(numbered(64, first=1000), 6)
    np.testing.assert_array_equal(parts.held_out + 1000, others.held_out)
    np.testing.assert_array_equal(parts.fitted + 1000, others.fitted)


def evidence_in_numpy(key, x, y, W, set_agreement, bank_rows):
    """All similarities at once; only the signs of the reflections are ours."""
    queries = unit(x.held_out @ W), y.held_out
    banks = unit(x.fitted[:bank_rows] @ W), y.fitted[:bank_rows]

    def nearness(queries, bank):
        # Rows that are left over when ten equal parts are made are left out.
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


@pytest.mark.parametrize(("d_x", "d_y"), [(8, 6), (6, 8)])
@pytest.mark.parametrize("bank_rows", [40, 8192])  # Fewer than there are, and more.
def test_evidence_against_numpy(monkeypatch, bank_rows, d_x, d_y):
    monkeypatch.setattr("mv2v_jax.alignment.score._BANK_ROWS", bank_rows)
    planted = planted_clouds(d_x, d_y, num_x=140, num_y=130, groups=6, seed=1)
    with jax.enable_x64(True):
        rows = [jnp.asarray(unit(np.float64(cloud - cloud.mean(0)))) for cloud in (planted.x, planted.y)]
        x, y = (HoldOut(fitted=cloud[h:], held_out=cloud[:h]) for cloud, h in zip(rows, (9, 11), strict=True))
        # A target that fills its space: where it does not, its shortest directions are any.
        y = y.replace(fitted=y.fitted + 0.1 * jax.random.normal(jax.random.key(5), y.fitted.shape))
        W = jnp.asarray(planted.W + 0.3 * np.random.default_rng(2).normal(size=(d_x, d_y)))
        set_agreement = jnp.array([0.9, 0.3, 0.5, -0.2])
        found = jax.jit(lambda *args: gather_evidence(*args))(jax.random.key(3), x, y, W, set_agreement)
        expected = evidence_in_numpy(jax.random.key(3), x, y, np.asarray(W), np.asarray(set_agreement), bank_rows)
    assert 0 < expected["score"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-8, err_msg=name)


def test_nearness_in_single_precision_is_nearly_the_same():
    x, y, turn = two_halves()
    in_double = [HoldOut(fitted=np.float64(part.fitted), held_out=np.float64(part.held_out)) for part in (x, y)]
    found = gather(jax.random.key(0), x, y, turn)
    expected = evidence_in_numpy(jax.random.key(0), *in_double, turn, np.ones(2), 8192)
    for name in ("cross", "within", "null"):
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(found.score, expected["score"], atol=0.01)


@functools.cache
def two_halves(d=16):
    """Two halves of one cloud, the second one turned: their held-out parts and the turn."""
    cloud = planted_clouds(d, d, num_x=900, num_y=16, seed=1).x
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0].astype(np.float32)
    spaces = [fit_space(jnp.asarray(rows)) for rows in (cloud[:450], cloud[450:] @ turn)]
    return *(hold_out(space, 45) for space in spaces), turn


def test_the_right_map_scores_one():
    x, y, turn = two_halves()
    for seed in range(3):
        found = gather(jax.random.key(seed), x, y, turn)
        assert 0.8 < float(found.score) < 1.2
        assert float(found.cross) > float(found.null) + 5 * float(found.null_deviation)


def test_any_other_rotation_scores_about_nothing():
    x, y, _ = two_halves()
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32) for _ in range(5)]
    assert np.abs([float(gather(jax.random.key(0), x, y, turn).score) for turn in turns]).max() < 0.2


def test_keeping_the_variances_is_not_enough():
    """The right map but for the signs of the principal directions, which is what the null consists of."""
    x, y, turn = two_halves()
    rng = np.random.default_rng(0)
    directions = np.linalg.svd(x.fitted)[2].T
    flips = [directions @ np.diag(rng.choice([-1, 1], 16)) @ directions.T for _ in range(12)]
    scores = [float(gather(jax.random.key(0), x, y, jnp.asarray(flip @ turn, jnp.float32)).score) for flip in flips]
    assert abs(np.mean(scores)) < 0.15
    assert np.max(scores) < 0.6


def test_the_null_keeps_every_variance(rng):
    """A cloud that is its own mirror image in every principal direction cannot tell a reflection from none."""
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    base = np.abs(rng.normal(size=(20, 4))) * [1.0, 0.7, 0.5, 0.3]
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    rows = unit((base[:, None] * signs[None]).reshape(-1, 4)) @ turn
    queries = unit(rng.normal(size=(16, 4)))
    # Each part of the bank is symmetric, too.
    with jax.enable_x64(True):
        part = HoldOut(fitted=jnp.asarray(rows), held_out=jnp.asarray(queries))
        symmetric = gather(jax.random.key(0), part, part, jnp.eye(4))
        np.testing.assert_allclose(symmetric.null, symmetric.cross, atol=1e-12)
        np.testing.assert_allclose(symmetric.null_deviation, 0, atol=1e-12)
        # Where it has one side only, a reflection takes rows to where there are none.
        half = part.replace(fitted=part.fitted[rows @ turn[0] > 0], held_out=part.held_out[queries @ turn[0] > 0])
        lopsided = [gather(jax.random.key(seed), half, half, jnp.eye(4)) for seed in range(4)]
    assert max(float(found.cross - found.null) for found in lopsided) > 0.02
    assert max(float(found.null_deviation) for found in lopsided) > 0.01


def test_rotating_either_space_changes_nothing(rng):
    x, y, turn = two_halves()
    with jax.enable_x64(True):
        x, y, W = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (x, y, turn @ np.diag([1] * 15 + [-1])))
        turn_x, turn_y = (jnp.asarray(np.linalg.qr(rng.normal(size=(16, 16)))[0]) for _ in range(2))
        found = gather(jax.random.key(0), x, y, W)
        turned_x, turned_y = (jax.tree.map(lambda leaf, t=t: leaf @ t, p) for p, t in ((x, turn_x), (y, turn_y)))
        turned = gather(jax.random.key(0), turned_x, turned_y, turn_x.T @ W @ turn_y)
        assert_trees_close(turned, found, atol=1e-9)


def test_rows_without_length_are_finite():
    nothing = HoldOut(fitted=jnp.zeros((20, 3)), held_out=jnp.zeros((2, 3)))
    found = gather(jax.random.key(0), nothing, nothing, jnp.eye(3))
    nothing = jnp.zeros(())
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(found.replace(num_rows=nothing, anchor_agreement=nothing)))
    assert int(found.num_rows) == 2


@pytest.mark.parametrize(("h_x", "h_y"), [(0, 0), (0, 2), (2, 0)])
def test_no_held_out_rows_are_no_evidence(h_x, h_y):
    x, y = (HoldOut(fitted=jnp.ones((20, 3)), held_out=jnp.ones((h, 3))) for h in (h_x, h_y))
    found = gather(jax.random.key(0), x, y, jnp.eye(3))
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(found.replace(anchor_agreement=jnp.zeros(()))))
