"""Keep a map current while one of the two encoders is fine-tuned.

python examples/follow_finetuning.py [--data FOLDER] [--rows N] [--steps 600] [--learning-rate 1e-4]

An encoder (MiniLM with two layers on top, which return zeros at first) is fine-tuned to tell which kind of thing a
gloss is about. Every step moves its space, so that a map into the frozen space (WordLlama) that was fitted before gets
worse. `online_update` takes each batch of its rows, together with as many rows of the frozen encoder, of other texts,
and the map follows: without a pair and without a second fit.

The table shows, as training goes on, the accuracy of the classifier and the top-1 on held-out texts of the map that
follows, of the map that was fitted before, and of the best rotation on true pairs at that moment (the oracle).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import load_rows, make_parser, print_table
from texts import KINDS, kinds_of, load_texts

from mv2v_jax import Config, align_restarts, evaluate, oracle
from mv2v_jax.training import online_init, online_map, online_update

WIDTH, BATCH, POINTS = 512, 256, 6


def init_layers(key: jax.Array, num_dims: int) -> dict[str, jax.Array]:
    """Two layers on top of an encoder, which change nothing at first, and a classifier."""
    return {
        "hidden": jax.random.normal(key, (num_dims, WIDTH)) * 2 / num_dims**0.5,
        "out": jnp.zeros((WIDTH, num_dims)),
        "kinds": jnp.zeros((num_dims, len(KINDS))),
    }


def encode(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
    """Rows ``[b, d]`` of the encoder at the present step."""
    return rows + jnp.tanh(rows @ params["hidden"]) @ params["out"]


@functools.partial(jax.jit, static_argnames="optimizer")
def train(carry, batches, rows, kinds, frozen, optimizer):
    """Several steps of fine-tuning; the state of the map is carried with the parameters."""

    def loss(params, batch):
        encoded = encode(params, rows[batch])
        is_known = kinds[batch] >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(
            encoded @ params["kinds"], jnp.maximum(kinds[batch], 0)
        )
        return jnp.sum(losses * is_known) / jnp.maximum(is_known.sum(), 1), encoded

    def step(carry, batch):
        params, opt_state, state = carry
        (value, encoded), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch[0])
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        state, _ = online_update(state, encoded, frozen[batch[1]])
        return (optax.apply_updates(params, updates), opt_state, state), value

    return jax.lax.scan(step, carry, batches)


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Fine-tune and print the table; returns its rows."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=600, help="steps of fine-tuning (default: 600)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the encoder (default: 1e-4)")
    options = parser.parse_args(arguments)
    if options.steps < POINTS:
        parser.error(f"--steps must be at least {POINTS}")
    data = load_rows(options)
    texts = load_texts(options, data)
    kinds, held_out_kinds = kinds_of(texts.x), kinds_of(texts.evaluated)
    fitted = align_restarts(jax.random.key(0), data.x, data.y, 2, Config.fast()).best.map
    x, frozen, y_true, x_eval, y_eval = map(jnp.asarray, (data.x, data.y, data.y_true, data.x_eval, data.y_eval))
    params = init_layers(jax.random.key(1), x.shape[1])
    # As usual in fine-tuning: a new classifier learns fast, an encoder that is good already learns slowly.
    optimizer = optax.multi_transform(
        {"encoder": optax.adam(options.learning_rate), "classifier": optax.adam(1e-2)},
        {"hidden": "encoder", "out": "encoder", "kinds": "classifier"},
    )
    carry = (params, optimizer.init(params), online_init(fitted, frozen))
    rng = np.random.default_rng(0)

    def measure(step: int, params, state) -> dict[str, float]:
        now, now_eval = encode(params, x), encode(params, x_eval)
        guessed = np.asarray(jnp.argmax(now_eval @ params["kinds"], axis=1))
        is_known = held_out_kinds >= 0
        maps = {"updated": online_map(state), "fixed": fitted, "oracle": oracle(now, y_true, frozen)}
        return {
            "step": step,
            "accuracy": float(np.mean(guessed[is_known] == held_out_kinds[is_known])),
            "moved": float(jnp.linalg.norm(now_eval - x_eval) / jnp.linalg.norm(x_eval)),
            **{name: float(evaluate(found, now_eval, y_eval).top1) for name, found in maps.items()},
        }

    rows = [measure(0, carry[0], carry[2])]
    for point in range(POINTS):
        num_steps = options.steps // POINTS
        batches = np.stack([rng.integers(len(side), size=(num_steps, BATCH)) for side in (x, frozen)], axis=1)
        carry, _ = train(carry, jnp.asarray(batches, jnp.int32), x, jnp.asarray(kinds), frozen, optimizer)
        rows.append(measure((point + 1) * num_steps, carry[0], carry[2]))
    print_table(
        f"top-1 among {len(x_eval):,} held-out texts; moved: distance of rows from their start, over their length",
        ["accuracy", "moved", "updated map", "fixed map", "oracle of the moment"],
        [[f"step {row['step']}", *(f"{value:.3f}" for value in list(row.values())[1:])] for row in rows],
    )
    return rows


if __name__ == "__main__":
    main()
