"""Refinement of a map by matching again with what it already knows, as published: refine-1 and refine-2."""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.seeds import Seeds, blend_seeds
from mv2v_jax.config import Config
from mv2v_jax.ops.kmeans import kmeans, lloyd
from mv2v_jax.ops.knn import neighbor_means
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import draw_rows, order_rows


@pytree
class Refined:
    """What a refinement returns.

    Attributes:
        matrix: ``[d_x, d_y]``; its polar factor is the refined map, before directions are weighted. Refine-1 and
            refine-2 return the smoothed average of maps, itself a map but no longer semi-orthogonal; the annealed and
            the CSLS refinement return a cross-covariance.
        objective: ``[steps]``, the stage's label-free objective at every step.
    """

    matrix: jax.Array
    objective: jax.Array


def _smooth(W: jax.Array, new: jax.Array, share: float | jax.Array) -> jax.Array:
    return ((1 - share) * W + share * new).astype(W.dtype)


def refine_matching(
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    W: jax.Array,
    *,
    config: Config,
    steps: jax.Array | None = None,
    known: Seeds | None = None,
) -> Refined:
    """Refine-1: draw rows, map them, pair each with the mean of its nearest rows of Y, Procrustes, smooth.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        x: ``[n, d_x]`` centred unit rows.
        y: ``[m, d_y]`` centred unit rows.
        W: ``[d_x, d_y]``, the map to start from.
        config: uses ``match_*`` and ``smoothing``.
        steps: ``[t]`` numbers of the steps to take; all of ``config.match_steps`` by default.
        known: `Seeds` to blend into every step's cross-covariance, if any.

    Returns:
        `Refined`; the objective is the mean cosine of the rows with their pseudo-partners' members.
    """
    (order,) = order_rows(key, x)

    def step(W, index):
        drawn = draw_rows(jax.random.fold_in(key, index), x, config.match_rows, order)
        partners = neighbor_means(unit_rows(drawn @ W), y, y, num_neighbors=config.match_neighbors)
        objective = mean_present(partners.similarity, present_rows(drawn))
        return _smooth(
            W, polar(blend_seeds(drawn.T @ partners.rows, len(drawn), known, config)), config.smoothing
        ), objective

    W, objective = jax.lax.scan(step, W, jnp.arange(config.match_steps) if steps is None else steps)
    return Refined(matrix=W, objective=objective)


def refine_clusters(
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    W: jax.Array,
    *,
    config: Config,
    steps: jax.Array | None = None,
    known: Seeds | None = None,
) -> Refined:
    """Refine-2: k-means of X, k-means of Y started from the mapped centres, Procrustes on the centre pairs, smooth.

    Arguments as for `refine_matching`; uses ``cluster_steps``, ``refine_clusters``, ``lloyd_steps`` and ``smoothing``.

    Returns:
        `Refined`; the objective is the mean cosine of the mapped centres with their partners.
    """
    num_clusters = min(config.refine_clusters, x.shape[0])

    def step(W, index):
        step_key = jax.random.fold_in(key, index)
        found = kmeans(step_key, x, num_clusters=num_clusters, num_steps=config.lloyd_steps, spread=True)
        mapped = found.centers @ W
        centers_y = lloyd(y, mapped, num_steps=config.lloyd_steps, spread=True).centers
        similarity = jnp.sum(unit_rows(mapped) * unit_rows(centers_y), axis=1).mean()
        return _smooth(
            W, polar(blend_seeds(found.centers.T @ centers_y, num_clusters, known, config)), config.smoothing
        ), similarity

    W, objective = jax.lax.scan(step, W, jnp.arange(config.cluster_steps) if steps is None else steps)
    return Refined(matrix=W, objective=objective)
