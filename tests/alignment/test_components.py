"""The first estimate by independent components: planted sparse sources behind two rotations, without a known pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_estimate, make_spaces, unit

from mv2v_jax.alignment.components import (
    agree_and_sum,
    estimate_from_runs,
    max_axes,
    run_components,
    vote_again,
    vote_from,
    whiten,
)
from mv2v_jax.config import ComponentsConfig

# Few runs of few steps: less than a fit takes, and enough for data as plain as these.
CONFIG = ComponentsConfig(num_runs=6, ica_steps=30, num_starts=6, match_steps=30, rounds=1)
KEY = jax.random.key(0)


def sources(rng, num_rows, num_sources, brings_others=0.8):
    """Sparse sources ``[n, k]``: some are often on in the same topic, and some bring others.

    Their relations are fixed: without any, nothing would tell which source is which.
    """
    relations = np.random.default_rng(5)
    in_topic = relations.random((4, num_sources)) < 0.35
    brings = np.triu(relations.random((num_sources, num_sources)) < 0.25, 1)
    often = np.where(in_topic[rng.integers(0, 4, num_rows)], 2, 0.4) * np.linspace(0.08, 0.4, num_sources)
    is_on = rng.random((num_rows, num_sources)) < often
    found = is_on * (rng.exponential(size=is_on.shape) + 0.5)
    brought = (rng.random(is_on.shape) < 0.5) * (is_on @ brings) * rng.exponential(size=is_on.shape)
    found += brings_others * brought
    return (found - found.mean(axis=0)) / found.std(axis=0)


@functools.cache
def planted(d_x=12, d_y=12, num_x=1_600, num_y=1_400, brings_others=0.8):
    """Different rows of one latent space behind two rotations, and the map ``[d_x, d_y]`` between them."""
    rng, latent_dims = np.random.default_rng(0), min(d_x, d_y)
    mixing = np.linalg.qr(rng.normal(size=(latent_dims, latent_dims)))[0] * np.linspace(1, 0.6, latent_dims)
    frames = [np.linalg.qr(rng.normal(size=(d, latent_dims)))[0].T for d in (d_x, d_y)]
    latent = sources(rng, num_x + num_y, latent_dims, brings_others) @ mixing
    views = [
        unit(part @ frame + 0.05 * rng.normal(size=(len(part), frame.shape[1])))
        for part, frame in zip((latent[:num_x], latent[num_x:]), frames, strict=True)
    ]
    return *views, frames[0].T @ frames[1]


@functools.cache
def compiled():
    def run(key, rows, estimate):
        runs = run_components(key, rows, config=CONFIG)
        again = vote_again(runs, config=CONFIG)
        guided = vote_from(runs, rows, estimate, config=CONFIG)
        return [(votes, *estimate_from_runs(votes, rows)) for votes in (runs, again, guided)]

    return jax.jit(run)


def estimates(x, y, W, dtype=jnp.float32):
    """Votes, `Estimate` and agreement: of the runs, of the runs once they voted again, and guided by a true map."""
    rows = make_spaces(x, y, dtype)
    # The cross-covariance that pairs would have: the map, seen through the covariance of one side.
    cross = jnp.asarray(x.T @ x @ W / len(x), dtype)
    return compiled()(KEY, rows, make_estimate(cross))


def closeness(matrix, x, W):
    """Mean cosine of the rows of x, mapped by the polar factor of a cross-covariance, with their true partners."""
    u, _, vt = np.linalg.svd(np.float64(matrix), full_matrices=False)
    return (unit(x @ u @ vt) * unit(x @ W)).sum(axis=1).mean()


@pytest.mark.parametrize("dims", [(12, 12), pytest.param((12, 16), marks=pytest.mark.slow)])
def test_a_planted_rotation_is_recovered(dims):
    x, y, W = planted(*dims)
    first, again, guided = (closeness(estimate.matrix, x, W) for _, estimate, _ in estimates(x, y, W))
    assert first > 0.9
    assert again > max(0.9, first - 0.03)
    assert guided > 0.95


def test_a_true_map_puts_right_what_is_hard_to_match():
    x, y, W = planted(brings_others=0.0)
    first, again, guided = (closeness(estimate.matrix, x, W) for _, estimate, _ in estimates(x, y, W))
    assert 0.3 < first < 0.9
    assert again > first - 0.05
    assert guided > 0.95


def test_other_data_have_another_map():
    """The assertions above do not hold by chance."""
    x, y, W = planted()
    mirrored = y @ np.diag([-1.0] * 6 + [1.0] * 6)
    first, again, _ = (closeness(estimate.matrix, x, W) for _, estimate, _ in estimates(x, mirrored, W))
    assert max(first, again) < 0.5


def test_the_agreement_of_runs_and_their_votes():
    x, y, W = planted()
    for votes, estimate, agreement in estimates(x, y, W):
        assert votes.cross.shape == (CONFIG.num_runs, 12, 12)
        np.testing.assert_allclose(np.linalg.norm(votes.cross, axis=(1, 2)), 1, rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(estimate.matrix), 12**0.5, rtol=1e-4)
        assert not estimate.is_map
        cross = np.float64(votes.cross).reshape(CONFIG.num_runs, -1)
        others = [np.delete(cross, run, axis=0).sum(axis=0) for run in range(len(cross))]
        expected = [own @ other / np.linalg.norm(other) for own, other in zip(cross, others, strict=True)]
        np.testing.assert_allclose(agreement, expected, atol=1e-5)
    assert np.median(estimates(x, y, W)[1][2]) > 0.7


def test_a_run_that_agrees_with_no_other_does_not_vote(rng):
    cross = np.stack([np.eye(4) / 2] * 3 + [-np.eye(4) / 2])
    agreement, weights = agree_and_sum(jnp.asarray(cross, jnp.float32))
    np.testing.assert_allclose(agreement, [1, 1, 1, -1], atol=1e-6)
    np.testing.assert_allclose(weights, [1, 1, 1, 0], atol=1e-6)
    # A single run has no others, and is not divided by nothing.
    for found in agree_and_sum(jnp.asarray(cross[:1], jnp.float32)):
        assert found.tolist() == [0]


def test_runs_depend_on_their_own_numbers():
    x, y, _ = planted()
    rows = make_spaces(x, y, jnp.float32)
    some = jax.jit(lambda key, rows, runs: run_components(key, rows, config=CONFIG, runs=runs))
    found = some(KEY, rows, jnp.asarray([4, 1]))
    again = some(KEY, rows, jnp.asarray([1, 4]))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, np.asarray(other)[::-1])
    assert np.abs(np.asarray(found.cross[0] - found.cross[1])).max() > 0.01


def test_whitened_rows_have_unit_covariance():
    x = planted()[0].copy()
    x[:, 3] = x[:, 2]  # One direction without variance.
    found = whiten(jnp.asarray(x, jnp.float32))
    white = x @ np.float64(found.whitener)
    np.testing.assert_allclose(white.T @ white / len(x), np.diag([1.0] * 11 + [0]), atol=1e-3)
    back = np.float64(found.whitener @ found.colourer.T)
    np.testing.assert_allclose(x @ back, x, atol=1e-4)


def test_zero_rows_take_no_part_in_what_is_found():
    x, y, W = planted()
    x, y = x.copy(), y.copy()
    x[::5] = 0
    y[-300:] = 0
    for _, estimate, _ in estimates(x, y, W):
        assert closeness(estimate.matrix, planted()[0], W) > 0.9


def kept_rows(rng, num_rows, num_dims):
    return unit(rng.exponential(size=(num_rows, num_dims)) - 1)


ODD = {
    "one dimension": lambda rng: (np.sign(rng.normal(size=(60, 1))), np.sign(rng.normal(size=(50, 1)))),
    "one and five dimensions": lambda rng: (np.sign(rng.normal(size=(60, 1))), kept_rows(rng, 50, 5)),
    "two dimensions": lambda rng: (kept_rows(rng, 60, 2), kept_rows(rng, 50, 2)),
    "fewer rows than axes": lambda rng: (kept_rows(rng, 5, 12), kept_rows(rng, 6, 12)),
    "a constant column": lambda rng: (kept_rows(rng, 60, 8) * (np.arange(8) != 3), kept_rows(rng, 50, 6)),
    "three different rows": lambda rng: (np.repeat(kept_rows(rng, 3, 8), 20, axis=0), kept_rows(rng, 50, 6)),
    "equal rows": lambda rng: (np.full((60, 8), 8**-0.5), kept_rows(rng, 50, 6)),
    "zero rows alone": lambda rng: (np.zeros((60, 8)), kept_rows(rng, 50, 6)),
}
# Shapes are compiled one by one.
QUICK = ("one dimension", "fewer rows than axes")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        pytest.param(dtype, name, marks=() if name in QUICK and dtype == "float32" else pytest.mark.slow)
        for dtype in ("float32", "float64")
        for name in ODD
    ],
)
def test_odd_rows_give_finite_estimates_of_their_own_dtype(rng, dtype, name):
    x, y = ODD[name](rng)
    config = ComponentsConfig(num_runs=4, ica_steps=10, num_starts=2, match_steps=5)

    def run(key, rows, estimate):
        votes = vote_again(run_components(key, rows, config=config), config=config)
        return estimate_from_runs(votes, rows), estimate_from_runs(
            vote_from(votes, rows, estimate, config=config), rows
        )

    with jax.enable_x64(True):
        rows = make_spaces(x, y, dtype)
        assert max_axes(rows) <= min(x.shape[1], y.shape[1])
        start = make_estimate(np.eye(x.shape[1], y.shape[1]), dtype=dtype)
        for leaf in jax.tree.leaves(jax.jit(run)(KEY, rows, start)):
            assert leaf.dtype == dtype
            assert np.isfinite(leaf).all()
