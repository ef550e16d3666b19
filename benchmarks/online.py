"""What does it cost to follow an encoder, and does the map keep up? Time per training step, and top-1 during a drift.

    python -m benchmarks.online [--data FOLDER] [--source NAME --target NAME] [--rows 20000 --eval 2000] [--steps 400]
        [--batch 256] [--json FILE]

The training step is that of a small encoder: an MLP with two hidden layers of 1,024, trained with Adam to regress rows
of the source from random features. The drift starts from a map that is fitted without pairs. In its course the source
turns by up to 3 radians and every row moves by half of its length. Labels only evaluate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

from benchmarks.common import (
    Split,
    add_data_options,
    load_split,
    make_parser,
    print_environment,
    print_table,
    steady_seconds,
    write_json,
)
from mv2v_jax import Config, LinearMap, align_restarts
from mv2v_jax.evaluation import metrics
from mv2v_jax.training import OnlineConfig, alignment_loss, online_init, online_map, online_update

HIDDEN, FEATURES = 1_024, 512
ANGLE, MOVED = 3.0, 0.5
# Training steps per call, many enough that the overhead of a call does not matter.
TIMED_STEPS = 20
VARIANTS = ("bare", "with online_update", "with alignment_loss", "with both")


def _encoder(key: jax.Array, width: int) -> list[jax.Array]:
    sizes = (FEATURES, HIDDEN, HIDDEN, width)
    keys = jax.random.split(key, len(sizes) - 1)
    return [jax.random.normal(k, (a, b)) / a**0.5 for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def _encode(params: list[jax.Array], features: jax.Array) -> jax.Array:
    for weights in params[:-1]:
        features = jax.nn.gelu(features @ weights)
    return features @ params[-1]


def time_training(split: Split, linear_map: LinearMap, batch: int) -> dict[str, float]:
    """Seconds of one training step in every variant."""
    x, y = (jnp.asarray(rows[:batch]) for rows in (split.x, split.y))
    params = _encoder(jax.random.key(0), x.shape[1])
    features = jax.random.normal(jax.random.key(1), (batch, FEATURES))
    optimizer = optax.adam(1e-3)
    config = OnlineConfig()
    state = online_init(linear_map, jnp.asarray(split.y), config)

    def train(variant: str):
        def loss(params, state):
            rows = _encode(params, features)
            value = jnp.mean((rows - x) ** 2)
            if variant in ("with alignment_loss", "with both"):
                value += 0.1 * alignment_loss(online_map(state), rows, y)
            return value, rows

        def step(carry, _):
            params, opt_state, state = carry
            (_, rows), gradient = jax.value_and_grad(loss, has_aux=True)(params, state)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            if variant in ("with online_update", "with both"):
                state, _ = online_update(state, rows, y, config)
            return (optax.apply_updates(params, updates), opt_state, state), None

        return jax.jit(lambda carry: jax.lax.scan(step, carry, length=TIMED_STEPS)[0])

    carry = (params, optimizer.init(params), state)
    return {name: steady_seconds(train(name), carry, repeats=5)[1] / TIMED_STEPS for name in VARIANTS}


def follow_drift(split: Split, linear_map: LinearMap, batch: int, num_steps: int) -> list[dict[str, float]]:
    """Top-1 of the updated map, of the fixed map and of the oracle, at five points of the drift."""
    d = split.x.shape[1]
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((d, d))
    generator = (matrix - matrix.T) / np.linalg.norm(matrix - matrix.T, 2)
    turn = jnp.asarray(scipy.linalg.expm(generator * ANGLE / num_steps), jnp.float32)
    first, second = (jnp.asarray(rng.standard_normal((d, d)) / d**0.5, jnp.float32) for _ in range(2))
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    scale = jnp.linalg.norm(x, axis=1).mean()
    config = OnlineConfig(decay=0.97)

    def encode(rows, rotation, share):
        moved = jnp.tanh(4 * rows / scale @ first) @ second
        return rows @ rotation + share * scale * moved / jnp.linalg.norm(moved, axis=1, keepdims=True)

    @jax.jit
    def follow(carry, x, y, steps):
        def step(carry, index):
            state, rotation = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index))
            drawn = [
                jax.random.randint(key, (batch,), 0, rows.shape[0]) for key, rows in zip(keys, (x, y), strict=True)
            ]
            rotation = rotation @ turn
            rows = encode(x[drawn[0]], rotation, MOVED * index / num_steps)
            return (online_update(state, rows, y[drawn[1]], config)[0], rotation), None

        return jax.lax.scan(step, carry, steps)[0]

    carry = (online_init(linear_map, y, config), jnp.eye(d))
    records = []
    for part in np.array_split(np.arange(num_steps + 1), 5):
        steps = part[part > 0]
        carry = follow(carry, x, y, jnp.asarray(steps))
        share = MOVED * float(steps[-1]) / num_steps
        now, now_eval = (encode(jnp.asarray(rows), carry[1], share) for rows in (split.x, split.x_eval))
        maps = {
            "updated": online_map(carry[0]),
            "fixed": linear_map,
            "oracle": metrics.oracle(now, jnp.asarray(split.y_true), y),
        }
        top1 = {
            name: float(metrics.evaluate(found, now_eval, jnp.asarray(split.y_eval)).top1)
            for name, found in maps.items()
        }
        records.append({"step": float(steps[-1]), **top1})
    return records


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit, time the training steps, follow the drift and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--steps", type=int, default=400, help="updates during the drift (default: 400)")
    parser.add_argument("--batch", type=int, default=256, help="rows of each space per update (default: 256)")
    options = parser.parse_args(arguments)
    if options.steps < 5 or options.batch < 2:
        parser.error("--steps must be at least 5 and --batch at least 2")
    environment = print_environment()
    split, data = load_split(options)
    linear_map = align_restarts(jax.random.key(0), split.x, split.y, 1, Config.fast()).best.map
    seconds = time_training(split, linear_map, options.batch)
    print_table(
        f"one training step, batches of {options.batch}",
        ["", "ms", "over the bare step"],
        [[name, f"{1e3 * value:.2f}", f"{value / seconds['bare']:.2f}"] for name, value in seconds.items()],
    )
    drift = follow_drift(split, linear_map, options.batch, options.steps)
    print_table(
        "top-1 while the encoder drifts",
        ["step", "updated map", "fixed map", "oracle of the moment"],
        [[f"{run['step']:.0f}", *(f"{run[name]:.3f}" for name in ("updated", "fixed", "oracle"))] for run in drift],
    )
    record = {"environment": environment, "data": data, "seconds": seconds, "drift": drift}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
