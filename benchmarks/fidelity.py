"""Can a map beyond the rotation raise the cosine with the true partners, and what happens to top-1?

    python -m benchmarks.fidelity [--data FOLDER] [--rows N --eval E] [--source NAME --target NAME] [--preset default]
        [--steps 100] [--json FILE]

All maps start from one map, fitted without pairs and not polished, and from its pseudo-pairs: CSLS in both directions
on all fitting rows, the mean of the two nearest rows. Closed forms are ridge regression, free or held near the
rotation, and the weighted cross-covariance of the library with all whitening on the side of the source. Gradients
follow `training.alignment_loss`, or InfoNCE on the pseudo-pairs: as a fit does (`alignment.polish`), or for longer and
with Adam (`training.refine_contrastive`). Labels only evaluate; only the maps "of true pairs" see them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.common import (
    Split,
    add_data_options,
    evaluate,
    load_split,
    make_parser,
    print_environment,
    print_table,
    seconds_of,
    write_json,
)
from mv2v_jax import Config, LinearMap, align
from mv2v_jax.alignment.polish import polish
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross
from mv2v_jax.config import PRESETS
from mv2v_jax.evaluation import metrics
from mv2v_jax.ops.csls import match_csls
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import center_unit, unit_rows
from mv2v_jax.training import ContrastiveConfig, alignment_loss, refine_contrastive

NUM_NEIGHBORS = 2
# Weights of ridge regression, relative to the mean variance of a direction.
RIDGE = 0.1
HOLD = 1.0
SHOWN = ("top1", "mean_rank", "cosine")


def pseudo_pairs(linear_map: LinearMap, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pseudo-pairs of the map: rows ``[n + m, d_x]`` and ``[n + m, d_y]``."""
    matches = match_csls(unit_rows(x @ linear_map.W), y, num_neighbors=NUM_NEIGHBORS)
    to_y = unit_rows(y[matches.x_to_y.index].mean(axis=1))
    to_x = unit_rows(x[matches.y_to_x.index].mean(axis=1))
    return jnp.concatenate([x, to_x]), jnp.concatenate([to_y, y])


def ridge(x: jax.Array, y: jax.Array, weight: float, near: jax.Array | float = 0.0) -> jax.Array:
    """Closed form of ``min ||x W - y||^2 + l ||W - near||^2``; ``weight`` is ``l`` over the mean variance of ``x``."""
    gram = x.T @ x
    scaled = weight * jnp.trace(gram) / gram.shape[0]
    return jnp.linalg.solve(gram + scaled * jnp.eye(gram.shape[0]), x.T @ y + scaled * near)


def follow_losses(
    linear_map: LinearMap, x: jax.Array, y: jax.Array, num_steps: int, batch: int = 1_024, weight: float = 1.0
) -> LinearMap:
    """Adam with a cosine schedule on `alignment_loss` of random batches, held near the start."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    first = linear_map.W

    def loss(W, batch_x, batch_y):
        value = alignment_loss(dataclasses.replace(linear_map, W=W), batch_x, batch_y)
        return value + weight * jnp.sum((W - first) ** 2) / jnp.sum(first**2)

    @jax.jit
    def train(W, x, y):
        def step(carry, index):
            W, opt_state = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index))
            rows = [
                data[jax.random.randint(key, (batch,), 0, data.shape[0])]
                for key, data in zip(keys, (x, y), strict=True)
            ]
            updates, opt_state = optimizer.update(jax.grad(loss)(W, *rows), opt_state)
            return (optax.apply_updates(W, updates), opt_state), None

        return jax.lax.scan(step, (W, optimizer.init(W)), jnp.arange(num_steps))[0][0]

    return dataclasses.replace(linear_map, W=train(first, x, y))


def make_maps(split: Split, start: LinearMap, config: Config, num_steps: int) -> dict[str, Callable[[], LinearMap]]:
    """Functions that make the maps of the table, by name."""
    raw_x, raw_y = jnp.asarray(split.x), jnp.asarray(split.y)
    x, y = center_unit(raw_x, start.source.mean), center_unit(raw_y, start.target.mean)
    y_true = center_unit(jnp.asarray(split.y_true), start.target.mean)
    pairs = jax.jit(pseudo_pairs)

    def with_matrix(W):
        return dataclasses.replace(start, W=W)

    def rotation():
        a, b = pairs(start, x, y)
        return with_matrix(polar(a.T @ b))

    def by_ridge(weight):
        a, b = pairs(start, x, y)
        return with_matrix(ridge(a, b, weight))

    def by_ridge_near(weight):
        a, b = pairs(start, x, y)
        return with_matrix(ridge(a, b, weight, polar(a.T @ b)))

    def by_directions():
        a, b = pairs(start, x, y)
        return with_matrix(map_from_cross(a.T @ b, fit_whitening(x, 0.5), fit_whitening(y, 0.0), 0.6))

    def polished():
        return with_matrix(jax.jit(polish)(jax.random.key(0), TwoSpaces(x=x, y=y), start.W, config=config)[0])

    def contrastive(**changes):
        config = ContrastiveConfig(num_steps=num_steps, **changes)
        return refine_contrastive(jax.random.key(0), start, raw_x, raw_y, config).map

    return {
        "start": lambda: start,
        "pseudo-pairs: rotation": rotation,
        "pseudo-pairs: ridge": lambda: by_ridge(RIDGE),
        "pseudo-pairs: ridge, near the rotation": lambda: by_ridge_near(HOLD),
        "pseudo-pairs: source whitened": by_directions,
        "alignment_loss": lambda: follow_losses(start, raw_x, raw_y, num_steps),
        "polished, as by every fit": polished,
        "refine_contrastive": contrastive,
        "refine_contrastive, no cosine": lambda: contrastive(cosine=0.0),
        "refine_contrastive, held near": lambda: contrastive(distance=3.0),
        "refine_contrastive, affine": lambda: contrastive(affine=True),
        "true pairs: rotation": lambda: metrics.oracle(raw_x, jnp.asarray(split.y_true), raw_y),
        "true pairs: ridge": lambda: with_matrix(ridge(x, y_true, 0.01)),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit, refine in every way and print the table; returns the figures."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--preset", choices=PRESETS, default="default", help="preset of the first map")
    parser.add_argument(
        "--steps", type=int, default=ContrastiveConfig().num_steps, help="gradient steps, per round (default: 100)"
    )
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    environment = print_environment()
    split, data = load_split(options)
    config = Config.preset(options.preset)
    start = align(
        jax.random.key(0), jnp.asarray(split.x), jnp.asarray(split.y), config.replace(polishing={"steps": 0})
    ).map
    found = {}
    for name, make in make_maps(split, start, config, options.steps).items():
        linear_map, seconds = seconds_of(make)
        scores = evaluate(linear_map, split)
        found[name] = {**{metric: scores[metric] for metric in SHOWN}, "seconds": seconds}
        print(f"{name}: top-1 {scores['top1']:.3f}, cosine {scores['cosine']:.3f}, {seconds:.1f} s", flush=True)
    before = found["start"]
    print_table(
        f"maps that start from one {options.preset} map; seconds include compile time",
        ["", "top-1", "over start", "mean rank", "cosine", "over start", "seconds"],
        [
            [
                name,
                f"{s['top1']:.3f}",
                f"{s['top1'] - before['top1']:+.3f}",
                f"{s['mean_rank']:.2f}",
                f"{s['cosine']:.3f}",
                f"{s['cosine'] - before['cosine']:+.3f}",
                f"{s['seconds']:.1f}",
            ]
            for name, s in found.items()
        ],
    )
    record = {"environment": environment, "data": data, "preset": options.preset, "scores": found}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
