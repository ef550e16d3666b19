"""Orthogonal Procrustes: the semi-orthogonal factor of a cross-covariance, square or not."""

import chex
import jax
import jax.numpy as jnp


def polar(matrix: jax.Array) -> jax.Array:
    """Semi-orthogonal polar factor ``U V^T`` of the thin SVD of ``matrix [d_x, d_y]``.

    ``polar(x.T @ y)`` is the map ``w`` with orthonormal rows or columns (whichever are fewer) that minimises
    ``||x @ w - y||_F``; for ``d_x == d_y`` it is what `scipy.linalg.orthogonal_procrustes` returns.

    Returns:
        ``[d_x, d_y]``, same dtype.
    """
    chex.assert_rank(matrix, 2)
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def procrustes(x: jax.Array, y: jax.Array) -> jax.Array:
    """Semi-orthogonal map from paired rows ``x [n, d_x]`` to ``y [n, d_y]``: ``polar(x^T y)``, ``[d_x, d_y]``."""
    chex.assert_equal_shape_prefix((x, y), 1)
    return polar(x.T @ y)
