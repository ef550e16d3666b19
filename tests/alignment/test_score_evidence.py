"""The score of a map on held-out rows: against NumPy, and on data for which the answer is known."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, make_spaces, planted_clouds, unit

from mv2v_jax.alignment.score import _NUM_NULLS, SCALES, fine_agreement, gather_evidence
from mv2v_jax.alignment.space import TwoSpaces, fit_space, hold_out

gather = jax.jit(lambda key, parts, W: gather_evidence(key, *parts, W))


def evidence_in_numpy(key, fitted, held_out, W, bank_rows):
    """All similarities at once; only the signs of the reflections come from JAX. Without what the clouds alone say."""
    W = np.asarray(W)
    fitted_x, fitted_y, held_x, held_y = map(np.asarray, (fitted.x, fitted.y, held_out.x, held_out.y))
    queries = unit(held_x @ W), held_y
    banks = unit(fitted_x[:bank_rows] @ W), fitted_y[:bank_rows]

    def nearness(queries, bank):
        # Rows left over after ten equal parts do not count.
        similarity = np.split((queries @ bank.T)[:, : len(bank) // 10 * 10], 10, axis=1)
        return np.mean([part.max(axis=1) for part in similarity])

    _, lengths, directions = np.linalg.svd(banks[1])
    directions = directions.T  # Longest first.
    num_used = np.sum(lengths**2 > 0.01 * np.mean(lengths**2))
    drawn = jax.random.rademacher(key, ((len(SCALES) + 1) * _NUM_NULLS * max(W.shape),), dtype=W.dtype)
    # The first ones are for what the clouds alone say.
    sides = np.asarray(drawn).reshape(len(SCALES) + 1, _NUM_NULLS, -1)[1:, :, : W.shape[1]]
    nulls = np.zeros(sides.shape[:2])
    for scale, share in enumerate(SCALES):
        for number in range(_NUM_NULLS):
            signs = sides[scale, number].copy()
            signs[: int(share * num_used)] = 1
            reflection = directions @ np.diag(signs) @ directions.T
            crossed = nearness(queries[0] @ reflection, banks[1]), nearness(queries[1] @ reflection, banks[0])
            nulls[scale, number] = np.mean(crossed)
    cross_each = np.array([nearness(queries[0], banks[1]), nearness(queries[1], banks[0])])
    cross = cross_each.mean()
    within = (nearness(queries[0], banks[0]) + nearness(queries[1], banks[1])) / 2
    null, deviation = nulls.mean(axis=1), nulls.std(axis=1)
    closeness = (cross - null) / np.maximum(within - null, np.maximum(5 * deviation, 0.02))
    return {
        "cross": cross,
        "cross_each": cross_each,
        "within": within,
        "null": null,
        "null_deviation": deviation,
        "num_rows": min(len(rows) for rows in queries),
        "closeness": closeness,
        "score": closeness[2],
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
        # A function of its own, because the number of rows is read while it is traced.
        fresh = jax.jit(lambda *args: gather_evidence(*args))
        found = fresh(jax.random.key(3), fitted, held_out, W)
        expected = evidence_in_numpy(jax.random.key(3), fitted, held_out, W, bank_rows)
    assert 0 < expected["closeness"][0] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-8, err_msg=name)


def test_nearness_in_single_precision_is_nearly_the_same():
    parts, turn = two_halves()
    in_double = [TwoSpaces(x=np.float64(part.x), y=np.float64(part.y)) for part in parts]
    found = gather(jax.random.key(0), parts, turn)
    expected = evidence_in_numpy(jax.random.key(0), *in_double, turn, 8192)
    for name in ("cross", "within", "null"):
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(found.closeness, expected["closeness"], atol=0.05)


@functools.cache
def two_halves(d=16):
    """Two halves of one cloud, the second one rotated: ``((fitted, held_out), rotation)``."""
    cloud = planted_clouds(d, d, num_x=900, num_y=16, seed=1).x
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0].astype(np.float32)
    spaces = [fit_space(jnp.asarray(rows)) for rows in (cloud[:450], cloud[450:] @ turn)]
    (x, held_x), (y, held_y) = (hold_out(space.rows, 45) for space in spaces)
    return (TwoSpaces(x=x, y=y), TwoSpaces(x=held_x, y=held_y)), turn


def test_the_right_map_scores_one_where_many_directions_are_reflected():
    parts, turn = two_halves()
    found = [gather(jax.random.key(seed), parts, turn) for seed in range(20)]
    closeness = np.array([evidence.closeness for evidence in found])
    # The finer scales reflect few of 16 directions, so that chance lengthens the scale from null to within.
    assert (np.abs(np.median(closeness, axis=0)[:2] - 1) < 0.1).all()
    assert (np.median(closeness, axis=0) > 0.4).all()
    assert closeness.min() > 0.2
    assert closeness.max() < 1.2
    for evidence in found:
        assert float(evidence.cross) > float(evidence.null[0]) + 2 * float(evidence.null_deviation[0])


def test_any_other_rotation_scores_about_nothing():
    parts, _ = two_halves()
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32) for _ in range(5)]
    assert np.abs([float(gather(jax.random.key(0), parts, turn).closeness[0]) for turn in turns]).max() < 0.2


def test_keeping_the_variances_is_not_enough():
    """The right map except for the signs of the principal directions: the null consists of such maps."""
    parts, turn = two_halves()
    rng = np.random.default_rng(0)
    directions = np.linalg.svd(parts[0].x)[2].T
    flips = [directions @ np.diag(rng.choice([-1, 1], 16)) @ directions.T for _ in range(12)]
    found = [gather(jax.random.key(0), parts, jnp.asarray(flip @ turn, jnp.float32)) for flip in flips]
    scores = [float(evidence.closeness[0]) for evidence in found]
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
        np.testing.assert_allclose(symmetric.null, jnp.full(len(SCALES), symmetric.cross), atol=1e-12)
        np.testing.assert_allclose(symmetric.null_deviation, 0, atol=1e-12)
        # One half of the cloud alone: a reflection takes its rows to where there are none.
        half = [some[some @ turn[0] > 0] for some in (rows, queries)]
        parts = [make_spaces(some, some) for some in half]
        lopsided = [gather(jax.random.key(seed), parts, jnp.eye(4)) for seed in range(4)]
    assert max(float(found.cross - found.null[0]) for found in lopsided) > 0.02
    assert max(float(found.null_deviation[0]) for found in lopsided) > 0.01


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
    # Zero rows are no copies of each other.
    others = dataclasses.replace(found, num_rows=nothing, distinct=nothing)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(others))
    assert int(found.num_rows) == 2


@pytest.mark.parametrize(("h_x", "h_y"), [(0, 0), (0, 2), (2, 0)])
def test_no_held_out_rows_are_no_evidence(h_x, h_y):
    fitted = make_spaces(jnp.ones((20, 3)), jnp.ones((20, 3)))
    found = gather(jax.random.key(0), (fitted, make_spaces(jnp.ones((h_x, 3)), jnp.ones((h_y, 3)))), jnp.eye(3))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(found))


def sparse_cloud(rng, num_rows, d=32, width=0.05):
    """Rows that are sums of a few atoms: a cloud with structure at every scale and without a symmetry."""
    atoms = rng.normal(size=(100, d)) * np.arange(1, d + 1) ** -0.3
    drawn = rng.choice(100, (num_rows, 4), p=np.arange(1, 101) ** -0.7 / np.sum(np.arange(1, 101) ** -0.7))
    rows = np.einsum("nw,nwd->nd", rng.gamma(1.0, size=drawn.shape), atoms[drawn])
    return rows + width * rng.normal(size=rows.shape)


def evidence_between(x, y, W, num_held=100):
    """Evidence of a map between two clouds of raw rows."""
    x, y = (unit(cloud - cloud.mean(0)).astype(np.float32) for cloud in (x, y))
    parts = make_spaces(x[num_held:], y[num_held:]), make_spaces(x[:num_held], y[:num_held])
    return gather(jax.random.key(0), parts, jnp.asarray(W, jnp.float32))


def test_a_map_that_is_right_in_the_first_directions_only_fails_at_the_finer_scales(rng):
    cloud = sparse_cloud(rng, 1_600)
    directions = np.linalg.svd(cloud - cloud.mean(0), full_matrices=False)[2].T
    turn = np.eye(32)
    turn[8:, 8:] = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    coarse = evidence_between(cloud[:800], cloud[800:], directions @ turn @ directions.T)
    right = evidence_between(cloud[:800], cloud[800:], np.eye(32))
    assert (np.asarray(right.closeness) > 0.8).all()
    assert float(coarse.closeness[0]) > 0.2
    assert float(coarse.closeness[-1]) < 0.15
    assert float(coarse.score) < float(right.score) / 2


def test_symmetric_clouds_are_noticed(rng):
    cloud = sparse_cloud(rng, 1_600)
    plain = evidence_between(cloud[:800], cloud[800:], np.eye(32))
    signs = rng.choice([-1, 1], size=(1_600, 1))
    mirrored = (cloud - cloud.mean(0)) * signs
    directions = np.linalg.svd(cloud - cloud.mean(0), full_matrices=False)[2].T
    # The strongest direction, well apart from the others, gets a random sign.
    one_axis = (cloud - cloud.mean(0)) @ directions
    one_axis[:, :1] *= 2 * signs
    assert float(plain.symmetry) > 1
    for symmetric in (mirrored, one_axis):
        assert float(evidence_between(symmetric[:800], symmetric[800:], np.eye(32)).symmetry) < 0.5


def test_rows_that_differ_from_their_neighbours_by_noise_have_no_local_structure(rng):
    centers = rng.normal(size=(20, 32))
    blobs = centers[rng.choice(20, 1_600)] + 0.5 * rng.normal(size=(1_600, 32))
    assert float(evidence_between(blobs[:800], blobs[800:], np.eye(32)).local_structure) < 0.12
    cloud = sparse_cloud(rng, 1_600)
    found = evidence_between(cloud[:800], cloud[800:], np.eye(32))
    assert float(found.local_structure) > 0.3
    assert float(found.local_closeness) > 0.5
    # Topics match, and the texts of both sides are made of other words.
    topics = 3 * centers[rng.choice(20, 1_600)]
    x, y = topics[:800] + sparse_cloud(rng, 800), topics[800:] + sparse_cloud(rng, 800)
    found = evidence_between(x, y, np.eye(32))
    assert float(found.closeness[0]) > 0.3
    assert float(found.local_structure) > 0.3
    assert float(found.local_closeness) < 0.2


def test_copies_are_counted(rng):
    cloud = sparse_cloud(rng, 1_600)
    assert float(evidence_between(cloud[:800], cloud[800:], np.eye(32)).distinct) == 1
    repeated = cloud[rng.choice(30, 800)]
    assert float(evidence_between(repeated, cloud[800:], np.eye(32)).distinct) < 0.1


def test_fine_agreement_leaves_the_first_directions_out(rng):
    rows = (rng.normal(size=(400, 16)) * np.arange(1, 17) ** -0.5).astype(np.float32)
    directions = np.linalg.svd(rows)[2].T
    maps = [np.eye(16), np.eye(16), np.eye(16)]
    # The second map differs in the first quarter of the directions, the third one in the others.
    maps[1] = directions @ np.diag([-1.0] * 4 + [1.0] * 12) @ directions.T
    maps[2] = directions @ np.diag([1.0] * 4 + [-1.0, 1.0] * 6) @ directions.T
    found = np.asarray(fine_agreement(jnp.asarray(np.stack(maps), jnp.float32), jnp.asarray(rows)))
    np.testing.assert_allclose(found, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-4)
