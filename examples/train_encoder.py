"""Train a small text encoder whose vectors land in the space of a frozen encoder, without a single pair.

python examples/train_encoder.py [--data FOLDER] [--rows N] [--steps 800] [--weight 0.3]

You have texts and their vectors from an encoder of your own (MiniLM), and vectors of other texts from a frozen encoder
(WordLlama) that you cannot run. `align_restarts` finds the map between the two spaces. The small encoder, a mean of
word vectors and two layers, learns to return for each text what the map makes of its MiniLM vector (distillation), and
`alignment_loss` keeps every batch of its vectors similar to a batch of vectors of the frozen encoder.

Evaluated on held-out texts: is the vector of the frozen encoder of the same text the nearest one? For comparison: the
map itself, the encoder without the loss, and an encoder trained on true pairs.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax
from common import centred_rows, load_rows, make_parser, print_table, unit_rows
from texts import hash_words, load_texts

from mv2v_jax import Centering, Config, DemoData, LinearMap, Metrics, align_restarts, apply, evaluate
from mv2v_jax.training import alignment_loss

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
    """Rows ``[b, d]`` of texts with the words ``[b, w]``, 0 for no word."""
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
    weight: float,
    *,
    num_steps: int,
) -> dict[str, jax.Array]:
    """Train on ``words [n, w]`` to return ``wanted [n, d]`` (unit rows), similar to the rows of ``frozen [m, d]``."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    params = init_encoder(key, wanted.shape[1])

    def loss(params, batch, others):
        rows = encode(params, words[batch])
        distilled = 1 - jnp.mean(jnp.sum(unit_rows(rows) * wanted[batch], axis=1))
        return distilled + weight * alignment_loss(in_place, rows, frozen[others])

    def step(carry, index):
        params, opt_state = carry
        keys = jax.random.split(jax.random.fold_in(key, index))
        batch, others = (
            jax.random.randint(k, (BATCH,), 0, len(rows), jnp.int32)
            for k, rows in zip(keys, (words, frozen), strict=True)
        )
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch, others), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
    return params


def compare(data: DemoData, words: jax.Array, held_out: jax.Array, options: argparse.Namespace) -> dict[str, Metrics]:
    """Scores of the map and of the encoder trained in each way."""
    found = align_restarts(jax.random.key(0), data.x, data.y, 2, Config.fast()).best.map
    frozen, y_eval = jnp.asarray(data.y), jnp.asarray(data.y_eval)
    num_dims = frozen.shape[1]
    # The rows of the encoder are in the frozen space and centred there: the map for them is the identity.
    origin = Centering(mean=jnp.zeros(num_dims), scale=jnp.ones(()))
    in_place = LinearMap(W=jnp.eye(num_dims), source=origin, target=found.target)
    mapped, true = apply(found, data.x), centred_rows(data.y_true, found.target)
    results = {"the map, on MiniLM vectors": evaluate(found, jnp.asarray(data.x_eval), y_eval)}
    for name, wanted, weight in (
        ("encoder, distilled from the map", mapped, 0.0),
        ("encoder, with alignment_loss", mapped, options.weight),
        ("encoder, trained on true pairs", true, 0.0),
    ):
        params = train(jax.random.key(1), words, wanted, frozen, in_place, weight, num_steps=options.steps)
        results[name] = evaluate(in_place, encode(params, held_out), y_eval)
    return results


def main(arguments: list[str] | None = None) -> dict[str, Metrics]:
    """Train in each way and print the scores; returns them."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: 800)")
    parser.add_argument("--weight", type=float, default=0.3, help="weight of alignment_loss (default: 0.3)")
    options = parser.parse_args(arguments)
    data = load_rows(options)
    texts = load_texts(options, data)
    words, held_out = (jnp.asarray(hash_words(side, NUM_WORDS, NUM_BUCKETS)) for side in (texts.x, texts.evaluated))
    results = compare(data, words, held_out, options)
    print_table(
        f"partners found among {len(held_out):,} held-out texts",
        ["top-1", "mean rank", "cosine"],
        [[name, f"{s.top1:.3f}", f"{s.mean_rank:.1f}", f"{s.cosine:.3f}"] for name, s in results.items()],
    )
    return results


if __name__ == "__main__":
    main()
