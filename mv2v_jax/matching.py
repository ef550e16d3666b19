"""Relative representations: rows of two spaces compared through their cosines to matched anchors."""

import jax

from mv2v_jax.neighbors import Partners, neighbor_means
from mv2v_jax.preprocess import unit_rows


def describe(x: jax.Array, anchors: jax.Array) -> jax.Array:
    """Relative representation of rows ``x [n, d]``: unit vectors of their cosines to ``anchors [a, d]``, ``[n, a]``."""
    return unit_rows(unit_rows(x) @ unit_rows(anchors).T)


def match_relative(
    x: jax.Array, y: jax.Array, anchors_x: jax.Array, anchors_y: jax.Array, *, num_neighbors: int
) -> Partners:
    """Pseudo-partners of ``x`` among ``y``: the mean of the rows whose relative representation is closest.

    Args:
        x: ``[n, d_x]``.
        y: ``[m, d_y]``.
        anchors_x: ``[a, d_x]``; anchor i of X and anchor i of Y are matched.
        anchors_y: ``[a, d_y]``.
        num_neighbors: rows averaged.
    """
    # Y is described once; X block by block would save memory but not time, and n x a is small beside n x m.
    return neighbor_means(describe(x, anchors_x), describe(y, anchors_y), y, num_neighbors=num_neighbors)
