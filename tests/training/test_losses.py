"""Losses without pairs against closed forms, POT and finite differences in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from helpers import make_map, semi_orthogonal, unit

from mv2v_jax.alignment.score import gather_evidence
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.errors import InputError
from mv2v_jax.ops.csls import dense_csls
from mv2v_jax.ops.sinkhorn import sinkhorn_divergence
from mv2v_jax.training.losses import (
    LossConfig,
    alignment_loss,
    alignment_terms,
    csls_loss,
    cycle_loss,
    preservation_loss,
    soft_match,
    soft_procrustes,
)
from mv2v_jax.training.online import OnlineConfig

# Compiling takes nearly all of the time.
B, C, D_X, D_Y = 9, 11, 6, 5

divergence = jax.jit(sinkhorn_divergence, static_argnames=("num_steps", "stop_gradient"))
loss_of, terms_of = (jax.jit(fun) for fun in (alignment_loss, alignment_terms))
csls_of = jax.jit(csls_loss, static_argnames="stop_gradient")


@pytest.fixture
def rows(rng):
    """Unit rows of two spaces and a map between them, float64."""
    x, y = unit(rng.standard_normal((B, D_X))), unit(rng.standard_normal((C, D_Y)))
    return x, y, semi_orthogonal(rng, D_X, D_Y)


def as_map(W, dtype=np.float64):
    return make_map(W, dtype=dtype)


def map_rows(x, W):
    return unit(x @ W)


def assert_gradients(fun, *arguments, seed=0, atol=1e-7):
    """Gradients of a scalar function in each argument against central differences along a random direction."""
    rng = np.random.default_rng(seed)
    # One program for both.
    value_and_gradients = jax.jit(jax.value_and_grad(fun, argnums=tuple(range(len(arguments)))))
    gradients = value_and_gradients(*arguments)[1]
    for number, gradient in enumerate(gradients):
        change = rng.standard_normal(gradient.shape)

        def moved(step, number=number, change=change):
            return value_and_gradients(*(a + step * change if i == number else a for i, a in enumerate(arguments)))[0]

        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * change), expected, atol=atol, rtol=1e-5)
        assert np.abs(gradient).max() > 0


def test_csls_is_that_of_the_ten_nearest_and_partners_sharpen(rows):
    x, y, W = rows
    x = map_rows(x, W)
    similarity = x @ y.T
    r_x, r_y = similarity.mean(1) * C, similarity.mean(0)
    r_x = (r_x - similarity.min(1)) / 10  # The ten nearest of eleven rows of y count, and all nine rows of x.
    expected = 2 * similarity - r_x[:, None] - r_y[None]
    with jax.enable_x64(True):
        np.testing.assert_allclose(dense_csls(x, y), expected, atol=1e-12)
        matched = soft_match(x, y, temperature=1e-5)
        np.testing.assert_array_equal(matched.argmax(1), expected.argmax(1))
        np.testing.assert_allclose(matched.sum(1), 1)
        loss = csls_of(x, y, temperature=1e-5)
        np.testing.assert_allclose(loss, -(expected.max(1).mean() + expected.max(0).mean()) / 2, atol=1e-4)


def transport_by_pot(x, y, epsilon):
    shares = [np.full(len(rows), 1 / len(rows)) for rows in (x, y)]
    cost = ot.dist(x, y) / 2
    plan = ot.sinkhorn(*shares, cost, epsilon, stopThr=1e-13, numItermax=20_000)
    return np.sum(plan * cost) + epsilon * np.sum(plan * np.log(plan / np.outer(*shares)))


def test_sinkhorn_divergence_equals_that_of_pot(rng):
    epsilon = 0.3
    x, y = rng.standard_normal((B, 3)), 0.7 * rng.standard_normal((C, 3)) + 1
    expected = transport_by_pot(x, y, epsilon) - (transport_by_pot(x, x, epsilon) + transport_by_pot(y, y, epsilon)) / 2
    with jax.enable_x64(True):
        found = divergence(x, y, epsilon=epsilon, num_steps=400)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(divergence(x, x[::-1], epsilon=epsilon), 0, atol=1e-12)
        # The losses compare unit rows; for those few steps are close to convergence.
        x, y = unit(x), unit(y)
        steps = [divergence(x, y, epsilon=epsilon, num_steps=number) for number in (10, 400)]
        np.testing.assert_allclose(*steps, atol=0.02)


def test_sinkhorn_at_convergence_has_the_gradient_of_its_plan(rng):
    x, y = rng.standard_normal((B, 3)), rng.standard_normal((C, 3))
    with jax.enable_x64(True):
        through, held = (
            jax.jit(
                jax.grad(lambda x, stop=stop: sinkhorn_divergence(x, y, epsilon=0.5, num_steps=400, stop_gradient=stop))
            )(x)
            for stop in (False, True)
        )
        np.testing.assert_allclose(through, held, atol=1e-6)


def test_everything_can_be_differentiated_in_rows_and_map(rows):
    x, y, W = rows
    with jax.enable_x64(True):
        # The first covers soft partners, the second all terms of the loss.
        assert_gradients(lambda x, y, W: jnp.sum(soft_procrustes(x, y, W) * W**2), x, y, W)
        config = LossConfig(stop_gradient=False, sinkhorn_steps=3)
        assert_gradients(
            lambda x, y, W: alignment_loss(dataclasses.replace(as_map(W), W=W), x, y, config), x + 0.1, y + 0.1, W
        )


def test_evidence_can_be_differentiated_in_rows_and_map(rng):
    """The label-free score that chooses restarts is piecewise smooth."""
    x, y, W = rng.standard_normal((40, D_X)), rng.standard_normal((44, D_Y)), semi_orthogonal(rng, D_X, D_Y)

    def closeness(x, y, W):
        fitted, held_out = (TwoSpaces(x=x[part], y=y[part]) for part in (slice(6, None), slice(6)))
        return gather_evidence(jax.random.key(0), fitted, held_out, W).closeness.sum()

    with jax.enable_x64(True):
        assert_gradients(closeness, unit(x), unit(y), W, atol=1e-5)


def test_stop_gradient_holds_the_partners_and_nothing_else(rows):
    x, y, W = rows
    with jax.enable_x64(True):
        x = jnp.asarray(map_rows(x, W))
        temperature = 0.1
        partners = [soft_match(*pair, temperature=temperature) for pair in ((x, y), (y, x))]

        def with_known_partners(x):
            scores = dense_csls(x, y)
            return -(jnp.sum(partners[0] * scores, 1).mean() + jnp.sum(partners[1] * scores.T, 1).mean()) / 2

        held, through = (
            jax.jit(jax.grad(lambda x, stop=stop: csls_loss(x, y, temperature=temperature, stop_gradient=stop)))(x)
            for stop in (True, False)
        )
        np.testing.assert_allclose(held, jax.jit(jax.grad(with_known_partners))(x), atol=1e-12)
        assert not np.allclose(held, through, atol=1e-3)
        np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: soft_match(x, y, stop_gradient=True)[0, 0]))(x), 0)
        values = [csls_of(x, y, temperature=temperature, stop_gradient=stop) for stop in (True, False)]
        np.testing.assert_allclose(*values, atol=1e-12)


def test_terms_are_minimal_for_the_same_rows(rng):
    x = unit(rng.standard_normal((40, 8))).astype(np.float32)
    rotation = semi_orthogonal(rng, 8, 8).astype(np.float32)
    y = (x @ rotation)[::-1]
    right = terms_of(as_map(rotation, np.float32), x, y)
    wrong = terms_of(as_map(semi_orthogonal(rng, 8, 8), np.float32), x, y)
    np.testing.assert_allclose([right.sinkhorn, right.cycle, right.preservation], 0, atol=1e-5)
    assert right.csls < wrong.csls - 0.1
    assert wrong.sinkhorn > 0.01
    config = LossConfig(csls=2.0, sinkhorn=3.0, cycle=4.0, preservation=5.0)
    other = as_map(1 + np.arange(64.0).reshape(8, 8) ** 2 % 7, np.float32)
    terms = terms_of(other, x, y)
    expected = 2 * terms.csls + 3 * terms.sinkhorn + 4 * terms.cycle + 5 * terms.preservation
    np.testing.assert_allclose(loss_of(other, x, y, config), expected, rtol=1e-5)


def test_cycle_and_preservation_by_hand(rng):
    x = unit(rng.standard_normal((7, D_X)))
    W, back = rng.standard_normal((D_X, D_Y)), rng.standard_normal((D_Y, D_X))
    with jax.enable_x64(True):
        returned = unit(unit(x @ W) @ back)
        np.testing.assert_allclose(cycle_loss(x, W, back), np.sum((returned - x) ** 2, 1).mean())
        np.testing.assert_allclose(cycle_loss(x, W), np.sum((unit(unit(x @ W) @ W.T) - x) ** 2, 1).mean())
        after = unit(x @ W)
        np.testing.assert_allclose(preservation_loss(x, after), np.abs(x @ x.T - after @ after.T).mean())


def test_padding_does_not_count(rows):
    x, y, W = rows
    padded_x, padded_y = (np.concatenate([a, np.zeros((3, a.shape[1]))]) for a in (x, y))
    config = LossConfig(sinkhorn_steps=3)
    with jax.enable_x64(True):
        loss = jax.jit(jax.value_and_grad(lambda x, y: alignment_loss(as_map(W), x, y, config), argnums=(0, 1)))
        padded_value, padded_gradients = loss(padded_x, padded_y)
        np.testing.assert_allclose(padded_value, loss_of(as_map(W), x, y, config), rtol=1e-9)
        for padded in padded_gradients:
            assert np.isfinite(padded).all()
            np.testing.assert_array_equal(padded[-3:], 0)
        assert np.isfinite(divergence(padded_x[-3:], padded_x[-2:]))


def test_half_precision_is_summed_in_float32_and_keeps_its_gradients_dtype(rows):
    x, y, W = rows
    dtype = jnp.bfloat16
    whole = [jnp.asarray(a, dtype) for a in (x, y)]
    linear_map = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), as_map(W, np.float32))
    loss = jax.jit(jax.value_and_grad(lambda x: alignment_loss(linear_map, x, whole[1], LossConfig(sinkhorn_steps=3))))
    value, gradient = loss(whole[0])
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert np.isfinite(gradient.astype(jnp.float32)).all()
    # The same rows in float64; other tests have compiled this program.
    with jax.enable_x64(True):
        np.testing.assert_allclose(value, loss_of(as_map(W), x, y, LossConfig(sinkhorn_steps=3)), atol=0.05)


@pytest.mark.parametrize("transform", [lambda fun: fun, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("fun", [alignment_loss, alignment_terms])
def test_bad_input_is_refused_in_one_sentence_under_jit_as_well(rng, fun, transform):
    x, y = (jnp.asarray(rng.standard_normal((B, d)), jnp.float32) for d in (D_X, D_Y))
    linear_map = as_map(semi_orthogonal(rng, D_X, D_Y), np.float32)
    several = jax.tree.map(lambda leaf: leaf[None], linear_map)
    for arguments, message in [
        ((linear_map, y, x), r"x must have 6 columns for this map, found 5; were x and y swapped\?"),
        ((linear_map, x, x), r"y must have 5 columns for this map, found 6; were x and y swapped\?"),
        ((linear_map, x, y[:, :2]), "y must have 5 columns for this map, found 2"),
        ((linear_map, x[0], y), r"x must be two-dimensional, one embedding per row, found shape \[6\]"),
        ((linear_map, x, y[:0]), "y must have at least 1 row, found 0"),
        ((linear_map, x.astype(int), y), "x must hold floating-point embeddings, found dtype int32"),
        ((several, x, y), r"linear_map must hold W \[d_x, d_y\], one map, found shape \[1, 6, 5\]"),
        ((linear_map.W, x, y), "linear_map must be a LinearMap, found"),
        ((linear_map, x, y, OnlineConfig()), "config must be a LossConfig, found OnlineConfig"),
        ((linear_map, x, y, dataclasses.replace(LossConfig(), sinkhorn_steps=-1)), "sinkhorn_steps must be"),
    ]:
        with pytest.raises(InputError, match=message):
            transform(fun)(*arguments)


def test_rows_that_a_loss_cannot_compare_are_refused(rng):
    x, y, W = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((B, D_X), (C, D_Y), (D_X, D_Y)))
    for use, message in [
        (lambda: csls_loss(x, y), "y must have 6 columns like x, found 5"),
        (lambda: soft_match(x, y), "y must have 6 columns like x, found 5"),
        (lambda: soft_procrustes(y, x, W), r"x must have 6 columns for this W, found 5; were x and y swapped\?"),
        (lambda: cycle_loss(y, W), "x must have 6 columns for this W, found 5"),
        (lambda: cycle_loss(x, W, W), r"back must have shape \[5, 6\] for this W, found \[6, 5\]"),
        (lambda: preservation_loss(x, y), "after must have a row for each of the 9 of before, found 11"),
    ]:
        with pytest.raises(InputError, match=message):
            use()
