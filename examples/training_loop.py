"""Train an encoder with a loss that needs no pairs, while the map follows the encoder.

python examples/training_loop.py [--data FOLDER] [--rows N]

The encoder is a single matrix, to keep the program short. Its task is to return its input; `alignment_loss` also pulls
its rows to where the map can use them. The carry of the loop has one additional state, that of the map.
"""

import jax
import jax.numpy as jnp
import optax
from common import load_rows, make_parser

from mv2v_jax import Config, align, evaluate
from mv2v_jax.training import alignment_loss, online_init, online_map, online_update

BATCH = 256
optimizer = optax.adam(1e-3)


def train_step(carry, batch):
    """One step of training; the online state is carried beside the parameters."""
    params, opt_state, state = carry
    texts, x, y = batch

    def loss(params):
        rows = texts @ params  # your encoder
        task = jnp.mean((rows - x) ** 2)  # your loss
        return task + 0.01 * alignment_loss(online_map(state), rows, y), rows

    (value, rows), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    state, info = online_update(state, rows, y)
    return (optax.apply_updates(params, updates), opt_state, state), (value, info.agreement)


def main(arguments: list[str] | None = None) -> float:
    """Fit a first map, train, and evaluate the map of the last step; returns its top-1."""
    options = make_parser(__doc__).parse_args(arguments)
    data = load_rows(options)
    start = align(jax.random.key(0), data.x, data.y, Config.fast()).map

    num_steps = min(len(data.x), len(data.y)) // BATCH
    x, y = (jnp.asarray(rows[: num_steps * BATCH]).reshape(num_steps, BATCH, -1) for rows in (data.x, data.y))
    params = jnp.eye(x.shape[-1])
    carry = (params, optimizer.init(params), online_init(start, jnp.asarray(data.y)))
    carry, (values, agreement) = jax.jit(lambda carry, rows: jax.lax.scan(train_step, carry, rows))(carry, (x, x, y))
    params, _, state = carry

    print(f"{num_steps} steps; loss {values[0]:.3f} to {values[-1]:.3f}; agreement at the end {agreement[-1]:.2f}")
    scores = evaluate(online_map(state), jnp.asarray(data.x_eval) @ params, jnp.asarray(data.y_eval))
    print(f"top-1 among {len(data.x_eval):,} texts: {scores.top1:.3f}")
    return float(scores.top1)


if __name__ == "__main__":
    main()
