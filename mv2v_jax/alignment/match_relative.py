"""Relative representations: rows of two spaces compared by their cosines to matched anchors."""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.seeds import blend_seeds
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import Config
from mv2v_jax.ops.knn import Partners, neighbor_means
from mv2v_jax.ops.linalg import polar, scale_to_norm
from mv2v_jax.ops.masked import unit_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows


def _inverse_lengths(rows: jax.Array) -> jax.Array:
    """One over the lengths of ``rows [n, a]``, zero for zero rows: ``[n, 1]``."""
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)


def match_relative(x: jax.Array, y: jax.Array, anchors: TwoSpaces, *, num_neighbors: int) -> Partners:
    """Pseudo-partners of ``x`` among ``y``: the mean of the rows whose relative representation is closest.

    The relative representation of a row is the vector of its cosines to the anchors of its own space (Moschella et al.,
    arXiv 2209.15430). Representations are compared by cosine.

    Args:
        x: ``[n, d_x]``.
        y: ``[m, d_y]``.
        anchors: ``[a, d_x]`` and ``[a, d_y]``; anchor i of X and anchor i of Y are matched.
        num_neighbors: number of rows averaged.
    """
    x, unit_y = unit_rows(x), unit_rows(y)
    anchors_x, anchors_y = unit_rows(anchors.x), unit_rows(anchors.y)
    # Two representations x A_x^T and y A_y^T have the inner product x (A_x^T A_y) y^T. This takes d_y products per pair
    # of rows. The representations themselves would take one product per anchor, which is several times as many.
    queries = x @ (anchors_x.T @ anchors_y) * _inverse_lengths(x @ anchors_x.T)
    bank = unit_y * _inverse_lengths(unit_y @ anchors_y.T)
    return neighbor_means(queries, bank, y, num_neighbors=num_neighbors)


def first_estimate(key: jax.Array, rows: TwoSpaces, anchors: TwoSpaces, *, config: Config) -> Estimate:
    """The first `Estimate`: rows of X matched by relative representations.

    A published refinement goes on from a map. All others go on from a cross-covariance, because its singular values
    show which directions to trust.

    Args:
        key: random key; draws the rows of X.
        rows: centred unit rows of both spaces.
        anchors: matched anchors, from `select_anchors`.
        config: uses ``relative`` and ``pair_weight``.
    """
    num_drawn = config.relative.rows or rows.x.shape[0]
    (drawn,) = draw_rows(key, (rows.x,), (num_drawn,), order_rows(key, rows.x))
    partners = match_relative(drawn, rows.y, anchors, num_neighbors=config.relative.num_neighbors)
    cross = blend_seeds(drawn.T @ partners.rows, len(drawn), rows.seeds, config.pair_weight)
    if config.published.is_used:
        return Estimate(matrix=polar(cross), is_map=True)
    return Estimate(matrix=scale_to_norm(cross, min(cross.shape) ** 0.5), is_map=False)
