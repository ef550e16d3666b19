"""Train a small encoder of texts so that it lands in the space of a frozen one, without a single pair.

python -m benchmarks.recipes.train_encoder [--data DIR] [--rows N --eval E] [--steps 800] [--weight 0.3] [--json FILE]

You have texts, with vectors of an encoder of your own (MiniLM), and vectors of a frozen encoder (WordLlama) of other
texts, which you cannot run. `align` finds the map between the two. The small encoder, a mean of word vectors and two
layers, learns to say of its texts what the map says of your vectors (distillation), and `alignment_loss` keeps a batch
of what it says like a batch of the frozen encoder's vectors. Judged on texts that nothing has seen: does the frozen
encoder's vector of the same text come first? Beside it stand the same encoder without the loss, and trained on true
pairs, which nobody has.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import (
    Split,
    add_data_options,
    evaluate,
    load_split,
    print_environment,
    print_table,
    seconds_of,
    write_json,
)
from benchmarks.recipes.texts import hash_words, load_texts
from mv2v_jax import LinearMap, align_restarts, alignment_loss, apply, fast
from mv2v_jax.ops.masked import center_unit, unit_rows

NUM_WORDS, NUM_BUCKETS, WIDTH, BATCH = 24, 2**14, 256, 256


def init_encoder(key: jax.Array, num_dims: int) -> dict[str, jax.Array]:
    """Word vectors and two layers."""
    keys = jax.random.split(key, 3)
    return {
        "words": 0.1 * jax.random.normal(keys[0], (NUM_BUCKETS + 1, WIDTH)),
        "hidden": jax.random.normal(keys[1], (WIDTH, 2 * WIDTH)) / WIDTH**0.5,
        "out": jax.random.normal(keys[2], (2 * WIDTH, num_dims)) / (2 * WIDTH) ** 0.5,
        "skip": jax.random.normal(keys[2], (WIDTH, num_dims)) / WIDTH**0.5,
    }


def encode(params: dict[str, jax.Array], words: jax.Array) -> jax.Array:
    """Rows ``[b, d]`` of texts whose words are ``[b, w]``, 0 for none."""
    present = (words > 0)[..., None]
    mean = jnp.where(present, params["words"][words], 0).sum(axis=1) / jnp.maximum(present.sum(axis=1), 1)
    return jax.nn.gelu(mean @ params["hidden"]) @ params["out"] + mean @ params["skip"]


@functools.partial(jax.jit, static_argnames="num_steps")
def train(
    key: jax.Array,
    words: jax.Array,
    wanted: jax.Array,
    frozen: jax.Array,
    in_place: LinearMap,
    weight: float | jax.Array,
    *,
    num_steps: int,
) -> dict[str, jax.Array]:
    """Train on ``words [n, w]`` to say ``wanted [n, d]`` (unit rows), and to look like ``frozen [m, d]``."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    params = init_encoder(key, wanted.shape[1])

    def loss(params, batch, others):
        rows = encode(params, words[batch])
        distilled = 1 - jnp.mean(jnp.sum(unit_rows(rows) * wanted[batch], axis=1))
        return distilled + weight * alignment_loss(in_place, rows, frozen[others])

    def step(carry, index):
        params, state = carry
        keys = jax.random.split(jax.random.fold_in(key, index))
        batch, others = (
            jax.random.randint(k, (BATCH,), 0, len(rows), jnp.int32)
            for k, rows in zip(keys, (words, frozen), strict=True)
        )
        updates, state = optimizer.update(jax.grad(loss)(params, batch, others), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
    return params


def compare(split: Split, words: jax.Array, judged: jax.Array, num_steps: int, weight: float) -> dict[str, Any]:
    """Scores of the encoder trained in each way."""
    found = align_restarts(jax.random.key(0), split.x, split.y, 2, fast()).best.map
    own, frozen = jnp.asarray(split.x), jnp.asarray(split.y)
    num_dims = split.y.shape[1]
    # What the encoder says is in the frozen space already: centred there, nothing left to map.
    in_place = LinearMap(
        W=jnp.eye(num_dims),
        mean_x=jnp.zeros(num_dims),
        mean_y=found.mean_y,
        scale_x=jnp.ones(()),
        scale_y=found.scale_y,
    )
    mapped, true = apply(found, own), center_unit(jnp.asarray(split.y_true), found.mean_y)
    results = {"the map, on MiniLM": {**evaluate(found, split), "seconds": 0.0}}
    for name, wanted, how_much in (
        ("encoder, distilled", mapped, 0.0),
        ("encoder, with alignment_loss", mapped, weight),
        ("encoder, on true pairs", true, 0.0),
    ):
        params, seconds = seconds_of(
            functools.partial(train, num_steps=num_steps),
            jax.random.key(1),
            words,
            wanted,
            frozen,
            in_place,
            how_much,
        )
        said = Split(split.x, split.y, split.y_true, np.asarray(encode(params, judged)), split.y_eval)
        results[name] = {**evaluate(in_place, said), "seconds": seconds}
    return results


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, train, print the table; returns the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--steps", type=int, default=800, help="steps of training")
    parser.add_argument("--weight", type=float, default=0.3, help="of alignment_loss")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    texts = load_texts(options, split)
    words, judged = (jnp.asarray(hash_words(side, NUM_WORDS, NUM_BUCKETS)) for side in (texts.x, texts.judged))
    results = compare(split, words, judged, options.steps, options.weight)
    print_table(
        f"texts no one has seen, found among {len(judged):,}",
        ["", "top-1", "mean rank", "cosine", "seconds"],
        [
            [name, f"{s['top1']:.3f}", f"{s['mean_rank']:.1f}", f"{s['cosine']:.3f}", f"{s['seconds']:.0f}"]
            for name, s in results.items()
        ],
    )
    write_json(options.json, {"environment": environment, "data": data, "scores": results})
    return results


if __name__ == "__main__":
    main()
