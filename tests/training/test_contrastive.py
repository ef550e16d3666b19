"""Contrastive refinement: its loss against SciPy, and a planted general linear map that no rotation reaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import count_compilations, equations, semi_orthogonal, unit
from scipy.special import logsumexp

from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import evaluate, oracle
from mv2v_jax.training.contrastive import ContrastiveConfig, contrastive_loss, refine_contrastive, round_steps
from mv2v_jax.training.online import OnlineConfig

# Compiling takes nearly all of the time.
D_X, D_Y = 10, 8
SMALL = ContrastiveConfig(num_rounds=2, num_steps=60, max_passes=6, batch_rows=128, num_neighbors=2, learning_rate=1e-2)
ADAM = optax.adam(1e-2)


class Stretched:
    """Disjoint rows of one cloud in two views; the second view stretches some directions and hides others."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        rotation = semi_orthogonal(rng, D_X, D_Y)
        stretch = semi_orthogonal(rng, D_Y, D_Y) @ np.diag(np.geomspace(1, 0.3, D_Y)) @ semi_orthogonal(rng, D_Y, D_Y)

        def views(num):
            rows = rng.standard_normal((num, D_X)) * 0.9 ** np.arange(D_X)
            return rows, rows @ rotation @ stretch + 0.05 * rng.standard_normal((num, D_Y))

        draws = [views(num) for num in (700, 600, 300)]
        self.x, self.y = draws[0][0], draws[1][1]
        self.x_eval, self.y_eval = draws[2]
        # The best rotation; it differs from the true map by the stretch only.
        self.start = oracle(*(jnp.asarray(rows, jnp.float32) for rows in (self.x, draws[0][1], self.y)))

    def judge(self, linear_map):
        return evaluate(linear_map, *(jnp.asarray(rows, jnp.float32) for rows in (self.x_eval, self.y_eval)))

    def refine(self, config=SMALL, dtype=jnp.float32, **options):
        x, y = (jnp.asarray(rows, dtype) for rows in (self.x, self.y))
        return refine_contrastive(jax.random.key(0), self.start, x, y, config, **options)


@pytest.fixture(scope="module")
def stretched():
    return Stretched()


def test_loss_equals_scipy_and_padding_takes_no_part(rng):
    x, y = (unit(rng.standard_normal((9, 4))) for _ in range(2))
    logits = x @ y.T / 0.2
    expected = np.mean([logsumexp(logits, axis=axis) - np.diag(logits) for axis in (0, 1)])
    with jax.enable_x64(True):
        np.testing.assert_allclose(contrastive_loss(x, y, temperature=0.2), expected)
        padded = (np.concatenate([x, x[:1], np.zeros((2, 4))]), np.concatenate([y, np.zeros((2, 4)), y[:1]]))
        loss = jax.jit(jax.value_and_grad(lambda x, y: contrastive_loss(x, y, temperature=0.2)))
        found, gradient = loss(*padded)
        np.testing.assert_allclose(found, expected)
        np.testing.assert_array_equal(gradient[9:], 0)


def test_a_planted_linear_map_is_nearer_and_retrieves_better_than_the_best_rotation(stretched):
    found = stretched.refine()
    before, after = stretched.judge(stretched.start), stretched.judge(found.map)
    assert after.cosine > before.cosine + 0.02
    assert after.top1 >= before.top1
    assert found.loss.shape == (2, 60)
    assert round_steps(700, 600, dataclasses.replace(SMALL, max_passes=1)) == 11  # 1,300 pairs, 128 at a time
    # The loss falls in every round, which has its own partners.
    assert (found.loss[:, -10:].mean(1) < found.loss[:, :5].mean(1)).all()
    for name in ("source", "target"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found.map, name), getattr(stretched.start, name))


def test_other_floats_compile_nothing_and_distance_limits_the_change(stretched):
    free = stretched.refine()
    with count_compilations() as again:
        held = stretched.refine(dataclasses.replace(SMALL, distance=1e3, temperature=0.1))
    assert not again
    assert float(held.moved[-1]) < 0.2 * float(free.moved[-1])
    np.testing.assert_allclose(
        free.moved[-1], np.linalg.norm(free.map.W - stretched.start.W) / np.linalg.norm(stretched.start.W), rtol=1e-5
    )


def test_any_optimiser_half_precision_and_an_offset(stretched):
    config = dataclasses.replace(SMALL, affine=True)
    found = stretched.refine(config, jnp.bfloat16, optimizer=ADAM)
    assert found.map.W.dtype == found.loss.dtype == jnp.float32
    assert np.isfinite(found.loss).all()
    assert float(jnp.linalg.norm(found.map.source.mean - stretched.start.source.mean)) > 0
    np.testing.assert_array_equal(found.map.target.mean, stretched.start.target.mean)
    assert stretched.judge(found.map).cosine > stretched.judge(stretched.start).cosine


def test_known_pairs_repair_a_wrong_map(stretched):
    rng = np.random.default_rng(5)
    lost = dataclasses.replace(stretched.start, W=jnp.asarray(semi_orthogonal(rng, D_X, D_Y), jnp.float32))
    x, y = (jnp.asarray(rows, jnp.float32) for rows in (stretched.x, stretched.y))
    # Not the rows that judge.
    pairs = (stretched.x_eval[200:], stretched.y_eval[200:])
    maps = [
        refine_contrastive(jax.random.key(0), lost, x, y, SMALL, pairs=some).map
        for some in (None, tuple(np.float32(side) for side in pairs))
    ]
    judged = [jnp.asarray(rows[:200], jnp.float32) for rows in (stretched.x_eval, stretched.y_eval)]
    without, with_pairs = (float(evaluate(found, *judged).top1) for found in maps)
    assert without < 0.1
    assert with_pairs > 0.5
    with pytest.raises(ValueError, match=r"pairs\[1\] must have a row for each"):
        refine_contrastive(jax.random.key(0), lost, x, y, SMALL, pairs=(pairs[0], pairs[1][1:]))


def test_no_array_is_n_by_m(stretched):
    n, m = 20_000, 21_000
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, D_X), (m, D_Y))]
    start = stretched.start
    found = jax.make_jaxpr(lambda x, y: refine_contrastive(jax.random.key(0), start, x, y, SMALL))(*shapes)
    largest = max(getattr(var.aval, "size", 0) for equation in equations(found.jaxpr) for var in equation.outvars)
    assert largest < n * m / 10


def test_bad_input_is_refused(stretched):
    x, y, start = stretched.x, stretched.y, stretched.start
    for arguments, message in [
        ((start, y, x), r"x must have 10 columns for this map, found 8; were x and y swapped\?"),
        ((start, x, x), r"y must have 8 columns for this map, found 10; were x and y swapped\?"),
        ((start, x[0], y), r"x must be two-dimensional, one embedding per row, found shape \[10\]"),
        ((start.W, x, y), "linear_map must be a LinearMap, found"),
        ((start, x, y, OnlineConfig()), "config must be a ContrastiveConfig, found OnlineConfig"),
    ]:
        for fun in (refine_contrastive, jax.jit(refine_contrastive)):
            with pytest.raises(InputError, match=message):
                fun(jax.random.key(0), *arguments)
    with pytest.raises(InputError, match="key must be one random key"):
        refine_contrastive(start, jax.random.key(0), x, y)
    for pair, message in [
        ((x, y), "y must have 10 columns like mapped, found 8"),
        ((y[:9], y), "y must have a row for each of the 9 of mapped, found 600"),
    ]:
        with pytest.raises(InputError, match=message):
            contrastive_loss(*pair)
    for name, count in (("batch_rows", 1), ("num_steps", 0), ("num_neighbors", 0)):
        config = dataclasses.replace(SMALL, **{name: count})
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
            refine_contrastive(jax.random.key(0), stretched.start, stretched.x, stretched.y, config)
