"""Polishing, the last refinement: gradient descent on a contrastive loss of pseudo-pairs, from a settled map.

Procrustes moves every row near its partner, however near other rows are. A contrastive loss (InfoNCE, van den Oord et
al., arXiv 1807.03748) asks for what a search needs: a row nearer to its partner than to other rows.

The pseudo-pairs are matched once, by CSLS in both directions. A wrong map stays wrong. The steps have a fixed length
and the direction of the averaged gradient, so that they turn with the rows, as all other stages do; those of Adam would
depend on the axes that the rows are given in.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.alignment.seeds import Seeds, worth_in_pairs
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import Config
from mv2v_jax.ops.csls import match_csls, sum_pairs
from mv2v_jax.ops.knn import Neighbors
from mv2v_jax.ops.linalg import polar, scale_to_norm
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows

_MOMENTUM = 0.9
# Pseudo-pairs per known pair in a batch, at least.
_PAIRS_PER_SEED = 4


def info_nce(mapped: jax.Array, y: jax.Array, weights: jax.Array, logit_scale: float | jax.Array) -> jax.Array:
    """Weighted mean of InfoNCE in both directions, the symmetric cross-entropy of CLIP (arXiv 2103.00020); a scalar.

    Args:
        mapped: ``[b, d]`` unit rows.
        y: ``[b, d]`` unit rows; row i is the partner of row i of ``mapped``.
        weights: ``[b]``, weights of the pairs. A pair with a zero row does not count, whatever its weight.
        logit_scale: factor of the cosines, the inverse of the temperature.
    """
    present = present_rows(mapped) & present_rows(y)
    logits = mapped @ y.T * jnp.asarray(logit_scale, mapped.dtype)
    logits = jnp.where(present[:, None] & present[None], logits, jnp.finfo(logits.dtype).min)
    both = (jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1)) / 2
    weights = jnp.where(present, weights, 0)
    losses = jnp.where(present, both - jnp.diagonal(logits), 0)
    return (weights * losses).sum() / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)


def polishing_steps(num_x: int, num_y: int, config: Config) -> int:
    """Steps of `polish` for ``num_x`` and ``num_y`` rows: few rows take fewer, because they overfit."""
    settings = config.polishing
    return min(settings.steps, math.ceil(settings.max_passes * (num_x + num_y) / settings.batch_rows))


def _weigh(matches: tuple[Neighbors, Neighbors], present: tuple[jax.Array, jax.Array], power: float | jax.Array):
    """The weight of every pseudo-pair of both directions: e to the ``power`` times its standardised CSLS, of mean 1."""
    nearest = jnp.concatenate([found.similarity[:, 0] for found in matches])
    counts = jnp.concatenate(present)
    nearest = nearest - mean_present(nearest, counts)
    deviation = jnp.sqrt(mean_present(nearest**2, counts))
    standard = jnp.clip(nearest / jnp.maximum(deviation, jnp.finfo(nearest.dtype).eps), -4, 4)
    weights = jnp.exp(jnp.asarray(power, nearest.dtype) * standard)
    mean = mean_present(weights, counts)
    return jnp.split(weights / jnp.where(mean > 0, mean, 1), [present[0].shape[0]])


def _seed_weight(seeds: Seeds, rotation: jax.Array, num_pseudo: int, num_drawn: int, pair_weight: float | jax.Array):
    """The weight of each of ``num_drawn`` known pairs beside ``num_pseudo`` pseudo-pairs of mean weight 1.

    Together they weigh as much as where cross-covariances are added up (`seeds.add_seeds`). ``rotation`` is that of the
    pseudo-pairs.
    """
    num_seeds = present_rows(seeds.x).sum().astype(rotation.dtype)
    share = jnp.asarray(pair_weight, rotation.dtype) * num_seeds / worth_in_pairs(rotation, seeds)
    return num_pseudo * share / jnp.clip(num_seeds, 1, num_drawn)


def polish(key: jax.Array, rows: TwoSpaces, W: jax.Array, *, config: Config) -> tuple[jax.Array, jax.Array]:
    """Change a settled map so that more rows find their pseudo-partners.

    Args:
        key: random key. Step ``i`` depends on ``fold_in(key, i)`` alone.
        rows: centred unit rows of both spaces; known pairs among them take part in every step.
        W: ``[d_x, d_y]``, the settled map.
        config: uses ``polishing``, ``settling.whole_rows`` and ``pair_weight``.

    Returns:
        The map ``[d_x, d_y]``, of the norm of ``W``, and the objective ``[t]`` of every step: minus the loss.
    """
    settings, most = config.polishing, config.settling.whole_rows
    orders = order_rows(key, rows.x, rows.y)
    x, y = draw_rows(key, (rows.x, rows.y), (most, most), orders)
    num_steps = polishing_steps(x.shape[0], y.shape[0], config)
    matches = match_csls(unit_rows(x @ W), y, num_neighbors=settings.num_neighbors)
    to_y, to_x = matches.x_to_y.index, matches.y_to_x.index
    weight_x, weight_y = _weigh((matches.x_to_y, matches.y_to_x), (present_rows(x), present_rows(y)), settings.power)
    # Every row leads to one pair, so that a batch has as many pairs from each space as that has rows.
    batch_rows = min(settings.batch_rows, x.shape[0] + y.shape[0])
    size_x = min(max(1, round(batch_rows * x.shape[0] / (x.shape[0] + y.shape[0]))), batch_rows - 1)
    seeds = Seeds(x=x[:0], y=y[:0]) if rows.seeds is None else rows.seeds
    num_seeds = min(max(1, batch_rows // _PAIRS_PER_SEED), seeds.x.shape[0])
    weight_seeds = jnp.zeros(num_seeds, W.dtype)
    if num_seeds:
        rotation = polar(sum_pairs(x, y, matches, x, y))
        weight_seeds += _seed_weight(seeds, rotation, batch_rows, num_seeds, config.pair_weight)
        # Without weight they are no negatives either.
        seeds = jax.tree.map(lambda side: jnp.where(weight_seeds[0] > 0, side, 0), seeds)
    drawn_from, sizes = (x, y, seeds.x), (size_x, batch_rows - size_x, num_seeds)
    orders = order_rows(key, *drawn_from)
    numbers = [jnp.arange(side.shape[0], dtype=jnp.int32) for side in drawn_from]
    length = jnp.linalg.norm(W)

    def loss(W, batch):
        of_x, partners, weights = (jnp.concatenate(parts) for parts in batch)
        return info_nce(unit_rows(of_x @ W), partners, weights, settings.logit_scale)

    def step(state, index_and_rate):
        (W, momentum), (index, rate) = state, index_and_rate
        of_x, of_y, of_seeds = draw_rows(jax.random.fold_in(key, index), numbers, sizes, orders)
        batch = (
            (x[of_x], x[to_x[of_y]].mean(axis=1), seeds.x[of_seeds]),
            (unit_rows(y[to_y[of_x]].mean(axis=1)), y[of_y], seeds.y[of_seeds]),
            (weight_x[of_x], weight_y[of_y], weight_seeds),
        )
        value, gradient = jax.value_and_grad(loss)(W, batch)
        momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * gradient
        return (W - scale_to_norm(momentum, rate * length), momentum), -value

    # The learning rate falls to 0 by a cosine.
    falling = (1 + np.cos(np.pi * np.arange(num_steps) / max(1, num_steps))) / 2
    rates = jnp.asarray(settings.learning_rate, W.dtype) * jnp.asarray(falling, W.dtype)
    (W, _), objective = jax.lax.scan(step, (W, jnp.zeros_like(W)), (jnp.arange(num_steps), rates))
    return scale_to_norm(W, length), objective
