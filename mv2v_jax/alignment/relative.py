"""Relative representations: rows of two spaces compared through their cosines to matched anchors."""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.knn import Partners, neighbor_means
from mv2v_jax.ops.masked import unit_rows


def _inverse_lengths(rows: jax.Array) -> jax.Array:
    """One over the lengths of ``rows [n, a]``, zero for rows without length: ``[n, 1]``."""
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)


def match_relative(
    x: jax.Array, y: jax.Array, anchors_x: jax.Array, anchors_y: jax.Array, *, num_neighbors: int
) -> Partners:
    """Pseudo-partners of ``x`` among ``y``: the mean of the rows whose relative representation is closest.

    The relative representation of a row is the vector of its cosines to the anchors of its own space (Moschella et al.,
    arXiv 2209.15430); two of them are compared by cosine.

    Args:
        x: ``[n, d_x]``.
        y: ``[m, d_y]``.
        anchors_x: ``[a, d_x]``; anchor i of X and anchor i of Y are matched.
        anchors_y: ``[a, d_y]``.
        num_neighbors: rows averaged.
    """
    x, unit_y = unit_rows(x), unit_rows(y)
    anchors_x, anchors_y = unit_rows(anchors_x), unit_rows(anchors_y)
    # Two representations x A_x^T and y A_y^T have the inner product x (A_x^T A_y) y^T: d_y products for every pair of
    # rows where the representations themselves would take a, which is several times as many.
    queries = x @ (anchors_x.T @ anchors_y) * _inverse_lengths(x @ anchors_x.T)
    bank = unit_y * _inverse_lengths(unit_y @ anchors_y.T)
    return neighbor_means(queries, bank, y, num_neighbors=num_neighbors)
