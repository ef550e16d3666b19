"""The refinements of the mini-vec2vec paper: match again with the current map, by rows and then by clusters."""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.estimate import Estimate, Refined
from mv2v_jax.alignment.seeds import blend_seeds
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import Config
from mv2v_jax.ops.kmeans import kmeans, lloyd
from mv2v_jax.ops.knn import neighbor_means
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows


def _smooth(W: jax.Array, cross: jax.Array, share: float | jax.Array) -> jax.Array:
    return ((1 - share) * W + share * polar(cross)).astype(W.dtype)


def refine_matching(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Refine-1: draw rows, map them, pair each with the mean of its nearest rows of Y, Procrustes, smooth.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        rows: centred unit rows of both spaces; known pairs among them are blended into every step.
        estimate: the map to start from.
        config: uses ``published`` and ``pair_weight``.
        steps: ``[t]`` numbers of the steps to take; all of ``config.published.match_steps`` by default.

    Returns:
        `Refined`: a smoothed average of maps, and the mean cosine of the rows with the rows they are paired with.
    """
    settings = config.published
    orders = order_rows(key, rows.x)

    def step(W, index):
        (drawn,) = draw_rows(jax.random.fold_in(key, index), (rows.x,), (settings.match_rows,), orders)
        partners = neighbor_means(unit_rows(drawn @ W), rows.y, rows.y, num_neighbors=settings.num_neighbors)
        objective = mean_present(partners.similarity, present_rows(drawn))
        cross = blend_seeds(drawn.T @ partners.rows, len(drawn), rows.seeds, config.pair_weight)
        return _smooth(W, cross, settings.smoothing), objective

    start = estimate.as_map(project=False)
    W, objective = jax.lax.scan(step, start, jnp.arange(settings.match_steps) if steps is None else steps)
    return Refined(estimate=Estimate(matrix=W, is_map=True), objective=objective)


def refine_clusters(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Refine-2: k-means of X, k-means of Y started from the mapped centres, Procrustes on the centre pairs, smooth.

    Arguments as for `refine_matching`; all of ``config.published.cluster_steps`` by default.

    Returns:
        `Refined`: a smoothed average of maps, and the mean cosine of the mapped centres with their partners.
    """
    settings = config.published
    num_clusters = min(settings.num_clusters, rows.x.shape[0])

    def step(W, index):
        step_key = jax.random.fold_in(key, index)
        found = kmeans(step_key, rows.x, num_clusters=num_clusters, num_steps=settings.lloyd_steps, spread=True)
        mapped = found.centers @ W
        centers_y = lloyd(rows.y, mapped, num_steps=settings.lloyd_steps, spread=True).centers
        similarity = jnp.sum(unit_rows(mapped) * unit_rows(centers_y), axis=1).mean()
        cross = blend_seeds(found.centers.T @ centers_y, num_clusters, rows.seeds, config.pair_weight)
        return _smooth(W, cross, settings.smoothing), similarity

    start = estimate.as_map(project=False)
    W, objective = jax.lax.scan(step, start, jnp.arange(settings.cluster_steps) if steps is None else steps)
    return Refined(estimate=Estimate(matrix=W, is_map=True), objective=objective)
