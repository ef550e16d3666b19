"""What one update does, and invariants of its state; `test_online_drift` shows its purpose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Planted,
    assert_trees_close,
    count_compilations,
    equations,
    make_map,
    planted_clouds,
    semi_orthogonal,
    unit,
)

from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import evaluate
from mv2v_jax.training.losses import LossConfig
from mv2v_jax.training.online import OnlineConfig, _match, online_init, online_map, online_update

# Compiling takes nearly all of the time.
D_X, D_Y = 12, 10
SMALL = OnlineConfig(queue_rows=64, num_neighbors=2, rotate_every=1, decay=0.9, whitening_power=0.5)


@pytest.fixture(scope="module")
def planted():
    return planted_clouds(D_X, D_Y, num_x=400, num_y=400)


def true_map(data, W=None):
    return make_map(data.W if W is None else W, data.x.mean(0), data.y.mean(0))


def batches(data, num_steps, size, dtype=jnp.float32):
    """Batches of consecutive rows of both spaces: ``[num_steps, size, d]``."""
    x, y = (jnp.asarray(rows[: num_steps * size], dtype) for rows in (data.x, data.y))
    return tuple(rows.reshape(num_steps, size, -1) for rows in (x, y))


def test_an_inexact_map_is_improved_by_batches():
    data = planted_clouds(D_Y, D_X, num_x=3_200, num_y=3_200)
    rng = np.random.default_rng(1)
    noisy = true_map(data, data.W + 0.25 * rng.standard_normal(data.W.shape))
    state = online_init(noisy, jnp.asarray(data.y[:64]), SMALL)
    before = evaluate(online_map(state), jnp.asarray(data.x_eval), jnp.asarray(data.y_eval)).foscttm
    state, info = jax.jit(lambda state, xs: jax.lax.scan(lambda s, batch: online_update(s, *batch, SMALL), state, xs))(
        state, batches(data, 50, 64)
    )
    after = evaluate(online_map(state), jnp.asarray(data.x_eval), jnp.asarray(data.y_eval)).foscttm
    assert after < 0.5 * before
    assert info.agreement[-1] > info.agreement[0]
    assert info.moved[-1] < info.moved[0]
    np.testing.assert_allclose(state.W @ state.W.T, np.eye(D_Y), atol=1e-4)


def test_scan_equals_loop_and_other_floats_compile_nothing(planted):
    xs = batches(planted, 4, 32)
    state = online_init(true_map(planted), jnp.asarray(planted.y[:40]), SMALL)
    update = jax.jit(online_update)
    scanned, infos = jax.jit(
        lambda state, xs: jax.lax.scan(lambda s, batch: online_update(s, *batch, SMALL), state, xs)
    )(state, xs)
    looped = state
    with count_compilations() as compilations:
        for index in range(4):
            looped, info = update(looped, xs[0][index], xs[1][index], SMALL)
        assert len(compilations) >= 1
    assert_trees_close(scanned, looped, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(infos.objective[-1], info.objective, atol=1e-5)
    assert int(scanned.count) == 4
    assert jax.tree.structure(scanned) == jax.tree.structure(state)
    with count_compilations() as again:
        update(looped, xs[0][0], xs[1][0], dataclasses.replace(SMALL, decay=0.5))
    assert not again


def test_the_queue_holds_the_latest_rows_of_the_target(planted):
    xs = batches(planted, 4, 24)
    state = online_init(true_map(planted), jnp.asarray(planted.y[300:340]), SMALL)
    update = jax.jit(online_update)
    for index in range(3):
        state, _ = update(state, xs[0][index], xs[1][index], SMALL)
    # 40 + 3 x 24 rows have been added; the queue holds the last 64.
    assert int(state.head) == (40 + 72) % 64
    came = np.concatenate([planted.y[300:340], planted.y[:72]])[-64:]
    held = np.roll(np.asarray(state.queue), -int(state.head), axis=0)
    cosine = np.sum(held * (came - planted.y.mean(0)), axis=1) / np.linalg.norm(came - planted.y.mean(0), axis=1)
    assert cosine.min() > 0.9
    # More rows than the queue holds, and none.
    many, _ = update(state, xs[0][0], jnp.asarray(planted.y[:100]), SMALL)
    assert int(many.head) == (int(state.head) + 64) % 64
    none, _ = update(state, xs[0][0], jnp.zeros((0, D_Y)), SMALL)
    np.testing.assert_array_equal(none.queue, state.queue)
    assert not np.array_equal(none.W, state.W)


def test_the_rotation_takes_a_step_every_few_updates(planted):
    xs = batches(planted, 7, 32)
    config = dataclasses.replace(SMALL, rotate_every=3)
    state = online_init(true_map(planted), jnp.asarray(planted.y[:64]), config)
    scan = jax.jit(lambda state, xs: jax.lax.scan(lambda s, batch: online_update(s, *batch, config), state, xs))
    _, info = scan(state, xs)
    np.testing.assert_array_equal(np.asarray(info.moved) > 0, [False, False, True, False, False, True, False])


def test_weights_are_those_of_csls_against_numpy(rng):
    """Weights are exponentials of the CSLS in standard deviations."""
    x, y = unit(rng.normal(size=(30, 5))), unit(rng.normal(size=(41, 5)))
    similarity = x @ y.T
    near_x = np.stack([similarity[:, part:40:10].max(1) for part in range(10)]).mean(0)
    near_y = np.stack([similarity[3 * part : 3 * part + 3].max(0) for part in range(10)]).mean(0)
    csls = 2 * similarity - near_x[:, None] - near_y[None]
    score = (csls - csls.mean()) / csls.std()
    rows, columns = (np.exp(np.sqrt(np.log(num / 4)) * score) for num in (41, 30))
    expected = rows / rows.sum(1, keepdims=True) / 30 + columns / columns.sum(0) / 41
    found = jax.jit(_match, static_argnums=2)(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 4)
    np.testing.assert_allclose(found.plan, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.objective, (csls.max(1).mean() + csls.max(0).mean()) / 2, rtol=1e-5)


@pytest.mark.parametrize(("num_x", "num_y", "mass"), [(9, 41, 2), (30, 3, 2), (0, 41, 0), (30, 0, 0)])
def test_zero_rows_have_no_weight(rng, num_x, num_y, mass):
    """The weights of other rows still sum to 1, even if there are fewer rows than partners."""
    x, y = unit(rng.normal(size=(30, 5))), unit(rng.normal(size=(41, 5)))
    x[num_x:], y[num_y:] = 0, 0
    plan = np.asarray(jax.jit(_match, static_argnums=2)(jnp.asarray(x), jnp.asarray(y), 4).plan)
    assert not plan[num_x:].any()
    assert not plan[:, num_y:].any()
    assert plan.sum() == pytest.approx(mass, abs=1e-4)


def test_known_pairs_lead_to_a_map_that_batches_alone_do_not_find():
    """The clouds are round and the start is wrong, so only the pairs can help."""
    rng = np.random.default_rng(2)
    W = semi_orthogonal(rng, D_X, D_Y)
    x, z, known = (rng.normal(size=(num, D_X)).astype(np.float32) for num in (50 * 32, 50 * 32, 120))
    data = Planted(x=x, y=(z @ W).astype(np.float32), x_eval=x[:100], y_eval=(x[:100] @ W).astype(np.float32), W=W)
    start = online_init(true_map(data, semi_orthogonal(rng, D_X, D_Y)), jnp.asarray(data.y[:64]), SMALL)

    @jax.jit
    def follow(state, xs, pairs):
        return jax.lax.scan(lambda s, batch: online_update(s, *batch, SMALL, pairs=pairs), state, xs)[0]

    def found(pairs):
        return online_map(follow(start, batches(data, 50, 32), pairs))

    def top1(fitted):
        return float(evaluate(fitted, jnp.asarray(data.x_eval), jnp.asarray(data.y_eval)).top1)

    right, without = (known, (known @ W).astype(np.float32)), found(None)
    assert top1(found(right)) > 0.7
    assert top1(found((known, right[1][::-1]))) < 0.2
    assert top1(without) < 0.2
    none = online_update(start, data.x[:32], data.y[:32], SMALL, pairs=tuple(side[:0] for side in right))[0]
    np.testing.assert_allclose(none.cross, online_update(start, data.x[:32], data.y[:32], SMALL)[0].cross, atol=1e-5)


def test_a_batch_of_zero_rows_changes_no_average(planted):
    state = online_init(true_map(planted), jnp.asarray(planted.y[:64]), SMALL)
    update = jax.jit(online_update)
    same, info = update(state, jnp.zeros((8, D_X)), jnp.zeros((0, D_Y)), SMALL)
    np.testing.assert_allclose(same.source.mean, state.source.mean)
    np.testing.assert_array_equal(same.cross, state.cross)
    np.testing.assert_allclose(same.W, state.W, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((same, info)))


def test_one_long_row_does_not_move_the_averages(planted):
    x, y = batches(planted, 1, 64)
    state = online_init(true_map(planted), y[0], SMALL)
    update = jax.jit(online_update)
    usual, _ = update(state, x[0], y[0], SMALL)
    long, _ = update(state, x[0].at[5].mul(1e5), y[0].at[9].mul(1e5), SMALL)
    for found, expected in ((long.source, usual.source), (long.target, usual.target)):
        np.testing.assert_allclose(found.mean, expected.mean, atol=0.01 * float(expected.scale))
        np.testing.assert_allclose(found.scale, expected.scale, rtol=0.01)
    assert float(jnp.sum(long.cross * usual.cross)) / float(jnp.sum(usual.cross**2)) > 0.98


def test_half_precision_batches_leave_the_state_float32(planted):
    dtype = jnp.bfloat16
    x, y = batches(planted, 1, 64, dtype)
    state = online_init(true_map(planted), y[0], SMALL)
    new, info = jax.jit(online_update)(state, x[0], y[0], SMALL)
    for old_leaf, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert old_leaf.dtype == leaf.dtype != dtype
    assert info.objective.dtype == jnp.float32


def test_dtypes_hold_under_strict_promotion_and_nothing_is_called_back(planted):
    x, y = batches(planted, 1, 32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state = jax.eval_shape(lambda y: online_init(true_map(planted), y, SMALL), y[0])
        found = jax.make_jaxpr(lambda *args: online_update(*args, SMALL, pairs=args[1:]))(state, x[0], y[0])
    names = {equation.primitive.name for equation in equations(found.jaxpr)}
    assert not {name for name in names if "callback" in name or name in ("svd", "eigh")}


def test_no_gradient_goes_through_an_update(planted):
    x, y = batches(planted, 1, 32)
    state = online_init(true_map(planted), y[0], SMALL)

    def loss(x):
        state_new, info = online_update(state, x, y[0], SMALL)
        return state_new.W.sum() + info.objective

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x[0]), 0)


def test_devices_that_share_an_axis_equal_one_device(planted):
    """With rows split over an axis, the averages and all states are the same."""
    x, y = batches(planted, 1, 64)
    state = online_init(true_map(planted), jnp.asarray(planted.y[100:164]), SMALL)

    def split(state, x, y):
        update = jax.vmap(lambda x, y: online_update(state, x, y, SMALL, axis_name="data"), axis_name="data")
        return update(x.reshape(4, 16, -1), y.reshape(4, 16, -1))

    (shared, info) = jax.jit(split)(state, x[0], y[0])
    whole, _ = jax.jit(online_update)(state, x[0], y[0], SMALL)
    for leaf in jax.tree.leaves(shared):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    np.testing.assert_allclose(shared.source.mean[0], whole.source.mean, atol=1e-5)
    np.testing.assert_allclose(shared.queue[0], whole.queue, atol=1e-5)
    # Each device matches the queue with its part of the batch only, so the cross-covariance is not exactly the same.
    change = [found - state.cross for found in (shared.cross[0], whole.cross)]
    assert float(jnp.sum(change[0] * change[1]) / jnp.prod(jnp.array([jnp.linalg.norm(c) for c in change]))) > 0.9
    assert info.objective.shape == (4,)


def test_bad_input_is_refused(planted):
    linear_map = true_map(planted)
    state = online_init(linear_map, jnp.asarray(planted.y[:5]), SMALL)
    x, y = jnp.ones((5, D_X)), jnp.ones((5, D_Y))
    for arguments, message in [
        ((linear_map, x), r"y must have 10 columns for this map, found 12; were x and y swapped\?"),
        ((linear_map, y[:, :2]), "y must have 10 columns for this map, found 2"),
        ((linear_map, y[:0]), "y must have at least 1 row, found 0"),
        ((linear_map, y[0]), r"y must be two-dimensional, one embedding per row, found shape \[10\]"),
        ((state, y), "linear_map must be a LinearMap, found OnlineState"),
        ((linear_map, y, LossConfig()), "config must be an OnlineConfig, found LossConfig"),
    ]:
        with pytest.raises(InputError, match=message):
            online_init(*arguments)
    for transform in (lambda fun: fun, jax.jit):
        for arguments, message in [
            ((state, y, x), r"x must have 12 columns for this state, found 10; were x and y swapped\?"),
            ((state, x, y[:, :2]), "y must have 10 columns for this state, found 2"),
            ((state, x[:0], y), "x must have at least 1 row, found 0"),
            ((linear_map, x, y), "state must be an OnlineState, such as online_init returns, found LinearMap"),
            ((state, x, y, LossConfig()), "config must be an OnlineConfig, found LossConfig"),
        ]:
            with pytest.raises(InputError, match=message):
                transform(online_update)(*arguments)
    for pairs, message in (((x[:1], y), "a row for each of the 1"), ((y, x), "must have 12 columns")):
        with pytest.raises(InputError, match=message):
            online_update(state, x, y, SMALL, pairs=pairs)


@pytest.mark.parametrize(
    "changes", [{"queue_rows": 0}, {"num_neighbors": -1}, {"rotate_every": 0}, {"rotate_every": 2.0}]
)
def test_counts_out_of_range_are_refused(planted, changes):
    config = dataclasses.replace(SMALL, **changes)
    state, y = online_init(true_map(planted), jnp.asarray(planted.y), SMALL), jnp.asarray(planted.y)
    for use in (
        lambda: online_init(true_map(planted), y, config),
        lambda: online_update(state, jnp.asarray(planted.x), y, config),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} must be a whole number of at least 1"):
            use()


def test_a_map_of_the_rotation_itself_is_semi_orthogonal(planted):
    W = semi_orthogonal(np.random.default_rng(0), D_X, D_Y)
    state = online_init(true_map(planted, 3 * W), jnp.asarray(planted.y), SMALL)
    np.testing.assert_allclose(online_map(state, whitened=False).W, W, atol=1e-5)
    assert float(jnp.linalg.norm(online_map(state).W)) == pytest.approx(D_Y**0.5, rel=1e-5)
