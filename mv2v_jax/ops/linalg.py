"""Orthogonal Procrustes: the semi-orthogonal factor of a cross-covariance, square or not, and its derivative.

The derivative of an SVD has differences of singular values in its denominators and is NaN where two are equal; that of
the polar factor has their sums and is not. With ``matrix = P H`` and ``H`` symmetric, ``P^T dP`` solves the Sylvester
equation ``H X + X H = P^T dM - dM^T P`` (Higham, Functions of Matrices, 2008, chapter 8), and what ``P`` has no rows
or columns for moves by ``(I - P P^T) dM H^-1``.
"""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.masked import working_dtype

# Newton-Schulz from singular values of at least a tenth of the largest: five steps to bring them near 1, five to get to
# the end of float32. Each is two matrix products.
_NEWTON_STEPS = 10


_POWER_STEPS = 2


# How far beyond the start a step looks, in units of the largest singular value: see `polar_step`.
_REACH = 8.0


def polar(matrix: jax.Array) -> jax.Array:
    """Semi-orthogonal polar factor ``U V^T`` of the thin SVD of ``matrix [d_x, d_y]``.

    ``polar(x.T @ y)`` is the map ``w`` with orthonormal rows or columns (whichever are fewer) that minimises
    ``||x @ w - y||_F``; for ``d_x == d_y`` it is what `scipy.linalg.orthogonal_procrustes` returns.

    It can be differentiated, forward, backward and more than once. Equal singular values do no harm. Where the sum of
    two singular values is zero (below ``max(d_x, d_y)`` rounding errors of the largest) the factor is not determined,
    and turns between those two directions get a derivative of zero; so does all of a matrix of zeros. One zero singular
    value of a square matrix leaves a sign open; the derivative is that of the side the SVD took.

    Returns:
        ``[d_x, d_y]``, same dtype; half precision is computed in float32.
    """
    chex.assert_rank(matrix, 2)
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    return _tall_polar(matrix.astype(working_dtype(matrix.dtype))).astype(matrix.dtype)


@jax.custom_jvp
def _tall_polar(matrix: jax.Array) -> jax.Array:
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u @ vt


@_tall_polar.defjvp
def _polar_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    # For its values only: what is differentiated again is `_known` and the two equations.
    u, singular, vt = jax.lax.stop_gradient(jnp.linalg.svd(jax.lax.stop_gradient(matrix), full_matrices=False))
    smallest = singular[0] * max(matrix.shape) * jnp.finfo(matrix.dtype).eps
    factor = _known(u @ vt, matrix)
    symmetric = factor.T @ matrix
    symmetric = (symmetric + symmetric.T) / 2
    projected = factor.T @ change

    def turn(_, right):
        inverse = _inverse(singular[:, None] + singular[None], smallest)
        return vt.T @ (vt @ right @ vt.T * inverse) @ vt

    def divide(_, left):
        return (left @ vt.T * _inverse(singular, smallest)[None]) @ vt

    # `custom_linear_solve` takes the derivative of the equation, not that of its solution, and is linear in the right.
    moved = factor @ jax.lax.custom_linear_solve(
        lambda x: symmetric @ x + x @ symmetric, projected - projected.T, turn, symmetric=True
    )
    if matrix.shape[0] > matrix.shape[1]:
        moved += jax.lax.custom_linear_solve(
            lambda x: x @ symmetric, change - factor @ projected, divide, symmetric=True
        )
    return factor, moved


@jax.custom_jvp
def _known(value: jax.Array, matrix: jax.Array) -> jax.Array:
    """The polar factor of ``matrix``, whose ``value`` is known: one decomposition does for value and derivative."""
    return value


@_known.defjvp
def _known_jvp(primals, tangents):
    return primals[0], jax.jvp(_tall_polar, primals[1:], tangents[1:])[1]


def _inverse(denominator: jax.Array, smallest: jax.Array) -> jax.Array:
    return jnp.where(denominator > smallest, 1 / jnp.where(denominator > smallest, denominator, 1), 0)


def polar_step(start: jax.Array, matrix: jax.Array) -> jax.Array:
    """One step from the semi-orthogonal ``start [d_x, d_y]`` to the polar factor of ``matrix``, by products alone.

    The polar factor of ``start + c matrix``, with ``c`` such that the second term's largest singular value is 8: near
    the end all singular values are between 1 and 9, so that Newton-Schulz needs ten steps whatever the condition of
    ``matrix``. Each call leaves ``1 / (1 + c (s_i + s_j) / 2)`` of what is to be turned between the directions ``i``
    and ``j``: sure directions arrive at once, and those the matrix says nothing of stay as they were. It is the
    generalised power method (Journee et al., JMLR 2010) on ``trace(W^T matrix)``.

    Returns:
        ``[d_x, d_y]``, semi-orthogonal up to rounding if ``start`` was not opposed to ``matrix``.
    """
    chex.assert_equal_shape((start, matrix))
    if start.shape[0] < start.shape[1]:
        return polar_step(start.T, matrix.T).T
    # The largest singular value, from below and rarely by more than a few percent; Newton-Schulz bears 70.
    vector = jnp.sum(matrix * start, axis=0) + jnp.sum(jnp.abs(matrix), axis=0)
    for _ in range(_POWER_STEPS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(matrix.dtype).tiny)
    largest = jnp.linalg.norm(matrix @ vector)
    reach = jnp.where(largest > 0, _REACH / jnp.where(largest > 0, largest, 1), 0)
    x = (start + matrix * reach) / (1 + _REACH)
    for _ in range(_NEWTON_STEPS):
        x = 1.5 * x - 0.5 * x @ (x.T @ x)
    return x


def scale_to_norm(matrix: jax.Array, length: float | jax.Array) -> jax.Array:
    """``matrix`` scaled to a Frobenius norm of ``length``; one of zeros stays so."""
    return matrix * (length / jnp.maximum(jnp.linalg.norm(matrix), jnp.finfo(matrix.dtype).tiny))


def procrustes(x: jax.Array, y: jax.Array) -> jax.Array:
    """Semi-orthogonal map from paired rows ``x [n, d_x]`` to ``y [n, d_y]``: ``polar(x^T y)``, ``[d_x, d_y]``."""
    chex.assert_equal_shape_prefix((x, y), 1)
    return polar(x.T @ y)


def svd_from_gram(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin SVD of ``matrix [a, b]`` from the eigenvectors of its smaller Gram matrix, in less than half the time.

    Squaring costs half of the digits: singular values below the root of the rounding error, relative to the largest,
    are noise, and so are the vectors of the larger side that belong to them.
    """
    if matrix.shape[0] < matrix.shape[1]:
        u, singular, vt = svd_from_gram(matrix.T)
        return vt.T, singular, u.T
    squared, v = jnp.linalg.eigh(matrix.T @ matrix)
    squared, v = squared[::-1], v[:, ::-1]
    smallest = jnp.maximum(squared[0] * jnp.finfo(matrix.dtype).eps ** 2, jnp.finfo(matrix.dtype).tiny)
    singular = jnp.sqrt(jnp.maximum(squared, smallest))
    return (matrix @ v) / singular[None], singular, v.T
