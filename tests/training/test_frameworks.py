"""Alignment inside training loops: Flax linen and NNX, Equinox; sharded, in half precision, stored."""

import functools

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import assert_trees_close, make_map, planted_clouds, unit
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mv2v_jax.training import LossConfig, OnlineConfig, alignment_loss, online_init, online_map, online_update

# Compiling takes nearly all of the time.
D_IN, D_X, D_Y, BATCH, STEPS = 7, 6, 5, 24, 3
CONFIG = OnlineConfig(queue_rows=48, num_neighbors=2, rotate_every=1, decay=0.9)
SELDOM = OnlineConfig(queue_rows=32, num_neighbors=2, rotate_every=5)
LOSS = LossConfig(sinkhorn_steps=2)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(D_X)(nn.tanh(nn.Dense(8)(inputs)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(D_IN, 8, rngs=rngs), nnx.Linear(8, D_X, rngs=rngs)

    def __call__(self, inputs):
        return self.last(nnx.tanh(self.first(inputs)))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    name: str = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first, self.last, self.name = eqx.nn.Linear(D_IN, 8, key=keys[0]), eqx.nn.Linear(8, D_X, key=keys[1]), "e"

    def __call__(self, inputs):
        return jax.vmap(lambda row: self.last(jnp.tanh(self.first(row))))(inputs)


def linen():
    model = Linen()
    return model.init(jax.random.key(0), jnp.ones((1, D_IN))), model.apply


def equinox():
    params, static = eqx.partition(Equinox(jax.random.key(0)), eqx.is_inexact_array)
    return params, lambda params, inputs: eqx.combine(params, static)(inputs)


@pytest.fixture
def start():
    return make_map(np.eye(D_X, D_Y))


@pytest.fixture
def rows(rng):
    """Inputs of the encoder ``[STEPS, BATCH, D_IN]`` and rows of the target."""
    return tuple(jnp.asarray(rng.standard_normal((STEPS, BATCH, d)), jnp.float32) for d in (D_IN, D_Y))


def adam():
    """Optax multiplies floats with step numbers, which JAX's strict promotion of dtypes forbids."""
    optimizer = optax.adam(1e-2)

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


def make_step(encode, optimizer, dtype=jnp.float32):
    """An ordinary training step that carries the online state as well."""

    def loss(params, state, inputs, y):
        x = encode(jax.tree.map(lambda leaf: leaf.astype(dtype), params), inputs.astype(dtype))
        task = jnp.mean(jnp.square(x).astype(jnp.float32))
        return task + 0.1 * alignment_loss(online_map(state), x, y.astype(dtype), LOSS), x

    def step(carry, batch):
        params, opt_state, state = carry
        (value, x), gradients = jax.value_and_grad(loss, has_aux=True)(params, state, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        state, info = online_update(state, x, batch[1], CONFIG)
        return (optax.apply_updates(params, updates), opt_state, state), (value, info)

    return step


@pytest.mark.parametrize(
    ("make", "dtype"), [(linen, jnp.bfloat16), pytest.param(equinox, jnp.float32, marks=pytest.mark.slow)]
)
def test_trains_under_jit_grad_and_scan(make, dtype, rows, start):
    """Parameters and states are float32; rows are float32 or bfloat16."""
    params, encode = make()
    optimizer = adam()
    carry = (params, optimizer.init(params), online_init(start, rows[1][0], CONFIG))
    new, (values, info) = jax.jit(lambda carry, rows: jax.lax.scan(make_step(encode, optimizer, dtype), carry, rows))(
        carry, rows
    )
    trained, _, state = new
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [leaf.dtype for leaf in jax.tree.leaves(carry)]
    assert int(state.count) == STEPS
    assert values.shape == info.objective.shape == (STEPS,)
    assert values.dtype == info.objective.dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trained, values, info)))
    assert not any(np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (trained, params)), strict=True))


def test_nnx_modules_and_their_own_transforms(rows, start):
    """As an NNX user would write it: module and optimizer change in place, the state is carried."""
    model = Nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, state, inputs, y):
        def loss(model):
            x = model(inputs)
            return alignment_loss(online_map(state), x, y, LOSS), x

        (value, x), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradients)
        state, _ = online_update(state, x, y, CONFIG)
        return state, value

    state, before = online_init(start, rows[1][0], CONFIG), jnp.array(model.first.kernel[...])
    for index in range(2):
        state, value = step(model, optimizer, state, rows[0][index], rows[1][index])
    assert int(state.count) == 2
    assert np.isfinite(value)
    assert not np.array_equal(model.first.kernel[...], before)


def test_equinox_filtered_transforms(rows, start):
    """As an Equinox user would write it: the loss is differentiated with respect to the module."""
    model = Equinox(jax.random.key(0))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model, linear_map, inputs, y):
        return alignment_loss(linear_map, model(inputs), y, LOSS)

    value, gradients = loss(model, start, rows[0][0], rows[1][0])
    assert np.isfinite(value)
    assert float(jnp.abs(gradients.last.weight).max()) > 0


def test_the_loss_brings_an_encoder_back():
    """A right encoder that was turned a little becomes right again, without pairs."""
    data = planted_clouds(D_X, D_X, num_x=400, num_y=400, groups=12)
    x, y = (jnp.asarray(rows - rows.mean(0)) for rows in (data.x, data.y))
    off = jnp.asarray(np.eye(D_X) + 0.3 * np.random.default_rng(0).standard_normal((D_X, D_X)), jnp.float32)
    linear_map = make_map(data.W)
    optimizer = adam()

    @jax.jit
    def train(encoder):
        def step(carry, index):
            encoder, opt_state = carry
            batch_x, batch_y = (jax.lax.dynamic_slice_in_dim(rows, index % 4 * 100, 100) for rows in (x, y))
            gradient = jax.grad(lambda encoder: alignment_loss(linear_map, batch_x @ encoder, batch_y, LOSS))(encoder)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (encoder + updates, opt_state), None

        return jax.lax.scan(step, (encoder, optimizer.init(encoder)), jnp.arange(100))[0][0]

    def cosine(encoder):
        target = data.y_eval - data.y.mean(0)
        mapped = (data.x_eval - data.x.mean(0)) @ np.asarray(encoder) @ data.W
        return np.mean(np.sum(unit(mapped) * unit(target), axis=1))

    assert 1 - cosine(train(off)) < 0.3 * (1 - cosine(off))


def test_the_state_is_stored_and_restored(tmp_path, rows, start):
    state = online_init(start, rows[1][0], CONFIG)
    file = tmp_path / "state.msgpack"
    leaves, structure = jax.tree.flatten(state)
    file.write_bytes(flax.serialization.to_bytes(leaves))
    restored = jax.tree.unflatten(structure, flax.serialization.from_bytes(leaves, file.read_bytes()))
    assert_trees_close(jax.tree.map(jnp.asarray, restored), state, atol=0, rtol=0)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.fixture
def split_step(rng, start):
    """An update, its arguments, and its result on one device."""
    config = OnlineConfig(queue_rows=32, num_neighbors=2, rotate_every=1, decay=0.5)
    x, y = (jnp.asarray(rng.standard_normal((16, d)), jnp.float32) for d in (D_X, D_Y))
    state = online_init(start, y, config)

    def step(state, x, y, axis_name=None):
        return online_update(state, x, y, config, axis_name=axis_name)[0]

    return step, (state, x, y), jax.jit(step)(state, x, y)


def assert_same_update(shared, whole, before):
    np.testing.assert_allclose(shared.source.mean, whole.source.mean, atol=1e-5)
    np.testing.assert_allclose(shared.queue, whole.queue, atol=1e-5)
    # Each device matches the queue with its part of the batch only.
    for name in ("cross", "W"):
        changes = [np.ravel(getattr(state, name) - getattr(before, name)) for state in (shared, whole)]
        assert np.corrcoef(*changes)[0, 1] > 0.8


def test_sharded_over_devices(split_step):
    step, (state, x, y), whole = split_step
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = NamedSharding(mesh, P("data"))
    split_x, split_y = (jax.device_put(a, rows) for a in (x, y))

    # Rows are sharded and the program is unchanged: the compiler partitions it.
    sharded = jax.jit(step)(jax.device_put(state, NamedSharding(mesh, P())), split_x, split_y)
    np.testing.assert_allclose(sharded.W, whole.W, atol=1e-4)
    assert np.linalg.norm(whole.W - state.W) > 0.1
    loss = jax.jit(lambda state, x, y: alignment_loss(online_map(state), x, y, LOSS))
    np.testing.assert_allclose(loss(state, split_x, split_y), loss(state, x, y), atol=1e-4)

    # Each device runs its own program.
    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P()}
    mapped = jax.shard_map(functools.partial(step, axis_name="data"), mesh=mesh, check_vma=False, **specs)
    assert_same_update(jax.jit(mapped)(state, split_x, split_y), whole, state)

    # With JAX's check of what varies over the devices, each device has its own state.
    def own(state, x, y, axis_name=None):
        pairs = (x[:1], y[:1])
        return online_update(state, x, y, SELDOM, pairs=pairs, axis_name=axis_name)[0].W[None]

    for axis_name in (None, "data"):
        checked = jax.shard_map(
            functools.partial(own, axis_name=axis_name), mesh=mesh, **specs | {"out_specs": P("data")}
        )
        assert jax.eval_shape(checked, state, x, y).shape == (4, D_X, D_Y)


@pytest.mark.slow
def test_under_pmap(split_step):
    """`jax.pmap` is implemented by `jax.shard_map`."""
    step, (state, x, y), whole = split_step
    by_device = jax.pmap(
        step, axis_name="data", in_axes=(None, 0, 0, None), devices=jax.devices()[:4], static_broadcasted_argnums=3
    )
    replicas = by_device(state, x.reshape(4, 4, D_X), y.reshape(4, 4, D_Y), "data")
    assert_same_update(jax.tree.map(lambda a: np.asarray(a)[0], replicas), whole, state)
