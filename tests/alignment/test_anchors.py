"""Anchor sets: matched where the geometry is the same, and the sets that agree are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, make_spaces, planted_clouds, semi_orthogonal, small_config, unit

from mv2v_jax.alignment.anchors import AnchorSets, match_anchor_sets, select_anchors, set_agreement

CONFIG = small_config(
    anchors_num_sets=5,
    anchors_num_clusters=8,
    anchors_rows=1000,
    anchors_lloyd_steps=8,
    anchors_num_starts=6,
    anchors_search_steps=30,
).anchors


@pytest.fixture(scope="module")
def matched():
    """Anchor sets of two planted clouds: ``(planted, fit, sets)``."""
    planted = planted_clouds(8, 6, num_x=400, num_y=380, groups=8, seed=1)
    rows = make_spaces(*(unit(cloud - cloud.mean(0)) for cloud in (planted.x, planted.y)))
    fit = jax.jit(lambda key, sets: match_anchor_sets(key, rows, config=CONFIG, sets=sets))
    return planted, fit, fit(jax.random.key(0), jnp.arange(5))


def test_shapes_and_objective(matched):
    _, _, sets = matched
    assert (sets.x.shape, sets.y.shape, sets.objective.shape) == ((5, 8, 8), (5, 8, 6), (5,))
    for x, y, objective in zip(*map(np.float64, (sets.x, sets.y, sets.objective)), strict=True):
        kernels = [(c - c.mean(0)) @ (c - c.mean(0)).T for c in (x, y)]
        cka = np.vdot(*kernels) / np.prod([np.linalg.norm(kernel) for kernel in kernels])
        np.testing.assert_allclose(objective, cka, rtol=1e-4)


def test_centres_are_matched_across_the_spaces(matched):
    planted, _, sets = matched
    best = int(sets.objective.argmax())
    mapped, targets = unit(np.asarray(sets.x[best]) @ planted.W), unit(np.asarray(sets.y[best]))
    assert float(sets.objective[best]) > 0.9
    assert ((mapped @ targets.T).argmax(1) == np.arange(8)).mean() >= 0.75


def test_a_set_depends_on_its_own_number_alone(matched):
    _, fit, sets = matched
    reordered = fit(jax.random.key(0), jnp.array([3, 0, 4, 1, 2]))
    assert_trees_close(reordered, jax.tree.map(lambda leaf: leaf[np.array([3, 0, 4, 1, 2])], sets), atol=1e-4)
    assert not np.allclose(sets.x[0], sets.x[1])


def test_equal_rows_have_no_objective_but_stay_finite():
    rows, config = make_spaces(jnp.zeros((8, 2)), jnp.zeros((9, 3))), small_config(anchors_num_sets=1).anchors
    sets = match_anchor_sets(jax.random.key(0), rows, config=config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sets))


def planted_sets(rng, num_right, num_wrong):
    """Sets whose centres are rotated copies of each other; the wrong ones are matched at random."""
    turn = semi_orthogonal(rng, 6, 5)
    x = rng.normal(size=(num_right + num_wrong, 12, 6))
    y = x @ turn
    for index in range(num_right, len(y)):
        y[index] = y[index, rng.permutation(12)]
    order = rng.permutation(len(y))
    sets = AnchorSets(
        x=jnp.asarray(x[order], jnp.float32),
        y=jnp.asarray(y[order], jnp.float32),
        objective=jnp.zeros(len(y)),
    )
    return sets, order < num_right


def test_the_sets_that_agree_are_kept(rng):
    sets, right = planted_sets(rng, 6, 6)
    anchors, info = select_anchors(sets, config=small_config(anchors_kept_sets=6).anchors)
    np.testing.assert_array_equal(info.kept, right)
    assert np.asarray(info.agreement)[right].min() > np.asarray(info.agreement)[~right].max()
    np.testing.assert_array_equal(info.objective, sets.objective)
    assert anchors.x.shape == (72, 6)
    pairs = {tuple(np.r_[a, b]) for a, b in zip(np.asarray(anchors.x), np.asarray(anchors.y), strict=True)}
    kept = np.flatnonzero(right)
    assert pairs == {tuple(np.r_[sets.x[s, i], sets.y[s, i]]) for s in kept for i in range(12)}


def test_agreement_is_the_cosine_with_the_others(rng):
    sets, _ = planted_sets(rng, 2, 2)
    x, y = (np.float64(a) - np.float64(a).mean(1, keepdims=True) for a in (sets.x, sets.y))
    cross = unit(np.stack([(a.T @ b).ravel() for a, b in zip(x, y, strict=True)]))
    expected = [cross[i] @ unit(np.delete(cross, i, 0).sum(0)) for i in range(4)]
    np.testing.assert_allclose(set_agreement(sets), expected, atol=1e-5)


@pytest.mark.parametrize("num_sets", [1, 3])
def test_more_kept_than_there_are_keeps_all(rng, num_sets):
    sets, _ = planted_sets(rng, num_sets, 0)
    anchors, info = select_anchors(sets, config=small_config(anchors_kept_sets=10).anchors)
    assert bool(info.kept.all())
    assert anchors.x.shape == (12 * num_sets, 6)
    assert np.isfinite(info.agreement).all()
