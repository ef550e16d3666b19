"""A map beyond the rotation, by gradients: InfoNCE on pseudo-pairs, with any optax optimiser.

A rotation cannot shrink what the target does not share, so its rows lie further from their partners than those of a
general linear map, and whitening for the sake of retrieval takes them further still. Least squares on pseudo-pairs is
no way out: it brings rows nearer by shrinking the directions that tell them apart (`benchmarks.fidelity`). A
contrastive loss (InfoNCE, van den Oord et al., arXiv 1807.03748) asks for both at once: every mapped row near its
partner, and nearer than to the other rows of a batch.

Partners come from the map itself, by CSLS in both directions on all rows, and again after every round, as in
self-training; no true pair is seen. What is wrong with a map that found nothing stays wrong.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mv2v_jax.alignment.seeds import pair_seeds, worth_in_pairs
from mv2v_jax.config import _static, _traced, check_counts
from mv2v_jax.data.checks import check_pairs
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.csls import match_csls
from mv2v_jax.ops.knn import Neighbors
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import center_unit, mean_present, present_rows, unit_rows, working_dtype
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import draw_rows, order_rows

_MIN = {
    "num_rounds": 1,
    "num_steps": 1,
    "max_passes": 1,
    "batch_rows": 2,
    "max_rows": 1,
    "num_neighbors": 1,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Choices of `refine_contrastive`; integers and booleans are static, floats traced."""

    num_rounds: int = _static(2, "rounds of matching and training")
    num_steps: int = _static(100, "gradient steps of a round, at most")
    max_passes: int = _static(4, "times that a round may see every pseudo-pair: with few, it would learn them by heart")
    batch_rows: int = _static(2_048, "pseudo-pairs per step; those of a batch are each other's negatives")
    max_rows: int = _static(32_768, "rows of each space that take part, drawn at random from larger ones")
    num_neighbors: int = _static(2, "nearest rows averaged into a pseudo-partner")
    affine: bool = _static(False, "learn the source's mean as well: an offset of what is mapped")
    learning_rate: float = _traced(2e-3, "of Adam, at first; falls to 0 by a cosine in every round")
    temperature: float = _traced(0.05, "InfoNCE: cosine by which a partner must be nearer to count e times as much")
    cosine: float = _traced(1.0, "weight of the mean cosine with the partners, beside InfoNCE")
    distance: float = _traced(0.0, "weight of the squared distance from the first map, relative to its length")


@pytree
class Contrastive:
    """What `refine_contrastive` returns.

    Attributes:
        map: the `LinearMap`, no longer a rotation; its means are those it was given, but for ``mean_x`` if affine.
        loss: ``[num_rounds, t]``, the whole loss at every step; ``t`` is `round_steps`. Partners change between rounds.
        moved: ``[num_rounds]``, distance from the first ``W``, relative to its length.
    """

    map: LinearMap
    loss: jax.Array
    moved: jax.Array


def contrastive_loss(mapped: jax.Array, y: jax.Array, *, temperature: float | jax.Array = 0.05) -> jax.Array:
    """InfoNCE of unit rows ``mapped [b, d]`` with ``y [b, d]``, row i with row i, both directions.

    The symmetric cross-entropy of CLIP (arXiv 2103.00020): 0 is best, ``log b`` is chance. Pairs of which either row
    has no length take no part.
    """
    present = present_rows(mapped) & present_rows(y)
    logits = mapped @ y.T / jnp.asarray(temperature, mapped.dtype)
    logits = jnp.where(present[:, None] & present[None], logits, jnp.finfo(logits.dtype).min)
    own = jnp.where(present, jnp.diagonal(logits), 0)
    losses = [jax.nn.logsumexp(logits, axis=axis) - own for axis in (0, 1)]
    return (mean_present(losses[0], present) + mean_present(losses[1], present)) / 2


def round_steps(num_x: int, num_y: int, config: ContrastiveConfig) -> int:
    """Gradient steps of a round on so many rows of each space: ``num_steps``, or fewer where there are few pairs."""
    num_pairs = min(num_x, config.max_rows) + min(num_y, config.max_rows)
    return min(config.num_steps, math.ceil(config.max_passes * num_pairs / config.batch_rows))


def _mean_of(rows: jax.Array, neighbors: Neighbors) -> jax.Array:
    return unit_rows(rows[neighbors.index].mean(axis=1))


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
    """Train a map on its own pseudo-pairs, to retrieve better and to bring rows nearer to their partners.

    Args:
        key: random key; rounds and steps fold their number into it.
        linear_map: from `align`, one that is right.
        x: ``[n, d_x]`` raw fitting rows of the source, any floating dtype.
        y: ``[m, d_y]`` raw fitting rows of the target, of other texts.
        config: a `ContrastiveConfig`; the defaults if none.
        optimizer: any optax optimiser, with its schedule over `round_steps`; started anew in every round. Adam with
            ``learning_rate`` and a cosine schedule if none. Make it once: another one compiles another program.
        pairs: known pairs, raw rows ``[p, d_x]`` and ``[p, d_y]``, if any. They are drawn as often, beside the pseudo-
            pairs, as their number is of what the map is worth in pairs (`known.worth_in_pairs`).

    Returns:
        `Contrastive`. Pure; goes through `jax.jit` and `jax.vmap`. No array is of both spaces' rows.

    Raises:
        ValueError: rows of the wrong shape, or a count out of range.
    """
    for name, rows, d in (("x", x, linear_map.W.shape[0]), ("y", y, linear_map.W.shape[1])):
        if rows.ndim != 2 or rows.shape[1] != d or not rows.shape[0]:
            raise ValueError(f"{name} must be [n, {d}] for this map, found shape {list(rows.shape)}")
    config = ContrastiveConfig() if config is None else config
    check_counts(config, _MIN)
    known = check_pairs(pairs, x, y)
    if known[0] is not None and not known[0].shape[0]:
        known = None, None
    return _refine(key, linear_map, x, y, config, optimizer, known)


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
    x, y = jnp.asarray(x).astype(dtype), jnp.asarray(y).astype(dtype)
    x, y = (
        draw_rows(k, rows, config.max_rows, order)
        for k, rows, order in zip(jax.random.split(draw_key), (x, y), order_rows(draw_key, x, y), strict=True)
    )
    num_steps = round_steps(x.shape[0], y.shape[0], config)
    target = center_unit(y, given.mean_y)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps))
    # An offset counts in lengths of rows, so that one learning rate does for both.
    start: dict[str, Any] = {"W": first} | ({"offset": jnp.zeros_like(given.mean_x)} if config.affine else {})

    def source(params, rows):
        offset = params.get("offset")
        return center_unit(rows, given.mean_x if offset is None else given.mean_x + given.scale_x * offset)

    def loss(params, batch_x, batch_y):
        mapped = unit_rows(source(params, batch_x) @ params["W"])
        value = contrastive_loss(mapped, batch_y, temperature=config.temperature)
        away = jnp.sum((params["W"] - first) ** 2) / length**2
        return value - config.cosine * jnp.mean(jnp.sum(mapped * batch_y, axis=1)) + config.distance * away

    raw_x, raw_y = (None if rows is None else jnp.asarray(rows).astype(dtype) for rows in pairs)

    def with_known(params, pairs_x, pairs_y):
        """Pairs to draw from, and a function that draws them: the known ones lie behind the others."""
        num_pseudo = pairs_x.shape[0]

        def draw(key):
            return jax.random.randint(key, (config.batch_rows,), 0, num_pseudo, jnp.int32)

        if raw_x is None or raw_y is None:
            return pairs_x, pairs_y, draw
        known_y = center_unit(raw_y, given.mean_y)
        known = pair_seeds(source(params, raw_x), known_y)
        assert known is not None
        share = len(raw_x) / (len(raw_x) + worth_in_pairs(polar(params["W"]), known))

        def draw_both(key):
            keys = jax.random.split(key, 3)
            of_known = num_pseudo + jax.random.randint(keys[1], (config.batch_rows,), 0, len(raw_x), jnp.int32)
            return jnp.where(jax.random.bernoulli(keys[2], share, (config.batch_rows,)), of_known, draw(keys[0]))

        return jnp.concatenate([pairs_x, raw_x]), jnp.concatenate([pairs_y, known_y]), draw_both

    def run_round(params, key):
        matches = match_csls(unit_rows(source(params, x) @ params["W"]), target, num_neighbors=config.num_neighbors)
        # Raw rows of the source, averaged as such: an offset is learned before they are centred and get their length.
        pairs_x = jnp.concatenate([x, x[matches.y_to_x.index].mean(axis=1)])
        pairs_y = jnp.concatenate([_mean_of(target, matches.x_to_y), target])
        pairs_x, pairs_y, draw = with_known(params, pairs_x, pairs_y)

        def step(carry, index):
            params, opt_state = carry
            drawn = draw(jax.random.fold_in(key, index))
            value, gradient = jax.value_and_grad(loss)(params, pairs_x[drawn], pairs_y[drawn])
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
        return params, (losses, jnp.linalg.norm(params["W"] - first) / length)

    keys = jax.vmap(lambda index: jax.random.fold_in(round_key, index))(jnp.arange(config.num_rounds))
    params, (losses, moved) = jax.lax.scan(run_round, start, keys)
    mean_x = given.mean_x + given.scale_x * params["offset"] if config.affine else given.mean_x
    return Contrastive(map=dataclasses.replace(given, W=params["W"], mean_x=mean_x), loss=losses, moved=moved)
