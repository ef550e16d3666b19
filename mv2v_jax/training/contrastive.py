"""Refine a map beyond a rotation, by gradient descent on a contrastive loss of pseudo-pairs, with any optax optimiser.

A rotation cannot shrink directions that the target does not have, so its mapped rows are farther from their partners
than those of a general linear map. Whitening, which improves retrieval, moves them even farther. Least squares on
pseudo-pairs is no solution: it reduces distances by shrinking the directions that separate rows
(`benchmarks/fidelity.py`). A contrastive loss (InfoNCE, van den Oord et al., arXiv 1807.03748) moves each mapped row
near its partner, and nearer to it than to the other rows of a batch.

The pseudo-pairs come from the map itself, as in self-training: in every round all rows are matched by CSLS in both
directions. True pairs are not used. A map that is wrong stays wrong.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mv2v_jax.alignment.polish import info_nce
from mv2v_jax.alignment.seeds import pair_seeds, worth_in_pairs
from mv2v_jax.data.checks import check_columns, check_key, check_map_rows, check_paired, check_pairs
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.csls import match_csls
from mv2v_jax.ops.given_arrays import as_matrix
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import center_unit, unit_rows, working_dtype
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import draw_rows, order_rows
from mv2v_jax.settings import Settings, as_config, count, number, switch


@pytree
class ContrastiveConfig(Settings):
    """Settings of `refine_contrastive`. Integers and booleans are static, floats are traced."""

    num_rounds: int = count(2, "Number of rounds; each matches all rows, then trains.", low=1)
    num_steps: int = count(100, "Maximum number of gradient steps per round.", low=1)
    max_passes: int = count(
        4, "Maximum number of passes over the pseudo-pairs per round; more passes overfit small data sets.", low=1
    )
    batch_rows: int = count(2_048, "Pairs per gradient step; the rows of a batch are negatives of each other.", low=2)
    max_rows: int = count(32_768, "Maximum number of rows per space; larger spaces are sampled at random.", low=1)
    num_neighbors: int = count(2, "Number of nearest rows averaged into a pseudo-partner.", low=1)
    affine: bool = switch(False, "Whether the mean of the source is learned, too: an offset of the mapped rows.")
    learning_rate: float = number(
        2e-3, "Initial learning rate of Adam; it falls to 0 by a cosine schedule in every round."
    )
    temperature: float = number(
        0.05, "Temperature of InfoNCE: a cosine higher by this much multiplies the weight of a row by e."
    )
    cosine: float = number(1.0, "Weight of minus the mean cosine with the partners, added to InfoNCE.")
    distance: float = number(0.0, "Weight of the squared distance from the first map, relative to its squared norm.")


@pytree
class Contrastive:
    """Result of `refine_contrastive`.

    Attributes:
        map: the refined `LinearMap`, not a rotation. Means and scales are those of the first map, except for the mean
            of the source if ``affine``.
        loss: ``[num_rounds, t]``, total loss at every step, with ``t`` from `round_steps`. Pseudo-pairs change between
            rounds.
        moved: ``[num_rounds]``, distance ``||W - W_first|| / ||W_first||`` after each round.
    """

    map: LinearMap
    loss: jax.Array
    moved: jax.Array


def contrastive_loss(mapped: jax.Array, y: jax.Array, *, temperature: float | jax.Array = 0.05) -> jax.Array:
    """InfoNCE of paired rows in both directions, the symmetric cross-entropy of CLIP (arXiv 2103.00020); a scalar.

    The minimum is 0; ``log b`` is chance. Pairs with a zero row do not count.

    Args:
        mapped: ``[b, d]`` unit rows, any floating dtype.
        y: ``[b, d]`` unit rows of the same dtype; row i is the partner of row i of ``mapped``.
        temperature: a cosine higher by this much multiplies the weight of a row by e.

    Raises:
        InputError: wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> right, chance = contrastive_loss(jnp.eye(2), jnp.eye(2)), contrastive_loss(jnp.eye(2), jnp.ones((2, 2)))
        >>> round(float(right), 3), round(float(chance), 3)
        (0.0, 0.693)
    """
    mapped, y = as_matrix(mapped, "mapped", min_rows=1), as_matrix(y, "y")
    check_columns(y, "y", mapped.shape[1], "like mapped")
    check_paired(mapped, y, ("mapped", "y"))
    return info_nce(mapped, y, jnp.ones(mapped.shape[0], mapped.dtype), 1 / jnp.asarray(temperature, mapped.dtype))


def round_steps(num_x: int, num_y: int, config: ContrastiveConfig) -> int:
    """Number of gradient steps per round for ``num_x`` and ``num_y`` rows; use it for the schedule of an optimiser.

    Example:
        >>> round_steps(50_000, 50_000, ContrastiveConfig()), round_steps(2_000, 3_000, ContrastiveConfig())
        (100, 10)
    """
    num_pairs = min(num_x, config.max_rows) + min(num_y, config.max_rows)
    return min(config.num_steps, math.ceil(config.max_passes * num_pairs / config.batch_rows))


def refine_contrastive(
    key: jax.Array,
    linear_map: LinearMap,
    x: jax.Array,
    y: jax.Array,
    config: ContrastiveConfig | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    pairs: tuple[Any, Any] | None = None,
) -> Contrastive:
    """Train a map on its own pseudo-pairs, so that it retrieves better and maps rows nearer to their partners.

    A pure function for `jax.jit` and `jax.vmap`. No array is ``[n, m]``.

    Args:
        key: random key. Rounds and steps fold their number into it.
        linear_map: a `LinearMap` that is right, such as `align` returns.
        x: ``[n, d_x]`` raw fitting rows of the source, any floating dtype.
        y: ``[m, d_y]`` raw fitting rows of the target, of other texts.
        config: a `ContrastiveConfig`; the defaults if ``None``.
        optimizer: any optax optimiser; its state is initialised in every round, and a schedule should have
            `round_steps` steps. By default Adam with ``config.learning_rate`` and a cosine schedule. Create it once:
            each optimiser object compiles a program of its own.
        pairs: known pairs, if any: raw rows ``[p, d_x]`` and their partners ``[p, d_y]``. A batch draws a known pair
            with probability ``p / (p + w)``, where ``w`` is the number of known pairs that would make a rotation as
            good as the map (`worth_in_pairs`).

    Returns:
        `Contrastive`, in the dtype of the map, at least float32.

    Raises:
        InputError: wrong class, shape or dtype, ``x`` and ``y`` swapped, or a setting that is out of range.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mv2v_jax import Centering, LinearMap
        >>> centering = Centering(mean=jnp.zeros(3), scale=jnp.ones(()))
        >>> start = LinearMap(W=jnp.eye(3), source=centering, target=centering)
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 40, 3))
        >>> config = ContrastiveConfig(num_steps=5, batch_rows=16)
        >>> refine_contrastive(jax.random.key(1), start, x, y, config).loss.shape
        (2, 5)
    """
    config = as_config(config, ContrastiveConfig)
    check_key(key)
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    check_map_rows(linear_map, x, y)
    seeds = check_pairs(pairs, x, y)
    if seeds[0] is not None and not seeds[0].shape[0]:
        seeds = None, None
    return _refine(key, linear_map, x, y, config, optimizer, seeds)


@functools.partial(jax.jit, static_argnums=5)
def _refine(
    key: jax.Array,
    linear_map: LinearMap,
    x: jax.Array,
    y: jax.Array,
    config: ContrastiveConfig,
    optimizer: optax.GradientTransformation | None,
    pairs: tuple[jax.Array | None, jax.Array | None],
) -> Contrastive:
    dtype = working_dtype(linear_map.W.dtype)
    given = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), linear_map)
    first = given.W
    length = jnp.maximum(jnp.linalg.norm(first), jnp.finfo(dtype).tiny)
    draw_key, round_key = jax.random.split(key)
    x, y = x.astype(dtype), y.astype(dtype)
    x, y = draw_rows(draw_key, (x, y), (config.max_rows, config.max_rows), order_rows(draw_key, x, y))
    num_steps = round_steps(x.shape[0], y.shape[0], config)
    target = center_unit(y, given.target.mean)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps))
    # The unit of the offset is the mean length of a row, so that one learning rate fits both parameters.
    start: dict[str, Any] = {"W": first} | ({"offset": jnp.zeros_like(given.source.mean)} if config.affine else {})

    def source_mean(params):
        return given.source.mean + given.source.scale * params["offset"] if config.affine else given.source.mean

    def source(params, rows):
        return center_unit(rows, source_mean(params))

    def loss(params, batch_x, batch_y):
        mapped = unit_rows(source(params, batch_x) @ params["W"])
        value = contrastive_loss(mapped, batch_y, temperature=config.temperature)
        away = jnp.sum((params["W"] - first) ** 2) / length**2
        return value - config.cosine * jnp.mean(jnp.sum(mapped * batch_y, axis=1)) + config.distance * away

    raw_x, raw_y = (None if rows is None else jnp.asarray(rows).astype(dtype) for rows in pairs)

    def with_seeds(params, pairs_x, pairs_y):
        """Pseudo-pairs followed by the seeds, if any, and a function that draws the row numbers of a batch."""
        num_pseudo = pairs_x.shape[0]

        def draw(key):
            return jax.random.randint(key, (config.batch_rows,), 0, num_pseudo, jnp.int32)

        if raw_x is None or raw_y is None:
            return pairs_x, pairs_y, draw
        seeds_y = center_unit(raw_y, given.target.mean)
        seeds = pair_seeds(source(params, raw_x), seeds_y)
        assert seeds is not None
        share = len(raw_x) / (len(raw_x) + worth_in_pairs(polar(params["W"]), seeds))

        def draw_both(key):
            keys = jax.random.split(key, 3)
            of_seeds = num_pseudo + jax.random.randint(keys[1], (config.batch_rows,), 0, len(raw_x), jnp.int32)
            return jnp.where(jax.random.bernoulli(keys[2], share, (config.batch_rows,)), of_seeds, draw(keys[0]))

        return jnp.concatenate([pairs_x, raw_x]), jnp.concatenate([pairs_y, seeds_y]), draw_both

    def run_round(params, key):
        matches = match_csls(unit_rows(source(params, x) @ params["W"]), target, num_neighbors=config.num_neighbors)
        # Raw rows of the source are averaged, because the learned offset applies before centring and scaling.
        pairs_x = jnp.concatenate([x, x[matches.y_to_x.index].mean(axis=1)])
        pairs_y = jnp.concatenate([unit_rows(target[matches.x_to_y.index].mean(axis=1)), target])
        pairs_x, pairs_y, draw = with_seeds(params, pairs_x, pairs_y)

        def step(carry, index):
            params, opt_state = carry
            drawn = draw(jax.random.fold_in(key, index))
            value, gradient = jax.value_and_grad(loss)(params, pairs_x[drawn], pairs_y[drawn])
            # Optax multiplies floats with step numbers, which JAX's strict promotion of dtypes forbids.
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
        return params, (losses, jnp.linalg.norm(params["W"] - first) / length)

    keys = jax.vmap(lambda index: jax.random.fold_in(round_key, index))(jnp.arange(config.num_rounds))
    params, (losses, moved) = jax.lax.scan(run_round, start, keys)
    learned = dataclasses.replace(given.source, mean=source_mean(params))
    return Contrastive(map=dataclasses.replace(given, W=params["W"], source=learned), loss=losses, moved=moved)
