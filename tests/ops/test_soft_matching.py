"""Soft graph matching: planted permutations, sums by loops, automatic derivatives, and SciPy's FAQ."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, quadratic_assignment

from mv2v_jax.ops.soft_matching import Kernels, balance, gradient, match_confidence, match_softly, standardize


def random_kernels(rng, size, num_symmetric=2, num_directed=2):
    """Kernels without a diagonal, as of different points."""
    apart = 1 - np.eye(size)
    directed = rng.normal(size=(num_symmetric + num_directed, size, size)) * apart
    symmetric = directed[:num_symmetric]
    return (symmetric + symmetric.swapaxes(1, 2)) / 2**0.5, directed[num_symmetric:]


def permuted(kernels, permutation):
    """Kernels of the same points in another order: point i of the old ones is point ``permutation[i]``."""
    back = np.argsort(permutation)
    return tuple(kernel[:, back][:, :, back] for kernel in kernels)


def on_device(kernels, dtype=jnp.float32):
    symmetric, directed = (jnp.asarray(kernel, dtype) for kernel in kernels)
    return Kernels(symmetric=symmetric, directed=directed)


def padded(kernels, num_dead):
    return tuple(np.pad(kernel, ((0, 0), (0, num_dead), (0, num_dead))) for kernel in kernels)


def objective(x, y, plan):
    """``sum_a <A_a, P B_a P^T>``, entry by entry."""
    size = len(plan)
    return sum(
        a[i, j] * plan[i, k] * b[k, m] * plan[j, m]
        for a, b in zip(np.concatenate(x), np.concatenate(y), strict=True)
        for i, j, k, m in itertools.product(range(size), repeat=4)
    )


@pytest.fixture(scope="module")
def match():
    """The best plan and objective of several random starts."""

    @functools.partial(jax.jit, static_argnames=("num_starts",))
    def run(key, x, y, live, linear, num_starts=8):
        def start(key):
            noise = jax.random.normal(key, linear.shape, linear.dtype)
            return match_softly(x, y, linear, balance(noise, live), live, num_steps=40)

        plans, objectives = jax.vmap(start)(jax.random.split(key, num_starts))
        best = jnp.argmax(objectives)
        return plans[best], objectives[best]

    return run


@pytest.mark.parametrize(
    ("num_symmetric", "num_directed"), [(2, 2), (2, 0), (0, 2)], ids=["both", "symmetric", "directed"]
)
def test_a_planted_permutation_is_recovered(match, num_symmetric, num_directed):
    size, num_dead = 14, 2
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = random_kernels(rng, size, num_symmetric, num_directed)
        permutation = rng.permutation(size)
        y = permuted(x, permutation)
        x, y = on_device(padded(x, num_dead)), on_device(padded(y, num_dead))
        live = jnp.asarray([1.0] * size + [0.0] * num_dead)
        plan, _ = match(jax.random.key(seed), x, y, live, jnp.zeros((size + num_dead,) * 2))
        expected = np.eye(size + num_dead)[np.concatenate([permutation, [size, size + 1]])]
        np.testing.assert_allclose(plan, expected, atol=0.01)
        confidence = match_confidence(x, y, jnp.asarray(expected, jnp.float32))
        np.testing.assert_allclose(confidence, live, atol=1e-5)


def test_confidence_is_low_where_the_match_is_wrong():
    x = on_device(random_kernels(np.random.default_rng(0), 14))
    wrong = np.roll(np.eye(14), 1, axis=0)
    assert np.abs(match_confidence(x, x, jnp.asarray(wrong, jnp.float32))).max() < 0.7
    nothing = Kernels(symmetric=jnp.zeros((2, 3, 3)), directed=jnp.zeros((1, 3, 3)))
    assert match_confidence(nothing, nothing, jnp.eye(3)).tolist() == [0, 0, 0]


def test_the_gain_of_single_matches_counts(match):
    """Without relations, the linear part is a linear assignment."""
    rng = np.random.default_rng(0)
    linear = rng.normal(size=(9, 9))
    x = on_device(np.zeros((2, 2, 9, 9)))
    plan, found = match(jax.random.key(0), x, x, jnp.ones(9), jnp.asarray(linear, jnp.float32))
    best = linear[linear_sum_assignment(-linear)].sum()
    # Plans are as sharp as their last step.
    assert 0.95 * best < float(found) <= best + 1e-4
    np.testing.assert_allclose(found, (np.asarray(plan) * linear).sum(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_and_objective(dtype):
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    rng = np.random.default_rng(0)
    x, y, start = random_kernels(rng, 4), random_kernels(rng, 4), rng.random(size=(4, 4))
    linear = rng.normal(size=(4, 4))
    with jax.enable_x64(True):
        live = jnp.ones(4, dtype)
        on = [on_device(kernels, dtype) for kernels in (x, y)]

        def quadratic(plan):
            products = [
                jnp.einsum("aij,ik,akm,jm->", a, plan, b, plan)
                for a, b in ((on[0].symmetric, on[1].symmetric), (on[0].directed, on[1].directed))
            ]
            return products[0] + products[1]

        plan = jnp.asarray(start, dtype)
        np.testing.assert_allclose(quadratic(plan), objective(x, y, start), rtol=tolerance)
        found = gradient(*on, plan)
        np.testing.assert_allclose(found, jax.grad(quadratic)(plan), rtol=tolerance, atol=tolerance)
        plan, value = match_softly(*on, jnp.asarray(linear, dtype), balance(plan, live), live, num_steps=5)
        assert plan.dtype == value.dtype == dtype
    expected = objective(x, y, np.float64(plan)) + (linear * np.float64(plan)).sum()
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def test_no_step_lowers_the_objective():
    rng = np.random.default_rng(3)
    x, y = on_device(random_kernels(rng, 8)), on_device(random_kernels(rng, 8))
    linear, live = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32), jnp.ones(8)
    start = balance(jnp.asarray(rng.normal(size=(8, 8)), jnp.float32), live)
    # A number of steps fixes their sharpness, so that the values are those after one step each.
    before = jnp.vdot(gradient(x, y, start), start) / 2 + jnp.vdot(linear, start)
    _, after = jax.jit(lambda start: match_softly(x, y, linear, start, live, num_steps=1))(start)
    assert float(after) >= float(before) - 1e-5


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 3.0])
def test_balanced_plans_are_doubly_stochastic_and_keep_dead_points(sharpness):
    live = np.array([1.0, 1, 0, 1, 1, 0, 1])
    logits = sharpness * np.random.default_rng(0).normal(size=(7, 7))
    plan = np.asarray(balance(jnp.asarray(logits, jnp.float32), jnp.asarray(live, jnp.float32), 200))
    np.testing.assert_allclose(plan.sum(axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=1), 1, atol=1e-4)
    assert (plan >= 0).all()
    for dead in (2, 5):
        np.testing.assert_allclose(plan[dead], np.eye(7)[dead], atol=1e-6)
        np.testing.assert_allclose(plan[:, dead], np.eye(7)[dead], atol=1e-6)
    # A product of a row factor, the exponential, and a column factor: cross ratios are those of the exponential.
    ratio = np.log(plan[0, 0] * plan[1, 1] / plan[0, 1] / plan[1, 0])
    np.testing.assert_allclose(ratio, logits[0, 0] + logits[1, 1] - logits[0, 1] - logits[1, 0], atol=1e-3)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_extreme_logits_stay_finite(scale):
    logits = scale * np.random.default_rng(0).normal(size=(6, 6))
    for live in (np.ones(6), np.zeros(6), np.eye(6)[0]):
        assert np.isfinite(balance(jnp.asarray(logits, jnp.float32), jnp.asarray(live, jnp.float32))).all()


def test_standardized_logits():
    live = np.array([1.0, 1, 0, 1])
    logits = np.random.default_rng(0).normal(size=(4, 4)) * 7 + 3
    found = np.asarray(standardize(jnp.asarray(logits, jnp.float32), jnp.asarray(live, jnp.float32)))
    inside = found[np.ix_(live > 0, live > 0)]
    np.testing.assert_allclose([inside.mean(), inside.std()], [0, 1], atol=1e-5)
    assert not found[2].any()
    assert not found[:, 2].any()
    assert not np.asarray(standardize(jnp.ones((4, 4)), jnp.ones(4))).any()


def test_about_as_good_as_faq_on_kernels_that_have_no_match(match):
    """SciPy knows one kernel only. Our plans are rounded to permutations, as FAQ does in the end."""
    ratios = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, y = random_kernels(rng, 12, 1, 0), random_kernels(rng, 12, 1, 0)
        theirs = max(
            quadratic_assignment(
                x[0][0],
                y[0][0],
                method="faq",
                options={"maximize": True, "P0": "randomized", "rng": np.random.default_rng(start)},
            ).fun
            for start in range(8)
        )
        plan, _ = match(jax.random.key(seed), on_device(x), on_device(y), jnp.ones(12), jnp.zeros((12, 12)))
        partner = linear_sum_assignment(-np.asarray(plan))[1]
        ratios.append((x[0][0] * y[0][0][partner][:, partner]).sum() / theirs)
    assert np.mean(ratios) > 0.95, ratios
