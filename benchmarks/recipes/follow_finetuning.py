"""Keep a map current while one of the two encoders is fine-tuned.

python -m benchmarks.recipes.follow_finetuning [--data DIR] [--rows N --eval E] [--steps 600]
    [--learning-rate 1e-4] [--json FILE]

An encoder (MiniLM with two layers on top, which start as nothing) is fine-tuned to tell what kind of thing a gloss is
about. Every step moves its space, and the map into the frozen space (WordLlama) that was fitted before goes out of
date. `online_update` takes each batch of texts along, with as many vectors of the frozen encoder, of other texts, and
the map follows: no pair, no second fit. Printed as training goes on: how well the kind is told, and top-1 on texts that
nothing has seen of the map that follows, of the one that was fitted before, and of the best rotation on true pairs at
that moment.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import Split, add_data_options, evaluate, load_split, print_environment, print_table, write_json
from benchmarks.recipes.texts import KINDS, kinds_of, load_texts
from mv2v_jax import align_restarts, fast, online_init, online_map, online_update
from mv2v_jax.evaluation.metrics import oracle

WIDTH, BATCH, POINTS = 512, 256, 6


def init_layers(key: jax.Array, num_dims: int) -> dict[str, jax.Array]:
    """Two layers on top of an encoder, which change nothing yet, and a classifier."""
    return {
        "hidden": jax.random.normal(key, (num_dims, WIDTH)) * 2 / num_dims**0.5,
        "out": jnp.zeros((WIDTH, num_dims)),
        "kinds": jnp.zeros((num_dims, len(KINDS))),
    }


def encode(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
    """Rows ``[b, d]`` of the encoder as it is now."""
    return rows + jnp.tanh(rows @ params["hidden"]) @ params["out"]


@functools.partial(jax.jit, static_argnames="optimizer")
def train(carry, batches, rows, kinds, frozen, optimizer):
    """Some steps of fine-tuning; the map is taken along."""

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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, fine-tune, print the table; returns what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--steps", type=int, default=600, help="steps of fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the encoder")
    options = parser.parse_args(arguments)
    if options.steps < POINTS:
        parser.error(f"--steps must be at least {POINTS}")
    environment = print_environment()
    split, data = load_split(options)
    texts = load_texts(options, split)
    kinds, judged_kinds = kinds_of(texts.x), kinds_of(texts.judged)
    fitted = align_restarts(jax.random.key(0), split.x, split.y, 2, fast()).best.map
    x, frozen, judged = (jnp.asarray(rows) for rows in (split.x, split.y, split.x_eval))
    params = init_layers(jax.random.key(1), x.shape[1])
    # As in fine-tuning: a new classifier learns fast, an encoder that is good already slowly.
    optimizer = optax.multi_transform(
        {"encoder": optax.adam(options.learning_rate), "classifier": optax.adam(1e-2)},
        {"hidden": "encoder", "out": "encoder", "kinds": "classifier"},
    )
    carry = (params, optimizer.init(params), online_init(fitted, frozen))
    rng = np.random.default_rng(0)

    def measure(step: int, params, state) -> dict[str, float]:
        told = jnp.argmax(encode(params, judged) @ params["kinds"], axis=1)
        is_known = judged_kinds >= 0
        now = Split(
            *(np.asarray(encode(params, jnp.asarray(split.x))), split.y, split.y_true),
            np.asarray(encode(params, judged)),
            split.y_eval,
        )
        before, after = np.asarray(split.x_eval), now.x_eval
        return {
            "step": step,
            "kind": float(np.mean(np.asarray(told)[is_known] == judged_kinds[is_known])),
            "moved": float(np.linalg.norm(after - before) / np.linalg.norm(before)),
            "updated": evaluate(online_map(state), now)["top1"],
            "fixed": evaluate(fitted, now)["top1"],
            "oracle": evaluate(oracle(now.x, now.y_true, now.y), now)["top1"],
        }

    rows = [measure(0, carry[0], carry[2])]
    for point in range(POINTS):
        num_steps = options.steps // POINTS
        batches = np.stack([rng.integers(len(side), size=(num_steps, BATCH)) for side in (x, frozen)], axis=1)
        carry, _ = train(carry, jnp.asarray(batches, jnp.int32), x, jnp.asarray(kinds), frozen, optimizer)
        rows.append(measure((point + 1) * num_steps, carry[0], carry[2]))
    print_table(
        f"top-1 among {len(judged):,} while the encoder is fine-tuned; moved: of the length of its rows",
        ["step", "kind told", "moved", "updated map", "fixed map", "oracle of the moment"],
        [[f"{row['step']:.0f}", *[f"{row[name]:.3f}" for name in list(row)[1:]]] for row in rows],
    )
    record = {"environment": environment, "data": data, "rows": rows}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
