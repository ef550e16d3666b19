"""Alignment inside training loops: plain pytrees, Flax linen and NNX, Equinox; sharded, in half precision, stored."""

import os
import subprocess
import sys
import textwrap

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, planted_clouds, unit
from flax import nnx

from mv2v_jax import LinearMap, alignment_loss, refine_init, refine_map, refine_update
from mv2v_jax.incremental import RefineConfig
from mv2v_jax.losses import LossConfig

# Compiling is the cost.
pytestmark = pytest.mark.usefixtures("quick_compile")

D_IN, D_X, D_Y, BATCH, STEPS = 7, 6, 5, 24, 3
CONFIG = RefineConfig(queue_rows=48, num_neighbors=2, decay=0.9)
LOSS = LossConfig(sinkhorn_steps=3)


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


def plain():
    keys = jax.random.split(jax.random.key(0))
    params = {"w": jax.random.normal(keys[0], (D_IN, 8)), "v": jax.random.normal(keys[1], (8, D_X))}
    return params, lambda params, inputs: jnp.tanh(inputs @ params["w"]) @ params["v"]


def linen():
    model = Linen()
    return model.init(jax.random.key(0), jnp.ones((1, D_IN))), model.apply


def with_nnx():
    graph, params = nnx.split(Nnx(nnx.Rngs(0)))
    return params, lambda params, inputs: nnx.merge(graph, params)(inputs)


def equinox():
    params, static = eqx.partition(Equinox(jax.random.key(0)), eqx.is_inexact_array)
    return params, lambda params, inputs: eqx.combine(params, static)(inputs)


@pytest.fixture
def start():
    return LinearMap(
        W=jnp.eye(D_X, D_Y),
        mean_x=jnp.zeros(D_X),
        mean_y=jnp.zeros(D_Y),
        scale_x=jnp.ones(()),
        scale_y=jnp.ones(()),
    )


@pytest.fixture
def rows(rng):
    """Inputs of the encoder ``[STEPS, BATCH, D_IN]`` and rows of the target."""
    return tuple(jnp.asarray(rng.standard_normal((STEPS, BATCH, d)), jnp.float32) for d in (D_IN, D_Y))


def make_step(encode, optimizer, dtype=jnp.float32):
    """A training step like any other, with a state more to carry."""

    def loss(params, state, inputs, y):
        x = encode(jax.tree.map(lambda leaf: leaf.astype(dtype), params), inputs.astype(dtype))
        task = jnp.mean(jnp.square(x).astype(jnp.float32))
        return task + 0.1 * alignment_loss(refine_map(state), x, y.astype(dtype), LOSS), x

    def step(carry, batch):
        params, opt_state, state = carry
        (value, x), gradients = jax.value_and_grad(loss, has_aux=True)(params, state, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        state, info = refine_update(state, x, batch[1], CONFIG)
        return (optax.apply_updates(params, updates), opt_state, state), (value, info)

    return step


@pytest.mark.parametrize("make", [plain, linen, with_nnx, equinox])
def test_trains_under_jit_grad_and_scan(make, rows, start):
    params, encode = make()
    optimizer = optax.adam(1e-2)
    carry = (params, optimizer.init(params), refine_init(start, rows[1][0], CONFIG))
    (trained, _, state), (values, info) = jax.jit(
        lambda carry, rows: jax.lax.scan(make_step(encode, optimizer), carry, rows)
    )(carry, rows)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert int(state.count) == STEPS
    assert values.shape == info.objective.shape == (STEPS,)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trained, values, info)))
    assert not any(np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (trained, params)), strict=True))


def test_nnx_modules_and_their_own_transforms(rows, start):
    """As an NNX user would write it: the module and the optimizer are changed in place, the state is carried."""
    model = Nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, state, inputs, y):
        def loss(model):
            x = model(inputs)
            return alignment_loss(refine_map(state), x, y, LOSS), x

        (value, x), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradients)
        state, _ = refine_update(state, x, y, CONFIG)
        return state, value

    state, before = refine_init(start, rows[1][0], CONFIG), jnp.array(model.first.kernel[...])
    for index in range(2):
        state, value = step(model, optimizer, state, rows[0][index], rows[1][index])
    assert int(state.count) == 2
    assert np.isfinite(value)
    assert not np.array_equal(model.first.kernel[...], before)


def test_equinox_filtered_transforms(rows, start):
    """As an Equinox user would write it: the module is differentiated whole."""
    model = Equinox(jax.random.key(0))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model, linear_map, inputs, y):
        return alignment_loss(linear_map, model(inputs), y, LOSS)

    value, gradients = loss(model, start, rows[0][0], rows[1][0])
    assert np.isfinite(value)
    assert float(jnp.abs(gradients.last.weight).max()) > 0


def test_mixed_precision(rows, start):
    """Parameters and states in float32, rows in bfloat16."""
    params, encode = plain()
    optimizer = optax.adam(1e-2)
    carry = (params, optimizer.init(params), refine_init(start, rows[1][0], CONFIG))
    new, (values, info) = jax.jit(
        lambda carry, rows: jax.lax.scan(make_step(encode, optimizer, jnp.bfloat16), carry, rows)
    )(carry, rows)
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [leaf.dtype for leaf in jax.tree.leaves(carry)]
    assert values.dtype == info.objective.dtype == jnp.float32
    assert np.isfinite(values).all()


def test_the_loss_teaches_an_encoder_what_its_rows_should_be():
    """An encoder that was right and was turned a little finds back, without a pair."""
    data = planted_clouds(D_X, D_X, num_x=400, num_y=400, groups=12)
    x, y = (jnp.asarray(rows - rows.mean(0)) for rows in (data.x, data.y))
    off = jnp.asarray(np.eye(D_X) + 0.3 * np.random.default_rng(0).standard_normal((D_X, D_X)), jnp.float32)
    linear_map = LinearMap(
        W=jnp.asarray(data.W, jnp.float32),
        mean_x=jnp.zeros(D_X),
        mean_y=jnp.zeros(D_X),
        scale_x=jnp.ones(()),
        scale_y=jnp.ones(()),
    )
    optimizer = optax.adam(1e-2)

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
    state = refine_init(start, rows[1][0], CONFIG)
    file = tmp_path / "state.msgpack"
    leaves, structure = jax.tree.flatten(state)
    file.write_bytes(flax.serialization.to_bytes(leaves))
    restored = jax.tree.unflatten(structure, flax.serialization.from_bytes(leaves, file.read_bytes()))
    assert_trees_close(jax.tree.map(jnp.asarray, restored), state, atol=0, rtol=0)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from mv2v_jax import LinearMap, alignment_loss, refine_init, refine_map, refine_update
    from mv2v_jax.incremental import RefineConfig

    assert len(jax.devices()) == 4
    jax.config.update("jax_disable_most_optimizations", True)
    config = RefineConfig(queue_rows=32, num_neighbors=2)
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal((16, d)), jnp.float32) for d in (6, 5))
    start = LinearMap(W=jnp.eye(6, 5), mean_x=jnp.zeros(6), mean_y=jnp.zeros(5), scale_x=jnp.ones(()),
                      scale_y=jnp.ones(()))
    state = refine_init(start, y, config)

    def step(state, x, y, axis_name=None):
        return refine_update(state, x, y, config, axis_name=axis_name)

    def loss(x, y):
        return jax.value_and_grad(lambda x: alignment_loss(refine_map(state), x, y))(x)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole = jax.jit(step)(state, x, y)
    rows = NamedSharding(mesh, P("data"))
    split_x, split_y = (jax.device_put(a, rows) for a in (x, y))

    # Rows laid out over devices, the program as it is: the compiler does the rest.
    sharded = jax.jit(step)(jax.device_put(state, NamedSharding(mesh, P())), split_x, split_y)
    np.testing.assert_allclose(sharded[0].W, whole[0].W, atol=1e-4)
    for found, expected in zip(jax.jit(loss)(split_x, split_y), jax.jit(loss)(x, y)):
        np.testing.assert_allclose(found, expected, atol=1e-4)

    # Every device its own program, as under pmap.
    mapped = jax.jit(jax.shard_map(lambda s, x, y: step(s, x, y, "data"), mesh=mesh,
                                   in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=False))
    by_device = jax.pmap(lambda s, x, y: step(s, x, y, "data"), axis_name="data", in_axes=(None, 0, 0))
    for shared in (mapped(state, split_x, split_y)[0],
                   jax.tree.map(lambda a: a[0], by_device(state, x.reshape(4, 4, 6), y.reshape(4, 4, 5))[0])):
        np.testing.assert_allclose(shared.mean_x, whole[0].mean_x, atol=1e-5)
        np.testing.assert_allclose(shared.queue, whole[0].queue, atol=1e-5)
        assert float(jnp.sum(shared.W * whole[0].W)) / 5 > 0.95
    print("sharded")
"""


def test_sharded_over_devices():
    """On four devices that the CPU plays, which only a process of its own can be told."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "sharded"
